"""The application: reads the settings of the launcher, and wires it to HTTP."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler
from traitlets import Bool, TraitError, Unicode, default, validate
from traitlets.config import Configurable

from . import environment
from .cli.names import COMMANDS
from .handlers import ROUTES
from .handlers.callers import Services
from .handlers.pages import MissingHandler
from .handlers.sessions import Sessions
from .parts import CONFIGURABLE, Parts
from .service import HTTPService, check_url, folder
from .signing import KEY_ENV
from .userjobs.exposing import Plain
from .userjobs.handlers import ROUTES as USERJOBS_ROUTES
from .userjobs.openapi import EXTENSION as USERJOBS_API
from .userjobs.parts import CONFIGURABLE as USERJOBS
from .userjobs.parts import UserJobParts

if TYPE_CHECKING:
    from .manager.parts import ManagerParts


class LauncherApp(HTTPService):
    """Starts containers with run-time parameters on JupyterHub, on request over HTTP.

    Runs as a service that JupyterHub manages (everything it needs is in the JUPYTERHUB_* environment) or as an
    external one (JUPYTERHUB_API_TOKEN, and JUPYTERHUB_API_URL or JUPYTERHUB_URL).
    """

    name = "jhlauncher"
    description = __doc__ or ""
    classes = [*CONFIGURABLE, *USERJOBS]
    subcommands = {
        "check": ("jhlauncher.operations.commands.CheckApp", "Say what is wrong with a set-up before users do."),
        "orphans": ("jhlauncher.operations.commands.OrphansApp", "Find what is left of servers that no Hub knows."),
        "volumes": ("jhlauncher.operations.volumes.VolumesApp", "List, grow and remove the volumes that were made."),
        "demo": ("jhlauncher.demo.DemoApp", "A JupyterHub with the launcher, on this machine, to try it."),
        "manager": ("jhlauncher.manager.app.ManagerApp", "The K8s Manager: services from YAML descriptions."),
        "upgrade-db": ("jhlauncher.upgrade.UpgradeDatabase", "Bring the database to the schema of this version."),
    }

    def emit_subcommands_help(self) -> Generator[str, None, None]:
        """Begin with the commands for people, which are none of this application's."""
        if not self.subcommands:
            return
        yield "Commands"
        yield "========"
        yield "What people and scripts use; each has `jhlauncher COMMAND --help`."
        yield ""
        for name, summary in COMMANDS.items():
            yield name
            yield f"    {summary}"
        yield ""
        yield from super().emit_subcommands_help()

    bind_url = Unicode(
        help="Where to listen, http://IP:PORT. Default: $JUPYTERHUB_SERVICE_URL, or else http://127.0.0.1:5000."
    ).tag(config=True)
    prefix = Unicode(
        "/services/launcher/",
        help="Path below which everything answers. Default: $JUPYTERHUB_SERVICE_PREFIX, or else /services/launcher/.",
    ).tag(config=True)
    service_name = Unicode(
        help="""The service's name at the Hub; callers need the scope access:services!service=NAME.

        Default: $JUPYTERHUB_SERVICE_NAME, or else the last part of the prefix.
        """
    ).tag(config=True)
    public_url = Unicode(
        help="""JupyterHub's address as clients see it, for the URLs in answers: https://hub.example.org.

        Default: $JUPYTERHUB_URL. With neither, what the Hub says, and else the address that the request came to.
        """
    ).tag(config=True)
    signing_key = Unicode(
        help="""The secret shared with the Hub's spawner, at least 32 characters.

        Default: $JHLAUNCHER_SIGNING_KEY, or else derived from the API token, as install_launcher does on its side.
        """
    ).tag(config=True)
    authenticate_prometheus = Bool(
        True, help="Whether `metrics` is only for callers with the scope read:metrics, as JupyterHub's own."
    ).tag(config=True)

    manager = Bool(
        False, help="Whether the K8s Manager answers, too: api/services/ and api/logs/ below the prefix."
    ).tag(config=True)

    # -- settings

    @default("bind_url")
    def _default_bind_url(self) -> str:
        return environment.text("JUPYTERHUB_SERVICE_URL", "http://127.0.0.1:5000")

    @default("prefix")
    def _default_prefix(self) -> str:
        return folder(environment.text("JUPYTERHUB_SERVICE_PREFIX", "/services/launcher/"))

    @validate("prefix")
    def _valid_prefix(self, proposal: Any) -> str:
        return folder(proposal.value)

    @default("service_name")
    def _default_service_name(self) -> str:
        """The one in the prefix that the Hub gives its services, which its own variable can't contradict."""
        name = environment.text("JUPYTERHUB_SERVICE_NAME")
        _, found, in_prefix = self.prefix.rstrip("/").rpartition("/services/")
        if name and found and name != in_prefix:
            raise TraitError(f"JUPYTERHUB_SERVICE_NAME={name} contradicts the prefix {self.prefix}")
        return name or (in_prefix if found else "launcher")

    @default("public_url")
    def _default_public_url(self) -> str:
        return environment.text("JUPYTERHUB_URL")

    @default("signing_key")
    def _default_signing_key(self) -> str:
        return environment.text(KEY_ENV)

    # -- the parts

    def prepare(self) -> None:
        """Make the parts.

        Raises:
            TraitError: a setting is missing, wrong, or contradicts another.

        """
        super().prepare()
        if self.public_url:
            check_url("JupyterHub's public URL", self.public_url)
        self.parts = Parts(self, self.signing_key)
        self.manager_parts = self._manager_parts() if self.manager else None
        self.userjobs: UserJobParts = (
            self.manager_parts.userjobs if self.manager_parts else UserJobParts(self, self.parts.database, Plain)
        )

    def configurables(self) -> list[type[Configurable]]:
        """Whose settings the configuration may have: the manager's, too, where it is asked for."""
        if not self.manager:
            return list(self.classes)
        return [*self.classes, *_manager().CONFIGURABLE]

    def _manager_parts(self) -> ManagerParts:
        parts: ManagerParts = _manager().ManagerParts(
            self, self.parts.database, self.parts.hub, self.service_name, self.configuration_files()
        )
        return parts

    def path(self) -> str:
        """Below which everything answers."""
        return self.prefix

    def routes(self) -> list[tuple[str, type[RequestHandler]]]:
        """Patterns below that path, and who answers."""
        if self.manager_parts is None:
            return [*ROUTES, *(USERJOBS_ROUTES if self.userjobs.enabled else [])]
        from .manager.handlers import BESIDE_LAUNCHER

        return [*ROUTES, *BESIDE_LAUNCHER]

    def web_settings(self) -> dict[str, Any]:
        """What handlers find in their settings."""
        services = Services(
            parts=self.parts,
            sessions=Sessions(self.parts.hub, self.parts.signer, self.prefix, self.service_name, parent=self),
            authenticate_prometheus=self.authenticate_prometheus,
            prefix=self.prefix,
            service_name=self.service_name,
            public_url=self.public_url,
        )
        return {
            "services": services,
            "manager": self.manager_parts,
            "userjobs": self.userjobs.jobs,
            "extensions": [USERJOBS_API] if self.userjobs.enabled else [],
            "cookie_secret": self.parts.signer.cookie_secret(),
            "default_handler_class": MissingHandler,
        }

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What requests need is open."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.parts.connected())
            if self.manager_parts:
                await stack.enter_async_context(self.manager_parts.connected())
            else:
                await self.userjobs.start()
                stack.push_async_callback(self.userjobs.stop)
            yield

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Launches go on, and the manager's services."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.parts.working())
            if self.manager_parts:
                await stack.enter_async_context(self.manager_parts.working())
            yield

    def tls(self) -> ssl.SSLContext | None:
        """JupyterHub's internal TLS."""
        return self.parts.hub.ssl_context(ssl.Purpose.CLIENT_AUTH)

    def ends(self) -> list[asyncio.Event]:
        """Another process has taken this one's place."""
        return [self.parts.worker.superseded]


def _manager() -> ModuleType:
    """The manager's parts, which only those import that want it: it needs more than the launcher does.

    Raises:
        TraitError: what it needs is not installed.

    """
    try:
        return import_module("jhlauncher.manager.parts")
    except ModuleNotFoundError as error:
        raise TraitError(
            f"LauncherApp.manager needs the package {error.name}, which the extra [manager] installs"
        ) from error


def main(argv: list[str] | None = None) -> None:
    """The command ``jhlauncher``; exit status 2 for a setting that is missing or wrong."""
    app = LauncherApp.instance()
    try:
        app.initialize(argv)
        app.start()
    except TraitError as error:
        sys.exit(_complain(str(error)))


def _complain(message: str) -> int:
    sys.stderr.write(f"jhlauncher: {' '.join(message.split())}\n")
    return 2
