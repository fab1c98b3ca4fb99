"""``jhlauncher check`` names what is wrong: set-ups that are broken one by one, at a real Hub."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from jhlauncher.database import Database
from jhlauncher.operations.commands import CheckApp
from jhlauncher.operations.on_kubernetes import RIGHTS
from jhlauncher.ports import SERVICES, free_port
from tests.cli.terminal import terminal
from tests.deployments.support import needs
from tests.engines.hubs import REPOSITORY, KubernetesHub
from tests.postgres import Postgres
from tests.real_hub import RealHub

pytestmark = pytest.mark.real_hub

TOKEN = secrets.token_hex(32)


class ExternalHub(RealHub):
    """A Hub whose launcher is an external service, started beside it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port(SERVICES)
        super().__init__(
            folder,
            install=f'engine="local", url="http://127.0.0.1:{self.port}", api_token="{TOKEN}"',
            after=OTHERS,
        )
        config = folder / "jupyterhub_config.py"
        # what is of a managed service
        managed = re.compile(r', images=.*?/jhlauncher_config.py",\n', re.DOTALL)
        config.write_text(managed.sub("\n", config.read_text().replace("LAUNCHERS_PORT", str(self.port))))
        self.variables = {
            "JUPYTERHUB_API_TOKEN": TOKEN,
            "JUPYTERHUB_API_URL": self.api_url,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{self.port}",
            "JUPYTERHUB_URL": self.url,
        }

    @contextmanager
    def running(self) -> Iterator[ExternalHub]:
        environment = {"PATH": os.environ["PATH"], **self.variables}
        with (self.folder / "launcher.log").open("wb") as log:
            self.service = subprocess.Popen(
                [sys.executable, "-m", "jhlauncher"], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        try:
            with super().running():
                yield self
        finally:
            self.stop_service()

    def stop_service(self) -> None:
        self.service.send_signal(signal.SIGTERM)
        self.service.wait(60)


# services that are what a launcher's may be by mistake
OTHERS = """
c.JupyterHub.services += [
    {"name": "poor", "api_token": "token-of-a-service-without-scopes"},
    {"name": "bounded", "api_token": "token-of-a-service-for-one-group"},
    {"name": "misled", "api_token": "token-of-a-service-that-is-misled", "url": "http://127.0.0.1:LAUNCHERS_PORT",
     "info": {"jhlauncher": {"version": "0.0.1", "key_fingerprint": "another", "spawner_class": "simple",
                             "launches": False, "named_servers": False}}},
]
c.JupyterHub.load_roles += [
    {"name": "bounded", "services": ["bounded"],
     "scopes": ["admin:users", "servers!group=course-1", "tokens", "read:services!service=bounded"]},
    {"name": "misled", "services": ["misled"],
     "scopes": ["admin:users", "servers", "tokens", "read:services!service=misled"]},
]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalHub]:
    hub = ExternalHub(tmp_path_factory.mktemp("hub"))
    with hub.running():
        yield hub


def check(*arguments: str) -> dict[str, dict[str, str]]:
    """The findings of this process' settings, by what was looked at; of several, the worst."""
    app = CheckApp()
    app.initialize(list(arguments))

    async def findings() -> list[Any]:
        return [asdict(finding) async for finding in app.findings()]

    return worst(asyncio.run(findings()))


def check_apart(*arguments: str) -> dict[str, dict[str, str]]:
    """The same, in a process of its own: clients of engines are kept for as long as a process lives."""
    return worst(json.loads(command(*arguments, "--json").stdout))


def worst(findings: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    rank = ["ok", "skipped", "warning", "problem"]
    return {each["check"]: each for each in sorted(findings, key=lambda each: rank.index(each["status"]))}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "jhlauncher", "check", *arguments]
    return subprocess.run(run, capture_output=True, text=True, timeout=120)


@dataclass
class Broken:
    """One set-up that is broken in one way."""

    name: str
    finding: str
    says: str
    variables: dict[str, str] = field(default_factory=dict)
    config: str = ""
    """Lines at the end of the Hub's configuration; with these, its side is looked at."""
    status: str = "problem"


SIDES = "c.JupyterHub.spawner_class = 'launcher-docker'\n"
BROKEN = [
    # where the service runs
    Broken("no token", "settings", "has no token", {"JUPYTERHUB_API_TOKEN": ""}),
    Broken("a token that the Hub does not know", "token", "does not know", {"JUPYTERHUB_API_TOKEN": "x" * 32}),
    Broken(
        "another service's token", "token", "of the service poor, not of the service launcher",
        {"JUPYTERHUB_API_TOKEN": "token-of-a-service-without-scopes"},
    ),
    Broken("no address of the Hub", "settings", "API is not known", {"JUPYTERHUB_API_URL": "", "JUPYTERHUB_URL": ""}),
    Broken("no Hub there", "hub", "does not answer", {"JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api"}),
    Broken("not the Hub's API", "hub", "is not JupyterHub's API", {"JUPYTERHUB_API_URL": "{proxy}/hub"}),
    Broken(
        "a role without scopes", "scopes", "lacks admin:users, servers, tokens",
        {"JUPYTERHUB_API_TOKEN": "token-of-a-service-without-scopes",
         "JUPYTERHUB_SERVICE_PREFIX": "/services/poor/"},
    ),
    Broken(
        "a role for one group", "scopes", "has servers for some users only",
        {"JUPYTERHUB_API_TOKEN": "token-of-a-service-for-one-group",
         "JUPYTERHUB_SERVICE_PREFIX": "/services/bounded/"}, status="warning",
    ),
    Broken(
        "a Hub that install_launcher has not configured", "hub's side", "does not say",
        {"JUPYTERHUB_API_TOKEN": "token-of-a-service-for-one-group",
         "JUPYTERHUB_SERVICE_PREFIX": "/services/bounded/"}, status="warning",
    ),
    Broken("another signing key", "signing key", "another signing key", {"JHLAUNCHER_SIGNING_KEY": "k" * 32}),
    Broken("a short signing key", "signing key", "has 5 characters", {"JHLAUNCHER_SIGNING_KEY": "short"}),
    *(
        Broken(name, finding, says, {
            "JUPYTERHUB_API_TOKEN": "token-of-a-service-that-is-misled",
            "JUPYTERHUB_SERVICE_PREFIX": "/services/misled/",
        }, status=status)
        for name, finding, says, status in (
            ("a spawner that ignores launches", "spawner", "simple does not understand launches", "problem"),
            ("another version at the Hub", "version", "The Hub's side has jhlauncher 0.0.1", "warning"),
            ("no named servers", "named servers", "are off", "warning"),
        )
    ),
    Broken(
        "another port than the Hub knows", "address", "which listens on http://127.0.0.1:1",
        {"JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:1"}, status="warning",
    ),
    Broken("another prefix", "address", "which answers at /elsewhere/", {
        "JUPYTERHUB_SERVICE_PREFIX": "/elsewhere/", "JUPYTERHUB_SERVICE_NAME": "launcher"}),
    Broken("no proxy there", "proxy", "does not answer", {"JUPYTERHUB_URL": "http://127.0.0.1:1"}),
    Broken("not the proxy", "proxy", "is not the launcher", {"JUPYTERHUB_URL": "{hub}"}),
    Broken("a database of another kind", "database", "must begin with sqlite", {"JHLAUNCHER_DB_URL": "mysql://x/y"}),
    Broken("no folder for the database", "database", "can't be written", {"JHLAUNCHER_DB_URL": "sqlite:////no/such/x.sqlite"}),
    Broken("no database server", "database", "can't be opened", {"JHLAUNCHER_DB_URL": "postgresql://x@127.0.0.1:1/y"}),
    # where the Hub runs
    Broken("a configuration with a mistake", "configuration", "line 3: NameError: name 'd'", config="d.JupyterHub = 1"),
    Broken("a setting of the wrong type", "configuration", "'hub_port' trait", config="c.JupyterHub.hub_port = 'x'"),
    Broken(
        "a spawner class that is set again", "spawner", "does not understand launches",
        config="c.JupyterHub.spawner_class = 'simple'",
    ),
    Broken("named servers that are off", "named servers", "are off", status="warning",
           config="c.JupyterHub.allow_named_servers = False"),
    Broken("a proxy that is not installed", "proxy's command", "no-such-proxy, which is not there",
           config="c.ConfigurableHTTPProxy.command = ['no-such-proxy']"),
    Broken("a server that is not installed", "image", "no-such-command of the image 'plain'",
           config="c.LauncherLocalSpawner.environments['plain']['cmd'] = ['no-such-command']"),
    Broken("containers that do not find the Hub", "hub's address", "their own loopback address", config=SIDES),
    Broken("a Hub that listens to itself only", "hub's address", "listens on 127.0.0.1 only",
           config=SIDES + "c.JupyterHub.hub_connect_ip = 'hub'"),
    Broken("no Docker", "engine", "Docker Engine can't be used", {"DOCKER_HOST": "unix:///no/such.sock"}, config=SIDES),
    Broken("a Docker Engine in no swarm", "swarm", "is in no swarm", {"DOCKER_HOST": "{no swarm}"},
           config="c.JupyterHub.spawner_class = 'launcher-swarm'"),
    Broken("a worker of a swarm", "swarm", "is a worker", {"DOCKER_HOST": "{worker}"},
           config="c.JupyterHub.spawner_class = 'launcher-swarm'"),
    Broken("a swarm without a network", "network", "network_name is not set", {"DOCKER_HOST": "{manager}"},
           config="c.JupyterHub.spawner_class = 'launcher-swarm'"),
    Broken("a network that is not there", "network", "no network servers", {"DOCKER_HOST": "{manager}"},
           config="c.JupyterHub.spawner_class = 'launcher-swarm'\nc.SwarmSpawner.network_name = 'servers'"),
    Broken("no Kubernetes", "engine", "engine can't be used", {"KUBECONFIG": "/no/such/file"},
           config="c.JupyterHub.spawner_class = 'launcher-kubernetes'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Docker Engines that the tests' own can't be made: in no swarm, and a worker; and one whose swarm is empty."""
    swarms = {
        "no swarm": {"LocalNodeState": "inactive"},
        "worker": {"LocalNodeState": "active", "ControlAvailable": False},
        "manager": {"LocalNodeState": "active", "ControlAvailable": True, "Nodes": 1},
    }
    servers = {}
    for name, swarm in swarms.items():
        path = tmp_path_factory.mktemp("docker") / "socket"
        server = ThreadingUnixStreamServer(str(path), type("Engine", (_Engine,), {"swarm": swarm}))
        server.daemon_threads = True  # clients keep their connections
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers[name] = (server, f"unix://{path}")
    yield {name: url for name, (_, url) in servers.items()}
    for server, _ in servers.values():
        server.shutdown()
        server.server_close()


class _Engine(BaseHTTPRequestHandler):
    """As much of Docker's API as a check asks for; there are no networks."""

    swarm: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            return self._answer(200, {"ApiVersion": "1.41", "Version": "20.10"})
        if self.path.endswith("/info"):
            return self._answer(200, {"ServerVersion": "20.10", "Swarm": self.swarm})
        return self._answer(404, {"message": "no such network"})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def service(hub: ExternalHub, monkeypatch: pytest.MonkeyPatch) -> ExternalHub:
    """This process has the service's settings."""
    for name, value in hub.variables.items():
        monkeypatch.setenv(name, value)
    return hub


def hub_config(hub: ExternalHub, tmp_path: Path, more: str = "") -> str:
    path = tmp_path / "jupyterhub_config.py"
    path.write_text((hub.folder / "jupyterhub_config.py").read_text() + "\n" + more)
    return f"--hub-config={path}"


def test_a_good_set_up(service: ExternalHub, tmp_path: Path):
    found = check(hub_config(service, tmp_path))
    assert {name: finding["status"] for name, finding in found.items() if finding["status"] != "ok"} == {}
    assert {"hub", "token", "scopes", "signing key", "clock", "proxy", "database", "spawner", "role", "engine"} <= set(
        found
    )


def test_systems_of_a_launcher_that_the_hub_starts():
    """It has no token here; its own configuration is in the Hub's folder."""
    ours = 'install_launcher(c, engine="local", images=["x"], signing_key="k" * 32)'
    Path("jupyterhub_config.py").write_text(f"from jhlauncher import install_launcher\nc = get_config()\n{ours}\n")
    assert "systems" not in check_apart("--hub-config=jupyterhub_config.py")
    Path("jhlauncher_config.py").write_text('c = get_config()\nc.Systems.systems = {"cluster": {}}\n')
    found = check_apart("--hub-config=jupyterhub_config.py")
    assert "token" not in found
    assert found["systems"]["status"] == "problem"
    assert "cluster: needs ssh, local or slurmrestd" in found["systems"]["message"]


def test_enough_is_tried():
    assert len({broken.name for broken in BROKEN}) == len(BROKEN) >= 20


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.name.replace(" ", "-") for broken in BROKEN])
def test_broken(
    service: ExternalHub, engines: dict[str, str], broken: Broken, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    places = {"{proxy}": service.origin, "{hub}": service.api_url.removesuffix("/hub/api")}
    places |= {f"{{{name}}}": url for name, url in engines.items()}
    for name, value in broken.variables.items():
        for place, url in places.items():
            value = value.replace(place, url)
        monkeypatch.setenv(name, value)
    config = broken.config
    if config.startswith("d."):  # the first lines are the ones that are counted
        (tmp_path / "jupyterhub_config.py").write_text("c = get_config()\n\n" + config)
        found = check(f"--hub-config={tmp_path / 'jupyterhub_config.py'}")
    else:
        look = check_apart if "launcher-" in config else check
        found = look(*([hub_config(service, tmp_path, config)] if config else []))
    assert found[broken.finding]["status"] == broken.status, found
    assert broken.says in found[broken.finding]["message"], found
    assert found[broken.finding]["remedy"]
    # nobody learns a secret from it
    told = json.dumps(found)
    assert not [secret for secret in (TOKEN, service.platform_token, "token-of-a") if secret in told]


def test_clocks_that_differ(service: ExternalHub, monkeypatch: pytest.MonkeyPatch):
    """This machine's is an hour ahead."""
    now = time.time
    monkeypatch.setattr("jhlauncher.operations.service_side.time.time", lambda: now() + 3600)
    found = check()
    assert found["clock"]["status"] == "problem"
    assert re.search(r"(3599|360[01]) s apart", found["clock"]["message"])


@pytest.mark.parametrize(("version", "says"), [("0001", "older version"), ("from the future", "newer version")])
def test_schema_of_another_version(
    service: ExternalHub, postgres: Postgres, version: str, says: str, monkeypatch: pytest.MonkeyPatch
):
    url = postgres.database()
    database = Database(url=url)
    database.validate_settings()
    database.upgrade()
    with database._connected() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    monkeypatch.setenv("JHLAUNCHER_DB_URL", url)
    found = check()
    assert found["database"]["status"] == "problem"
    assert says in found["database"]["message"]


def test_nothing_is_made(service: ExternalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "launches.sqlite"
    monkeypatch.setenv("JHLAUNCHER_DB_URL", f"sqlite:///{path}")
    assert "is empty" in check()["database"]["message"]
    assert not path.exists()


@pytest.mark.skipif(bool(needs("kubernetes")), reason=needs("kubernetes"))
@pytest.mark.parametrize(
    ("without", "status"), [(("pods", "create"), "problem"), (("pods/log", "get"), "warning"), (None, "ok")]
)
def test_rights_in_the_cluster(
    service: ExternalHub, tmp_path: Path, without: Any, status: str, monkeypatch: pytest.MonkeyPatch
):
    cluster = KubernetesHub(tmp_path, without=without)
    with cluster.prepared():
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        lines = f"c.JupyterHub.spawner_class = 'launcher-kubernetes'\nc.KubeSpawner.namespace = {cluster.id!r}"
        (tmp_path / "side").mkdir()
        found = check_apart(hub_config(service, tmp_path / "side", lines))["rights"]
    assert found["status"] == status, found
    if without:
        assert f"may not {without[1]} {without[0]}" in found["message"]


def test_what_is_asked_for_is_what_the_manifest_gives():
    documents = yaml.safe_load_all((REPOSITORY / "etc/kubernetes/hub/rbac.yaml").read_text())
    (role,) = (document for document in documents if document["kind"] == "Role")
    assert {rule["resources"][0]: rule["verbs"] for rule in role["rules"]} == RIGHTS


def test_the_command(service: ExternalHub, monkeypatch: pytest.MonkeyPatch):
    done = command()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("ok       hub: JupyterHub ")
    assert done.stdout.splitlines()[-1] == "0 problems, 0 warnings."
    monkeypatch.setenv("JHLAUNCHER_SIGNING_KEY", "k" * 32)
    done = command("--json")
    findings = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    (wrong,) = (finding for finding in findings if finding["status"] == "problem")
    assert wrong["check"] == "signing key"
    assert wrong.keys() == {"check", "status", "message", "remedy"}
    assert command("--no-such-option=1").returncode == 2
    assert command("--help").returncode == 0


@pytest.mark.asyncio
async def test_in_a_terminal(hub: ExternalHub):
    async with terminal(None, "check", **{**hub.variables, "JHLAUNCHER_SIGNING_KEY": "k" * 32}) as screen:
        assert await screen.status() == 1
        text = await screen.shows("1 problem, 0 warnings.")
    assert re.search("✗ +signing key", text)
    assert "→ Give signing_key=" in text


def test_a_proxy_that_does_not_reach_the_launcher(service: ExternalHub):
    """The last: the launcher is stopped."""
    service.stop_service()
    found = check()
    assert found["proxy"]["status"] == "problem"
    assert "answers 503" in found["proxy"]["message"]
