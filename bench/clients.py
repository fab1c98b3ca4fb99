"""Ways to get a server for a user: by hand at JupyterHub's API, by polling, and through the launcher.

Each returns when it has the token that opens the server, and returns the moment (seconds since 1970).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from typing import Any

import aiohttp

from jhlauncher import sse


class Client(ABC):
    """A way to launch."""

    name: str
    slow = False
    """Not asked to do the largest load."""

    def __init__(self, hub_url: str, token: str, image: str) -> None:
        self.hub = f"{hub_url}hub/api"
        self.launcher = f"{hub_url}services/launcher"
        self.image = image
        self.session = aiohttp.ClientSession(
            headers={"Authorization": f"token {token}"},
            # the Hub's proxy closes connections that were idle for 5 s
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3),
            timeout=aiohttp.ClientTimeout(300),
        )

    async def close(self) -> None:
        await self.session.close()

    @abstractmethod
    async def launch(self, user: str) -> float:
        """Get a server and a token for it; when that was."""

    async def ask(self, method: str, url: str, **kwargs: object) -> Any:
        async with self.session.request(method, url, **kwargs) as response:  # type: ignore[arg-type]
            text = await response.text()
            assert response.status < 300, f"{method} {url}: {response.status} {text}"
            return json.loads(text) if text else {}

    def _body(self, user: str) -> dict[str, str]:
        return {"username": user, "image": self.image}

    async def _token(self, user: str) -> None:
        body = {"scopes": [f"access:servers!server={user}/"], "expires_in": 1800}
        await self.ask("POST", f"{self.hub}/users/{user}/tokens", json=body)


class Direct(Client):
    """The best that one can write by hand: the progress is followed while the answer to the start is outstanding."""

    name = "direct"

    async def launch(self, user: str) -> float:
        await self.ask("POST", f"{self.hub}/users/{user}")
        start = asyncio.create_task(self._start(user))
        await asyncio.wait([start], timeout=0.2)
        if not start.done():
            ready = asyncio.create_task(self._ready(user))
            await asyncio.wait([start, ready], return_when=asyncio.FIRST_COMPLETED)
            if start.done() and not start.result():
                await ready
            ready.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ready
        await self._token(user)
        moment = time.time()
        await start
        return moment

    async def _start(self, user: str) -> bool:
        """Whether the server was ready within the Hub's slow_spawn_timeout."""
        async with self.session.post(f"{self.hub}/users/{user}/server") as response:
            assert response.status < 300, f"{response.status} {await response.text()}"
            return response.status == 201

    async def _ready(self, user: str) -> None:
        async with self.session.get(f"{self.hub}/users/{user}/server/progress") as response:
            async for event in sse.decode(response.content.iter_any()):
                if json.loads(event.data).get("ready"):
                    return


class Polling(Client):
    """What one writes first: start, and ask again and again."""

    interval: float

    async def launch(self, user: str) -> float:
        await self.ask("POST", f"{self.hub}/users/{user}")
        start = asyncio.create_task(self.ask("POST", f"{self.hub}/users/{user}/server"))
        while True:
            await asyncio.sleep(self.interval)
            servers = (await self.ask("GET", f"{self.hub}/users/{user}"))["servers"]
            if servers.get("", {}).get("ready"):
                break
        await self._token(user)
        moment = time.time()
        await start
        return moment


class Polling10(Polling):
    name = "polling 10 s"
    interval = 10
    slow = True


class Polling1(Polling):
    name = "polling 1 s"
    interval = 1


class Containers(Client):
    """The launcher's blocking face."""

    name = "containers"

    async def launch(self, user: str) -> float:
        answer = await self.ask("POST", f"{self.launcher}/containers", json=self._body(user))
        assert answer["token"]
        return time.time()


class Launches(Client):
    """The launcher's asynchronous face, followed by its events."""

    name = "launches"

    async def launch(self, user: str) -> float:
        launch = await self.ask("POST", f"{self.launcher}/launches", json=self._body(user))
        async with self.session.get(f"{self.launcher}/launches/{launch['id']}/events") as response:
            async for event in sse.decode(response.content.iter_any()):
                if event.name == "ready":
                    assert json.loads(event.data)["launch"]["token"]
                    return time.time()
        raise AssertionError(f"{user} has no server")


CLIENTS: list[type[Client]] = [Direct, Polling10, Polling1, Containers, Launches]
