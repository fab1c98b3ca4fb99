"""A single-user server as an engine has it, whether or not a Hub knows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .findings import Finding

Kind = Literal["container", "service", "pod", "process"]


@dataclass(frozen=True)
class Found:
    """A single-user server that is there."""

    kind: Kind
    id: str
    """By which the engine knows it: no later one has the same."""
    name: str
    user: str
    server: str
    since: str
    """When it was made, as the engine says it."""
    token: str = field(default="", repr=False)
    """Its own at the Hub, which revokes it when it stops the server."""


@dataclass(frozen=True)
class Kept:
    """A volume that the launcher has made."""

    name: str
    user: str
    """Who launched when it was made; "" if nobody knows."""
    size: int | None
    """Bytes; None if it has no limit."""
    used: int | None
    """Bytes; None if this engine does not tell."""
    used_by: tuple[str, ...]
    """Containers, pods or servers."""


class EngineUnavailable(Exception):
    """The engine can't be asked; the text says why."""


class Refused(Exception):
    """This can't be done with this volume; the text says why."""


class Engine(Protocol):
    """Where servers run, as the Hub's spawner is configured to use it."""

    forgetting_removes_volumes: bool
    """Whether a named server that the Hub forgets loses its volume."""

    def check(self) -> AsyncIterator[Finding]:
        """Whether it can be reached, with the rights that the spawner needs."""
        ...

    async def servers(self, api_url: str) -> list[Found]:
        """The servers of the Hub that has this API.

        Raises:
            EngineUnavailable: it can't be asked.

        """
        ...

    async def remove(self, found: Found) -> None:
        """End and remove a server; nothing happens if it is gone.

        Raises:
            EngineUnavailable: it could not be removed.

        """
        ...

    async def volumes(self) -> list[Kept]:
        """The volumes that a launcher has made here.

        Raises:
            EngineUnavailable: it can't be asked.

        """
        ...

    async def grow_volume(self, name: str, size: int) -> None:
        """Give a volume so many bytes.

        Raises:
            Refused: there is none, or it can't be grown.
            EngineUnavailable: it can't be asked.

        """
        ...

    async def remove_volume(self, name: str) -> None:
        """Destroy a volume that nobody uses.

        Raises:
            Refused: there is none, or it is in use.
            EngineUnavailable: it can't be asked.

        """
        ...


def variables(pairs: Iterable[str]) -> dict[str, str]:
    """An environment, from ``NAME=VALUE``."""
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def belongs(environment: dict[str, str], api_url: str) -> bool:
    """Whether this is the environment of a server of the Hub that has this API; every spawner sets it.

    The Hub's services have the same variables, and a name.
    """
    if not environment.get("JUPYTERHUB_USER") or environment.get("JUPYTERHUB_SERVICE_NAME"):
        return False
    return environment.get("JUPYTERHUB_API_URL", "").rstrip("/") == api_url
