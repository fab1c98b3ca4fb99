"""What the processes of this project that answer HTTP have in common: settings, start and stop, and the access log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.log import LogFormatter
from tornado.web import Application as WebApplication
from tornado.web import RequestHandler
from traitlets import Bool, Float, Integer, TraitError, Unicode, default
from traitlets.config import Application, Configurable

from . import environment
from ._version import __version__
from .handlers.serving import Serving
from .signing import MANAGED_ENV

# more than any body that is allowed, since the handlers count themselves and answer with our error's shape
_SERVER_BODY_LIMIT = 100 * 1024 * 1024


class HTTPService(Application):
    """A process that answers HTTP."""

    version = __version__
    raise_config_file_errors = True
    usual_config_file = "jhlauncher_config.py"
    """Which one is read if none is named and it is there."""
    aliases = {
        "config": "HTTPService.config_file",
        "f": "HTTPService.config_file",
        "log-level": "HTTPService.log_level",
    }
    flags = {
        "debug": ({"HTTPService": {"log_level": logging.DEBUG}}, "Log everything."),
        "generate-config": (
            {"HTTPService": {"generate_config": True}},
            "Write a configuration file and exit.",
        ),
    }

    config_file = Unicode(
        help="Configuration file. Default: ./jhlauncher_config.py if there is one (of the manager: "
        "./jhlauncher_manager_config.py). --generate-config writes it."
    ).tag(config=True)
    generate_config = Bool(False, help="Write a configuration file with every setting commented out.").tag(config=True)
    bind_url = Unicode(help="Where to listen, http://IP:PORT.").tag(config=True)
    shutdown_timeout = Float(
        20, min=0, help="Seconds that running requests get to end when the service is told to stop (SIGTERM)."
    ).tag(config=True)
    max_body_size = Integer(1_048_576, min=1, help="Bytes that the body of a request may have.").tag(config=True)
    body_timeout = Float(60, min=1, help="Seconds that a client gets to send the body of a request.").tag(config=True)
    keepalive_interval = Float(15, min=1, help="Seconds between signs of life on a quiet event stream.").tag(
        config=True
    )

    # -- what differs

    def prepare(self) -> None:
        """Make the parts; here, what requests share. A command that does not listen does without this.

        Raises:
            TraitError: a setting is missing, wrong, or contradicts another.

        """
        check_url("the address to listen on", self.bind_url, with_port=True)
        self.serving = Serving(max_body_size=self.max_body_size, keepalive_interval=self.keepalive_interval)

    def configurables(self) -> list[type[Configurable]]:
        """Whose settings the configuration may have."""
        return list(self.classes)

    def path(self) -> str:
        """Below which everything answers: ``/`` or ``/PATH/``."""
        raise NotImplementedError

    def routes(self) -> list[tuple[str, type[RequestHandler]]]:
        """Patterns below that path, and who answers."""
        raise NotImplementedError

    def web_settings(self) -> dict[str, Any]:
        """What handlers find in their settings."""
        raise NotImplementedError

    def connected(self) -> AbstractAsyncContextManager[None]:
        """What requests need is open."""
        raise NotImplementedError

    def working(self) -> AbstractAsyncContextManager[None]:
        """What goes on without requests."""
        raise NotImplementedError

    def tls(self) -> ssl.SSLContext | None:
        """For ``https``; None if there is no key and certificate."""
        raise NotImplementedError

    def ends(self) -> list[asyncio.Event]:
        """What ends the process, beside signals."""
        return []

    # -- settings

    @default("log_level")
    def _default_log_level(self) -> int:
        return _log_level(environment.text("LOG_LEVEL", "INFO"))

    @default("log_format")
    def _default_log_format(self) -> str:
        return "%(color)s[%(levelname)1.1s %(asctime)s.%(msecs)03d %(name)s %(module)s]%(end_color)s %(message)s"

    _log_formatter_cls = LogFormatter  # type: ignore[assignment]  # takes the same arguments

    # -- start and stop

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the settings and make the parts; nothing is opened or sent.

        Raises:
            TraitError: a setting is missing, wrong, or contradicts another.

        """
        self.parse_command_line(argv)
        if self.subapp or self.generate_config:
            return
        self.take_arguments(self.extra_args)
        self._load_configuration()
        self._refuse_unknown_settings()
        self.prepare()

    def take_arguments(self, arguments: list[str]) -> None:
        """Take what the command line has beside settings: nothing.

        Raises:
            TraitError: there is something.

        """
        if arguments:
            raise TraitError(f"unknown argument {arguments[0]!r}; see jhlauncher --help")

    def exit(self, exit_status: int | str | None = 0) -> None:
        """Leave; traitlets says 1 for wrong settings on the command line, where this project says 2."""
        super().exit(2 if exit_status == 1 else exit_status)

    def _load_configuration(self) -> None:
        path = Path(self.config_file or self.usual_config_file)
        if self.config_file and (path.suffix not in (".py", ".json") or not path.is_file()):
            raise TraitError(f"there is no configuration file {path} (its name must end in .py or .json)")
        try:
            self.load_config_file(path.name, path=str(path.parent))
        except (SyntaxError, NameError) as error:
            raise TraitError(f"the configuration file {path} can't be read: {error}") from None

    def configuration_files(self) -> list[Path]:
        """What may be read as this process' configuration."""
        path = Path(self.config_file or self.usual_config_file)
        return [path.with_suffix(suffix).absolute() for suffix in (".py", ".json")]

    def _refuse_unknown_settings(self) -> None:
        """A misspelt setting would otherwise leave its default in force, which for a policy nobody wants."""
        configurables = [*self.configurables(), type(self)]
        for cls in configurables:
            for ancestor in cls.__mro__:
                unknown = self.config.get(ancestor.__name__, {}).keys() - cls.class_trait_names(config=True)
                if unknown:
                    raise TraitError(f"{ancestor.__name__}.{min(unknown)} is not a setting; see jhlauncher --help-all")
        bases = {base.__name__ for cls in configurables for base in cls.__mro__}
        strangers = {name for name in self.config if name[:1].isupper()} - bases - {"EventLogger"}
        if strangers:
            raise TraitError(f"{min(strangers)} has no settings here; see jhlauncher --help-all")

    def web_application(self) -> WebApplication:
        """The Tornado application."""
        return WebApplication(
            [(re.escape(self.path()) + pattern, handler) for pattern, handler in self.routes()],
            serving=self.serving,
            log_function=self._log_request,
            **self.web_settings(),
        )

    def start(self) -> None:
        """Serve until told to stop."""
        if self.subapp:
            self.subapp.start()
        elif self.generate_config:
            self._write_config()
        else:
            asyncio.run(self.serve())

    async def serve(self) -> None:
        """Open the parts, listen, wait for a signal, and close everything in reverse."""
        _raise_file_limit()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        _watch_parent(stopping)
        async with self.running() as server:
            self.log.info("Listening on %s%s", self.bind_url, self.path())
            ends = [asyncio.create_task(event.wait()) for event in (stopping, *self.ends())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            self.log.info("Stopping; %i requests under way get %g s", len(self.serving.requests), self.shutdown_timeout)
            server.stop()
            await self.serving.drain(self.shutdown_timeout)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HTTPServer]:
        """All parts and the HTTP server while they run; closed in reverse."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.connected())
            server = self._listen()
            stack.push_async_callback(self.serving.keepalive.stop)
            stack.push_async_callback(server.close_all_connections)
            stack.callback(server.stop)
            await stack.enter_async_context(self.working())
            yield server

    def _listen(self) -> HTTPServer:
        url = urlsplit(self.bind_url)
        context = self.tls() if url.scheme == "https" else None
        if url.scheme == "https" and context is None:
            raise TraitError(f"to listen on {self.bind_url}, a key and a certificate are needed")
        server = HTTPServer(
            self.web_application(),
            ssl_options=context,
            xheaders=True,
            max_body_size=_SERVER_BODY_LIMIT,
            body_timeout=self.body_timeout,
        )
        try:
            server.listen(url.port or 0, url.hostname or "")
        except OSError as error:
            raise TraitError(f"can't listen on {self.bind_url}: {error.strerror}") from None
        return server

    def _write_config(self) -> None:
        path = Path(self.config_file or self.usual_config_file)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.generate_config_file())
        except FileExistsError:
            raise TraitError(f"{path} exists; it is not overwritten") from None
        self.log.info("Wrote %s", path)

    def _log_request(self, handler: RequestHandler) -> None:
        """One line per request, without its query, which might hold a secret."""
        request, status = handler.request, handler.get_status()
        caller = getattr(handler, "caller", None)
        level = logging.DEBUG if status < 400 and not caller else logging.INFO if status < 500 else logging.WARNING
        self.log.log(
            level, "%d %s %s (%s@%s) %.0f ms",
            status, request.method, request.path, caller.label if caller else "", request.remote_ip,
            1000 * request.request_time(),
        )  # fmt: skip


def folder(path: str) -> str:
    return f"/{path.strip('/')}/" if path.strip("/") else "/"


def check_url(what: str, text: str, with_port: bool = False) -> None:
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and url.hostname and (url.port or not with_port)
    except ValueError:
        good = False
    if not good:
        raise TraitError(f"{what} must be http://HOST{':PORT' if with_port else ''}, not {text!r}")


def _log_level(text: str) -> int:
    """A logging level from its number or name.

    Raises:
        TraitError: it is neither.

    """
    level = int(text) if text.isdigit() else logging.getLevelNamesMapping().get(text.upper())
    if level is None:
        raise TraitError(f"$LOG_LEVEL must be a number or one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not {text!r}")
    return level


def _watch_parent(stopping: asyncio.Event) -> None:
    """Stop when the Hub that manages this service is gone, if it died without saying so; Linux tells us."""
    if environment.text(MANAGED_ENV) and hasattr(os, "pidfd_open"):
        try:
            parent = os.pidfd_open(os.getppid())
        except OSError:
            return
        asyncio.get_running_loop().add_reader(parent, stopping.set)


def _raise_file_limit() -> None:
    """Each launch holds up to three connections; the usual soft limit of 1024 files is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
