"""What the launcher's handlers share: callers whom the Hub knows, and what else of a request they read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from jupyterhub.utils import get_browser_protocol

from ..errors import Forbidden, InvalidRequest, Unauthenticated
from ..models import Caller
from ..parts import Parts
from .base import BaseHandler

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+([\x21-\x7e]+)\s*", re.IGNORECASE)


@dataclass
class Services:
    """What the launcher's handlers share."""

    parts: Parts
    authenticate_prometheus: bool
    """Whether `metrics` needs the scope read:metrics."""
    prefix: str
    """The path below which everything answers."""
    service_name: str
    """At the Hub."""
    public_url: str


class HubHandler(BaseHandler):
    """For callers with a token of the Hub's, and the scope to reach this service."""

    caller: Caller

    @property
    def services(self) -> Services:
        """The parts of the application."""
        services: Services = self.settings["services"]
        return services

    async def authenticate(self) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: nobody whom the Hub knows.

        """
        match = _AUTHORIZATION.fullmatch(self.request.headers.get("Authorization", ""))
        if not match:
            raise Unauthenticated("Send a JupyterHub token: `Authorization: token ...`.")
        return await self.services.parts.hub.identify(match[1])

    async def admit(self) -> None:
        """Let a caller in whose token reaches this service.

        Raises:
            Unauthenticated, Forbidden: it does not.

        """
        caller = await self.authenticate()
        if not caller.reaches_service(self.services.service_name):
            needs = f"access:services!service={self.services.service_name}"
            raise Forbidden(f"Your token can't reach this service: {needs} is needed.", details={"needs": needs})
        self.caller = caller

    def idempotency_key(self) -> str | None:
        """The header ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header), with or without its quotes.

        Raises:
            InvalidRequest: it is empty, too long, or has other than visible ASCII characters.

        """
        key = self.request.headers.get("Idempotency-Key")
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidRequest("The Idempotency-Key must have 1 to 255 visible ASCII characters.")
        return key

    def absolute_url(self, path: str, full_url: str | None) -> str:
        """A server's URL as the caller can open it: as configured, else as the Hub says, else as they came here."""
        if self.services.public_url:
            return urljoin(self.services.public_url, path)
        if full_url:
            return full_url
        return urljoin(f"{get_browser_protocol(self.request)}://{self.request.host}", path)
