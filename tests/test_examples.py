"""The examples in the README and the docs: each is run, or it is said here what else shows that it works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from jupyter_events import EventLogger
from jupyterhub.app import JupyterHub
from jupyterhub.authenticators.shared import SharedPasswordAuthenticator
from jupyterhub.proxy import ConfigurableHTTPProxy
from traitlets import HasTraits
from traitlets.config import Config, LazyConfigValue

from jhlauncher.policy import Policy
from tests.real_hub import RealHub
from tests.test_docs import DOCS, REPOSITORY, configurables

pytestmark = pytest.mark.real_hub

FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "python", "json", "toml", "yaml", "text"}
PAGES = {"README.md": (REPOSITORY / "README.md").read_text(), **DOCS}

ELSEWHERE = {
    "make demo": "tests/test_demo.py",
    "make test ": "what runs this, and tests/test_docs.py",
    'export PATH="$PWD/.venv/bin:$PATH" CONFIG=': "the same Hub is started here, from howto-local.md",
    "python3 -m venv hub-env": "packages and their index: requirements/setup does the same, before any test",
    "(umask 077; echo": "the Hub of the how-to has such variables here",
    ". ./hub.env": "the Hub of the how-to is started here",
    'pip install ".[userjobs]"': "a login node; tests/userjobs/sshd.py makes such keys, and such lines",
    'pip install "': "requirements/setup installs the package with these extras",
    "docker pull": "needs a registry on the internet; tests/engines/test_pulling.py pulls from one of its own",
    "docker volume create": "tests/engines/test_docker.py",
    "docker build": "tests/engines/hubs.py builds this file, and runs what comes of it",
    "export IMAGE_PREFIX": "the same file as above; tests/deployments/test_swarm.py has a registry with that prefix",
    "docker service create": "an image on the internet; tests/engines/registry.py is a registry",
    "export DOCKER_GID": "tests/deployments/test_swarm.py",
    "docker exec": "tests/deployments/test_swarm.py",
    "docker service scale": "tests/deployments/test_swarm.py",
    "./make-secrets": "tests/deployments/test_swarm.py",
    "export TOKEN=$(cat": "a shell's own",
    "./make-env": "tests/deployments/test_compose.py",
    "export TOKEN=$(sed": "a shell's own",
    "docker compose": "tests/deployments/test_compose.py",
    "kubectl": "tests/deployments/test_kubernetes.py",
    "export TOKEN=$(kubectl": "kubectl's own",
    "helm": "the chart is on the internet; tests/deployments/test_values.py runs what the values have",
    "python3 -m venv /opt/jhlauncher": "no systemd runs here; tests/deployments/test_one_host.py checks the unit",
    "jhlauncher batch start --group": "needs a group; tests/cli/test_classes.py has one",
    "jhlauncher jobs": "needs a Slurm; tests/cli/test_jobs.py",
    "cat > serve.sh": "tests/cli/test_jobs.py runs this example",
    "from jhlauncher.client import BlockingClient\n\nwith BlockingClient() as client:\n    client.submit_job": (
        "tests/cli/test_jobs.py runs this example"
    ),
    "curl -X POST https://hub.example.org/services/launcher/api/userjobs/": "tests/userjobs/test_slurm.py",
    "jhlauncher check --hub-config": "tests/operations/test_check.py",
    "jhlauncher volumes list": "tests/operations/test_volumes.py, tests/engines/test_disks.py",
    '(umask 077; echo "$TOKEN"': "tests/operations/test_orphans.py",
    "export CONFIG_PATH=/etc/jhlauncher/config.json": "tests/manager/test_settings.py starts it with these variables",
    "export JUPYTERHUB_SERVICE_URL": "tests/faults.py starts external services with this environment",
    "jhlauncher upgrade-db": "tests/test_database.py",
    "curl -X POST http://127.0.0.1:8080/api/services/": "tests/manager/test_contract.py",
    "curl -i http://127.0.0.1:8080/api/health/": "tests/manager/test_contract.py",
    "curl -X POST http://127.0.0.1:8080/api/logs/handler/": "tests/manager/test_logs.py",
}
"""How blocks begin that need what a test of the docs has not, or would take from the machine; and what shows that they
work. They are checked for their syntax and for the files that they name."""


@dataclass(frozen=True)
class Block:
    """An example."""

    page: str
    language: str
    text: str

    @property
    def elsewhere(self) -> str | None:
        return next((where for start, where in ELSEWHERE.items() if self.text.startswith(start)), None)

    @property
    def is_configuration(self) -> bool:
        return self.language == "python" and re.search(r"^c\.|install_launcher\(", self.text, re.MULTILINE) is not None


def blocks_of(page: str) -> list[Block]:
    found = FENCE.findall(PAGES[page])
    return [Block(page, language, re.sub(f"^{indent}", "", text, flags=re.M)) for indent, language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = {
    page: [block for block in blocks_of(page) if block.language in ("bash", "python") and not block.is_configuration]
    for page in PAGES
}

MORE = """
images = ["quay.io/jupyter/base-notebook", "quay.io/jupyter/base-notebook:latest"]
images.append("localhost:5000/dlcc/jupyter-singleuser:latest")
c.LauncherLocalSpawner.environments = {"singleuser": {}, **{name: {} for name in images}}
c.LauncherLocalSpawner.ignored_fields = ["cpu", "memory", "gpu"]
c.JupyterHub.services.append({"name": "prometheus", "api_token": os.environ["METRICS_TOKEN"]})
scopes = ["access:services!service=launcher", "read:metrics"]
c.Spawner.http_timeout = 120
c.JupyterHub.load_roles.append({"name": "prometheus", "services": ["prometheus"], "scopes": scopes})
"""
"""What the engines of other pages' examples have: their images' names, and memory; who may read metrics; and time
enough for a server that starts while other tests keep the machine busy."""


class HubOfTheHowTo(RealHub):
    """The Hub that a how-to describes, on free ports."""

    def __init__(self, folder: Path, configuration: str) -> None:
        super().__init__(folder)
        self.environment = {
            "PLATFORM_TOKEN": self.platform_token,
            "LOGIN_PASSWORD": "a password for the examples",
            "METRICS_TOKEN": self.second_token,
        }
        ports = f"""
c.JupyterHub.bind_url = {self.origin!r}
c.JupyterHub.hub_port = {self.hub_port}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{self.proxy_port}"
"""
        (folder / "jupyterhub_config.py").write_text(configuration + ports + MORE)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a reader would, whose Hub has the address of the docs."""
        script = script.replace("https://hub.example.org", self.origin)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'curl() {{ command curl --fail-with-body -sS "$@"; }}\n{script}'],
            cwd=self.folder,
            env={
                "PATH": path,
                "HOME": str(self.folder),
                "TOKEN": self.platform_token,
                "METRICS_TOKEN": self.second_token,
                "JHLAUNCHER_URL": self.launcher_url,
                "JHLAUNCHER_TOKEN": self.platform_token,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubOfTheHowTo]:
    configuration = next(block.text for block in blocks_of("howto-local.md") if block.is_configuration)
    with HubOfTheHowTo(tmp_path_factory.mktemp("hub"), configuration).running() as hub:  # type: ignore[attr-defined]
        yield hub  # type: ignore[misc]


@pytest.fixture
def tidy_hub(hub: HubOfTheHowTo) -> HubOfTheHowTo:
    """Nobody's server runs, and there has been a launch."""
    done = hub.shell(
        "jhlauncher launch --user first --image singleuser --no-wait; jhlauncher stop $(jhlauncher list -q) >&2"
    )
    assert done.returncode == 0, done.stderr
    return hub


@pytest.mark.parametrize("page", [page for page, blocks in RUN.items() if any(not b.elsewhere for b in blocks)])
def test_what_is_to_be_run(tidy_hub: HubOfTheHowTo, page: str):
    for block in RUN[page]:
        if block.elsewhere:
            continue
        script = block.text if block.language == "bash" else f"python3 - <<'END'\n{block.text}\nEND"
        done = tidy_hub.shell(script)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert "event: failed" not in done.stdout
        assert "Traceback" not in done.stderr


def test_what_ready_answers(hub: HubOfTheHowTo):
    said = hub.shell("curl https://hub.example.org/services/launcher/ready").stdout
    [block] = [block for block in blocks_of("howto-local.md") if block.language == "json"]
    assert json.loads(said) == json.loads(block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.elsewhere], ids=lambda block: block.page)
def test_what_is_run_elsewhere(block: Block):
    if block.language == "python":
        compile(block.text, block.page, "exec")
    else:
        assert subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, check=False).stderr == b""
    for file in re.findall(r"(?<![\w/])(?:etc|requirements)/[\w./-]+", block.text):
        assert (REPOSITORY / file).exists(), file
    assert block.elsewhere is not None
    for test in re.findall(r"tests/[\w/]+\.py", block.elsewhere):
        assert (REPOSITORY / test).exists(), test


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.is_configuration], ids=lambda block: block.page)
def test_configuration(block: Block, monkeypatch: pytest.MonkeyPatch):
    """It is loaded as JupyterHub loads it, and every setting in it exists and takes its value."""
    for name in ("PLATFORM_TOKEN", "LOGIN_PASSWORD", "LAUNCHER_TOKEN"):
        monkeypatch.setenv(name, "a secret of more than thirty-two characters")
    c = Config()
    exec(compile(block.text, block.page, "exec"), {"get_config": lambda: c, "c": c})
    try:
        check_settings(c)
        Policy(config=c)
    finally:
        for handler in c.EventLogger.get("handlers", []):
            handler.close()


def check_settings(c: Config) -> None:
    known = [JupyterHub, SharedPasswordAuthenticator, EventLogger, ConfigurableHTTPProxy, *configurables()]
    classes = {parent.__name__: parent for cls in known for parent in cls.__mro__ if issubclass(parent, HasTraits)}
    for section, settings in c.items():
        for name, value in settings.items():
            trait = classes[section].class_traits(config=True)[name]
            given = value.get_value([]) if isinstance(value, LazyConfigValue) else value  # of c.X.y.extend
            trait.validate(HasTraits(), given)


def test_data():
    fences = re.findall(r"^ *```(.*)$", PAGES["README.md"], re.MULTILINE)
    assert all(fences[::2]), "each names its language"
    for block in BLOCKS:
        assert block.language in LANGUAGES, block
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            assert all(document["kind"] for document in yaml.safe_load_all(block.text))
