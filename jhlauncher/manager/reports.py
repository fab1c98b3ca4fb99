"""What the manager tells the Hub of a service while it starts, as the service itself does later: status events.

A service's ``JUPYTERHUB_STATUS_URL`` is relative to its ``JUPYTERHUB_API_URL``, and is posted to with its own token.
"""

from __future__ import annotations

import asyncio
import html
import json
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from traitlets import Bool, Float, Integer
from traitlets.config import LoggingConfigurable

from .rendering import Json
from .service_secrets import CERTIFICATES
from .status import Details

_LONGEST = 65_536
"""Bytes of an answer that are looked at."""
Known = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Contact:
    """How a service's Hub is reached."""

    api_url: str
    status_url: str
    token: str = field(repr=False)
    certs: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """For logs."""
        return urlsplit(self.api_url).hostname or ""

    @classmethod
    def of(cls, env: Mapping[str, Any], certs: Mapping[str, str] | None = None) -> Contact | None:
        """From a service's environment; None if the Hub's address is not in it."""
        api_url, status_url = (str(env.get(f"JUPYTERHUB_{name}_URL") or "") for name in ("API", "STATUS"))
        token = str(env.get("JUPYTERHUB_API_TOKEN") or "")
        if not _is_url(api_url) or not token:
            return None
        api_url = api_url.rstrip("/")
        return cls(api_url, f"{api_url}/{status_url.lstrip('/')}" if status_url else "", token, certs)


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        return False


def progress(number: int, message: str) -> Json:
    """A status event for a step of a start; the message is plain text."""
    return {"progress": number, "failed": False, "ready": False, "message": "", "html_message": html.escape(message)}


def failure(details: Details) -> Json:
    """A status event for a start that has failed, or a service that has ended."""
    text = f"<details><summary>{details.error}</summary>{details.detailed_error}</details>"
    return {"progress": 100, "failed": True, "ready": False, "message": "", "html_message": text}


class Reports(LoggingConfigurable):
    """Requests to the Hubs of services."""

    enabled = Bool(True, help="Whether status events are posted.").tag(config=True)
    timeout = Float(10, min=1, help="Seconds to wait for a Hub's answer.").tag(config=True)
    attempts = Integer(4, min=1, help="How often a status event is posted at most.").tag(config=True)
    retry_delay = Float(1, min=0, help="Seconds before it is posted again; each later time, twice as long.").tag(
        config=True
    )

    async def start(self) -> None:
        """Make the client; no request is sent."""
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=10),
            timeout=aiohttp.ClientTimeout(self.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        """Give up what has not been told."""
        for task in self._tails.values():
            task.cancel()
        await asyncio.gather(*self._tails.values(), return_exceptions=True)
        await self._session.close()

    def tell(self, key: str, contact: Contact | None, event: Json) -> None:
        """Post an event after those before it of the same service; nobody waits for it."""
        if contact and contact.status_url and self.enabled:
            task = asyncio.create_task(self._tell(self._tails.get(key), contact, event), name=f"report of {key}")
            self._tails[key] = task
            task.add_done_callback(lambda done: self._tails.pop(key) if self._tails.get(key) is done else None)

    async def _tell(self, before: asyncio.Task[None] | None, contact: Contact, event: Json) -> None:
        if before:
            await asyncio.wait([before])
        delay = self.retry_delay
        for attempt in range(1, self.attempts + 1):
            status, _ = await self._request("POST", contact.status_url, contact, event)
            if status and status < 500:
                if status >= 400:
                    self.log.warning("The Hub at %s does not take a status event: %i", contact.host, status)
                return
            if attempt < self.attempts:
                await asyncio.sleep(delay)
                delay *= 2
        self.log.warning("The Hub at %s can't be told of a status event", contact.host)

    async def known(self, contact: Contact) -> Known:
        """Whether the Hub still knows the service: its token is good as long as the Hub has the server."""
        status, body = await self._request("GET", f"{contact.api_url}/user", contact)
        # in JupyterHub's own words: something before it may refuse anything
        if status in (401, 403) and isinstance(body, dict) and body.get("status") == status:
            return "no"
        return "yes" if status == 200 else "unclear"

    async def _request(
        self, method: str, url: str, contact: Contact, body: Json | None = None
    ) -> tuple[int | None, Any]:
        """Status and JSON of the answer; None if there is none."""
        try:
            context = await asyncio.to_thread(_context, contact.certs) if contact.certs else True
            headers = {"Authorization": f"token {contact.token}"}
            async with self._session.request(
                method, url, json=body, headers=headers, ssl=context, allow_redirects=False
            ) as response:
                text = await response.content.read(_LONGEST)
                return response.status, _json(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self.log.info("The Hub at %s does not answer: %s", contact.host, type(error).__name__)
            return None, None


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _context(certs: Mapping[str, str]) -> ssl.SSLContext:
    """TLS with certificates of JupyterHub's internal_ssl; Python reads keys from files only."""
    context = ssl.create_default_context(cadata=certs["cafile"])
    context.check_hostname = False  # they are made for names inside the Hub's network
    with tempfile.TemporaryDirectory() as folder:
        certfile, keyfile = (Path(folder, name) for name in ("certfile", "keyfile"))
        for path in (certfile, keyfile):
            path.touch(0o600)
            path.write_text(certs[path.name], encoding="ascii")
        context.load_cert_chain(certfile, keyfile, password="")  # an encrypted key is refused, not asked for
    return context


def certificates(values: Mapping[str, str]) -> dict[str, str] | None:
    """The certificates in a service's Secret, by the names that a Hub has for them."""
    found = {name: values[key] for name, key in CERTIFICATES.items() if key in values}
    return found if len(found) == len(CERTIFICATES) else None
