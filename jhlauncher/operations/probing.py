"""One request to whatever answers at an address, for a check."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDictProxy

_TIMEOUT = 10
"""Seconds."""


class NoAnswer(Exception):
    """Nothing answers there; the text says why."""


class NotTrusted(NoAnswer):
    """What answers there has a certificate that is not trusted here."""


@dataclass(frozen=True)
class Address:
    """JupyterHub's address, as somebody reaches it."""

    url: str
    """"" if it is not known."""
    on_loopback: bool = False
    """It was derived, and is no name of any certificate's."""

    def below(self, path: str) -> str:
        """The URL of a path at this host."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: CIMultiDictProxy[str]
    body: Any
    """Of JSON; None if it was something else."""

    def get(self, key: str) -> Any:
        """A field of the body; None if there is none."""
        return self.body.get(key) if isinstance(self.body, dict) else None


async def ask(url: str, context: ssl.SSLContext | None = None, *, trusting: bool = False) -> Answer:
    """GET, without credentials.

    Args:
        url: where.
        context: of TLS.
        trusting: any certificate will do.

    Raises:
        NoAnswer: there is none.

    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT)) as client,
            client.get(url, ssl=context or not trusting, allow_redirects=False) as response,
        ):
            return Answer(response.status, response.headers, _json(await response.read()))
    except aiohttp.ClientConnectorCertificateError as error:
        raise NotTrusted(str(error.certificate_error)) from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
