"""Requests for user jobs, as users send them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any, Protocol

import aiohttp

SLEEP = {"script": "#!/bin/sh\nexec sleep 600\n", "memory": "10M"}


def run(*command: str) -> str:
    """What a command here prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Running(Protocol):
    """A service that runs."""

    url: str
    client: aiohttp.ClientSession


async def ask(service: Running, method: str, name: str = "", who: str = "ada", **kwargs: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"token token-of-{who}", **kwargs.pop("headers", {})}
    async with service.client.request(
        method, f"{service.url}api/userjobs/{name}", headers=headers, **kwargs
    ) as response:
        return response.status, await response.json() if response.status != 204 else ""


async def submit(service: Running, name: str, job: dict[str, Any], who: str = "ada", **more: Any) -> dict[str, Any]:
    body = {"service": name, "hostname": "cluster", "job": job, **more}
    status, answer = await ask(service, "POST", who=who, json=body)
    assert status == 201, answer
    return dict(answer)


async def until(service: Running, name: str, *states: str, who: str = "ada", timeout: float = 60) -> dict[str, Any]:
    """A user job once its job is in one of these states, as the stream of its changes tells."""
    return await until_view(service, name, lambda view: view["job"]["state"] in states, who=who, timeout=timeout)


async def until_view(
    service: Running, name: str, condition: Any, who: str = "ada", timeout: float = 60
) -> dict[str, Any]:
    """A user job once it fulfils a condition."""
    headers = {"Authorization": f"token token-of-{who}", "Accept": "text/event-stream"}
    url, view = f"{service.url}api/userjobs/{name}", None
    async with asyncio.timeout(timeout), service.client.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data:"):
                view = json.loads(line[5:])
                if condition(view):
                    return dict(view)
    raise AssertionError(f"it ended as {view}")
