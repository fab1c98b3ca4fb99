"""What ``install_launcher`` leaves in a configuration, as JupyterHub itself reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets.config import Config

from jhlauncher import install_launcher
from jhlauncher._version import __version__
from jhlauncher.engines.local import LauncherLocalSpawner
from jhlauncher.signing import derive_key, key_fingerprint
from jhlauncher.spawner import LauncherSpawnerMixin

REPOSITORY = Path(__file__).parent.parent
INSTALL = 'from jhlauncher import install_launcher\ninstall_launcher(c, engine="local")\n'
OURS = {"admin:users", "servers", "tokens", "read:services!service=launcher"}


def read(tmp_path: Path, text: str, *arguments: str) -> JupyterHub:
    """JupyterHub with this configuration file, not started."""
    path = tmp_path / "jupyterhub_config.py"
    path.write_text("c = get_config()\n" + text)
    hub = JupyterHub()
    hub.parse_command_line(list(arguments))
    hub.load_config_file(str(path))
    return hub


def roles(hub: JupyterHub) -> dict[str, dict[str, Any]]:
    assert len({role["name"] for role in hub.load_roles}) == len(hub.load_roles)
    return {role["name"]: role for role in hub.load_roles}


def services(hub: JupyterHub) -> dict[str, dict[str, Any]]:
    return {service["name"]: service for service in hub.services}


ADMINISTRATORS = {
    "nothing": "",
    "assigned": """
c.JupyterHub.services = [{"name": "cull"}]
c.JupyterHub.load_roles = [{"name": "cull", "services": ["cull"]}]
""",
    "appended": """
c.JupyterHub.services.append({"name": "cull"})
c.JupyterHub.load_roles.extend([{"name": "cull", "services": ["cull"]}])
""",
    "added": """
c.JupyterHub.services = []
c.JupyterHub.load_roles = []
c.JupyterHub.services += [{"name": "cull"}]
c.JupyterHub.load_roles += [{"name": "cull"}]
""",
    "through a dict": """
c["JupyterHub"]["services"] = [{"name": "cull"}]
c["JupyterHub"]["load_roles"] = [{"name": "cull"}]
""",
    "merged": """
from traitlets.config import Config
c.merge(Config(JupyterHub=Config(services=[{"name": "cull"}], load_roles=[{"name": "cull"}])))
""",
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("lines", ADMINISTRATORS, ids=list(ADMINISTRATORS))
def test_keeps_the_administrators_lines(tmp_path: Path, order: str, lines: str):
    text = ADMINISTRATORS[lines]
    hub = read(tmp_path, INSTALL + text if order == "before" else text + INSTALL)
    expected = {"launcher"} | ({"cull"} if text else set())
    assert services(hub).keys() == expected
    assert roles(hub).keys() == expected | {"user"}
    assert set(roles(hub)["launcher"]["scopes"]) == OURS
    assert roles(hub)["user"]["scopes"] == ["self", "access:services!service=launcher"]


@pytest.mark.parametrize("order", ["before", "after"])
def test_administrators_role_for_users_is_extended(tmp_path: Path, order: str):
    text = 'c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "read:groups"]}]\n'
    hub = read(tmp_path, INSTALL + text if order == "before" else text + INSTALL)
    assert roles(hub)["user"]["scopes"] == ["self", "read:groups", "access:services!service=launcher"]


def test_command_line_of_the_hub_is_no_obstacle(tmp_path: Path):
    hub = read(tmp_path, INSTALL, "--JupyterHub.allow_named_servers=True", "--JupyterHub.port=1234")
    assert hub.allow_named_servers
    assert services(hub).keys() == {"launcher"}


def test_administrators_lists_are_not_changed():
    c = Config()
    mine = [{"name": "user", "scopes": ["self"]}]
    c.JupyterHub.load_roles = mine
    install_launcher(c, engine="local")
    dict(c.JupyterHub.items())
    assert mine == [{"name": "user", "scopes": ["self"]}]
    assert c.JupyterHub.load_roles is mine


def test_managed_service(tmp_path: Path):
    hub = read(tmp_path, INSTALL)
    service = services(hub)["launcher"]
    assert service["command"] == [sys.executable, "-m", "jhlauncher"]
    assert service["url"].startswith("http://127.0.0.1:")
    assert hub.spawner_class is LauncherLocalSpawner
    key = hub.config.LauncherSpawnerMixin.signing_key
    assert key == derive_key(Path("jhlauncher_secret").read_text()) == service["environment"]["JHLAUNCHER_SIGNING_KEY"]
    assert "api_token" not in service, "the Hub makes one, which it checks in no time"
    assert hub.config.LauncherSpawnerMixin.launcher_url == service["url"]


def test_secret_outlives_the_hub(tmp_path: Path):
    """What was launched before a restart must be recognised after it."""
    first, again = (read(tmp_path, INSTALL).config.LauncherSpawnerMixin.signing_key for _ in range(2))
    assert first == again
    assert Path("jhlauncher_secret").stat().st_mode & 0o777 == 0o600
    unkept = INSTALL.replace('engine="local"', 'engine="local", secret_file=None')
    first, again = (read(tmp_path, unkept).config.LauncherSpawnerMixin.signing_key for _ in range(2))
    assert first != again


def test_secret_that_others_may_read_is_refused():
    Path("jhlauncher_secret").write_text("x" * 64)
    Path("jhlauncher_secret").chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600 jhlauncher_secret"):
        install_launcher(Config(), engine="local")
    Path("jhlauncher_secret").chmod(0o600)
    Path("jhlauncher_secret").write_text("short")
    with pytest.raises(ValueError, match="at least 32 characters"):
        install_launcher(Config(), engine="local")
    with pytest.raises(ValueError, match="secret_file=None"):
        install_launcher(Config(), engine="local", secret_file="no/such/folder/secret")


def test_external_service():
    c = Config()
    install_launcher(c, engine="local", url="http://10.0.1.1:1984", api_token="super-secret", name="my-launcher")
    (service,) = dict(c.JupyterHub.items())["services"]
    assert service == {
        "name": "my-launcher",
        "url": "http://10.0.1.1:1984",
        "api_token": "super-secret",
        "oauth_client_allowed_scopes": ["admin:users", "read:users:groups", "servers"],
        "oauth_no_confirm": True,
        "info": service["info"],
    }
    assert c.LauncherSpawnerMixin.signing_key == derive_key("super-secret")


def test_the_hub_tells_how_it_is_configured(tmp_path: Path):
    key = 'signing_key="a key that is long enough for signing"'
    install = INSTALL.replace('engine="local"', f'engine="local", {key}')
    told = services(read(tmp_path, install + "c.JupyterHub.allow_named_servers = True"))["launcher"]["info"]
    assert told["jhlauncher"] == {
        "version": __version__,
        "key_fingerprint": key_fingerprint("a key that is long enough for signing"),
        "spawner_class": "jhlauncher.engines.local.LauncherLocalSpawner",
        "launches": True,
        "named_servers": True,
    }
    told = services(read(tmp_path, install + 'c.JupyterHub.spawner_class = "simple"'))["launcher"]["info"]
    assert (told["jhlauncher"]["spawner_class"], told["jhlauncher"]["launches"]) == ("simple", False)
    told = services(read(tmp_path, install + 'c.JupyterHub.spawner_class = "launcher-local"'))["launcher"]["info"]
    assert told["jhlauncher"]["launches"]


def test_idle_servers_are_stopped_by_the_culler(tmp_path: Path):
    install = INSTALL.replace('engine="local"', 'engine="local", idle_timeout=3600')
    hub = read(tmp_path, install)
    assert services(hub)["jupyterhub-idle-culler"]["command"][1:] == ["-m", "jupyterhub_idle_culler", "--timeout=3600"]
    role = roles(hub)["jupyterhub-idle-culler"]
    assert role["services"] == ["jupyterhub-idle-culler"]
    assert set(role["scopes"]) == {"list:users", "read:users:activity", "read:servers", "delete:servers"}
    # an administrator's own stays
    mine = """
c.JupyterHub.services = [{"name": "jupyterhub-idle-culler", "command": ["mine"]}]
c.JupyterHub.load_roles = [{"name": "jupyterhub-idle-culler", "services": ["jupyterhub-idle-culler"]}]
"""
    hub = read(tmp_path, install + mine)
    assert services(hub)["jupyterhub-idle-culler"]["command"] == ["mine"]
    assert "scopes" not in roles(hub)["jupyterhub-idle-culler"]


def test_any_spawner_class():
    c = Config()
    install_launcher(c, spawner_class=SimpleLocalProcessSpawner)
    assert c.JupyterHub.spawner_class.__mro__[1:3] == (LauncherSpawnerMixin, SimpleLocalProcessSpawner)
    for name in ("simple", "jupyterhub.spawner.SimpleLocalProcessSpawner", "launcher-local"):
        c = Config()
        install_launcher(c, spawner_class=name)
        assert issubclass(c.JupyterHub.spawner_class, SimpleLocalProcessSpawner)
        assert issubclass(c.JupyterHub.spawner_class, LauncherSpawnerMixin)


def test_server_state_is_an_extra_scope():
    c = Config()
    install_launcher(c, engine="local", server_state=True)
    (role,) = (role for role in dict(c.JupyterHub.items())["load_roles"] if role["name"] == "launcher")
    assert set(role["scopes"]) == OURS | {"admin:server_state"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"engine": "local", "idle_timeout": 0}, "idle_timeout= is a whole number of seconds, not 0"),
        ({"engine": "local", "idle_timeout": "1h"}, "idle_timeout= is a whole number of seconds, not '1h'"),
        ({}, "either engine= or spawner_class="),
        ({"engine": "local", "spawner_class": "simple"}, "either engine= or spawner_class="),
        ({"engine": "cloud"}, "unknown engine 'cloud'"),
        ({"engine": "local", "url": "http://10.0.0.1:1"}, "needs its api_token="),
        ({"engine": "local", "url": "http://10.0.0.1", "api_token": "x"}, "needs a port"),
        ({"engine": "local", "url": "http://10.0.0.1:1", "api_token": "x", "images": ["a"]}, "on its own side"),
        ({"engine": "local", "images": "singleuser"}, "images= is a list"),
        ({"engine": "local", "signing_key": "short"}, "at least 32"),
    ],
)
def test_contradictions_are_said(arguments: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        install_launcher(Config(), **arguments)


def test_another_service_of_that_name_is_said():
    c = Config()
    install_launcher(c, engine="local")
    c.JupyterHub.services = [{"name": "launcher"}]
    with pytest.raises(ValueError, match="another service named 'launcher'"):
        c.JupyterHub.items()


def test_example_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLATFORM_TOKEN", "token of the platform")
    monkeypatch.setenv("LOGIN_PASSWORD", "a long enough password")
    hub = read(tmp_path, (REPOSITORY / "etc/jupyterhub/local/jupyterhub_config.py").read_text())
    assert services(hub).keys() == {"launcher", "platform"}
    assert roles(hub).keys() == {"launcher", "platform", "user"}


@pytest.mark.parametrize(
    ("engine", "others"),
    [
        ("local", ("docker", "dockerspawner", "kubespawner", "kubernetes_asyncio")),
        ("docker", ("kubespawner", "kubernetes_asyncio")),
        ("swarm", ("kubespawner", "kubernetes_asyncio")),
        ("kubernetes", ("docker", "dockerspawner")),
    ],
)
def test_an_engine_needs_no_packages_of_the_others(engine: str, others: tuple[str, ...]):
    """As where they are not installed: importing them fails."""
    code = f"""
import subprocess
import sys
from importlib.metadata import entry_points
sys.modules.update(dict.fromkeys({others!r}))
from traitlets.config import Config
from jhlauncher import install_launcher
from jhlauncher._version import __version__
from jhlauncher.engines import ENGINES
c = Config()
install_launcher(c, engine={engine!r})
(entry,) = entry_points(group="jupyterhub.spawners", name="launcher-{engine}")
assert entry.load().__name__ == ENGINES[{engine!r}].rpartition(".")[2]
import jhlauncher.spawner
assert getattr(jhlauncher.spawner, entry.load().__name__) is entry.load()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dockerspawner", None)
    monkeypatch.delitem(sys.modules, "jhlauncher.engines.docker", raising=False)
    with pytest.raises(ValueError, match=r"dockerspawner, which the extra \[docker\] of"):
        install_launcher(Config(), engine="docker")


@pytest.mark.parametrize(("base", "mixin"), [("DockerSpawner", "DockerLaunch"), ("SwarmSpawner", "SwarmLaunch")])
def test_descendant_of_a_known_spawner_gets_its_engine(base: str, mixin: str):
    import dockerspawner

    own = type("Own", (getattr(dockerspawner, base),), {})
    c = Config()
    install_launcher(c, spawner_class=own)
    names = [ancestor.__name__ for ancestor in c.JupyterHub.spawner_class.__mro__]
    assert names[1] == mixin
