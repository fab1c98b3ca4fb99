"""What the launcher's handlers share: callers whom the Hub knows, and what else of a request they read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from jupyterhub.services.auth import HubOAuthenticated
from jupyterhub.utils import get_browser_protocol
from tornado.web import HTTPError

from ..errors import Forbidden, Unauthenticated
from ..models import Caller
from ..parts import Parts
from .base import BaseHandler
from .sessions import Sessions

_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+([\x21-\x7e]+)\s*", re.IGNORECASE)


@dataclass
class Services:
    """What the launcher's handlers share."""

    parts: Parts
    sessions: Sessions
    """Of browsers."""
    authenticate_prometheus: bool
    """Whether `metrics` needs the scope read:metrics."""
    prefix: str
    """The path below which everything answers."""
    service_name: str
    """At the Hub."""
    public_url: str


class HubHandler(HubOAuthenticated, BaseHandler):  # type: ignore[misc]  # of what the former has, cookies are used
    """For callers with a token of the Hub's, or a browser's session, and the scope to reach this service."""

    caller: Caller
    token: str
    """The caller's, at the Hub."""
    in_browser = False
    """Whether a cookie said who calls."""
    navigable = False
    """Whether browsers go here by themselves, without a script of the page's that proves where it comes from."""

    @property
    def services(self) -> Services:
        """The parts of the application."""
        services: Services = self.settings["services"]
        return services

    @property
    def hub_auth(self) -> Sessions:
        """What JupyterHub's own part of a handler asks for cookies."""
        return self.services.sessions

    def get_current_user(self) -> str | None:
        """Who calls, for JupyterHub's part; its own way there would block."""
        return self.caller.name if hasattr(self, "caller") else None

    async def authenticate(self) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: nobody whom the Hub knows.
            Forbidden: a browser does not prove that our own page sent it.

        """
        header = self.request.headers.get("Authorization")
        match = _AUTHORIZATION.fullmatch(header or "")
        token = match[1] if match else self._token_of_cookie() if header is None else None
        if not token:
            raise Unauthenticated("Send a JupyterHub token: `Authorization: token ...`.")
        self.token = token
        session = self.hub_auth.get_session_id(self) if self.in_browser else ""
        return await self.services.parts.hub.identify(token, session)

    def _token_of_cookie(self) -> str | None:
        """The token of a browser's session; for whatever but a navigation, the page must show its XSRF token, too."""
        token: str | None = self.hub_auth.token_of(self)
        if token:
            self.in_browser = True
            try:
                if not self.navigable and "X-XSRFToken" not in self.request.headers:
                    raise HTTPError(403, "no XSRF token")  # which JupyterHub does not ask of navigations
                self.check_xsrf_cookie()
            except HTTPError as error:
                raise Forbidden(
                    "The page's XSRF token is missing or outdated. Reload the page.", reason="xsrf_failed"
                ) from error
        return token

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

    def absolute_url(self, path: str, full_url: str | None) -> str:
        """A server's URL as the caller can open it: as configured, else as the Hub says, else as they came here."""
        if self.services.public_url:
            return urljoin(self.services.public_url, path)
        if full_url:
            return full_url
        return urljoin(f"{get_browser_protocol(self.request)}://{self.request.host}", path)
