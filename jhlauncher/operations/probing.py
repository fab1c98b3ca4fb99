"""One request to whatever answers at an address, for a check."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

_TIMEOUT = 10
"""Seconds."""


class NoAnswer(Exception):
    """Nothing answers there; the text says why."""


class NotTrusted(NoAnswer):
    """What answers there has a certificate that is not trusted here."""


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


async def ask(url: str, context: ssl.SSLContext | None = None) -> Answer:
    """GET, without credentials.

    Raises:
        NoAnswer: there is none.

    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT)) as client,
            client.get(url, ssl=context or True, allow_redirects=False) as response,
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
