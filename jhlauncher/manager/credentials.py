"""Who calls the manager: Hubs with a name and a password or a token, or with a token of the Hub that it belongs to.

Passwords and tokens come from the environment and are compared as hashes: scrypt (RFC 7914) with a salt for a password,
in constant time; SHA-256, looked up, for a token, which is long and random. What has been found right is remembered as
a keyed hash, since a Hub asks for a service every few seconds. An unknown name costs as much as a wrong password.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass

from traitlets import Dict, List, TraitError, Unicode
from traitlets.config import LoggingConfigurable

from ..errors import Forbidden, Temporary, Unauthenticated
from ..hub import Hub
from ..models import Caller

SERVICES = "access_to_webservice"
"""Group: may start and stop services."""
LOGS = "access_to_logging"
"""Group: may change where this process logs to."""
_GROUPS = (SERVICES, LOGS)
LOGS_SCOPE = "custom:jhlauncher:logging"
"""JupyterHub's custom scope for callers with a token of the Hub's."""
_SCOPES = {"POST": "start:servers", "PATCH": "start:servers", "PUT": "start:servers", "DELETE": "delete:servers"}
_MIN_TOKEN = 16
_MOST_WAITING = 50
"""Passwords that wait to be checked; a hash takes some 50 ms of a core."""
_HEADER = re.compile(r"(basic|token|bearer)\s+(\S+)\s*", re.IGNORECASE)
NOT_GIVEN = "Authentication credentials were not provided."
NOT_PERMITTED = "You do not have permission to perform this action."


@dataclass(frozen=True)
class Client:
    """Who calls."""

    credential: str
    """Whose services it sees and has."""
    groups: frozenset[str]
    caller: Caller | None = None
    """At the Hub that the manager belongs to; None for one with a credential of its own."""

    @property
    def label(self) -> str:
        """For logs."""
        return self.caller.label if self.caller else self.credential

    def may(self, group: str, method: str) -> bool:
        """Whether it may do what needs this group, with this method of HTTP."""
        if self.caller is None:
            return group in self.groups
        if group == LOGS:
            return LOGS_SCOPE in self.caller.scopes
        return not self.caller.scopes.isdisjoint({"servers", _SCOPES.get(method, "read:servers")})


class Credentials(LoggingConfigurable):
    """The Hubs that may call."""

    create_user = Dict(
        key_trait=Unicode(),
        value_trait=List(Unicode()),
        help="""Credentials, and the groups of each: access_to_webservice (services), access_to_logging (logs).

        One exists only if its password or token is in the environment: <NAME>_USER_PASS, <NAME>_USER_TOKEN, the name
        in capitals, with _ for whatever is neither letter nor digit.
        """,
    ).tag(config=True, key="startup.create_user")
    hub_credential = Unicode(
        help="""The credential whose services callers with a token of the own Hub's have, beside the launcher.

        It needs no password, nor an entry in `create_user`. The callers need the scopes start:servers, delete:servers
        and read:servers, not limited to some, and for logs custom:jhlauncher:logging. Empty: such tokens are not taken.
        """
    ).tag(config=True)
    hub: Hub | None = None
    service_name = ""

    def load(self) -> None:
        """Take the passwords and tokens from the environment.

        Raises:
            TraitError: a group is unknown, a token too short, or two credentials can't be told apart.

        """
        self._key = secrets.token_bytes(32)
        self._right: set[bytes] = set()
        self._waiting = 0
        self._passwords: dict[str, tuple[bytes, bytes]] = {}
        self._tokens: dict[bytes, str] = {}
        self._checking = asyncio.Semaphore(2)
        self._nobody = _hashed(secrets.token_hex())
        variables: dict[str, str] = {}
        for name, groups in self.create_user.items():
            unknown = set(groups) - set(_GROUPS)
            if unknown:
                raise TraitError(f"startup.create_user.{name}: there is no group {min(unknown)!r}")
            variable = re.sub(r"[^A-Z0-9]", "_", name.upper())
            if variable in variables:
                raise TraitError(
                    f"startup.create_user: {variables[variable]} and {name} would share ${variable}_USER_PASS"
                )
            variables[variable] = name
            self._load(name, variable)

    def _load(self, name: str, variable: str) -> None:
        password, token = (os.environ.get(f"{variable}_USER_{kind}", "") for kind in ("PASS", "TOKEN"))
        if password:
            self._passwords[name] = _hashed(password)
        if token:
            if not re.fullmatch(rf"\S{{{_MIN_TOKEN},}}", token):
                raise TraitError(f"${variable}_USER_TOKEN must have at least {_MIN_TOKEN} characters, and no space")
            digest = hashlib.sha256(token.encode()).digest()
            if digest in self._tokens:
                raise TraitError(f"{self._tokens[digest]} and {name} have the same token")
            self._tokens[digest] = name
        if not password and not token:
            self.log.warning(
                "No credential %s: neither $%s_USER_PASS nor $%s_USER_TOKEN is set", name, variable, variable
            )

    @property
    def names(self) -> list[str]:
        """Of those who may call with a credential of their own."""
        return sorted({*self._passwords, *self._tokens.values()})

    async def identify(self, header: str) -> Client:
        """Who sends this header ``Authorization``.

        Raises:
            Unauthenticated: nobody that is known.
            Forbidden: somebody whom the Hub does not let reach this service.

        """
        match = _HEADER.fullmatch(header)
        if not match:
            raise Unauthenticated(NOT_GIVEN)
        kind, secret = match[1].lower(), match[2]
        if kind == "basic":
            return self._client(await self._with_password(secret))
        name = self._tokens.get(hashlib.sha256(secret.encode()).digest())
        if name:
            return self._client(name)
        return await self._with_hub_token(secret)

    def has(self, header: str) -> bool:
        """Whether this header ``Authorization`` is for one of these credentials, right or wrong, and not for a Hub."""
        match = _HEADER.fullmatch(header)
        if not match:
            return False
        return match[1].lower() == "basic" or hashlib.sha256(match[2].encode()).digest() in self._tokens

    def _client(self, name: str) -> Client:
        return Client(name, frozenset(self.create_user.get(name, [])))

    async def _with_password(self, secret: str) -> str:
        try:
            name, found, password = base64.b64decode(secret, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            found = ""
        if not found:
            raise Unauthenticated("Invalid basic header. Credentials not correctly base64 encoded.")
        given = hmac.digest(self._key, f"{name}:{password}".encode(), "sha256")
        if given not in self._right and not await self._is_right(name, password):
            raise Unauthenticated("Invalid username/password.")
        self._right.add(given)
        return name

    async def _is_right(self, name: str, password: str) -> bool:
        if self._waiting >= _MOST_WAITING:
            raise Temporary("Too many passwords are being checked. Try again.", retry_after=1)
        salt, expected = self._passwords.get(name, self._nobody)
        self._waiting += 1
        try:
            async with self._checking:
                actual = (await asyncio.to_thread(_hashed, password, salt))[1]
        finally:
            self._waiting -= 1
        return hmac.compare_digest(actual, expected) and name in self._passwords

    async def _with_hub_token(self, token: str) -> Client:
        if not self.hub or not self.hub_credential:
            raise Unauthenticated("Invalid token.")
        try:
            caller = await self.hub.identify(token)
        except Unauthenticated:
            raise Unauthenticated("Invalid token.") from None
        if not caller.reaches_service(self.service_name):
            raise Forbidden(NOT_PERMITTED)
        return Client(self.hub_credential, frozenset(), caller)


def _hashed(password: str, salt: bytes = b"") -> tuple[bytes, bytes]:
    """Salt and hash of a password."""
    salt = salt or secrets.token_bytes(16)
    return salt, hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
