"""Proves to the spawner that a launch spec comes from the launcher.

Any user may send ``user_options`` straight to the Hub, so what the spawner applies is signed, with HMAC-SHA256
(RFC 2104) over the launch's id, user, server, time and spec. The Hub stores and shows ``user_options``, so the values
of ``env``, which may be secrets, travel encrypted (Fernet: AES-128-CBC and HMAC).

The launcher and the spawner share one secret, the signing key. `install_launcher` sets it on both sides; an external
service derives it from its API token, which the two sides share already.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import TYPE_CHECKING, Any, Literal

from .models import LaunchSpec, parse

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

KEY_ENV = "JHLAUNCHER_SIGNING_KEY"
MANAGED_ENV = "JHLAUNCHER_MANAGED"
"""Set for the service that a Hub manages: it ends with its Hub."""
OPTIONS_KEY = "launcher"
"""The one key of ``user_options`` that is this project's."""
MIN_KEY_LENGTH = 32
"""Characters of the signing key."""


TOKEN_NOTE = "jhlauncher"  # noqa: S105  (a label, not a secret)
"""How the notes of tokens begin that the launcher mints."""


def token_note(user: str, server: str) -> str:
    """How the notes of this server's tokens begin; the launch's id follows."""
    return f"{TOKEN_NOTE} {user}/{server} ("


def noted(user: str, note: str) -> tuple[str, str] | None:
    """The server and the launch of this user's in a token's note; None if it is not the launcher's."""
    begin = f"{TOKEN_NOTE} {user}/"
    server, found, launch = note.removeprefix(begin).rpartition(" (")
    return (server, launch.removesuffix(")")) if note.startswith(begin) and found else None


SET_PASSWORD = "set-password"  # noqa: S105  (a path, not a secret)
"""The Hub's page, below /hub/, where people set their password with a link of the launcher's."""

Purpose = Literal["env", "token", "failure", "ended", "login", "password"]
"""Of what is sealed; some of it, people get to see, and may send elsewhere."""


class BadSignature(Exception):
    """The options do not come from the launcher, or not for this start. The text may be shown to anyone."""


def derive_key(api_token: str) -> str:
    """The default signing key of a service that has this API token."""
    return _derive(api_token.encode(), b"jhlauncher signing key").hex()


def key_fingerprint(key: str) -> str:
    """Says whether two signing keys are the same, and nothing else about them."""
    return _derive(key.encode(), b"jhlauncher key fingerprint").hex()[:16]


def _derive(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose: HKDF-Expand (RFC 5869) for a single block."""
    return hmac.digest(key, purpose + b"\x01", "sha256")


class Signer:
    """Signs launch specs and checks them.

    Args:
        key: the shared secret, at least `MIN_KEY_LENGTH` characters.
        lifetime: seconds for which a signed spec may be used to start its server.

    """

    def __init__(self, key: str, lifetime: float = 300) -> None:
        if len(key) < MIN_KEY_LENGTH:
            raise ValueError(f"the signing key must have at least {MIN_KEY_LENGTH} characters")
        self._mac_key = _derive(key.encode(), b"jhlauncher spec signature")
        self._key = key.encode()
        self.lifetime = lifetime

    def sign(self, launch_id: str, user: str, server: str, spec: LaunchSpec) -> dict[str, Any]:
        """What goes into ``user_options`` under `OPTIONS_KEY`."""
        options = {
            "id": launch_id,
            "issued": int(time.time()),
            "spec": spec.model_dump(exclude={"env"}, exclude_none=True),
            "env": self.seal(spec.env, "env") if spec.env else None,
        }
        return {**options, "signature": self._signature(user, server, options)}

    def verify(self, user: str, server: str, options: Any) -> LaunchSpec:
        """The spec of ``options``, if they were signed for this server of this user, not too long ago.

        Raises:
            BadSignature: they were not.

        """
        try:
            signature, issued = options["signature"], options["issued"]
            signed = {key: options[key] for key in ("id", "issued", "spec", "env")}
            genuine = hmac.compare_digest(self._signature(user, server, signed).encode(), signature.encode())
        except (TypeError, KeyError, AttributeError, ValueError):
            genuine = False
        if not genuine:
            raise BadSignature(
                "The launch options were not signed by the launcher service for this server. "
                "Ask the launcher for the launch; its options can't be sent to the Hub by hand."
            )
        if abs(time.time() - issued) > self.lifetime:
            raise BadSignature(
                "The launch options were signed too long ago, or the clocks of the Hub and the launcher differ. "
                "Ask the launcher for a new launch."
            )
        env = self.unseal(signed["env"], "env") if signed["env"] else {}
        return parse(LaunchSpec, {**signed["spec"], "env": env})

    def mark(self, launch_id: str, user: str, server: str) -> str:
        """What the spawner leaves in the options once the server of this launch is up; nobody else can make it."""
        return self._signature(user, server, {"up": launch_id})

    def _signature(self, user: str, server: str, options: dict[str, Any]) -> str:
        message = json.dumps([user, server, options], sort_keys=True, separators=(",", ":"))
        return hmac.digest(self._mac_key, message.encode(), "sha256").hex()

    def cookie_secret(self) -> bytes:
        """What signs the cookies of browsers, the same in all replicas."""
        return _derive(self._key, b"jhlauncher cookies")

    def fingerprint(self, value: Any) -> str:
        """A keyed hash of ``value`` (of JSON), to see whether two are the same without keeping them."""
        message = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hmac.digest(self._mac_key, b"fingerprint" + message.encode(), "sha256").hex()

    def seal(self, value: Any, purpose: Purpose) -> str:
        """``value`` (of JSON) so that only who has the key can read or make it, and that it is good for one purpose."""
        return self._fernet(purpose).encrypt(json.dumps(value).encode()).decode()

    def _fernet(self, purpose: Purpose) -> Fernet:
        from cryptography.fernet import Fernet  # only launches that carry env, or fail, pay for the import

        return Fernet(base64.urlsafe_b64encode(_derive(self._key, b"jhlauncher sealed " + purpose.encode())))

    def unseal(self, text: Any, purpose: Purpose, max_age: int | None = None) -> Any:
        """What was sealed for this purpose, not more than ``max_age`` seconds ago.

        Raises:
            BadSignature: it was not sealed with this key and for this, or too long ago.

        """
        from cryptography.fernet import InvalidToken

        try:
            return json.loads(self._fernet(purpose).decrypt(text, ttl=max_age))
        except (InvalidToken, TypeError, ValueError):
            raise BadSignature("This was not sealed with the launcher's signing key.") from None
