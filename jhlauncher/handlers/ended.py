"""``ended``: the Hub's spawner tells that the server of a launch has stopped, whoever stopped it, or has trouble."""

from __future__ import annotations

from pydantic import ValidationError

from ..errors import Unauthenticated
from ..failures import Failure
from ..signing import BadSignature
from .callers import HubHandler

_MAX_AGE = 300
"""Seconds for which a notice is taken; after that the launcher has found out by itself."""


class EndedHandler(HubHandler):
    """Takes notices that are sealed with the signing key, which only the Hub and this service have."""

    needs_caller = False

    async def post(self) -> None:
        """Take one."""
        kind, _, notice = self.request.headers.get("Authorization", "").partition(" ")
        try:
            content = self.services.parts.signer.unseal(notice if kind == "Sealed" else "", "ended", _MAX_AGE)
            launch = str(content["ended"] if "ended" in content else content["launch"])
            failure = Failure.model_validate(content["failure"]) if content.get("failure") else None
        except (BadSignature, TypeError, KeyError, ValidationError):
            raise Unauthenticated("This is for the Hub's spawner only.") from None
        if "ended" in content:
            await self.services.parts.reconciler.hear(launch, failure)
        else:
            await self.services.parts.reconciler.warn(launch, str(content["warning"]))
        self.nothing()
