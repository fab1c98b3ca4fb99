"""The asynchronous client."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from .. import errors
from ..errors import LauncherError, LaunchFailed
from ..records import ACTIVE, FINAL
from .connection import ERROR_FIELDS, Items, Patience, launch_of, object_of
from .userjobs import UserJobsClient
from .views import Event, Launch, Unreachable


class LauncherClient(UserJobsClient):
    """Asks the launcher, with a token of JupyterHub's; an asynchronous context manager.

    A service that can't be reached, or says that it can't answer now, is asked again for ``patience`` seconds; what is
    asked for is done once all the same. Every method raises `LauncherError`: `jhlauncher.errors` has the tree, and
    `Unreachable` stands for a service that did not answer.

    Args:
        url: the service's address, ``https://HUB/services/launcher/``. Default: ``$JHLAUNCHER_URL``, or the file's.
        token: of JupyterHub. Default: ``$JHLAUNCHER_TOKEN``, or else the file's.
        config_file: instead of ``~/.config/jhlauncher/client.toml``.
        timeout: seconds for the answer to an ordinary request.
        patience: seconds for which a service that does not answer is asked again; streams as well, each time anew.

    Raises:
        SettingsMissing: address or token are not known.

    """

    # -- launching

    async def launch(self, **request: Any) -> AsyncGenerator[Event, None]:
        """Start a server, and tell each step until it is ready; the last event has the `Launch`, with URL and token.

        Args:
            request: as in ``POST launches``: ``username`` and ``image`` or ``template``, and further fields.

        Raises:
            CallerError: the request is refused.
            LaunchFailed: the server could not be started, or was ended before it was ready; ``reason`` says why.

        """
        launch = await self.submit(**request)
        async with aclosing(self.events(launch.id)) as events:
            async for event in events:
                if event.final:
                    raise _failure(event)
                if event.name != "ready":
                    yield event
                    continue
                ready = event.launch or await self.get(launch.id)
                if ready.final:
                    raise LaunchFailed(f"The server was ready, and has ended: {ready.state}.", reason=ready.state)
                yield Event("ready", event.data, event.id, ready)
                return

    async def submit(self, *, idempotency_key: str | None = None, **request: Any) -> Launch:
        """Ask for a server, and return as soon as that is accepted.

        Args:
            idempotency_key: the same request with the same key is the same launch; default: a new one.
            request: as in ``POST launches``.

        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return launch_of(await self._ask("POST", "launches", json=request, headers=headers))

    async def plan(self, **request: Any) -> dict[str, Any]:
        """What would become of a request (``dry_run``): start, queue or refuse, by which rule, with what."""
        return object_of(await self._ask("POST", "launches?dry_run=true", json=request), "decision")

    async def get(self, launch: str, *, wait: float = 0) -> Launch:
        """A launch, as it is after ``wait`` seconds, or as soon as it is ready or has ended."""
        query = {"wait": wait} if wait else {}
        return launch_of(await self._ask("GET", _path(launch), params=query, longer=wait))

    async def list(self, *, most: int | None = None, **filters: Any) -> AsyncGenerator[Launch, None]:
        """The launches that the token may see, the newest first.

        Args:
            most: how many at most; None: all.
            filters: as in ``GET launches``: ``username``, ``server_name``, ``group``, ``state`` (one, or several),
                ``template``, ``batch``, ``since``, ``until``.

        """
        query = {name: _text(value) for name, value in filters.items() if value is not None}
        async with aclosing(self._pages("launches", query, most)) as items:
            async for item in items:
                yield launch_of(item)

    async def stop(self, launch: str, *, wait: float = 0) -> Launch | None:
        """Cancel a launch, or stop its server; None when it has ended, else the launch as it is."""
        answer = await self._ask("DELETE", _path(launch), params={"wait": wait} if wait else {}, longer=wait)
        return launch_of(answer) if answer else None

    async def extend(self, launch: str, lifetime: float | None) -> Launch:
        """Have a server stopped so many seconds from now (from ready, if it is not yet), or None: by somebody."""
        return launch_of(await self._ask("PATCH", _path(launch), json={"lifetime": lifetime}))

    async def options(self, username: str | None = None, server_name: str = "") -> dict[str, Any]:
        """What may be asked, for this user's server; a user's own token needs no name for the default server."""
        query = {name: value for name, value in (("username", username), ("server_name", server_name)) if value}
        return object_of(await self._ask("GET", "options", params=query), "username")

    # -- batches

    async def submit_batch(
        self,
        launches: Iterable[dict[str, Any]] | None = None,
        *,
        users: Iterable[str] | None = None,
        group: str | None = None,
        launch: dict[str, Any] | None = None,
        stagger: float = 0,
        mode: str = "some",
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Ask for many servers at once: either ``launches``, or one ``launch`` for ``users`` and a ``group``.

        Args:
            launches: each as in ``POST launches``.
            users: whose servers.
            group: of JupyterHub's; its members get a server, too.
            launch: what each of them gets: as in ``POST launches``, without ``username``.
            stagger: seconds between the starts.
            mode: "all" takes all or none, "some" each by itself.
            idempotency_key: the same request with the same key is the same batch; default: a new one.

        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        lists = {"launches": launches, "users": users}
        body: dict[str, Any] = {name: list(value) for name, value in lists.items() if value is not None}
        body |= {name: value for name, value in (("group", group), ("launch", launch)) if value is not None}
        body |= {"stagger": stagger, "mode": mode}
        return object_of(await self._ask("POST", "batches", json=body, headers=headers), "items")

    async def batches(self, *, most: int | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """One's own batches, the newest first, each with the number of launches by state.

        Args:
            most: how many at most; None: all.

        """
        async with aclosing(self._pages("batches", {}, most)) as items:
            async for item in items:
                yield item

    async def get_batch(self, batch: str) -> dict[str, Any]:
        """A batch: ``items`` has for each person the launch, what it is doing, or why it was not accepted."""
        return object_of(await self._ask("GET", _batch(batch)), "items")

    async def extend_batch(self, batch: str, lifetime: float | None) -> Items:
        """`extend` for all of a batch that have not ended: each ``launch``, and ``error`` if it could not be."""
        answer = object_of(await self._ask("PATCH", _batch(batch), json={"lifetime": lifetime}), "items")
        found: Items = answer["items"]
        return found

    async def stop_batch(self, batch: str) -> dict[str, Any] | None:
        """Stop all servers of a batch; None when all have ended, else the batch as it is."""
        answer = await self._ask("DELETE", _batch(batch))
        return object_of(answer, "items") if answer else None

    async def batch_events(self, batch: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """To which states the launches of a batch came after that event, and come, until all have ended."""

        async def is_over() -> bool:
            counts = (await self.get_batch(batch))["counts"]
            return not any(counts.get(state) for state in ACTIVE)

        async with aclosing(self._following(f"{_batch(batch)}/events", after, is_over)) as events:
            async for event in events:
                yield event

    # -- people

    async def enrol(
        self,
        roster: bytes | Iterable[dict[str, Any]],
        *,
        mode: str = "all",
        mail: str = "once",
        dry_run: bool = False,
        adopt: bool = False,
        columns: dict[str, str] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Give people accounts; an event "user" for each, as it happens, and "done" with all of them at the end.

        Where it breaks, do it again: whoever has an account keeps it, and whoever had a mail gets no other.

        Args:
            roster: a CSV file, or people as objects: ``name``, ``username``, ``emails``, ``groups``, ``admin``.
            mode: "all" does nothing if one row can't be used, "some" does what it can.
            mail: "once" to those who have not had one, "again" to all, "no" to nobody.
            dry_run: only say what would be done.
            adopt: also invite accounts that are there already at addresses that they were not made with.
            columns: of CSV, how columns are headed that are not headed as usual: ``{"name": "Studente"}``.

        Raises:
            CallerError: the roster can't be used, or the token may not do this; ``details["rows"]`` names bad rows.
            Unreachable: it broke.

        """
        how = {"mode": mode, "mail": mail, "dry_run": dry_run, "adopt": adopt}
        if isinstance(roster, bytes):
            query = {name: _text(value).lower() for name, value in how.items()}
            named = ",".join(f"{what}:{heading}" for what, heading in (columns or {}).items())
            sent: dict[str, Any] = {
                "params": query | ({"columns": named} if named else {}),
                "data": roster,
                "headers": {"Content-Type": "text/csv"},
            }
        else:
            sent = {"json": {"users": list(roster), **how}}
        async with aclosing(self._told("POST", **sent)) as events:
            async for event in events:
                yield event

    async def remove_users(self, usernames: Iterable[str]) -> AsyncGenerator[Event, None]:
        """Remove people's accounts, and stop their servers; an event "user" for each, and "done" with all at the end.

        Raises:
            CallerError: the token may not do this.
            Unreachable: it broke; do it again.

        """
        async with aclosing(self._told("DELETE", json={"usernames": list(usernames)})) as events:
            async for event in events:
                yield event

    async def users(self, *, name: str = "", most: int | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """The users of the Hub that the token may see, and what is known of those who were enrolled.

        Args:
            name: a part of their user names.
            most: how many at most; None: all.

        """
        async with aclosing(self._pages("users", {"name": name} if name else {}, most)) as items:
            async for item in items:
                yield item

    async def _told(self, method: str, **sent: Any) -> AsyncGenerator[Event, None]:
        """What is done for each of many users."""
        done = False
        async with aclosing(self._stream("users", 0, Patience(0), method, **sent)) as events:
            async for event in events:
                if event.name == "failed":
                    raise errors.restored(event.data)
                done = event.name == "done"
                yield event
        if not done:
            raise Unreachable("The launcher's answer broke off. Do it again: what was done stays done.")

    # -- events

    async def past_events(self, launch: str) -> tuple[Event, ...]:
        """What has happened to a launch so far."""
        answer = object_of(await self._ask("GET", f"{_path(launch)}/events"), "items")
        return tuple(Event(item["event"], item["data"], item["id"]) for item in answer["items"])

    async def events(self, launch: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """What happened to a launch after that event, and what happens, until its end; resumed where it breaks.

        Raises:
            NotFound: there is no such launch.
            Unreachable: it broke, and could not be resumed within `patience` seconds.

        """

        async def is_over() -> bool:
            return (await self.get(launch)).final

        async with aclosing(self._following(f"{_path(launch)}/events", after, is_over)) as events:
            async for event in events:
                yield event
                if event.final:
                    return


def _path(launch: str) -> str:
    return f"launches/{quote(launch, safe='')}"


def _batch(batch: str) -> str:
    return f"batches/{quote(batch, safe='')}"


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list | tuple | set | frozenset) else str(value)


def _failure(event: Event) -> LauncherError:
    """The error for a launch that ended before it was ready."""
    data = event.data
    if data.keys() >= ERROR_FIELDS:
        error = LaunchFailed(data["error"], reason=data["reason"], details=data["details"])
        error.status = data["status"]
        return error
    return LaunchFailed(event.message, reason=event.name if event.name in FINAL else None)
