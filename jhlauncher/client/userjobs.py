"""What is asked for user jobs: jobs on systems with Slurm, and forwards to them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from ..errors import LauncherError, NotFound
from .connection import Connection, Items
from .views import UserJob


class UserJobsClient(Connection):
    """The methods of `LauncherClient` that are about user jobs."""

    async def systems(self) -> Items:
        """The systems where one has an account, and what a job may ask for there (``allowed``)."""
        with _naming():
            return _list(await self._ask("GET", "api/systems/"))

    async def submit_job(
        self,
        service: str,
        hostname: str,
        *,
        ports: dict[int, int] | None = None,
        idempotency_key: str | None = None,
        **job: Any,
    ) -> UserJob:
        """Submit a job to Slurm, and return as soon as that has it; its ports are forwarded to when it runs.

        Args:
            service: what it is called.
            hostname: the system.
            ports: by the port at which it is wanted, the one at the node where the job runs.
            idempotency_key: the same name with the same key is the same job; default: a new one.
            job: as ``job`` in ``POST api/userjobs``: ``script`` or ``command``, and further fields.

        """
        body = {"service": service, "hostname": hostname, "ports": ports or {}, "job": job}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        with _naming():
            return _userjob(await self._ask("POST", "api/userjobs/", json=body, headers=headers))

    async def forward(self, service: str, hostname: str, target_node: str, ports: dict[int, int]) -> UserJob:
        """Forward to a node, without a job; what is there already is left as it is.

        Args:
            service: what it is called.
            hostname: the system.
            target_node: one for everybody, or where a job of one's own runs.
            ports: by the port at which it is wanted, the one at the node.

        """
        body = {"service": service, "hostname": hostname, "target_node": target_node, "ports": ports}
        with _naming():
            return _userjob(await self._ask("POST", "api/userjobs/", json=body))

    async def userjobs(self) -> list[UserJob]:
        """One's own, the newest first."""
        with _naming():
            return [_userjob(item) for item in _list(await self._ask("GET", "api/userjobs/"))]

    async def userjob(self, name: str, *, tail: int = 0) -> UserJob:
        """One of them.

        Args:
            name: what it is called.
            tail: so many bytes of the end of its job's output as well.

        """
        with _naming(name):
            return _userjob(await self._ask("GET", _path(name), params={"tail": tail} if tail else {}))

    async def follow_userjob(self, name: str) -> AsyncGenerator[UserJob, None]:
        """How one is, now and whenever that changes, until its job has ended or it is removed; resumed where it breaks.

        Raises:
            NotFound: there is none of that name.
            Unreachable: it broke, and could not be resumed within `patience` seconds.

        """
        last: UserJob | None = None

        async def is_over() -> bool:
            return False  # asked again, it is there with its end, or it is not there

        try:
            async with aclosing(self._following(_path(name), 0, is_over)) as events:
                async for event in events:
                    found = _userjob(event.data)
                    if last and found.created != last.created:
                        return  # another of the same name
                    if found != last:
                        yield found
                    last = found
                    if found.final:
                        return
        except NotFound:
            if last is None:
                raise _missing(name) from None

    async def remove_userjob(self, name: str, *, keep: bool = False) -> None:
        """Cancel a job, end what is forwarded, and forget it.

        Args:
            name: what it is called.
            keep: cancel a job only, so that it can still be looked at.

        """
        await self.userjob(name)  # who errs in the name is told so; that it is missing below is what was wanted
        try:
            await self._ask("DELETE", _path(name), params={"keep": "true"} if keep else {})
        except NotFound:
            return


def _path(name: str) -> str:
    return f"api/userjobs/{quote(name, safe='')}/"


@contextmanager
def _naming(name: str = "") -> Iterator[None]:
    """Say what it is that is not found."""
    try:
        yield
    except NotFound:
        raise _missing(name) from None


def _missing(name: str) -> NotFound:
    return NotFound(f"You have no user job {name}." if name else "This launcher has no systems for user jobs.")


def _userjob(fields: Any) -> UserJob:
    """A user job, as the service tells of it.

    Raises:
        LauncherError: it is none.

    """
    try:
        return UserJob(**fields)
    except (TypeError, ValidationError) as error:
        raise LauncherError("The launcher's answer is not about a user job.", reason="not_the_launcher") from error


def _list(answer: Any) -> Items:
    """An answer that is a list.

    Raises:
        LauncherError: it is none.

    """
    if not isinstance(answer, list):
        raise LauncherError("The launcher's answer is no list.", reason="not_the_launcher")
    return answer
