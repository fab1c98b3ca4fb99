"""Tells Hubs that this manager was started again, so that they make their tunnels to it anew."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Any

import aiohttp
from pydantic import Field, ValidationError
from traitlets import Float, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from ..models import Model


class _Stage(Model):
    """What differs for a stage."""

    restart_url: str


class Tunnel(Model):
    """A Hub that is to be told."""

    hostname: str = ""
    restart_url: str = ""
    timeout: float = Field(10, gt=0)
    certificate_path: str | bool | None = None
    cred_env_name: str = "TUNNEL_BASIC"
    stage: dict[str, _Stage] = {}


class Tunnels(LoggingConfigurable):
    """Who is told when this process starts."""

    tunnel: List[dict[str, Any]] = List(
        help="""Hubs to tell at the start, each {"hostname", "restart_url", "timeout", "certificate_path",
        "cred_env_name", "stage": {STAGE: {"restart_url"}}}.

        hostname: how the Hub calls this manager. timeout: seconds, 10 by default. certificate_path: of the CA; not
        given: the system's; false: the Hub's certificate is not looked at. cred_env_name: the environment variable with
        the header Authorization, TUNNEL_BASIC by default.
        """
    ).tag(config=True, key="tunnel")
    retry_timeout = Float(600, min=0, help="Seconds for which a Hub that does not take it is tried again.").tag(
        config=True
    )
    retry_delay = Float(1, min=0.01, help="Seconds before it is tried again; each later time, twice as long.").tag(
        config=True
    )
    stage = Unicode(help="Which stage this is.")

    @validate("tunnel")
    def _valid_tunnel(self, proposal: Any) -> list[Any]:
        for number, entry in enumerate(proposal.value):
            try:
                Tunnel.model_validate(entry)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise TraitError(f"tunnel.{number}.{where}: {first['msg']}") from None
        return list(proposal.value)

    async def start(self) -> None:
        """Begin to tell; nobody waits for it."""
        self._tasks = [asyncio.create_task(self._tell(Tunnel.model_validate(entry))) for entry in self.tunnel]

    async def stop(self) -> None:
        """Give up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tell(self, tunnel: Tunnel) -> None:
        stage = tunnel.stage.get(self.stage) if self.stage else None
        url = stage.restart_url if stage else tunnel.restart_url
        credential = os.environ.get(tunnel.cred_env_name, "")
        if not url or not credential:
            missing = f"${tunnel.cred_env_name} is not set" if url else "it has no restart_url"
            self.log.critical("The tunnel of %s is not restarted: %s", tunnel.hostname or "this manager", missing)
            return
        loop, delay = asyncio.get_running_loop(), self.retry_delay
        deadline = loop.time() + self.retry_timeout
        while True:
            problem = await self._post(url, tunnel, credential)
            if not problem:
                self.log.info("%s was told to restart the tunnel of %s", url, tunnel.hostname)
                return
            if loop.time() + delay > deadline:
                self.log.critical("%s can't be told to restart the tunnel: %s", url, problem)
                return
            self.log.warning("%s can't be told to restart the tunnel: %s. Again in %g s.", url, problem, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 60)

    async def _post(self, url: str, tunnel: Tunnel, credential: str) -> str:
        """Tell a Hub; what the problem was."""
        try:
            context = await asyncio.to_thread(_context, tunnel.certificate_path)
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(tunnel.timeout)) as session,
                session.post(
                    url,
                    json={"hostname": tunnel.hostname},
                    headers={"Authorization": credential, "uuidcode": "StartUp"},
                    ssl=context,
                    allow_redirects=False,
                ) as response,
            ):
                return "" if response.status < 300 else f"it answered {response.status}"
        except TimeoutError:
            return "it does not answer in time"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return str(error) or type(error).__name__


def _context(certificate: str | bool | None) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=certificate) if isinstance(certificate, str) else certificate is not False
