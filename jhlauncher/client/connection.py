"""How the launcher is asked: one request after another until it answers, and streams that are resumed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeGuard

import aiohttp
from pydantic import ValidationError

from .. import errors, sse
from ..errors import InvalidRequest, LauncherError, Temporary
from .settings import settings
from .views import Event, Launch, Unreachable

Items = list[dict[str, Any]]
_SILENCE = 60
"""Seconds without a sign of life after which a stream counts as broken; the service gives one every 15."""
_LONGEST_DELAY = 10
ERROR_FIELDS = {"error", "reason", "details", "status"}
"""The fields of the one shape of errors."""


class Connection:
    """What asks; `LauncherClient` says what for, and has its arguments."""

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

    # -- requests

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise RuntimeError("the client is not open: async with LauncherClient() as client")
        return self._session

    async def _ask(self, method: str, path: str, *, longer: float = 0, **kwargs: Any) -> Any:
        """The answer to a request, asked again while the service does not answer; doing so does no harm."""
        patience = Patience(self._patience)
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

    async def _pages(self, path: str, query: dict[str, str], most: int | None) -> AsyncGenerator[Any, None]:
        """The items of a list, or that many of them."""
        left = most
        while left is None or left > 0:
            query["limit"] = str(min(left, 200) if left is not None else 200)
            page = object_of(await self._ask("GET", path, params=query), "items")
            for item in page["items"]:
                yield item
            if page.get("next") is None:
                return
            query["cursor"] = page["next"]
            left = left and left - len(page["items"])

    # -- streams

    async def _following(
        self, path: str, after: int, is_over: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[Event, None]:
        """The events of a stream, resumed where it breaks, until nothing follows."""
        patience = Patience(self._patience)
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
        self, path: str, after: int, patience: Patience, method: str = "GET", **sent: Any
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
                        launch = launch_of(data["launch"]) if isinstance(data.get("launch"), dict) else None
                        number = 0 if "position" in data else int(event.id or 0)
                        yield Event(event.name, data, number, launch)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            raise _unreachable(self.url, error) from error


class Patience:
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


def launch_of(fields: Any) -> Launch:
    """A launch, as the service tells of it.

    Raises:
        LauncherError: it is none.

    """
    try:
        return Launch(**fields)
    except (TypeError, ValidationError) as error:
        raise LauncherError("The launcher's answer is not about a launch.", reason="not_the_launcher") from error


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
    if response.status == 400 and isinstance(body, list) and body and all(isinstance(text, str) for text in body):
        raise InvalidRequest("; ".join(body))  # of user jobs, in the K8s Manager's words
    if response.status in (502, 503, 504):
        raise Unreachable(f"The launcher does not answer ({response.status}): {response.url.origin()}.")
    raise LauncherError(
        f"{response.url.with_query(None)} is not the launcher ({response.status} {response.content_type}). Its address "
        "ends in /services/launcher/, and JupyterHub knows it a few seconds after it has been started.",
        reason="not_the_launcher",
    )


def _is_error(body: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has the one shape of errors."""
    if not isinstance(body, dict) or not body.keys() >= ERROR_FIELDS:
        return False
    return isinstance(body["status"], int) and isinstance(body["details"], dict)


def object_of(answer: Any, field: str) -> dict[str, Any]:
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
