"""The use cases: start a service, tell how it is, change it, stop it. Knows no HTTP.

What is done for a service is a task of its own, which ends even if whoever asked goes away. The row comes first and
goes last: what a killed process leaves is found by its row, and undone at the next start (`ServiceManager.recover`).
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from traitlets import Dict, Float, Unicode
from traitlets.config import LoggingConfigurable

from ..errors import LauncherError, ShuttingDown
from .cluster import Cluster
from .descriptions import Descriptions, Wanted
from .errors import BadDescription, KubernetesRefused, NoSuchService, StartRefused
from .homes import Userhomes
from .rendering import Json, Rendered, refs_of
from .reports import Contact, Reports, certificates
from .rows import Row, Rows, service_of
from .secrets import ServiceSecrets, secret_name
from .status import Details
from .watching import Watching

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
    headers: Mapping[str, str]
    """Of the request, by environment variable."""
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
        reports: Reports,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._rows = rows
        self._cluster = cluster
        self._descriptions = descriptions
        self._secrets = secrets
        self._homes = homes
        self._watching = watching
        self._reports = reports
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        """The part of a start that can be cancelled."""
        self._ends: dict[str, asyncio.Task[bool]] = {}
        self._removals: dict[str, asyncio.Task[bool]] = {}
        self._closing = False

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
                self.end(row)
            else:
                self._watching.follow(row, None, coming_up=False)

    async def contact(self, row: Row) -> Contact | None:
        """How a service's Hub is reached; after a restart, its own Secret knows.

        Raises:
            KubernetesRefused: the Secret can't be read.

        """
        known = self._watching.contact(row.key)
        if known:
            return known
        certs = next(
            (ref.name for ref in row.objects if ref.kind == "Secret" and ref.name.startswith("secret-certs-")), ""
        )
        env = await self._cluster.secret(row.secret, row.key)
        return Contact.of(env, certificates(await self._cluster.secret(certs, row.key)) if certs else None)

    async def close(self) -> None:
        """Leave what is under way to the next process."""
        self._closing = True
        tasks = [*self._making.values(), *self._starts.values(), *self._ends.values(), *self._removals.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- use cases

    async def start(self, request: StartRequest) -> Row:
        """A service, all of whose objects are made.

        The same ``start_id`` again does nothing more; a new one stops what was started before.

        Raises:
            StartRefused: it could not be started; nothing of it is left.
            StoreUnavailable: the database can't be reached.

        """
        rows = await self._rows.find(request.credential, request.servername)
        same = next((row for row in rows if row.start_id == request.start_id), None)
        if same is None:
            plan = await self._plan(request)
            same, older = await self._rows.begin(plan.row)
            for row in older:
                self.log.info("Service %s is superseded by %s", row, plan.row.start_id)
                self.end(row)
            if same.key == plan.row.key and not self._closing:
                self._begin(plan)
        await self._carried_out(same)
        return same

    async def _carried_out(self, row: Row) -> None:
        """Return when the start of a service is over.

        Raises:
            StartRefused: it has failed.
            ShuttingDown: it is left to the next process.

        """
        task = self._starts.get(row.key)
        if task:
            await asyncio.wait([task])
            if task.cancelled():
                raise ShuttingDown("The manager is stopping. Try again.", retry_after=10)
            task.result()
        elif row.stop_pending:
            raise self._refused("It is being stopped")

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
            rendered = await asyncio.to_thread(self._descriptions.render, wanted)
        except BadDescription as error:
            raise self._refused(error.message) from error
        secrets = self._secrets.render(
            wanted.secret_name, wanted.secret_certs_name, request.env, request.headers, request.certs,
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
        key = plan.row.key
        task = self._starts[key] = asyncio.create_task(self._start(plan), name=f"start of {plan.row.id}")
        task.add_done_callback(lambda _: self._starts.pop(key, None))
        task.add_done_callback(_seen)

    async def _start(self, plan: Plan) -> None:
        row = plan.row
        making = self._making[row.key] = asyncio.create_task(self._make(plan), name=f"objects of {row.id}")
        try:
            async with asyncio.timeout(self.start_timeout):
                await making
        except BaseException as error:
            if self._closing:
                raise  # the next process undoes it
            self.log.warning("Service %s could not be started: %s", row, str(error) or type(error).__name__)
            await self._rows.stopping(row.key)
            removed = await asyncio.shield(self._removal(row))
            raise self._why(error, removed) from error
        finally:
            self._making.pop(row.key, None)
        self._watching.follow(row, plan.contact, coming_up=True)
        self.log.info("Service %s is started", row)

    async def _make(self, plan: Plan) -> None:
        row = plan.row
        await asyncio.to_thread(self._homes.prepare, row.credential, row.service, row.jhub_user_id, row.key)
        await asyncio.to_thread(self._descriptions.keep, row.id, plan.rendered)
        for item in [*plan.secrets, *plan.rendered.objects]:
            main = (item["kind"], item["metadata"]["name"]) == (row.main.kind, row.main.name)
            await self._cluster.create(item, row.key, main)
        if not await self._rows.started(row.key):
            raise _Stopped

    def _why(self, error: BaseException, removed: bool) -> LauncherError:
        """What its Hub is told of a start that failed."""
        if isinstance(error, _Stopped | asyncio.CancelledError):
            message = "It was stopped while it was starting"
        elif isinstance(error, TimeoutError):
            message = f"Its objects were not made within {self.start_timeout:g} seconds"
        elif isinstance(error, BadDescription | KubernetesRefused):
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
        except LauncherError as error:
            text = self.error_messages.get(STATUS_ERROR, "Could not check status service.")
            return True, Details(text, html.escape(error.message))
        return details is None, details

    async def update(self, credential: str, servername: str) -> Row:
        """Apply what was rendered of ``update.yaml`` when the service was started; nothing if there is none.

        Raises:
            NoSuchService: there is no such service.
            StartRefused: it could not be applied, or only in part.

        """
        row = await self.find(credential, servername)
        await self._carried_out(row)
        try:
            for item in await asyncio.to_thread(self._descriptions.kept_update, row.id):
                await self._cluster.apply(item, row.key)
        except (BadDescription, KubernetesRefused) as error:
            raise StartRefused("Could not update service", html.escape(error.message)) from error
        return row

    async def stop(self, credential: str, servername: str) -> None:
        """Stop a service, all starts of it; one that is under way is cancelled.

        What can't be removed now is tried again later.

        Raises:
            NoSuchService: there is none.

        """
        rows = await self._rows.find(credential, servername)
        if not rows:
            raise NoSuchService
        await self._rows.stopping(*(row.key for row in rows))
        await asyncio.gather(*(asyncio.shield(self.end(row)) for row in rows))

    # -- ends

    def end(self, row: Row) -> asyncio.Task[bool]:
        """Have a service removed that is to be stopped, its start cancelled; whether nothing of it is left."""
        return self._shared(self._ends, row, self._end)

    async def _end(self, row: Row) -> bool:
        if row.key in self._making:
            self._making[row.key].cancel()
        start = self._starts.get(row.key)
        if start:
            await asyncio.wait([start])  # it removes what it has made, unless it came to its end just before
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
            if not await self._rows.has(row.key):
                return True
            await self._cluster.remove(row.objects, row.key)
            await asyncio.to_thread(self._homes.abandon, row.credential, row.service, row.key)
            await asyncio.to_thread(self._descriptions.forget, row.id)
            await self._rows.forget(row.key)
        except LauncherError as error:
            self.log.warning("Service %s can't be removed yet: %s", row, error.message)
            return False
        self.log.info("Service %s is removed", row)
        return True

    def is_starting(self, row: Row) -> bool:
        """Whether a start of it is under way in this process."""
        return row.key in self._starts


class _Stopped(Exception):
    """A service is not wanted any more."""


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it hears of it
