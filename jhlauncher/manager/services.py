"""The use cases: start a service, tell how it is, change it, stop it. Knows no HTTP.

What is done for a service is a task of its own, which ends even if whoever asked goes away. The row comes first and
goes last: what a killed process leaves is found by its row, and undone at the next start (`ServiceManager.recover`).
"""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from traitlets import Dict, Float, Unicode
from traitlets.config import LoggingConfigurable

from ..errors import LauncherError, ShuttingDown
from .cluster import Cluster
from .descriptions import Descriptions, Wanted
from .errors import BadDescription, HomeFailed, KubernetesRefused, NoSuchService, StartRefused
from .homes import Userhomes
from .rendering import Json, Rendered, refs_of
from .reports import Contact
from .rows import Identity, Row, Rows, service_of
from .service_secrets import ServiceSecrets, secret_name
from .status import Details
from .watching import Watching

Result = TypeVar("Result")

_THREADS = 8
"""For file systems."""
START_ERROR = "services.utils.common.start_service_2"
STATUS_ERROR = "services.utils.status_service"
"""Keys of `error_messages`."""


@dataclass(frozen=True)
class StartRequest:
    """What a Hub asks for."""

    credential: str
    servername: str
    start_id: str
    user_options: Json
    jhub_user_id: int
    env: Json
    variables: Mapping[str, str]
    """What the service gets of the request's headers."""
    certs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Plan:
    """All that a start is going to make."""

    row: Row
    rendered: Rendered
    secrets: list[Json]
    contact: Contact | None


class ServiceManager(LoggingConfigurable):
    """Starts, tells of, changes and stops services."""

    error_messages = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help=f"Texts that users get instead: {START_ERROR} when a service could not be started, {STATUS_ERROR} when "
        "its state could not be found out.",
    ).tag(config=True, key="error_messages")
    start_timeout = Float(
        300, min=1, help="Seconds in which all objects of a service must be made, or the start has failed."
    ).tag(config=True)

    def __init__(
        self,
        rows: Rows,
        cluster: Cluster,
        descriptions: Descriptions,
        secrets: ServiceSecrets,
        homes: Userhomes,
        watching: Watching,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._rows = rows
        self._cluster = cluster
        self._descriptions = descriptions
        self._secrets = secrets
        self._homes = homes
        self._watching = watching
        self._starts: dict[Identity, asyncio.Task[Row]] = {}
        self._updates: dict[str, asyncio.Task[bool]] = {}
        self._ends: dict[str, asyncio.Task[bool]] = {}
        """Of services, by their keys, that are to end: what makes objects of them stops before the next."""
        self._removals: dict[str, asyncio.Task[bool]] = {}
        self._unsure: set[str] = set()
        """Services of which an object may still appear: Kubernetes did not answer when it was to be made."""
        self._closing = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    # -- start and stop of this part

    async def recover(self) -> None:
        """Take up what earlier processes have left: undo starts that were cut off, end stops, look after the rest.

        Raises:
            StoreUnavailable: the database can't be reached.

        """
        for row in await self._rows.all():
            if row.stop_pending or row.state == "starting":
                self.log.warning("Service %s was left %s; it is removed", row, row.state)
                await self._rows.stopping(row.key)
                await self._in_thread(self._homes.abandon, row.credential, row.service, row.key)
                self.end(replace(row, stop_pending=True))
            else:
                self._watching.follow(row, None, coming_up=False)
        self._watching.look()

    async def close(self) -> None:
        """Leave what is under way to the next process."""
        self._closing = True
        tasks = [task for tasks in (self._starts, self._updates, self._ends, self._removals) for task in tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """What blocks: file systems may hang, and then hold up none but what uses them, too."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))

    # -- use cases

    async def start(self, request: StartRequest) -> Row:
        """A service, all of whose objects are made.

        The same ``start_id`` again does nothing more; a new one stops what was started before.

        Raises:
            StartRefused: it could not be started; nothing of it is left.
            StoreUnavailable: the database can't be reached.
            ShuttingDown: this process ends.

        """
        identity = request.credential, request.servername, request.start_id
        if identity not in self._starts:
            rows = await self._rows.find(request.credential, request.servername)
            same = next((row for row in rows if row.start_id == request.start_id), None)
            if same and identity not in self._starts:
                return await self._begun(same)
            if not same:
                plan = await self._plan(request)
                if identity not in self._starts:
                    self._begin(plan)
        return await self._outcome(self._starts[identity])

    async def _begun(self, row: Row) -> Row:
        """A service that was found, and of which no start is under way.

        Raises:
            StartRefused: it has ended meanwhile, or is to end.

        """
        now = await self._rows.get(row.key)
        if now is None or now.stop_pending or now.state == "starting":
            raise self._refused("It is being stopped")
        return now

    async def _outcome(self, start: asyncio.Task[Row]) -> Row:
        """What comes of a start.

        Raises:
            StartRefused: it has failed.
            ShuttingDown: it is left to the next process.

        """
        await asyncio.wait([start])
        if start.cancelled():
            raise ShuttingDown("The manager is stopping. Try again.", retry_after=10)
        return start.result()

    async def _plan(self, request: StartRequest) -> Plan:
        """What a start makes; nothing is touched yet.

        Raises:
            StartRefused: the description is missing or wrong.

        """
        id = f"{request.servername}-{request.start_id}"
        deployment = self._cluster.deployment_name
        wanted = Wanted(
            credential=request.credential,
            service=service_of(request.user_options),
            id=id,
            user_id=request.jhub_user_id,
            secret_name=secret_name("secret-", id, deployment),
            secret_certs_name=secret_name("secret-certs-", id, deployment),
            namespace=self._cluster.namespace,
        )
        try:
            async with asyncio.timeout(self.start_timeout):
                rendered = await self._in_thread(self._descriptions.render, wanted)
        except BadDescription as error:
            self.log.warning("Service %s of %s can't be started: %s", id, request.credential, error.message)
            raise self._refused(error.message) from error
        except TimeoutError:
            self.log.error("The description %s can't be read in time", wanted.service)
            raise self._refused("Its description could not be read in time") from None
        secrets = self._secrets.render(
            wanted.secret_name, wanted.secret_certs_name, request.env, request.variables, request.certs,
            SERVERNAME=request.servername, DRF_ID=id,
        )  # fmt: skip
        row = Row(
            credential=request.credential,
            servername=request.servername,
            start_id=request.start_id,
            user_options=request.user_options,
            jhub_user_id=request.jhub_user_id,
            main=rendered.main,
            objects=refs_of(rendered, secrets),
            secret=wanted.secret_name,
        )
        return Plan(row, rendered, secrets, Contact.of(request.env, request.certs))

    def _begin(self, plan: Plan) -> None:
        if self._closing:
            raise ShuttingDown("The manager is stopping. Try again.", retry_after=10)
        identity = plan.row.identity
        task = self._starts[identity] = asyncio.create_task(self._start(plan), name=f"start of {plan.row.id}")
        task.add_done_callback(lambda _: self._starts.pop(identity, None))
        task.add_done_callback(_seen)

    async def _start(self, plan: Plan) -> Row:
        row, older = await self._rows.begin(plan.row)
        for other in older:
            self.log.info("Service %s is superseded by %s", other, row.start_id)
            self.end(other)
        if row.key != plan.row.key:
            return row  # another process has begun it
        try:
            await self._make(plan)
        except BaseException as error:
            if self._closing:
                raise  # the next process undoes it
            self.log.warning("Service %s could not be started: %s", row, str(error) or type(error).__name__)
            if isinstance(error, KubernetesRefused) and not error.code:
                self._unsure.add(row.key)
            await self._rows.stopping(row.key)
            removed = await asyncio.shield(self._removal(row))
            raise self._why(error, removed) from error
        self._watching.follow(row, plan.contact, coming_up=True)
        self.log.info("Service %s is started", row)
        return row

    async def _make(self, plan: Plan) -> None:
        """Make all of it, unless it is not wanted any more; a request to Kubernetes is never left half-way."""
        row = plan.row
        deadline = time.monotonic() + self.start_timeout
        async with asyncio.timeout(self.start_timeout):
            await self._in_thread(self._homes.prepare, row.credential, row.service, row.jhub_user_id, row.key)
            await self._in_thread(self._descriptions.keep, row.key, plan.rendered)
        for item in [*plan.secrets, *plan.rendered.objects]:
            if row.key in self._ends:
                raise _Stopped
            if time.monotonic() > deadline:
                raise TimeoutError
            main = (item["kind"], item["metadata"]["name"]) == (row.main.kind, row.main.name)
            await self._cluster.create(item, row.key, main)
        if not await self._rows.started(row.key):
            raise _Stopped

    def _why(self, error: BaseException, removed: bool) -> LauncherError:
        """What its Hub is told of a start that failed."""
        if isinstance(error, _Stopped):
            message = "It was stopped while it was starting"
        elif isinstance(error, TimeoutError):
            message = f"Its objects were not made within {self.start_timeout:g} seconds"
        elif isinstance(error, BadDescription | HomeFailed | KubernetesRefused):
            message = error.message
        elif isinstance(error, LauncherError):
            return error
        else:
            self.log.error("A start failed", exc_info=error)
            message = "The manager has failed; its log tells why"
        return self._refused(message if removed else f"{message}. What was made could not be removed yet")

    def _refused(self, message: str) -> StartRefused:
        error = self.error_messages.get(START_ERROR, "Could not start service")
        return StartRefused(error, html.escape(message))

    async def list(self, credential: str) -> list[Row]:
        """All services of a credential."""
        return await self._rows.of(credential)

    async def find(self, credential: str, servername: str) -> Row:
        """The newest start of a service.

        Raises:
            NoSuchService: there is none.

        """
        rows = await self._rows.find(credential, servername)
        if not rows:
            raise NoSuchService
        return rows[0]

    async def status(self, row: Row) -> tuple[bool, Details | None]:
        """Whether a service runs or starts, and if not, why."""
        if row.stop_pending:
            return False, None
        if row.state == "starting":
            return True, None
        try:
            details = await self._watching.status(row)
        except Exception as error:  # what can't be judged is taken to run
            self.log.exception("The status of service %s could not be found out", row)
            text = self.error_messages.get(STATUS_ERROR, "Could not check status service.")
            return True, Details(text, html.escape(type(error).__name__))
        return details is None, details

    async def update(self, credential: str, servername: str) -> Row:
        """Apply what was rendered of ``update.yaml`` when the service was started; nothing if there is none.

        Raises:
            NoSuchService: there is no such service.
            StartRefused: it could not be applied, or only in part.

        """
        row = await self.find(credential, servername)
        start = self._starts.get(row.identity)
        if start:
            await self._outcome(start)
        change = self._shared(self._updates, row, self._update)
        await asyncio.wait([change])
        if change.cancelled():
            raise ShuttingDown("The manager is stopping. Try again.", retry_after=10)
        try:
            change.result()
        except (BadDescription, KubernetesRefused) as error:
            raise StartRefused("Could not update service", html.escape(error.message)) from error
        return row

    async def _update(self, row: Row) -> bool:
        """Whether all of it was applied; that ends with the service."""
        now = await self._rows.get(row.key)
        if now is None or now.stop_pending:
            raise NoSuchService
        for item in await self._in_thread(self._descriptions.kept_update, row.key):
            if row.key in self._ends:
                return False
            await self._cluster.apply(item, row.key)
        return True

    async def stop(self, credential: str, servername: str) -> None:
        """Stop a service, all starts of it; one that is under way is cancelled.

        What can't be removed now is tried again later.

        Raises:
            NoSuchService: there is none.
            StoreUnavailable: the database can't be reached.

        """
        rows = await self._rows.find(credential, servername)
        if not rows:
            raise NoSuchService
        await self._rows.stopping(*(row.key for row in rows))
        await asyncio.gather(*(asyncio.shield(self.end(replace(row, stop_pending=True))) for row in rows))

    # -- ends

    def end(self, row: Row) -> asyncio.Task[bool]:
        """Have a service stopped and removed, its start cut short; whether nothing of it is left."""
        return self._shared(self._ends, row, self._end)

    async def _end(self, row: Row) -> bool:
        try:
            if not row.stop_pending:
                await self._rows.stopping(row.key)
        except LauncherError as error:
            self.log.warning("Service %s can't be stopped yet: %s", row, error.message)
            return False
        under_way = [task for task in (self._starts.get(row.identity), self._updates.get(row.key)) if task]
        if under_way:
            await asyncio.wait(under_way)
        return await asyncio.shield(self._removal(row))

    def _removal(self, row: Row) -> asyncio.Task[bool]:
        return self._shared(self._removals, row, self._remove)

    def _shared(
        self, tasks: dict[str, asyncio.Task[bool]], row: Row, work: Callable[[Row], Coroutine[Any, Any, bool]]
    ) -> asyncio.Task[bool]:
        """The task that does this for a service; there is one at a time."""
        if row.key not in tasks:
            task = tasks[row.key] = asyncio.create_task(work(row), name=f"{work.__name__} {row.id}")
            task.add_done_callback(lambda _: tasks.pop(row.key, None))
            task.add_done_callback(_seen)
        return tasks[row.key]

    async def _remove(self, row: Row) -> bool:
        self._watching.leave(row.key)
        try:
            if await self._rows.get(row.key) is None:
                return True
            await self._cluster.remove(row.objects, row.key)
            if row.key in self._unsure:
                self._unsure.discard(row.key)
                return False  # and again, a little later
            await self._in_thread(self._descriptions.forget, row.key)
            await self._rows.forget(row.key)
        except LauncherError as error:
            self.log.warning("Service %s can't be removed yet: %s", row, error.message)
            return False
        except Exception:
            self.log.exception("Service %s can't be removed", row)
            return False
        self.log.info("Service %s is removed", row)
        return True


class _Stopped(Exception):
    """A service is not wanted any more."""


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it hears of it
