"""What the fault tests share: a Hub with light servers, launchers to be killed, and the accounts at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from jhlauncher.ports import SERVICES, free_port
from tests.real_hub import SIGNING_KEY, RealHub

PREFIX = "/services/second-launcher/"

LIGHT_SERVERS = """
LIGHT = '''
import os, socket, sys, time
from urllib.parse import urlsplit
with open(sys.argv[1], "a") as starts:
    starts.write(os.environ["JUPYTERHUB_USER"] + " " + str(os.getpid()) + chr(10))
time.sleep(float(sys.argv[2]))
server = socket.create_server(("", urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port))
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\\\r\\\\nContent-Length: 2\\\\r\\\\nConnection: close\\\\r\\\\n\\\\r\\\\n{{}}")
    connection.close()
'''
light = {{"cmd": [sys.executable, "-S", "-c", LIGHT, FOLDER + "/starts.log", "{seconds}"]}}
c.LauncherLocalSpawner.environments = {{**c.LauncherLocalSpawner.environments, "light": light}}
c.LauncherSpawnerMixin.launcher_url = ""
c.JupyterHub.last_activity_interval = 3600
"""
"""Servers that take so long to start and answer anything; each leaves a line."""


def hub_with_light_servers(folder: Path, seconds: float = 1, more: str = "") -> RealHub:
    """A Hub whose second launcher, an external service, is the one to be tried."""
    (folder / "starts.log").touch()
    return RealHub(folder, after=LIGHT_SERVERS.format(seconds=seconds) + more)


class LauncherProcess:
    """A launcher service as an operator runs it, in a process of its own."""

    def __init__(self, hub: RealHub, database_url: str, name: str = "launcher", settings: str = "") -> None:
        self.hub = hub
        self.folder = hub.folder / name
        self.folder.mkdir(exist_ok=True)
        self.port = free_port(SERVICES)
        self.url = f"http://127.0.0.1:{self.port}{PREFIX}"
        (self.folder / "jhlauncher_config.py").write_text(
            "c = get_config()\nc.Hub.auth_cache_seconds = 600\n" + settings
        )
        self.environment = {
            "PATH": os.environ["PATH"],
            "JUPYTERHUB_API_TOKEN": hub.second_token,
            "JUPYTERHUB_API_URL": hub.api_url,
            "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{self.port}",
            "JHLAUNCHER_SIGNING_KEY": SIGNING_KEY,
            "JHLAUNCHER_DB_URL": database_url,
        }

    def start(self) -> None:
        """Start it; `answers` waits for it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jhlauncher"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        self.process.send_signal(how)
        self.process.wait(60)


class Client:
    """A platform that asks again until it is answered, as platforms do."""

    def __init__(self, hub: RealHub, *urls: str, token: str = "") -> None:
        self.urls = list(urls)
        self._client = aiohttp.ClientSession(
            headers={"Authorization": f"token {token or hub.platform_token}"},
            timeout=aiohttp.ClientTimeout(60),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        await self._client.close()

    async def request(self, method: str, path: str, key: str = "", **kwargs: Any) -> tuple[int, Any]:
        """The answer; asked again while there is none, or a 503."""
        headers = {"Idempotency-Key": key} if key else {}
        deadline = time.monotonic() + 120
        for attempt in range(10_000):
            url = self.urls[attempt % len(self.urls)] + path
            try:
                async with self._client.request(method, url, headers=headers, **kwargs) as response:
                    body = await response.json() if response.status != 204 else None
                    if response.status not in (502, 503):
                        return response.status, body
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < deadline, f"no answer to {method} {path}"
            await asyncio.sleep(0.1)
        raise AssertionError

    async def launch(self, user: str) -> str:
        """The id of an accepted launch."""
        body = {"username": user, "image": "light"}
        status, launch = await self.request("POST", "launches", key=f"key-of-{user}", json=body)
        assert status in (200, 202), launch
        return str(launch["id"])

    async def settled(self, launch: str, timeout: float = 180) -> Any:
        """The launch when it is ready or has ended."""
        deadline = time.monotonic() + timeout
        while True:
            _, model = await self.request("GET", f"launches/{launch}?wait=20")
            if model["state"] not in ("queued", "starting"):
                return model
            assert time.monotonic() < deadline, model

    async def end(self, launch: str) -> None:
        """Cancel or stop it, and see it end."""
        for _ in range(10):
            status, body = await self.request("DELETE", f"launches/{launch}?wait=20")
            assert status in (202, 204), body
            if status == 204:
                return
        raise AssertionError(f"{launch} does not end: {body}")


async def check_accounts(hub: RealHub, launches: dict[str, Any]) -> Counter[str]:
    """That the Hub agrees with what the launches say, server by server; how many are in each state.

    For a second after a cancel, the Hub says that a server is ready: what does not agree is looked at again.

    Args:
        hub: where they ran.
        launches: user -> the launch as the launcher has it.

    """
    for user, launch in launches.items():
        assert launch["state"] in ("ready", "failed", "cancelled", "stopped", "expired"), launch
        for _ in range(20):
            wrong = await disagreement(hub, user, launch)
            if not wrong:
                break
            await asyncio.sleep(0.5)
        assert not wrong, f"{wrong}: {launch}"
    return Counter(launch["state"] for launch in launches.values())


async def disagreement(hub: RealHub, user: str, launch: Any) -> str:
    """In what the Hub and the machine disagree with a launch."""
    _, model = await hub.api("GET", f"/users/{user}?include_stopped_servers")
    server = model["servers"].get("", {}) if "servers" in model else {}
    running = bool(server.get("ready") and not server["pending"])
    if running != (launch["state"] == "ready"):
        return f"the Hub says {server}"
    if running and server["user_options"]["launcher"]["id"] != launch["id"]:
        return f"another launch runs: {server}"
    _, tokens = await hub.api("GET", f"/users/{user}/tokens")
    ours = [token["note"] for token in tokens["api_tokens"] if token["note"].startswith("jhlauncher")]
    if ours != ([f"jhlauncher {user}/ ({launch['id']})"] if running else []):
        return f"tokens: {ours}"
    alive = [pid for name, pid in starts(hub) if name == user and is_alive(pid)]
    return "" if len(alive) == running else f"processes: {alive}"


def starts(hub: RealHub) -> list[tuple[str, int]]:
    """Who was started, with the process id."""
    lines = (hub.folder / "starts.log").read_text().splitlines()
    return [(name, int(pid)) for name, _, pid in (line.partition(" ") for line in lines)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
