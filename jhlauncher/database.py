"""The connection to the database: SQLite or PostgreSQL, transactions, the schema's version, and who is woken.

- A transaction is a plain function, run in a thread: one hop for all its statements, and none of them blocks the loop.
- It runs to its end even if whoever asked for it goes away, and again while the database can't be reached
  (`retry_timeout`), so what it does must bear repetition.
- Transactions that look before they write are `alone`: no other one of that kind runs at the same time, in any
  process. What has to wait for one is done in the next, together: under load a commit is shared by many.
- After a change, all replicas that use the database are told: PostgreSQL does that (NOTIFY); a SQLite file has one
  process only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from traitlets import Float, TraitError, Unicode, default
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import StoreUnavailable

Result = TypeVar("Result")
Work = Callable[[sa.Connection], Result]
_Waiting = tuple[Work[Any], "asyncio.Future[Any]"]
"""What somebody waits to have done, and what came of it."""

CHANNEL = "jhlauncher"
"""Of PostgreSQL's NOTIFY."""
_LOCK = 0x6A686C61
"""Of PostgreSQL's advisory locks; one per database is enough."""
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""PostgreSQL connections that went dead in silence are noticed within a minute (libpq's parameters)."""
_AFTER = "jhlauncher after commit"
_TOGETHER = 50
"""Works in one transaction, which others wait for."""
_TURN_TIMEOUT = 60
"""Seconds to wait for one of the connections, which others have."""


class Database(LoggingConfigurable):
    """A database with the tables of `jhlauncher.tables`."""

    url = Unicode(
        help="""Where launches, and the services of the manager, are kept.

        sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/NAME for several replicas.
        Default: $JHLAUNCHER_DB_URL, or else sqlite:///jhlauncher.sqlite in the working directory.
        """
    ).tag(config=True)
    retry_timeout = Float(
        20, min=0, help="Seconds for which a database that can't be reached is tried again. 0: never again."
    ).tag(config=True)
    connect_timeout = Float(5, min=1, help="Seconds to wait for a connection to the database.").tag(config=True)

    @default("url")
    def _default_url(self) -> str:
        return environment.text("JHLAUNCHER_DB_URL", "sqlite:///jhlauncher.sqlite")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._listeners: list[Callable[[str], None]] = []
        self._reconnected: list[Callable[[], None]] = []
        self._running: set[asyncio.Future[Any]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._line: list[_Waiting] = []  # what waits for it

    def validate_settings(self) -> None:
        """Refuse a URL that can't work.

        Raises:
            TraitError: it is of another kind of database, or the driver is missing.

        """
        try:
            url = make_url(self.url)
            backend = url.get_backend_name()
        except (ArgumentError, NoSuchModuleError):
            backend = ""
        if backend not in ("sqlite", "postgresql"):
            raise TraitError("Database.url must begin with sqlite:/// or postgresql://")
        if backend == "sqlite" and not url.database:
            raise TraitError("Database.url must name a file: what is kept must outlive the process")
        self.on_sqlite = backend == "sqlite"
        self._url: URL = url.set(drivername="sqlite" if self.on_sqlite else "postgresql+psycopg")
        if not self.on_sqlite and "client_encoding" not in url.query:
            # psycopg gives bytes, and not text, from a database of PostgreSQL's encoding SQL_ASCII otherwise
            self._url = self._url.update_query_dict({"client_encoding": "utf8"})
        # of SQLite's each has a cache of its own, and only one can write
        self._connections = 3 if self.on_sqlite else 10
        self._turns = asyncio.Semaphore(self._connections)
        if not self.on_sqlite:
            try:
                import psycopg  # noqa: F401
            except ImportError:
                raise TraitError(
                    "Database.url: PostgreSQL needs the package psycopg, which the extra [postgresql] installs"
                ) from None

    # -- start and stop

    async def start(self) -> None:
        """Connect; an empty database gets the schema.

        Raises:
            TraitError: the database can't be opened, or its schema is of another version.

        """
        await asyncio.to_thread(self._prepare)
        self._engine = self._create_engine()
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = ThreadPoolExecutor(self._connections, thread_name_prefix="database")
        if not self.on_sqlite:
            self._listening = asyncio.create_task(self._listen(), name="database notifications")

    async def stop(self) -> None:
        """Let transactions under way come to their end, and disconnect."""
        while self._listening and not self._listening.done():
            # again if need be: psycopg before 3.3.6 loses a cancellation that comes together with a notification
            self._listening.cancel()
            await asyncio.wait([self._listening], timeout=1)
        while self._running:
            await asyncio.wait(self._running)
        self._threads.shutdown()
        self._engine.dispose()

    def _create_engine(self) -> sa.Engine:
        pool = {"pool_size": self._connections, "max_overflow": 0}
        if self.on_sqlite:
            # its connections are in one thread at a time, but not always in the same
            settings = {"timeout": self.connect_timeout, "check_same_thread": False}
            engine = sa.create_engine(self._url, connect_args=settings, **pool)
            sa.event.listen(engine, "connect", _set_up_sqlite)
            sa.event.listen(engine, "begin", _begin_at_once)
            return engine
        return sa.create_engine(
            self._url,
            connect_args={"connect_timeout": max(2, int(self.connect_timeout)), **_KEEPALIVE},
            pool_pre_ping=True,
            **pool,
        )

    # -- the schema

    def _prepare(self) -> None:
        with self._connected() as connection:
            if not self.on_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))  # replicas start at once
            if self._current(connection) is None:
                _upgrade(connection)

    def look(self) -> str | None:
        """The version of the schema, None if the database is yet to get one; changes nothing.

        Raises:
            TraitError: the database can't be opened, or its schema is of another version.

        """
        path = Path(self.file)
        if self.on_sqlite:
            if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
                raise TraitError(f"the database {self.label} can't be written: its folder is missing, or another's")
            if not path.exists():
                return None
        with self._connected() as connection:
            version = self._current(connection)
            may_create = sa.text("SELECT has_schema_privilege(current_schema(), 'CREATE')")
            if version is None and not self.on_sqlite and not connection.scalar(may_create):
                raise TraitError(f"the user of the database {self.label} may not make tables in it")
            return version

    def _current(self, connection: sa.Connection) -> str | None:
        version = _version(connection)
        if version is None and not sa.inspect(connection).has_table("launches"):
            return None
        if version != _script().get_current_head():
            self._refuse(version)
        return version

    def _refuse(self, version: str | None) -> None:
        known = {revision.revision for revision in _script().walk_revisions()}
        if version is None or version in known:
            raise TraitError(
                f"the database {self.label} has the schema of an older version ({version}); back it up, stop all "
                "replicas, and run: jhlauncher upgrade-db"
            )
        raise TraitError(
            f"the database {self.label} has the schema of a newer version ({version}); install that version of "
            "jhlauncher, or use another database"
        )

    def upgrade(self) -> tuple[str | None, str | None]:
        """Bring the schema to this version; the versions before and after.

        Raises:
            TraitError: the database can't be opened, or its schema is of a newer version.

        """
        with self._connected() as connection:
            before = _version(connection)
            if before is not None and before not in {r.revision for r in _script().walk_revisions()}:
                self._refuse(before)
            _upgrade(connection)
            return before, _version(connection)

    @contextlib.contextmanager
    def _connected(self) -> Any:
        """A transaction while the service does not run."""
        engine = sa.create_engine(self._url)
        try:
            with engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            raise TraitError(f"the database {self.label} can't be opened: {reason}") from error
        finally:
            engine.dispose()

    @property
    def file(self) -> str:
        """The path of SQLite's; empty with PostgreSQL."""
        return self._url.database or "" if self.on_sqlite else ""

    @property
    def label(self) -> str:
        """The URL without its password, and with the whole path of a file."""
        if self.on_sqlite:
            return f"sqlite:///{Path(self._url.database or '').absolute()}"
        return make_url(self.url).render_as_string(hide_password=True)

    # -- transactions

    async def read(self, work: Work[Result]) -> Result:
        """What ``work`` reads; each statement sees what is committed by then.

        Raises:
            StoreUnavailable: the database can't be reached.

        """
        return await self._finish(self._repeated(partial(self._in_thread, partial(self._read, work))))

    async def write(self, work: Work[Result], *, alone: bool = False) -> Result:
        """The result of ``work`` in one transaction.

        Args:
            work: what to do, in a thread: what it needs of the loop's is captured before, and what the loop is to do
                goes through `after`. Done again if the database was lost on the way, or if another failed that was to
                be in the same transaction.
            alone: no other such transaction runs at the same time, in any process.

        Raises:
            StoreUnavailable: the database can't be reached; it is not known whether the work was done.

        """
        return await self._finish(self._repeated(partial(self._committed, work, alone)))

    async def _finish(self, work: Awaitable[Result]) -> Result:
        """The result of the work, which goes on even if whoever waits for it goes away."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it

    def _read(self, work: Work[Result]) -> Result:
        with self._reading.connect() as connection:
            return work(connection)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        """What ``call`` returns, once a thread and a connection are free for it."""
        try:
            async with asyncio.timeout(_TURN_TIMEOUT):
                await self._turns.acquire()
        except TimeoutError:
            raise TimeoutError("all connections are in use") from None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._turns.release()

    async def _committed(self, work: Work[Result], alone: bool) -> Result:
        # in turn: SQLite's own way of waiting for its lock is to try again and again, and who waits for PostgreSQL's
        # would hold a connection that others need
        if alone or self.on_sqlite:
            return await self._in_turn(work)
        results: list[Result] = await self._transaction([work])
        return results[0]

    async def _in_turn(self, work: Work[Result]) -> Result:
        """The result of ``work``, in a transaction with what else had to wait for the one before: commits are dear."""
        mine: _Waiting = work, asyncio.get_running_loop().create_future()
        self._line.append(mine)
        async with self._writing:  # first come, first served: who enters was done with another, or heads the line
            if not mine[1].done():
                together, self._line = self._line[:_TOGETHER], self._line[_TOGETHER:]
                await self._do_together(together)
        result: Result = await mine[1]
        return result

    async def _do_together(self, waiting: list[_Waiting]) -> None:
        try:
            results = await self._transaction([work for work, _ in waiting], alone=True)
        except Exception as error:
            if len(waiting) > 1 and not _is_passing(error):  # one of them can't be done, which is its own affair
                for each in waiting:
                    await self._do_together([each])
                return
            for _, outcome in waiting:
                outcome.set_exception(error)
        else:
            for (_, outcome), result in zip(waiting, results, strict=True):
                outcome.set_result(result)

    async def _transaction(self, works: list[Work[Any]], *, alone: bool = False) -> list[Any]:
        results, after = await self._in_thread(partial(self._write, works, alone))
        for call in after:
            try:
                call()
            except Exception:
                self.log.exception("What follows a transaction failed")
        return results

    def _write(self, works: list[Work[Any]], alone: bool) -> tuple[list[Any], list[Callable[[], None]]]:
        after: list[Callable[[], None]] = []
        with self._engine.begin() as connection:
            connection.info[_AFTER] = after
            if alone and not self.on_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            return [work(connection) for work in works], after

    def after(self, connection: sa.Connection, call: Callable[[], None]) -> None:
        """Have the loop call ``call`` once this transaction is committed, even if whoever asked for it has gone."""
        connection.info[_AFTER].append(call)

    async def _repeated(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        deadline = time.monotonic() + self.retry_timeout
        delay = 0.1
        while True:
            try:
                return await attempt()
            except (DBAPIError, OSError) as error:
                if not _is_passing(error):
                    raise
                reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
                if time.monotonic() + delay > deadline:
                    raise StoreUnavailable("The launcher's database can't be reached. Try again.") from error
                self.log.warning("The database can't be used: %s. Trying again in %.1f s.", reason, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2)

    # -- waking others

    def on_change(self, listener: Callable[[str], None], reconnected: Callable[[], None]) -> None:
        """Have ``listener`` called with what `notify` was given, in any process, after the change is committed.

        ``reconnected`` is called when changes may have been missed.
        """
        self._listeners.append(listener)
        self._reconnected.append(reconnected)

    def notify(self, connection: sa.Connection, *topics: str) -> None:
        """Tell all who listen, in all processes, once this transaction is committed."""
        if self.on_sqlite:
            self.after(connection, partial(self._tell, *topics))
        else:
            connection.execute(sa.select(*(sa.func.pg_notify(CHANNEL, topic) for topic in topics)))

    def _tell(self, *topics: str) -> None:
        for topic in topics:
            for listener in self._listeners:
                listener(topic)

    async def _listen(self) -> None:
        """Pass on PostgreSQL's notifications for as long as this process runs."""
        import psycopg

        url = self._url.set(drivername="postgresql").update_query_dict({k: str(v) for k, v in _KEEPALIVE.items()})
        conninfo = url.render_as_string(hide_password=False)
        delay = 0.1
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    delay = 0.1
                    for reconnected in self._reconnected:
                        reconnected()
                    async for notification in connection.notifies():
                        self._tell(notification.payload)
            except psycopg.Error as error:
                reason = str(error).strip().partition("\n")[0]
                self.log.warning("Lost the database's notifications (%s). Again in %.1f s.", reason, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2)


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _alembic(connection: sa.Connection | None = None) -> AlembicConfig:
    config = AlembicConfig(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _version(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: sa.Connection) -> None:
    command.upgrade(_alembic(connection), "head")


def _set_up_sqlite(connection: Any, record: Any) -> None:
    """Leave transactions to us; readers and the writer don't wait for each other; what is committed is on the disk."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_at_once(connection: sa.Connection) -> None:
    """Take SQLite's write lock at the beginning: a transaction that looks first and writes later would fail."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_passing(error: Exception) -> bool:
    """Whether the database is away or busy, rather than the statement wrong."""
    if isinstance(error, OperationalError | InterfaceError | OSError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated
