"""etc/jupyterhub and etc/systemd: the launcher managed and external, plain and with TLS; idle culling."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jhlauncher.ports import SERVICES, free_port
from tests.deployments.support import ETC, Visitor, needs, run
from tests.real_hub import RealHub

pytestmark = pytest.mark.real_hub

PASSWORD = "a long enough password for the tests"
PORTS = """
c.JupyterHub.hub_port = {hub}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.JupyterHub.bind_url = c.JupyterHub.bind_url.replace("8443", "{public}") if "TLS_CERT" in os.environ else \
    "http://127.0.0.1:{public}"
c.JupyterHub.cleanup_servers = True
"""


class Host:
    """A configuration from etc/ on this machine, on ports that are free."""

    def __init__(self, folder: Path, engine: str, *, external: bool, tls: bool, more: str = "") -> None:
        self.folder = folder
        hub, api, public = (free_port(SERVICES) for _ in range(3))
        self.token = secrets.token_hex(32)
        self.tls = tls
        self.url = f"https://localhost:{public}" if tls else f"http://127.0.0.1:{public}"
        self.environment = {"PLATFORM_TOKEN": self.token, "LOGIN_PASSWORD": PASSWORD}
        config = (ETC / "jupyterhub" / engine / "jupyterhub_config.py").read_text()
        (folder / "jupyterhub_config.py").write_text(config + PORTS.format(hub=hub, api=api, public=public) + more)
        self.external: dict[str, str] = {}
        if external:
            self.external = self._environment_file(hub)
            url, token = self.external["JUPYTERHUB_SERVICE_URL"], self.external["JUPYTERHUB_API_TOKEN"]
            self.environment |= {"LAUNCHER_URL": url, "LAUNCHER_TOKEN": token}
        if tls:
            self.certificate = folder / "tls.crt"
            name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
            keys = ("-keyout", "tls.key", "-out", "tls.crt")
            run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name, *keys, cwd=folder)
            self.environment |= {"TLS_CERT": str(self.certificate), "TLS_KEY": str(folder / "tls.key")}

    def _environment_file(self, hub_port: int) -> dict[str, str]:
        """What etc/systemd/jhlauncher.env says, with a token and other ports."""
        text = (ETC / "systemd/jhlauncher.env").read_text()
        text = text.replace("JUPYTERHUB_API_TOKEN=", f"JUPYTERHUB_API_TOKEN={secrets.token_hex(32)}")
        text = text.replace(":8081/", f":{hub_port}/").replace(":5000", f":{free_port(SERVICES)}")
        return dict(line.split("=", 1) for line in text.splitlines() if re.match("[A-Z]", line))

    @contextmanager
    def running(self) -> Iterator[Host]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        keep = {"PATH": path, **{name: os.environ[name] for name in ("DOCKER_HOST", "HOME") if name in os.environ}}
        commands = [([sys.executable, "-m", "jupyterhub", "--config", "jupyterhub_config.py"], self.environment)]
        if self.external:
            (self.folder / "launcher").mkdir()
            commands.insert(0, (unit()["ExecStart"].split(), self.external))
        processes = []
        with (self.folder / "log").open("wb") as log:
            for command, variables in commands:
                folder = self.folder / "launcher" if variables is self.external else self.folder
                processes.append(
                    subprocess.Popen(command, cwd=folder, env={**keep, **variables}, stdout=log, stderr=log)
                )
        try:
            yield self
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def visitor(self, token: str = "") -> Visitor:
        return Visitor(self.url, token, trusting=self.certificate if self.tls else None)


def unit() -> dict[str, str]:
    """The settings of the systemd unit, with the program that is tested here."""
    text = (ETC / "systemd/jhlauncher.service").read_text()
    text = text.replace("/opt/jhlauncher/bin/", f"{Path(sys.executable).parent}/")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


DOCKER = pytest.mark.skipif(bool(needs("docker")), reason=needs("docker"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("engine", "external", "tls"),
    [
        ("local", False, False),
        ("local", True, True),
        pytest.param("docker", True, False, marks=DOCKER),
        pytest.param("docker", False, True, marks=DOCKER),
    ],
)
async def test_a_launch_and_a_login(tmp_path: Path, engine: str, external: bool, tls: bool):
    image = "singleuser"
    more = ""
    if engine == "docker":
        image = os.environ["JHLAUNCHER_TEST_IMAGE"]
        more = f"c.JupyterHub.hub_connect_ip = {os.environ['JHLAUNCHER_TEST_HUB_IP']!r}\n"
        more += f"c.DockerSpawner.prefix = 't{secrets.token_hex(3)}'\n"
    host = Host(tmp_path, engine, external=external, tls=tls, more=more)
    with host.running():
        async with host.visitor(host.token) as platform, host.visitor() as ada, host.visitor() as stranger:
            await platform.ready()
            launched = await platform.launch(username="ada", image=image)
            assert launched["url"].startswith(host.url)
            assert await platform.opens(launched) == 200
            assert (await ada.log_in("ada", PASSWORD)).endswith("/hub/home")
            assert "/hub/login" in await stranger.log_in("ada", "wrong")
            await platform.stop("ada")


@pytest.mark.asyncio
async def test_an_idle_server_is_stopped_and_the_launch_says_so(tmp_path: Path):
    """Nobody has a connection to it, and JupyterHub takes the start for its last activity."""
    hub = RealHub(tmp_path, install='engine="local", idle_timeout=8')
    with hub.running():
        async with Visitor(hub.url, hub.platform_token) as platform:
            body = {"username": "ada", "image": "plain"}
            status, launch = await platform.request("POST", "services/launcher/launches", json=body)
            assert status == 202, launch
            path = f"services/launcher/launches/{launch['id']}"
            status, told = await platform.request("GET", f"{path}/events")  # to its end
            assert status == 200
            assert re.findall(r"^event: (ready|stopped|failed)$", told, re.MULTILINE) == ["ready", "stopped"]
            _, launch = await platform.request("GET", path)
            assert launch["state"] == "stopped"
            _, tokens = await hub.api("GET", "/users/ada/tokens")
            assert not [token for token in tokens["api_tokens"] if token["note"].startswith("jhlauncher")]


def test_the_systemd_unit(tmp_path: Path):
    """It is as it should be, and exposes little; no systemd runs here that could start it."""
    if reason := needs("systemd-analyze"):
        pytest.skip(reason)
    text = (ETC / "systemd/jhlauncher.service").read_text()
    path = tmp_path / "jhlauncher.service"
    path.write_text(text.replace("/opt/jhlauncher/bin/", f"{Path(sys.executable).parent}/"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    told = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(path))
    exposure = re.search(r"exposure level for jhlauncher.service: ([\d.]+)", told)
    assert exposure, told
    assert float(exposure[1]) < 2  # of 10; most services of a distribution have more than 8
    settings = unit()
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"


def test_every_variable_is_one_that_the_service_reads():
    """A misspelt one would be ignored."""
    source = "".join(path.read_text() for path in (ETC.parent / "jhlauncher").rglob("*.py"))
    for line in (ETC / "systemd/jhlauncher.env").read_text().splitlines():
        if re.match("[A-Z]", line):
            assert f'"{line.partition("=")[0]}"' in source, line
