"""The service as a process of its own, which can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from jhlauncher.ports import SERVICES, free_port
from tests.fake_hub import SERVICE_TOKEN, FakeHub


class ServiceProcess:
    """A launcher with systems, in front of a Hub."""

    def __init__(self, folder: Path, hub: FakeHub, client: aiohttp.ClientSession, **sections: dict[str, Any]) -> None:
        self.folder = folder
        self.client = client
        port = free_port(SERVICES)
        self.url = f"http://127.0.0.1:{port}/services/launcher/"
        settings = "".join(
            f"c.{section}.{name} = {value!r}\n"
            for section, values in sections.items()
            for name, value in values.items()
        )
        (folder / "jhlauncher_config.py").write_text(f"c = get_config()\n{settings}")
        self.environment = {
            "PATH": os.environ["PATH"],
            "JUPYTERHUB_API_TOKEN": SERVICE_TOKEN,
            "JUPYTERHUB_API_URL": hub.api_url,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}",
        }

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run()
        async with asyncio.timeout(60):
            while not await self._answers():
                assert self.process.poll() is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.1)

    def _run(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jhlauncher"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    async def _answers(self) -> bool:
        try:
            async with self.client.get(f"{self.url}health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
