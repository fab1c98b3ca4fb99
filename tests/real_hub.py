"""A real JupyterHub as a process of its own, with the launcher as its managed service and real single-user servers."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from jhlauncher.ports import SERVICES, free_port

SIGNING_KEY = "a signing key of the tests, long enough"

_CONFIG = """
import os, sys
from jhlauncher import install_launcher

c = get_config()
FOLDER = {folder!r}
{before}
install_launcher(
    c, {install}, images=["plain", "lab"], server_state=True, signing_key={signing_key!r},
    config_file=FOLDER + "/jhlauncher_config.py",
)
singleuser = [sys.executable, "-m", "jupyterhub.singleuser", *(["--allow-root"] if os.geteuid() == 0 else [])]
CRASHING = '''
import os
print("the token is", os.environ["JUPYTERHUB_API_TOKEN"])
try:
    1 / 0
except Exception:
    import traceback
    traceback.print_exc()
    raise SystemExit(3)
'''
MUTE = '''
import os, socket, time, urllib.parse
server = socket.create_server(("", urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port))
time.sleep(300)
'''
no_lab = {{"JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp"}}
c.LauncherLocalSpawner.environments = {{
    "plain": {{"cmd": singleuser, "environment": {{**no_lab, "IMAGE": "plain"}}}},
    "other": {{"cmd": singleuser, "environment": {{**no_lab, "IMAGE": "other"}}}},
    "lab": {{"cmd": singleuser}},
    "crashing": {{"cmd": [sys.executable, "-c", CRASHING]}},
    "silent": {{"cmd": ["sleep", "300"]}},
    "mute": {{"cmd": [sys.executable, "-c", MUTE]}},
}}
c.LauncherLocalSpawner.cmd = singleuser
c.LauncherLocalSpawner.environment = {{**no_lab, "FROM_CONFIG": "1"}}
c.LauncherLocalSpawner.root_dir = FOLDER + "/servers"
c.Spawner.http_timeout = 60
def hook(spawner):
    spawner.environment = {{**spawner.environment, "IMAGE": "of the hook", "FROM_HOOK": "1"}}
    if os.path.exists(FOLDER + "/break-" + spawner.user.name):
        raise RuntimeError("the administrator's hook failed")

c.Spawner.pre_spawn_hook = hook
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = "a long enough password for the tests"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.bind_url = "http://127.0.0.1:{port}{base_url}"
c.JupyterHub.hub_port = {hub_port}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.pid_file = FOLDER + "/proxy.pid"
c.JupyterHub.db_url = "sqlite:///" + FOLDER + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = FOLDER + "/cookie_secret"
c.JupyterHub.services = [
    {{"name": "admin", "api_token": {admin_token!r}, "admin": True}},
    {{"name": "platform", "api_token": {platform_token!r}}},
    {{"name": "second-launcher", "api_token": {second_token!r}}},
]
c.JupyterHub.load_groups = {{"course-1": {{"users": ["student"]}}}}
c.JupyterHub.load_roles = [
    {{"name": "platform", "services": ["platform"],
      "scopes": ["access:services!service=launcher", "access:services!service=second-launcher",
                 "admin:users", "servers"]}},
    {{"name": "second-launcher", "services": ["second-launcher"], "scopes": ["admin:users", "servers", "tokens"]}},
]
{after}
"""


class RealHub:
    """Where the Hub is, and requests to it."""

    def __init__(self, folder: Path, base_url: str = "/", **snippets: str) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}
        self.admin_token, self.platform_token, self.second_token = (secrets.token_hex(16) for _ in range(3))
        port, self.hub_port, self.proxy_port = (free_port(SERVICES) for _ in range(3))
        self.origin = f"http://127.0.0.1:{port}"
        self.url = f"{self.origin}{base_url}"
        self.api_url = f"http://127.0.0.1:{self.hub_port}{base_url}hub/api"
        self.launcher_url = f"{self.url}services/launcher/"
        (folder / "jhlauncher_config.py").write_text(
            "c = get_config()\nc.Hub.auth_cache_seconds = 1\n" + snippets.get("service", "")
        )
        (folder / "jupyterhub_config.py").write_text(
            _CONFIG.format(
                folder=str(folder),
                port=port,
                base_url=base_url,
                hub_port=self.hub_port,
                proxy_port=self.proxy_port,
                admin_token=self.admin_token,
                platform_token=self.platform_token,
                second_token=self.second_token,
                signing_key=SIGNING_KEY,
                install=snippets.get("install", 'engine="local"'),
                before=snippets.get("before", ""),
                after=snippets.get("after", ""),
            )
        )

    def command(self) -> list[str]:
        """What runs the Hub, in its folder."""
        return [sys.executable, "-m", "jupyterhub", "--config", "jupyterhub_config.py"]

    def begin(self) -> None:
        """Start the Hub's process, and wait until its launcher is ready."""
        log = self.folder / "hub.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdout=output,
                stderr=output,
                env={**os.environ, "PATH": path, **self.environment},
            )
        self._wait(self.process, log)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process; it stops its servers unless it is killed."""
        self.process.send_signal(how)
        self.process.wait(60)

    @contextmanager
    def running(self) -> Iterator[RealHub]:
        """The Hub, up and with its launcher ready."""
        try:
            self.begin()
            yield self
        finally:
            self.end()

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.launcher_url}ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)  # it does not listen yet, and can't say when it will
        ours = ("launcher/ready", "Setting new xsrf cookie")  # of the requests above
        lines = [line for line in log.read_text().splitlines() if not any(mark in line for mark in ours)]
        raise AssertionError("the Hub did not come up:\n" + "\n".join(lines)[-10000:])

    async def api(self, method: str, path: str, token: str | None = None, **kwargs: Any) -> tuple[int, Any]:
        """A request to the Hub itself, as its administrator unless said otherwise."""
        headers = {"Authorization": f"token {token or self.admin_token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.request(method, f"{self.url}hub/api{path}", **kwargs) as response,
        ):
            body = await response.text()
            return response.status, (await response.json() if body.startswith(("{", "[")) else body)

    async def user_token(self, user: str, *scopes: str) -> str:
        """A token of a user's; with everything that they may do, unless scopes are named."""
        await self.api("POST", f"/users/{user}")
        body = {"scopes": list(scopes)} if scopes else {}
        status, model = await self.api("POST", f"/users/{user}/tokens", json=body)
        assert status == 201, model
        return str(model["token"])

    async def launcher(
        self, method: str, query: str = "", token: str | None = None, url: str | None = None, **body: Any
    ) -> tuple[int, Any]:
        """A request to ``containers``, as the platform unless said otherwise."""
        headers = {"Authorization": f"token {token or self.platform_token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.request(
                method,
                f"{url or self.launcher_url}containers{query}",
                json=body or None,
                timeout=aiohttp.ClientTimeout(120),
            ) as response,
        ):
            text = await response.text()
            return response.status, (await response.json() if text else text)
