"""The asynchronous client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeGuard
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError

from .. import errors, sse
from ..errors import LauncherError, LaunchFailed, Temporary
from ..records import ACTIVE, FINAL
from .settings import settings
from .views import Event, Launch, Unreachable

Items = list[dict[str, Any]]
_SILENCE = 60
"""Seconds without a sign of life after which a stream counts as broken; the service gives one every 15."""
_LONGEST_DELAY = 10
_ERROR = {"error", "reason", "details", "status"}
"""The fields of the one shape of errors."""


class LauncherClient:
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

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        config_file: str | os.PathLike[str] | None = None,
        timeout: float = 30,
        patience: float = 60,
    ) -> None:
        found = settings(url, token, config_file)
        self.url = found.url
        self._headers = {"Authorization": f"token {found.token}", "Accept": "application/json"}
        self._timeout = timeout
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open it."""
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

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
        return _launch(await self._ask("POST", "launches", json=request, headers=headers))

    async def plan(self, **request: Any) -> dict[str, Any]:
        """What would become of a request (``dry_run``): start, queue or refuse, by which rule, with what."""
        return _object(await self._ask("POST", "launches?dry_run=true", json=request), "decision")

    async def get(self, launch: str, *, wait: float = 0) -> Launch:
        """A launch, as it is after ``wait`` seconds, or as soon as it is ready or has ended."""
        query = {"wait": wait} if wait else {}
        return _launch(await self._ask("GET", _path(launch), params=query, longer=wait))

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
                yield _launch(item)

    async def _pages(self, path: str, query: dict[str, str], most: int | None) -> AsyncGenerator[Any, None]:
        """The items of a list, or that many of them."""
        left = most
        while left is None or left > 0:
            query["limit"] = str(min(left, 200) if left is not None else 200)
            page = _object(await self._ask("GET", path, params=query), "items")
            for item in page["items"]:
                yield item
            if page.get("next") is None:
                return
            query["cursor"] = page["next"]
            left = left and left - len(page["items"])

    async def stop(self, launch: str, *, wait: float = 0) -> Launch | None:
        """Cancel a launch, or stop its server; None when it has ended, else the launch as it is."""
        answer = await self._ask("DELETE", _path(launch), params={"wait": wait} if wait else {}, longer=wait)
        return _launch(answer) if answer else None

    async def extend(self, launch: str, lifetime: float | None) -> Launch:
        """Have a server stopped so many seconds from now (from ready, if it is not yet), or None: by somebody."""
        return _launch(await self._ask("PATCH", _path(launch), json={"lifetime": lifetime}))

    async def options(self, username: str | None = None, server_name: str = "") -> dict[str, Any]:
        """What may be asked, for this user's server; a user's own token needs no name for the default server."""
        query = {name: value for name, value in (("username", username), ("server_name", server_name)) if value}
        return _object(await self._ask("GET", "options", params=query), "username")

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
        return _object(await self._ask("POST", "batches", json=body, headers=headers), "items")

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
        return _object(await self._ask("GET", _batch(batch)), "items")

    async def extend_batch(self, batch: str, lifetime: float | None) -> Items:
        """`extend` for all of a batch that have not ended: each ``launch``, and ``error`` if it could not be."""
        answer = _object(await self._ask("PATCH", _batch(batch), json={"lifetime": lifetime}), "items")
        found: Items = answer["items"]
        return found

    async def stop_batch(self, batch: str) -> dict[str, Any] | None:
        """Stop all servers of a batch; None when all have ended, else the batch as it is."""
        answer = await self._ask("DELETE", _batch(batch))
        return _object(answer, "items") if answer else None

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
        async with aclosing(self._stream("users", 0, _Patience(0), method, **sent)) as events:
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
        answer = _object(await self._ask("GET", f"{_path(launch)}/events"), "items")
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

    async def _following(
        self, path: str, after: int, is_over: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Event, None]:
        """The events of a stream, resumed where it breaks, until nothing follows."""
        patience = _Patience(self._patience)
        while True:
            try:
                async with aclosing(self._stream(path, after, patience)) as events:
                    async for event in events:
                        after = event.id or after
                        yield event
                if await is_over():  # answered with nothing, or ended in good order: is there more?
                    return
                await patience.wait()
            except Temporary as error:
                await patience.wait(error)

    async def _stream(
        self, path: str, after: int, patience: _Patience, method: str = "GET", **sent: Any
    ) -> AsyncGenerator[Event, None]:
        """One connection's events."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        headers |= sent.pop("headers", {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=_SILENCE)
        try:
            async with self._open.request(
                method, self.url + path, headers=headers, timeout=timeout, allow_redirects=False, **sent
            ) as response:
                if response.status != 200:
                    await _answer(response)
                    return
                patience.renew()
                async with aclosing(sse.decode(response.content.iter_any())) as events:
                    async for event in events:
                        patience.renew()
                        data = json.loads(event.data)
                        if not isinstance(data, dict):
                            raise ValueError("an event that is no object")
                        launch = _launch(data["launch"]) if isinstance(data.get("launch"), dict) else None
                        number = 0 if "position" in data else int(event.id or 0)
                        yield Event(event.name, data, number, launch)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            raise _unreachable(self.url, error) from error

    # -- requests

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise RuntimeError("the client is not open: async with LauncherClient() as client")
        return self._session

    async def _ask(self, method: str, path: str, *, longer: float = 0, **kwargs: Any) -> Any:
        """The answer to a request, asked again while the service does not answer; doing so does no harm."""
        patience = _Patience(self._patience)
        timeout = aiohttp.ClientTimeout(total=self._timeout + longer)
        while True:
            try:
                async with self._open.request(
                    method, self.url + path, timeout=timeout, allow_redirects=False, **kwargs
                ) as response:
                    return await _answer(response)
            except (aiohttp.ClientError, TimeoutError) as error:
                problem: Temporary = _unreachable(self.url, error)
                problem.__cause__ = error
            except Temporary as error:
                problem = error
            await patience.wait(problem)


class _Patience:
    """When to ask again: soon, and then more and more rarely, for so long since it began not to answer.

    Args:
        seconds: for how long.

    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """It has answered."""
        self._delay = 0.1
        self._deadline: float | None = None

    async def wait(self, problem: Temporary | None = None) -> None:
        """Wait until it is to be asked again.

        Raises:
            Temporary: the problem, when there is no more patience.

        """
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
        delay = max(self._delay, min((problem and problem.retry_after) or 0, _LONGEST_DELAY))
        if problem and time.monotonic() + delay > self._deadline:
            raise problem
        await asyncio.sleep(delay * random.uniform(0.75, 1.25))  # noqa: S311  (so that not all come at once)
        self._delay = min(delay * 2, _LONGEST_DELAY)


def _launch(fields: Any) -> Launch:
    """A launch, as the service tells of it.

    Raises:
        LauncherError: it is none.

    """
    try:
        return Launch(**fields)
    except (TypeError, ValidationError) as error:
        raise LauncherError("The launcher's answer is not about a launch.", reason="not_the_launcher") from error


def _path(launch: str) -> str:
    return f"launches/{quote(launch, safe='')}"


def _batch(batch: str) -> str:
    return f"batches/{quote(batch, safe='')}"


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list | tuple | set | frozenset) else str(value)


async def _answer(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer; None if it is empty.

    Raises:
        LauncherError: what the service says of an error.
        Unreachable: it was not the service that answered.

    """
    try:
        body = json.loads(text) if (text := await response.text()) else None
    except (ValueError, RecursionError):
        body = ""
    if 200 <= response.status < 300 and body != "":
        return body
    if _is_error(body):
        error = errors.restored(body)
        error.retry_after = _seconds(response.headers.get("Retry-After"))
        raise error
    if response.status in (502, 503, 504):
        raise Unreachable(f"The launcher does not answer ({response.status}): {response.url.origin()}.")
    raise LauncherError(
        f"{response.url.with_query(None)} is not the launcher ({response.status} {response.content_type}). Its address "
        "ends in /services/launcher/, and JupyterHub knows it a few seconds after it has been started.",
        reason="not_the_launcher",
    )


def _is_error(body: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has the one shape of errors."""
    if not isinstance(body, dict) or not body.keys() >= _ERROR:
        return False
    return isinstance(body["status"], int) and isinstance(body["details"], dict)


def _object(answer: Any, field: str) -> dict[str, Any]:
    """An answer, which is to have this field.

    Raises:
        LauncherError: it does not.

    """
    if not isinstance(answer, dict) or field not in answer:
        raise LauncherError(f"The launcher's answer has no {field}.", reason="not_the_launcher")
    return answer


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isascii() and header.isdigit() else None


def _unreachable(url: str, error: BaseException) -> Unreachable:
    return Unreachable(f"The launcher can't be reached at {url} ({str(error) or type(error).__name__}).")


def _failure(event: Event) -> LauncherError:
    """The error for a launch that ended before it was ready."""
    data = event.data
    if data.keys() >= _ERROR:
        error = LaunchFailed(data["error"], reason=data["reason"], details=data["details"])
        error.status = data["status"]
        return error
    return LaunchFailed(event.message, reason=event.name if event.name in FINAL else None)
