"""What starting a deployment takes: images, commands, and somebody who logs in and launches."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from tests.engines.hubs import REPOSITORY, build, missing, one_at_a_time

ETC = REPOSITORY / "etc"
IMAGES = Path(__file__).parent / "images"


def needs(*what: str) -> str:
    """Why a deployment can't be tested here; empty if it can. Engines, and commands."""
    engines = {"docker", "swarm", "kubernetes"}
    for name in what:
        if name in engines and (reason := missing(name)):
            return reason
        if name not in engines and not shutil.which(name):
            return f"there is no command {name}"
    return ""


def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, status: int = 0) -> str:
    """What a command prints, which ends with this status."""
    variables = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def documented(page: str, begins: str) -> str:
    """The one command that a page of the docs has which begins so."""
    text = (REPOSITORY / "docs" / page).read_text()
    scripts = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for script in scripts for line in re.sub(r"\\\n\s*", "", script).splitlines()]
    found = {command for command in commands if command.startswith(begins)}
    assert len(found) == 1, (page, begins, found)
    return found.pop()


def follow(
    page: str, begins: str, *changes: tuple[str, str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command as a page of the docs has it, but for what is another here; what it prints."""
    command = documented(page, begins)
    for old, new in changes:
        assert old in command, (command, old)
        command = command.replace(old, new)
    return run("bash", "-euc", command, cwd=cwd, env=env)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 120) -> Any:
    """What ``condition`` returns once it is something; for what tells nobody."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.2)
    return found


def postgres_image(client: Any) -> str:
    """A PostgreSQL of Debian's, to be configured as Docker's official image is."""
    with one_at_a_time():
        build(client, "jhlauncher-test:postgres", path=str(IMAGES / "postgres"), network_mode="host")
    return "jhlauncher-test:postgres"


class Visitor:
    """Somebody with a browser's cookies, or a platform with a token."""

    def __init__(self, url: str, token: str = "", trusting: Path | None = None) -> None:
        self.url = url.rstrip("/") + "/"
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._ssl = ssl.create_default_context(cafile=str(trusting)) if trusting else True

    async def __aenter__(self) -> Visitor:
        self._client = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=self._ssl),
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(120),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def request(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Status and body of an answer; of JSON if it is that."""
        async with self._client.request(method, self.url + path, **kwargs) as response:
            body = await response.text()
            return response.status, (await response.json() if response.content_type == "application/json" else body)

    async def log_in(self, user: str, password: str) -> str:
        """Log in at the Hub's form; the address at which one is then."""
        async with self._client.get(self.url + "hub/login") as response:
            xsrf = re.search(r'name="_xsrf" value="([^"]*)"', await response.text())
            assert xsrf, response
        form = {"username": user, "password": password, "_xsrf": xsrf[1]}
        async with self._client.post(self.url + "hub/login?next=/hub/home", data=form) as response:
            return str(response.url)

    async def launch(self, **body: Any) -> Any:
        """A launch that succeeds."""
        status, answer = await self.request("POST", "services/launcher/containers", json=body)
        assert status == 200, answer
        return answer

    async def stop(self, user: str) -> None:
        """Have somebody's server stopped."""
        status, answer = await self.request("DELETE", f"services/launcher/containers?username={user}")
        assert status == 200, answer

    async def opens(self, launched: Any) -> int:
        """The status with which the server answers to its token."""
        headers = {"Authorization": f"token {launched['token']}"}
        path = launched["url"].split("/user/", 1)[1].rstrip("/")
        status, _ = await self.request("GET", f"user/{path}/api/status", headers=headers)
        return status

    async def ready(self, timeout: float = 120) -> None:
        """Return when the launcher answers through the proxy, and is ready."""
        deadline = time.monotonic() + timeout
        answer: Any = None
        while time.monotonic() < deadline:
            try:
                status, answer = await self.request("GET", "services/launcher/ready")
                if status == 200:
                    return
            except aiohttp.ClientError as error:
                answer = error
            await asyncio.sleep(0.2)  # nothing tells
        raise AssertionError(f"the launcher is not ready: {answer}")
