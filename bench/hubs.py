"""Real JupyterHubs to measure on, and what they and their launcher have used.

`fixed` starts servers that take a fixed time and are all one echo server, so that what is left is the Hub's own work
and the launcher's; the others are those of the engines' tests, with real single-user servers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pending import memory
from jhlauncher.ports import SERVICES, free_port
from tests.engines.hubs import HUBS
from tests.real_hub import RealHub

_FIXED_SPAWNER = """
import asyncio
from jupyterhub.spawner import Spawner
from traitlets import Unicode

class FixedSpawner(Spawner):
    image = Unicode()
    alive = False

    async def start(self):
        self.alive = True
        await asyncio.sleep({seconds})
        return "http://127.0.0.1:{port}"

    async def poll(self):
        return None if self.alive else 0

    async def stop(self, now=False):
        self.alive = False
"""
_READY_LOG = """
import time
from jupyterhub.spawner import Spawner as _Spawner
_add_poll_callback = _Spawner.add_poll_callback

def add_poll_callback(spawner, *args, **kwargs):  # the Hub calls this when a start is complete
    _add_poll_callback(spawner, *args, **kwargs)
    with open(FOLDER + "/ready.log", "a") as log:
        log.write(f"{spawner.user.name} {time.time()}\\n")

_Spawner.add_poll_callback = add_poll_callback
c.JupyterHub.authenticate_prometheus = False
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.last_activity_interval = 3600
c.JupyterHub.trust_user_provided_tokens = True  # or the clients' own requests would be dearer than the launcher's
"""
_SERVICE = "c.Hub.auth_cache_seconds = 60\nc.StartBound.concurrent_starts = 100\n"
ENGINES = ("fixed", "docker", "kubernetes")


class Measured:
    """A Hub, and what has happened there."""

    def __init__(self, hub: RealHub, image: str) -> None:
        self.hub = hub
        self.image = image
        self.service = _child_of(hub.process.pid)
        """The process id of the launcher, which the Hub manages."""

    def ready_since(self) -> dict[str, float]:
        """When the Hub was through with the start of each user's server (seconds since 1970)."""
        lines = (self.hub.folder / "ready.log").read_text().splitlines()
        return {user: float(moment) for user, _, moment in (line.partition(" ") for line in lines)}

    def requests(self) -> int:
        """How many requests the Hub has answered, whoever asked, but for these."""
        with urllib.request.urlopen(f"{self.hub.url}hub/metrics") as answer:
            metrics = answer.read().decode()
        counts = re.findall(r"^jupyterhub_request_duration_seconds_count\{(.*)\} (.*)$", metrics, re.MULTILINE)
        return int(sum(float(count) for labels, count in counts if "MetricsHandler" not in labels))

    def cpu(self) -> tuple[float, float]:
        """Seconds that the Hub and the launcher have used."""
        return _cpu_seconds(self.hub.process.pid), _cpu_seconds(self.service)

    def memory(self) -> float:
        """The launcher's, in megabytes."""
        return memory(self.service)


@contextmanager
def measured(engine: str, folder: Path, seconds: float) -> Iterator[Measured]:
    """A Hub on this engine; with ``fixed``, a start takes so many seconds."""
    if engine != "fixed":
        hub = HUBS[engine](folder, after=_READY_LOG)
        with (folder / "jhlauncher_config.py").open("a") as config:
            config.write(_SERVICE)
        with hub.running():
            yield Measured(hub, hub.images["image"])
        return
    port = free_port(SERVICES)
    with _echo_server(port):
        before = _FIXED_SPAWNER.format(seconds=seconds, port=port)
        install = "spawner_class=FixedSpawner"
        fixed = RealHub(folder, install=install, before=before, after=_READY_LOG, service=_SERVICE)
        with fixed.running():
            yield Measured(fixed, "plain")


@contextmanager
def _echo_server(port: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _child_of(pid: int) -> int:
    """The launcher among the children of a process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(process)[1]) == pid and b"jhlauncher" in (process / "cmdline").read_bytes():
                return int(process.name)
        except OSError:
            pass  # it has ended meanwhile
    raise AssertionError("the Hub has no launcher")


def _cpu_seconds(pid: int) -> float:
    fields = _stat(Path(f"/proc/{pid}"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(process: Path) -> list[str]:
    """What the kernel says of a process, from its state on: proc_pid_stat(5) after the name, which may have spaces."""
    return (process / "stat").read_text().rpartition(")")[2].split()
