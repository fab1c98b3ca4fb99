"""Where this process logs to: handlers that a Hub's administrator adds, changes and removes while it runs.

Each writes in a thread of its own, behind a bounded queue, so that a mail server that does not answer holds up nobody.
What is configured is kept in the database, and is there again after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import queue
import smtplib
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pythonjsonlogger.json import JsonFormatter
from traitlets import Float, Integer, List, Unicode
from traitlets.config import LoggingConfigurable

from ..database import Database
from ..errors import NotFound
from ..tables import manager_log_handlers as table
from . import log_settings
from .errors import BadInput
from .files import is_inside
from .rendering import Json

_SIMPLE = (
    "%(asctime)s logger=%(name)s levelno=%(levelno)s levelname=%(levelname)s file=%(pathname)s line=%(lineno)d "
    "function=%(funcName)s : %(message)s"
)
_JSON = "%(asctime)s %(levelno)s %(levelname)s %(name)s %(pathname)s %(lineno)s %(funcName)s %(message)s"
_JSON_NAMES = {
    "name": "logger", "pathname": "file", "lineno": "line", "funcName": "function", "message": "Message",
}  # fmt: skip
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "color", "end_color"}
"""What is no extra: the last two are marks of Tornado's formatter."""


class _SimpleFormatter(logging.Formatter):
    """A line with what else the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)  # which leaves marks in the record
        return line + "".join(f" --- {key}={value}" for key, value in vars(record).items() if key not in _USUAL)


class _LinesToSyslog(logging.handlers.SysLogHandler):
    """Syslog over a connection: a message is a line (RFC 6587, 3.4.2), which logging's own does not end."""

    append_nul = False

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\\n") + "\n"


class _Threaded(logging.handlers.QueueHandler):
    """A handler that writes in a thread of its own."""

    def __init__(self, handler: logging.Handler, most: int) -> None:
        super().__init__(queue.Queue(most))
        self.setLevel(handler.level)
        self._listener = logging.handlers.QueueListener(self.queue, handler)
        self._handler = handler
        self._listener.start()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """The queue is full: whoever logs must not wait."""

    def stop(self, timeout: float) -> None:
        """Write what is waiting, for so many seconds at most, and close. Blocks."""
        thread = self._listener._thread  # its own `stop` waits without end
        with suppress(queue.Full):
            self._listener.enqueue_sentinel()
        if thread:
            thread.join(timeout)
        self._handler.close()
        self.close()


class LogHandlers(LoggingConfigurable):
    """The handlers of this process' log."""

    file_folders = List(
        Unicode(),
        default_value=["/tmp", "/var/log"],  # noqa: S108
        help="Folders below which log files may be: who may configure logs must not write anywhere else.",
    ).tag(config=True)
    queue_size = Integer(10_000, min=1, help="Records that may wait for a handler; more are lost.").tag(config=True)
    connect_timeout = Float(5, min=0.1, help="Seconds to wait for a mail or syslog server.").tag(config=True)

    def __init__(self, database: Database, protected: Callable[[], list[Path]], **kwargs: Any) -> None:
        """``protected``: folders and files of the manager's own, where no log may be."""
        super().__init__(**kwargs)
        self._database = database
        self._protected = protected
        self._logger = logging.getLogger(self.log.name)
        self._own_level = self._logger.getEffectiveLevel()
        self._active: dict[str, _Threaded] = {}
        self._changing = asyncio.Lock()
        for name in ("TRACE", "DEACTIVATE"):
            logging.addLevelName(log_settings.LEVELS[name], name)

    # -- start and stop

    async def start(self) -> None:
        """Make the handlers that are kept; one that can't be made is told, and left out."""
        for handler in self._logger.handlers:  # the process' own stay as they are, whatever others want to have
            handler.setLevel(max(handler.level, self._own_level))
        for name, configuration in (await self._kept()).items():
            try:
                self._activate(name, await self._made(name, configuration))
            except BadInput as error:
                self.log.error("The log handler %s can't be made: %s", name, error.message)

    async def stop(self) -> None:
        """Write what is waiting, and close all."""
        for name in list(self._active):
            await self._deactivate(name)

    # -- use cases

    async def list(self) -> list[Json]:
        """All handlers, as their administrators see them."""
        return [_model(name, configuration) for name, configuration in (await self._kept()).items()]

    async def get(self, name: str) -> Json:
        """One of them.

        Raises:
            NotFound: there is none.

        """
        return _model(name, await self._configuration(name))

    async def create(self, name: Any, configuration: Any) -> Json:
        """Add a handler.

        Raises:
            BadInput: it can't be; nothing has changed.

        """
        if not isinstance(name, str) or name not in log_settings.DEFAULTS:
            raise BadInput({"handler": [f'"{name}" is not a valid choice.']})
        async with self._changing:
            if name in await self._kept():
                raise BadInput({"handler": ["handler model with this handler already exists."]})
            return await self._put(name, log_settings.DEFAULTS[name], configuration)

    async def change(self, name: str, configuration: Any) -> Json:
        """Give a handler other settings; those that are not named stay.

        Raises:
            NotFound: there is none.
            BadInput: it can't be; nothing has changed.

        """
        async with self._changing:
            return await self._put(name, await self._configuration(name), configuration)

    async def remove(self, name: str) -> None:
        """Remove a handler.

        Raises:
            NotFound: there is none.

        """
        async with self._changing:
            await self._configuration(name)
            await self._database.write(lambda connection: _delete(connection, name))
            await self._deactivate(name)

    def test(self) -> None:
        """Log something at each level."""
        for message in ("Trace", "Debug", "Info", "Warn", "Error", "Critical"):
            extra = {"Extra1": "message1"} if message == "Critical" else None
            self._logger.log(log_settings.LEVELS[message.upper()], message, extra=extra)

    # -- how

    async def _configuration(self, name: str) -> Json:
        kept = await self._kept()
        if name not in kept:
            raise NotFound("Not found.")
        return kept[name]

    async def _kept(self) -> dict[str, Json]:
        query = sa.select(table.c.handler, table.c.configuration).order_by(table.c.handler)
        rows = await self._database.read(lambda connection: list(connection.execute(query)))
        return {row.handler: row.configuration for row in rows}

    async def _put(self, name: str, before: Json, changes: Any) -> Json:
        configuration = {**before, **log_settings.check(name, changes)}
        handler = await self._made(name, configuration)
        try:
            await self._database.write(lambda connection: _insert(connection, name, configuration))
        except BaseException:
            handler.close()
            raise
        await self._deactivate(name)
        self._activate(name, handler)
        return _model(name, configuration)

    async def _made(self, name: str, configuration: Json) -> logging.Handler:
        """The handler; connections are tried in a thread.

        Raises:
            BadInput: it can't be made.

        """
        try:
            handler = await asyncio.to_thread(self._make, name, configuration)
        except (OSError, ValueError, smtplib.SMTPException) as error:
            raise BadInput([f"The handler {name} can't be made: {error}"]) from error
        json_formatter = JsonFormatter(_JSON, rename_fields=_JSON_NAMES, reserved_attrs=sorted(_USUAL))
        handler.setFormatter(json_formatter if configuration["formatter"] == "json" else _SimpleFormatter(_SIMPLE))
        handler.setLevel(log_settings.level_number(configuration["level"]))
        return handler

    def _make(self, name: str, configuration: Json) -> logging.Handler:
        makers: dict[str, Callable[[Json], logging.Handler]] = {
            "stream": _stream, "file": self._file, "smtp": self._smtp, "syslog": self._syslog,
        }  # fmt: skip
        return makers[name](configuration)

    def _file(self, configuration: Json) -> logging.Handler:
        path = Path(configuration["filename"])
        if not any(is_inside(path, Path(folder)) for folder in self.file_folders):
            raise ValueError(f"{path} is not below {' or '.join(self.file_folders)}")
        if any(is_inside(path, own) for own in self._protected()):
            raise ValueError(f"{path} is a place of the manager's own")
        return logging.handlers.TimedRotatingFileHandler(
            path, when=configuration["when"], backupCount=configuration["backupCount"], encoding="utf-8"
        )

    def _smtp(self, configuration: Json) -> logging.Handler:
        place = configuration["mailhost"]
        host, port = place if isinstance(place, list) else (place, 0)
        if not host or not configuration["toaddrs"]:
            raise ValueError("mailhost and toaddrs are needed")
        with smtplib.SMTP(host, port, timeout=self.connect_timeout) as server:
            server.noop()
        return logging.handlers.SMTPHandler(
            (host, port) if port else host,
            configuration["fromaddr"],
            configuration["toaddrs"],
            configuration["subject"],
            timeout=self.connect_timeout,
        )

    def _syslog(self, configuration: Json) -> logging.Handler:
        place = configuration["address"]
        kind = getattr(socket, configuration["socktype"].rpartition(".")[2])
        # logging's own way has no time-out, and takes a path where nobody listens
        if isinstance(place, str):
            with socket.socket(socket.AF_UNIX, kind) as connection:
                connection.settimeout(self.connect_timeout)
                connection.connect(place)
        elif kind == socket.SOCK_STREAM:
            socket.create_connection((place[0], place[1]), self.connect_timeout).close()
        of = _LinesToSyslog if kind == socket.SOCK_STREAM else logging.handlers.SysLogHandler
        return of(tuple(place) if isinstance(place, list) else place, socktype=kind)

    def _activate(self, name: str, handler: logging.Handler) -> None:
        self._active[name] = threaded = _Threaded(handler, self.queue_size)
        self._logger.addHandler(threaded)
        self._set_level()

    async def _deactivate(self, name: str) -> None:
        threaded = self._active.pop(name, None)
        if threaded:
            self._logger.removeHandler(threaded)
            self._set_level()
            await asyncio.to_thread(threaded.stop, self.connect_timeout)

    def _set_level(self) -> None:
        """What any handler wants to have must come as far as to it; 0 wants everything."""
        self._logger.setLevel(max(1, min([self._own_level, *(each.level for each in self._active.values())])))


def _stream(configuration: Json) -> logging.Handler:
    return logging.StreamHandler(getattr(sys, configuration["stream"].rpartition(".")[2]))


def _model(name: str, configuration: Json) -> Json:
    return {"handler": name, "configuration": configuration}


def _delete(connection: sa.Connection, name: str) -> None:
    connection.execute(table.delete().where(table.c.handler == name))


def _insert(connection: sa.Connection, name: str, configuration: Json) -> None:
    _delete(connection, name)
    connection.execute(table.insert().values(handler=name, configuration=configuration))
