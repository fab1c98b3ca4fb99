"""``jhlauncher demo``: a JupyterHub with the launcher on this machine, and one launch as an outside client would do it.

Everything is below one temporary folder, on free ports of 127.0.0.1, and gone when the command ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import aiohttp
from traitlets import Bool, Float, TraitError, Unicode
from traitlets.config import Application

from . import sse
from .ports import SERVICES, free_port

_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
"""Commands beside this Python are found even where its virtual environment is not active."""

_CONFIG = Template("""\
import os
import sys
from jhlauncher import install_launcher

c = get_config()
install_launcher(c, engine="local", images=["jupyterlab"])
as_root = ["--allow-root"] if os.geteuid() == 0 else []
c.LauncherLocalSpawner.environments = {
    "jupyterlab": {"cmd": [sys.executable, "-m", "jupyterhub.singleuser", *as_root]},
}
c.LauncherLocalSpawner.root_dir = "$folder/servers"
# nobody logs in; users come from the API alone
c.JupyterHub.authenticator_class = "null"
c.JupyterHub.bind_url = "http://127.0.0.1:$port"
c.JupyterHub.hub_port = $hub_port
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:$proxy_port"
c.ConfigurableHTTPProxy.pid_file = "$folder/proxy.pid"
c.JupyterHub.db_url = "sqlite:///$folder/hub.sqlite"
c.JupyterHub.cookie_secret_file = "$folder/cookie_secret"
c.JupyterHub.cleanup_servers = True
# the outside client: a platform that may launch for everyone
c.JupyterHub.services = [{"name": "platform", "api_token": "$platform_token"}]
c.JupyterHub.load_roles = [
    {
        "name": "platform",
        "services": ["platform"],
        "scopes": ["access:services!service=launcher", "admin:users", "servers"],
    }
]
""")


class DemoApp(Application):
    """A JupyterHub with the launcher, on this machine, to try it: launches a server and prints where it is."""

    name = "jhlauncher demo"
    description = __doc__ or ""
    flags = {"once": ({"DemoApp": {"once": True}}, "Prove one launch, stop everything and exit.")}

    once = Bool(False, help="Stop after the launch has been proved.").tag(config=True)
    username = Unicode("ada", help="Whose server is launched.").tag(config=True)
    timeout = Float(120, help="Seconds that the Hub and the server get to start.").tag(config=True)

    def start(self) -> None:
        """Run the demo."""
        if self.extra_args:
            raise TraitError(f"unknown argument {self.extra_args[0]!r}; see jhlauncher demo --help")
        for module in ("jupyterlab", "rich"):
            if find_spec(module) is None:
                raise TraitError(f"the demo needs {module}: pip install 'jhlauncher[demo]'")
        if not shutil.which("configurable-http-proxy", path=_PATH):
            raise TraitError("the demo needs configurable-http-proxy: npm install -g configurable-http-proxy")
        with contextlib.suppress(KeyboardInterrupt):
            sys.exit(asyncio.run(self.run()))

    async def run(self) -> int:
        """Start the Hub, launch, show; the exit status."""
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        with tempfile.TemporaryDirectory(prefix="jhlauncher-demo-") as folder:
            demo = Demo(Path(folder))
            async with demo.hub(), aiohttp.ClientSession(headers=demo.headers) as client:
                work = asyncio.create_task(self._show(demo, client))
                stop = asyncio.create_task(stopped.wait())
                await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
                if work.done() and not work.exception() and not self.once:
                    print("\nIt stays up until Ctrl-C.", flush=True)
                    await stop
                    print("\nStopping the server and JupyterHub ...", flush=True)
                for task in (work, stop):
                    task.cancel()
                results = await asyncio.gather(work, stop, return_exceptions=True)
        problem = results[0]
        if isinstance(problem, DemoFailed | TimeoutError):
            print(f"The demo failed: {problem or 'it took too long'}\n{demo.log_tail}", file=sys.stderr)
            return 1
        if isinstance(problem, Exception):
            raise problem
        return 0

    async def _show(self, demo: Demo, client: aiohttp.ClientSession) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[event]}"),
        )
        async with asyncio.timeout(self.timeout):
            with Progress(*columns) as bar:
                task = bar.add_task("JupyterHub", total=None, event="starting")
                await demo.wait_until_up(client)
                bar.update(task, total=1, completed=1, event="is up, with the launcher as its service")
                body = {"username": self.username, "image": "jupyterlab"}
                print(f"POST {demo.launcher_url}/containers {json.dumps(body)}")
                task = bar.add_task("POST containers", total=100, event="")
                launched: dict[str, Any] = {}
                async with contextlib.aclosing(demo.launch(client, body)) as events:
                    async for event in events:
                        if "token" in event:
                            bar.update(task, completed=100, event="ready")
                            launched = event
                        else:
                            bar.update(task, completed=event["progress"], event=event["message"])
            if not launched:
                raise DemoFailed("the launcher's event stream ended early.")
            status = await demo.prove(client, launched)
        print(f"GET {launched['url']}api/status with the token answers {status}.")
        print(f"\nJupyterLab is at:\n{launched['url'].rstrip('/')}/?token={launched['token']}", flush=True)
        if self.once:
            print("\nIt works. Stopping the server and JupyterHub ...", flush=True)


class DemoFailed(Exception):
    """The demo did not work; the text says where."""


class Demo:
    """A JupyterHub of its own, and what an outside client does with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        port = free_port(SERVICES)
        platform_token = secrets.token_hex(32)
        self.headers = {"Authorization": f"token {platform_token}"}
        self.hub_url = f"http://127.0.0.1:{port}"
        self.launcher_url = f"{self.hub_url}/services/launcher"
        self.log_tail = ""
        config = _CONFIG.substitute(
            folder=folder,
            port=port,
            hub_port=free_port(SERVICES),
            proxy_port=free_port(SERVICES),
            platform_token=platform_token,
        )
        (folder / "jupyterhub_config.py").write_text(config)

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[None]:
        """The Hub's process, stopped at the end with all that it has started."""
        log = self._folder / "hub.log"
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "jupyterhub", "--config", "jupyterhub_config.py"),
                cwd=self._folder,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for this process, which stops the Hub in its own time
                env={**os.environ, "PATH": _PATH},
            )
            try:
                yield
            finally:
                if self._process.returncode is None:
                    self._process.send_signal(signal.SIGTERM)
                await self._process.wait()
                self.log_tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])

    async def wait_until_up(self, client: aiohttp.ClientSession) -> None:
        """Return when the launcher answers through the Hub's proxy, and is ready."""
        while True:
            if self._process.returncode is not None:
                raise DemoFailed(f"JupyterHub ended with status {self._process.returncode}.")
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(f"{self.launcher_url}/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)  # neither has anything to wait on before it listens

    async def launch(self, client: aiohttp.ClientSession, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a launch; the last has the token."""
        headers = {"Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with client.post(
            f"{self.launcher_url}/containers", json=body, headers=headers, timeout=timeout
        ) as response:
            if response.content_type != "text/event-stream":
                raise DemoFailed((await response.json())["error"])
            async with contextlib.aclosing(sse.decode(response.content.iter_any())) as events:
                async for event in events:
                    data = json.loads(event.data)
                    if event.name == "failed":
                        raise DemoFailed(data["error"])
                    yield data

    async def prove(self, client: aiohttp.ClientSession, launched: dict[str, Any]) -> int:
        """Ask the server's own API with the token."""
        headers = {"Authorization": f"token {launched['token']}"}
        async with client.get(f"{launched['url'].rstrip('/')}/api/status", headers=headers) as response:
            if response.status != 200:
                raise DemoFailed(f"the server answered {response.status} to its token.")
            return response.status
