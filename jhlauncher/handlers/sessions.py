"""Sessions of browsers: JupyterHub's OAuth, with all that is to be kept in the browser: any replica can go on."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from typing import Any

from jupyterhub.services.auth import HubOAuth
from tornado.web import RequestHandler

from .. import environment
from ..errors import Unauthenticated
from ..hub import Hub
from ..signing import BadSignature, Signer

_LONGEST_NEXT = 1500
"""Characters of an address that is gone back to after the login; browsers drop cookies beyond 4 kB."""
_LOGIN_SECONDS = 600
"""For which a login may be under way, as with JupyterHub's own."""


class Sessions(HubOAuth):  # type: ignore[misc]  # JupyterHub carries no types
    """Logs browsers in through the Hub.

    Cookies, XSRF tokens and the steps of OAuth are JupyterHub's. What it would keep in this process' memory is sealed
    and given to the browser instead; what it would ask the Hub on a connection of its own, `Hub` asks.

    Args:
        hub: is asked.
        signer: seals.
        prefix: the path below which everything answers.
        service_name: at the Hub.

    """

    def __init__(self, hub: Hub, signer: Signer, prefix: str, service_name: str, **kwargs: Any) -> None:
        client = environment.text("JUPYTERHUB_CLIENT_ID", f"service-{service_name}")
        super().__init__(
            base_url=prefix, api_url=hub.api_url, api_token=hub.api_token, oauth_client_id=client, **kwargs
        )
        self._hub = hub
        self._signer = signer
        before, found, _ = prefix.partition("/services/")
        if found:
            self.hub_prefix = f"{before}/hub/"

    # -- what is kept

    def generate_state(self, next_url: str | None = None, **extra_state: Any) -> str:
        """What is to be known when the browser comes back from the Hub."""
        if next_url and len(next_url) > _LONGEST_NEXT:
            next_url = None
        state = {"next_url": next_url, "nonce": secrets.token_urlsafe(8), **extra_state}
        return self._signer.seal(state, "login").rstrip("=")

    def _decode_state(self, state_id: str, /) -> dict[str, Any]:
        try:
            padded = state_id + "=" * (-len(state_id) % 4)
            state: dict[str, Any] = self._signer.unseal(padded, "login", _LOGIN_SECONDS)
        except BadSignature:
            return {}
        return state

    def clear_oauth_state(self, state_id: str) -> None:
        """Nothing is kept here; the code that comes with it is good for one time."""

    def token_of(self, handler: RequestHandler) -> str | None:
        """The token in a browser's cookie."""
        token: str | None = self._get_token_cookie(handler)
        return token

    # -- what the Hub is asked

    def token_for_code(self, code: str, *, code_verifier: str | None = None, sync: bool = True) -> Awaitable[str]:
        """The token for what the browser brings back from the Hub."""
        fields = {
            "client_id": self.oauth_client_id,
            "client_secret": self.api_token,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.oauth_redirect_uri,
            **({"code_verifier": code_verifier} if code_verifier else {}),
        }
        return self._hub.redeem(fields)

    def user_for_token(self, token: str, *args: Any, **kwargs: Any) -> Awaitable[dict[str, str] | None]:
        """Who holds a token, as far as the callback wants to know it."""
        return self._holder(token)

    async def _holder(self, token: str) -> dict[str, str] | None:
        try:
            return {"name": (await self._hub.identify(token)).name}
        except Unauthenticated:
            return None
