"""The same client for where nothing is awaited: notebooks, and scripts of a few lines."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from .client import LauncherClient
from .connection import Items
from .views import Event, Launch, UserJob

Result = TypeVar("Result")
UserJobs = list[UserJob]


class BlockingClient:
    """`LauncherClient`, with methods that return when they are done, on an event loop in a thread of its own.

    Works where a loop runs already, as in a notebook. `close` it, or use it in a ``with``.

    Args:
        args: as of `LauncherClient`.
        kwargs: as of `LauncherClient`.

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client = LauncherClient(*args, **kwargs)
        self._loop = asyncio.new_event_loop()
        self._endings: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="jhlauncher client", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # while the thread still runs, so that what is left open can be closed
        self._wait(self._client.__aenter__())

    def close(self) -> None:
        """Close all connections."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        self._wait(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def url(self) -> str:
        """The service's address."""
        return self._client.url

    def launch(self, **request: Any) -> Iterator[Event]:
        """See `LauncherClient.launch`."""
        return self._each(self._client.launch(**request))

    def submit(self, *, idempotency_key: str | None = None, **request: Any) -> Launch:
        """See `LauncherClient.submit`."""
        return self._wait(self._client.submit(idempotency_key=idempotency_key, **request))

    def plan(self, **request: Any) -> dict[str, Any]:
        """See `LauncherClient.plan`."""
        return self._wait(self._client.plan(**request))

    def get(self, launch: str, *, wait: float = 0) -> Launch:
        """See `LauncherClient.get`."""
        return self._wait(self._client.get(launch, wait=wait))

    def list(self, *, most: int | None = None, **filters: Any) -> Iterator[Launch]:
        """See `LauncherClient.list`."""
        return self._each(self._client.list(most=most, **filters))

    def stop(self, launch: str, *, wait: float = 0) -> Launch | None:
        """See `LauncherClient.stop`."""
        return self._wait(self._client.stop(launch, wait=wait))

    def extend(self, launch: str, lifetime: float | None) -> Launch:
        """See `LauncherClient.extend`."""
        return self._wait(self._client.extend(launch, lifetime))

    def options(self, username: str | None = None, server_name: str = "") -> dict[str, Any]:
        """See `LauncherClient.options`."""
        return self._wait(self._client.options(username, server_name))

    def submit_batch(
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
        """See `LauncherClient.submit_batch`."""
        return self._wait(
            self._client.submit_batch(
                launches,
                users=users,
                group=group,
                launch=launch,
                stagger=stagger,
                mode=mode,
                idempotency_key=idempotency_key,
            )
        )

    def batches(self, *, most: int | None = None) -> Iterator[dict[str, Any]]:
        """See `LauncherClient.batches`."""
        return self._each(self._client.batches(most=most))

    def get_batch(self, batch: str) -> dict[str, Any]:
        """See `LauncherClient.get_batch`."""
        return self._wait(self._client.get_batch(batch))

    def extend_batch(self, batch: str, lifetime: float | None) -> Items:
        """See `LauncherClient.extend_batch`."""
        return self._wait(self._client.extend_batch(batch, lifetime))

    def stop_batch(self, batch: str) -> dict[str, Any] | None:
        """See `LauncherClient.stop_batch`."""
        return self._wait(self._client.stop_batch(batch))

    def batch_events(self, batch: str, after: int = 0) -> Iterator[Event]:
        """See `LauncherClient.batch_events`."""
        return self._each(self._client.batch_events(batch, after))

    def enrol(
        self,
        roster: bytes | Iterable[dict[str, Any]],
        *,
        mode: str = "all",
        mail: str = "once",
        dry_run: bool = False,
        adopt: bool = False,
        columns: dict[str, str] | None = None,
    ) -> Iterator[Event]:
        """See `LauncherClient.enrol`."""
        return self._each(
            self._client.enrol(roster, mode=mode, mail=mail, dry_run=dry_run, adopt=adopt, columns=columns)
        )

    def remove_users(self, usernames: Iterable[str]) -> Iterator[Event]:
        """See `LauncherClient.remove_users`."""
        return self._each(self._client.remove_users(usernames))

    def users(self, *, name: str = "", most: int | None = None) -> Iterator[dict[str, Any]]:
        """See `LauncherClient.users`."""
        return self._each(self._client.users(name=name, most=most))

    def past_events(self, launch: str) -> tuple[Event, ...]:
        """See `LauncherClient.past_events`."""
        return self._wait(self._client.past_events(launch))

    def events(self, launch: str, after: int = 0) -> Iterator[Event]:
        """See `LauncherClient.events`."""
        return self._each(self._client.events(launch, after))

    def systems(self) -> Items:
        """See `LauncherClient.systems`."""
        return self._wait(self._client.systems())

    def submit_job(
        self,
        service: str,
        hostname: str,
        *,
        ports: dict[int, int] | None = None,
        idempotency_key: str | None = None,
        **job: Any,
    ) -> UserJob:
        """See `LauncherClient.submit_job`."""
        return self._wait(
            self._client.submit_job(service, hostname, ports=ports, idempotency_key=idempotency_key, **job)
        )

    def forward(self, service: str, hostname: str, target_node: str, ports: dict[int, int]) -> UserJob:
        """See `LauncherClient.forward`."""
        return self._wait(self._client.forward(service, hostname, target_node, ports))

    def userjobs(self) -> UserJobs:
        """See `LauncherClient.userjobs`."""
        return self._wait(self._client.userjobs())

    def userjob(self, name: str, *, tail: int = 0) -> UserJob:
        """See `LauncherClient.userjob`."""
        return self._wait(self._client.userjob(name, tail=tail))

    def follow_userjob(self, name: str) -> Iterator[UserJob]:
        """See `LauncherClient.follow_userjob`."""
        return self._each(self._client.follow_userjob(name))

    def remove_userjob(self, name: str, *, keep: bool = False) -> None:
        """See `LauncherClient.remove_userjob`."""
        self._wait(self._client.remove_userjob(name, keep=keep))

    # -- from this thread to the loop's

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in a notebook: the request is not left behind
            raise

    def _each(self, items: AsyncGenerator[Result, None]) -> Iterator[Result]:
        async def following() -> tuple[Result] | None:
            async for item in items:
                return (item,)
            return None

        try:
            while found := self._wait(following()):
                yield found[0]
        finally:
            self._end(items)

    def _end(self, items: AsyncGenerator[Any, None]) -> None:
        """Close what was followed, wherever this is asked: garbage may be collected in the loop's own thread."""
        if self._loop.is_closed():
            return
        if threading.current_thread() is self._thread:
            self._endings.add(ending := self._loop.create_task(items.aclose()))
            ending.add_done_callback(self._endings.discard)
        else:
            self._wait(items.aclose())
