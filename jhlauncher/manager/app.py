"""``jhlauncher manager``: the K8s Manager by itself, without a Hub of its own."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado.web import RequestHandler
from traitlets import Integer, TraitError, Unicode, default, validate

from ..database import Database
from ..service import HTTPService, folder
from .handlers import ROUTES, UnknownHandler
from .parts import CONFIGURABLE, ManagerParts


class ManagerApp(HTTPService):
    """Starts services from YAML descriptions on Kubernetes, for JupyterHubs elsewhere.

    Reads the file in $CONFIG_PATH, and STAGE, DEPLOYMENT_NAME, DEPLOYMENT_NAMESPACE, KUBECONFIG (or the pod's service
    account), and <NAME>_USER_PASS for each credential.
    """

    name = "jhlauncher manager"
    description = __doc__ or ""
    classes = [Database, *CONFIGURABLE]
    usual_config_file = "jhlauncher_manager_config.py"
    aliases = {**HTTPService.aliases, "ip": "ManagerApp.ip", "port": "ManagerApp.port"}

    bind_url = Unicode(help="Where to listen, http://IP:PORT, in place of `ip` and `port`.").tag(config=True)
    ip = Unicode("127.0.0.1", help="Where to listen. All addresses: 0.0.0.0 or ::.").tag(config=True)
    port = Integer(8080, min=1, max=65535, help="Port to listen on.").tag(config=True)
    prefix = Unicode("/", help="Path below which everything answers.").tag(config=True)
    keyfile = Unicode(help="Key for TLS; with `certfile`, https is served instead of http.").tag(config=True)
    certfile = Unicode(help="Certificate for TLS.").tag(config=True)

    @default("bind_url")
    def _default_bind_url(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{'https' if self.keyfile else 'http'}://{host}:{self.port}"

    @validate("prefix")
    def _valid_prefix(self, proposal: Any) -> str:
        return folder(proposal.value)

    def prepare(self) -> None:
        """Make the parts.

        Raises:
            TraitError: a setting is missing, wrong, or contradicts another.

        """
        super().prepare()
        if bool(self.keyfile) != bool(self.certfile):
            raise TraitError("TLS needs both ManagerApp.keyfile and ManagerApp.certfile")
        for path in filter(None, (self.keyfile, self.certfile)):
            if not os.access(path, os.R_OK):
                raise TraitError(f"the TLS file {path} can't be read")
        self.database = Database(parent=self)
        self.database.validate_settings()
        self.parts = ManagerParts(self, self.database, settings=self.configuration_files())
        if not self.parts.credentials.names:
            wanted = ", ".join(self.parts.credentials.create_user) or "none"
            raise TraitError(
                f"nobody may call: startup.create_user in $CONFIG_PATH names who may ({wanted}), and each needs a "
                "password or token, $<NAME>_USER_PASS or $<NAME>_USER_TOKEN"
            )

    def path(self) -> str:
        """Below which everything answers."""
        return self.prefix

    def routes(self) -> list[tuple[str, type[RequestHandler]]]:
        """Patterns below that path, and who answers."""
        return ROUTES

    def web_settings(self) -> dict[str, Any]:
        """What handlers find in their settings."""
        return {"manager": self.parts, "userjobs": self.parts.userjobs.jobs, "default_handler_class": UnknownHandler}

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What requests need is open."""
        await self.database.start()
        try:
            async with self.parts.connected():
                yield
        finally:
            await self.database.stop()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Services are looked after."""
        async with self.parts.working():
            yield

    def tls(self) -> ssl.SSLContext | None:
        """Of the configured key and certificate."""
        if not self.keyfile:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certfile, self.keyfile)
        return context
