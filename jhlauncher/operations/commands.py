"""``jhlauncher check`` and ``jhlauncher orphans``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from traitlets import Bool, Enum, TraitError, Unicode, default

from .. import environment
from ..app import LauncherApp
from ..cli.output import plain
from ..client.settings import TOKEN_ENV
from ..database import Database
from ..engines import ENGINES
from ..errors import LauncherError
from ..hub import Hub
from ..install import INFO
from . import hub_side
from .findings import Finding, Status, problem, skipped
from .found import EngineUnavailable
from .hub_config import HubConfigBroken, HubSide
from .on_systems import of_systems
from .orphans import Abandoned, Orphan, Orphanage
from .probing import Address, NoAnswer, ask
from .service_side import ServiceSide

_SIGNS: dict[Status, str] = {
    "ok": "[green]✓[/]",
    "warning": "[yellow]![/]",
    "problem": "[bold red]✗[/]",
    "skipped": "[dim]-[/]",
}
FINE, FOUND, UNKNOWN = 0, 1, 4
"""Exit statuses: nothing is wrong, or was left; something is; it could not be found out."""


class OperationsApp(LauncherApp):
    """What the two commands share."""

    subcommands = {}
    aliases = {
        "config": "HTTPService.config_file",
        "f": "HTTPService.config_file",
        "log-level": "HTTPService.log_level",
        "hub-config": "OperationsApp.hub_config",
    }
    flags = {"json": ({"OperationsApp": {"as_json": True}}, "Print JSON.")}

    hub_config = Unicode(
        help="The Hub's jupyterhub_config.py. Run this where the Hub runs, in its folder and with its environment."
    ).tag(config=True)
    as_json = Bool(False, help="Print JSON.").tag(config=True)

    @default("log_level")
    def _default_log_level(self) -> int:
        """What is found is told otherwise."""
        return logging.ERROR

    def prepare(self) -> None:
        """Take what the service would; whether it is as it should be, is for the commands to say."""
        self.hub = Hub(parent=self, retry_timeout=0)
        self.database = Database(parent=self)
        self.out = Console(highlight=False, soft_wrap=True)

    def start(self) -> None:
        """Run the command, and leave with its status."""
        try:
            sys.exit(asyncio.run(self.run()))
        except KeyboardInterrupt:
            sys.exit(130)

    def run(self) -> Coroutine[Any, Any, int]:
        """What the command does; the exit status."""
        raise NotImplementedError

    def _json(self, what: Any) -> None:
        sys.stdout.write(json.dumps(what, indent=2) + "\n")


class CheckApp(OperationsApp):
    """Says what is wrong with a set-up before users do.

    Where the service runs, with its environment: settings, the Hub, token, scopes, signing key, clock, database, and
    whether clients reach it. Where the Hub runs, with --hub-config: spawner class, role, engine and the rights there.
    Give both on one machine. Exit status: 0 if launches can work, 1 if something is wrong, 2 for wrong arguments.
    """

    name = "jhlauncher check"
    description = __doc__ or ""

    async def run(self) -> int:
        """Look at everything, and tell."""
        findings = []
        async for finding in self.findings():
            findings.append(finding)
            if not self.as_json:
                self._tell(finding)
        problems = sum(finding.status == "problem" for finding in findings)
        warnings = sum(finding.status == "warning" for finding in findings)
        if self.as_json:
            self._json([asdict(finding) for finding in findings])
        else:
            self.out.print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}.")
        return FOUND if problems else FINE

    async def findings(self) -> AsyncIterator[Finding]:
        """Everything that there is to be found out, as it is."""
        try:
            async for finding in self._looked_at():
                yield finding
        except Exception as error:  # what nobody has thought of must not hide what was found before
            self.log.debug("The check broke off", exc_info=True)
            message = f"The check broke off ({type(error).__name__}); --log-level=DEBUG says where."
            yield problem("check", message, "What stands above is true; please report the rest.")

    async def _looked_at(self) -> AsyncIterator[Finding]:
        hub = None
        if self.hub_config:
            try:
                hub = HubSide.read(self.hub_config)
            except HubConfigBroken as error:
                yield problem("configuration", str(error), "Mend it: JupyterHub does not start with it, either.")
        where = Address(self.public_url) if self.public_url or not hub else hub.address
        if hub:
            async for finding in hub_side.findings(hub, where):
                yield finding
        if self.hub.api_token or not self.hub_config:
            async for finding in ServiceSide(self, self.hub, self.database, where).findings():
                yield finding
        elif hub and hub.launcher and not hub.launcher.get("command"):
            yield skipped("service", "It is external: run this where it runs, too, without --hub-config.")
        elif hub and hub.launcher:  # it gets its token from the Hub, and its configuration is here
            async for finding in of_systems(self):
                yield finding

    def _tell(self, finding: Finding) -> None:
        if not self.out.is_terminal:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            self.out.out(f"{finding.status:8} {finding.check}: {plain(finding.message)}{remedy}")
            return
        line = Table.grid(padding=(0, 1))
        line.add_column(width=1)
        line.add_column(width=16)
        line.add_column(overflow="fold")
        line.add_row(_SIGNS[finding.status], finding.check, as_text(finding.message))
        if finding.remedy:
            line.add_row("", "", f"[bold]→[/] {as_text(finding.remedy)}")
        self.out.print(line, soft_wrap=False)


class OrphansApp(OperationsApp):
    """Finds what is left of servers that no Hub knows any more, and removes it on demand.

    Containers, services, pods and processes of this Hub's servers that it does not know; tokens of the launcher's for
    servers that do not run; named servers of launches that never came up. Run it where the Hub runs, with --hub-config:
    there the engine is. It asks the Hub with a token from --token-file, JUPYTERHUB_API_TOKEN, JHLAUNCHER_TOKEN or the
    configuration's api_token, which needs the scopes admin:users and servers, and tokens to look at these. Exit status:
    0 if nothing is left, 1 if something is, 2 for wrong arguments, 4 if the engine or the Hub can't be asked.
    """

    name = "jhlauncher orphans"
    description = __doc__ or ""
    aliases = {
        **OperationsApp.aliases,
        "engine": "OrphansApp.engine",
        "api-url": "OrphansApp.servers_api_url",
        "network": "OrphansApp.network",
        "namespace": "OrphansApp.namespace",
        "token-file": "OrphansApp.token_file",
    }
    flags = {
        **OperationsApp.flags,
        "remove": ({"OrphansApp": {"remove": True}}, "Remove what was found."),
        "hub-gone": ({"OrphansApp": {"hub_gone": True}}, "There is no Hub any more: no server is known to anybody."),
    }

    engine = Enum(
        ["", *ENGINES],
        "",
        help="Look at this engine, as it is by default, in place of the one in --hub-config: docker, swarm, ...",
    ).tag(config=True)
    servers_api_url = Unicode(
        help="The Hub's API as its servers know it (their JUPYTERHUB_API_URL). Default: what --hub-config says."
    ).tag(config=True)
    network = Unicode(help="With --engine=docker or swarm: the network that the servers are on.").tag(config=True)
    namespace = Unicode(help="With --engine=kubernetes: the namespace that the servers are in.").tag(config=True)
    token_file = Unicode(help="A file with the token for the Hub.").tag(config=True)
    remove = Bool(False, help="Remove what was found.").tag(config=True)
    hub_gone = Bool(False, help="There is no Hub any more.").tag(config=True)

    async def run(self) -> int:
        """Find them, and perhaps remove them."""
        try:
            hub = self._hub_side()
            api_url = (self.servers_api_url or hub.api_url).rstrip("/")
            engine = hub.engine()
            if engine is None:
                raise EngineUnavailable(f"nothing is known of where {hub.spawner_class.__name__} starts servers")
            if self.hub_gone:
                await self._refuse_if_it_answers({api_url, *([hub.near_api_url] if self.hub_config else [])})
                return await self._see_to(Abandoned(engine, api_url))
            self._take_token(hub)
            await self.hub.start()
            try:
                with_tokens = await self._may_look_at_tokens(hub)
                return await self._see_to(Orphanage(engine, self.hub, api_url, with_tokens=with_tokens))
            finally:
                await self.hub.stop()
        except (HubConfigBroken, EngineUnavailable, LauncherError) as error:
            message = error.message if isinstance(error, LauncherError) else str(error)
            sys.stderr.write(f"jhlauncher orphans: {message}\n")
            return UNKNOWN

    def _hub_side(self) -> HubSide:
        if bool(self.hub_config) == bool(self.engine):
            raise TraitError("give either --hub-config, or --engine with --api-url and where it is")
        if not self.engine:
            return HubSide.read(self.hub_config)
        wanted = {"kubernetes": "namespace", "docker": "network", "swarm": "network"}.get(self.engine)
        if not self.servers_api_url or (wanted and not getattr(self, wanted)):
            needs = f"--api-url{f' and --{wanted}' if wanted else ''}"
            raise TraitError(f"--engine={self.engine} needs {needs}: by that, this Hub's servers are told from others'")
        return HubSide.of_engine(self.engine, network=self.network, namespace=self.namespace)

    async def _refuse_if_it_answers(self, urls: set[str]) -> None:
        """A Hub that is not gone would lose all its servers."""
        for url in urls:
            with contextlib.suppress(NoAnswer):
                answer = await ask(f"{url}/")
                if answer.get("version"):
                    raise EngineUnavailable(f"a JupyterHub answers at {url}: leave --hub-gone out")

    def _take_token(self, hub: HubSide) -> None:
        """The token and the address with which the Hub is asked."""
        if self.token_file:
            try:
                self.hub.api_token = Path(self.token_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise TraitError(f"the token can't be read from {self.token_file}: {error}") from None
        self.hub.api_token = self.hub.api_token or environment.text(TOKEN_ENV) or hub.token
        if not self.config.get("Hub", {}).get("api_url"):  # of another Hub, perhaps, in the environment
            self.hub.api_url = hub.near_api_url if self.hub_config else self.servers_api_url
        self.hub.validate_settings()

    async def _may_look_at_tokens(self, hub: HubSide) -> bool:
        """Whether the token lets us see tokens.

        Raises:
            EngineUnavailable: it does not let us see all users' servers, so that others' would seem lost; or the Hub
                is not the one of the configuration.
            LauncherError: the Hub can't be asked.

        """
        holder = await self.hub.identify(self.hub.api_token)
        if lacking := {"admin:users", "servers"} - holder.scopes:
            scopes = ", ".join(sorted(lacking))
            raise EngineUnavailable(f"the token needs {scopes} for all users: what it does not see would seem lost")
        launcher = hub.launcher and await self.hub.service(hub.launcher["name"])
        told = ((launcher or {}).get("info") or {}).get(INFO) or {}
        if told and told.get("key_fingerprint") != hub.info.get("key_fingerprint"):
            raise EngineUnavailable(f"the JupyterHub at {self.hub.api_url} is not the one of {hub.label}")
        if "tokens" not in holder.scopes:
            sys.stderr.write("jhlauncher orphans: tokens are not looked at, for which the scope tokens is needed\n")
            return False
        return True

    async def _see_to(self, orphanage: Orphanage | Abandoned) -> int:
        with Console(stderr=True).status("Looking at the engine and the Hub"):
            orphans = [orphan async for orphan in orphanage.find()]
        done: dict[int, str] = {}
        if self.remove:
            for number, orphan in enumerate(orphans):
                done[number] = await self._removed(orphanage, orphan)
        if self.as_json:
            self._json([_model(orphan, done.get(number)) for number, orphan in enumerate(orphans)])
        else:
            self._print(orphans, done)
        left = [number for number in range(len(orphans)) if done.get(number) not in ("removed", "in use")]
        return FOUND if left else FINE

    async def _removed(self, orphanage: Orphanage | Abandoned, orphan: Orphan) -> str:
        try:
            return "removed" if await orphanage.remove(orphan) else "in use"
        except EngineUnavailable as error:
            return f"not removed: {error}"
        except LauncherError as error:
            return f"not removed: {error.message}"

    def _print(self, orphans: list[Orphan], done: dict[int, str]) -> None:
        if not orphans:
            self.out.print("Nothing is left over.")
            return
        if not self.out.is_terminal:
            for number, orphan in enumerate(orphans):
                server = f"{orphan.user}/{orphan.server}".rstrip("/")
                fields = (orphan.kind, orphan.name, server, orphan.since, orphan.why, done.get(number, ""))
                self.out.out("\t".join(map(plain, fields)).rstrip())
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("Kind", "Name", "User", "Server", "Since", "Why", *(["Done"] if done else [])):
            table.add_column(title, overflow="fold")
        for number, orphan in enumerate(orphans):
            fields = (orphan.kind, orphan.name, orphan.user, orphan.server, orphan.since, orphan.why)
            table.add_row(*map(as_text, fields), *([as_text(done[number])] if done else []))
        self.out.print(table, soft_wrap=False)
        if not done:
            self.out.print(f"\n{_count(len(orphans), 'orphan')}; --remove removes them.")


def as_text(text: str) -> str:
    """Text that is neither rich's markup nor a terminal's command."""
    return escape(plain(text))


def _model(orphan: Orphan, done: str | None) -> dict[str, Any]:
    fields = ("kind", "name", "user", "server", "since", "why")
    return {**{name: getattr(orphan, name) for name in fields}, **({"done": done} if done else {})}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
