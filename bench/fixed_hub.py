"""A real JupyterHub whose servers take a fixed time to start: what is left is the Hub's work, and the launcher's."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jhlauncher.ports import SERVICES, free_port
from tests.real_hub import RealHub

_SPAWNER = """
import asyncio, time
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

    def add_poll_callback(self, *args, **kwargs):  # the Hub calls this when a start is complete
        super().add_poll_callback(*args, **kwargs)
        with open(FOLDER + "/ready.log", "a") as log:
            log.write(f"{{self.user.name}} {{time.time()}}\\n")
"""
_MORE = """
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.last_activity_interval = 3600
c.LauncherSpawnerMixin.launcher_url = c.LauncherSpawnerMixin.launcher_url
"""
_SERVICE = "c.StartBound.concurrent_starts = 100\nc.Hub.auth_cache_seconds = 300\n"


class FixedHub(RealHub):
    """The Hub, its processes, and what they have used."""

    @classmethod
    @contextmanager
    def running_with(cls, folder: Path, seconds: float) -> Iterator[FixedHub]:
        port = free_port(SERVICES)
        echo = subprocess.Popen([sys.executable, "-m", "bench.echo", str(port)])
        try:
            hub = cls(
                folder,
                install="spawner_class=FixedSpawner",
                before=_SPAWNER.format(seconds=seconds, port=port),
                after=_MORE,
                service=_SERVICE,
            )
            with hub.running():
                yield hub
        finally:
            echo.terminate()
            echo.wait()

    @property
    def service(self) -> int:
        """The launcher's process id; the Hub manages it."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and b"jhlauncher" in (stat.parent / "cmdline").read_bytes():
                    return int(stat.parent.name)
            except OSError:
                pass  # it has ended meanwhile
        raise AssertionError("the Hub has no launcher")

    def ready_since(self) -> dict[str, float]:
        """When the Hub was through with the start of each user's server."""
        lines = (self.folder / "ready.log").read_text().splitlines()
        return {user: float(moment) for user, _, moment in (line.partition(" ") for line in lines)}

    def requests(self) -> int:
        """What the launcher has asked the Hub, but for who its callers are."""
        request = urllib.request.Request(
            f"{self.launcher_url}metrics", headers={"Authorization": f"token {self.admin_token}"}
        )
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith("jhlauncher_hub_requests_total")))


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
