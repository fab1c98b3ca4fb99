"""``jhlauncher volumes``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Any

from rich.table import Table
from traitlets import Bool, TraitError

from ..cli.output import plain
from ..models import format_bytes, parse_bytes
from .commands import FINE, FOUND, UNKNOWN, OperationsApp, as_text
from .found import Engine, EngineUnavailable, Kept, Refused
from .hub_config import HubConfigBroken, HubSide

USAGE = "list | grow NAME SIZE | remove NAME ..."


class VolumesApp(OperationsApp):
    """Volumes that the launcher has made: list | grow NAME SIZE | remove NAME ...

    Run it where the Hub runs, with --hub-config: there the engine is. Sizes are bytes, or have K, M, G or T. A volume
    that is in use is not removed. Exit status: 0 if it was done, 1 if one of the volumes could not be grown or removed,
    2 for wrong arguments, 4 if the engine can't be asked.
    """

    name = "jhlauncher volumes"
    description = __doc__ or ""
    flags = {
        **OperationsApp.flags,
        "yes": ({"VolumesApp": {"yes": True}}, "Remove without asking."),
    }

    yes = Bool(False, help="Remove without asking.").tag(config=True)

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Read the command line; options may also stand between the names, which traitlets does not know."""
        options: list[str] = []
        names: list[str] = []
        words = iter(argv or ())
        for word in words:
            (options if word.startswith("-") else names).append(word)
            if word.startswith("-") and word.lstrip("-") in self.aliases:
                options += islice(words, 1)
        super().parse_command_line([*options, *names])

    def take_arguments(self, arguments: list[str]) -> None:
        """What to do, and with which volumes.

        Raises:
            TraitError: it is none of what can be done.

        """
        self.action, *self.names = arguments or ["list"]
        number = len(self.names)
        if not {"list": number == 0, "grow": number == 2, "remove": number > 0}.get(self.action, False):
            raise TraitError(f"what is to be done? {USAGE}")
        if not self.hub_config:
            raise TraitError("give --hub-config, the Hub's jupyterhub_config.py")
        if self.action == "grow":
            try:
                self.size = parse_bytes(self.names.pop())
            except ValueError as error:
                raise TraitError(f"the size {error}") from None

    async def run(self) -> int:
        """Do it."""
        try:
            engine = self._engine()
            if self.action == "list":
                self._print(await engine.volumes())
                return FINE
            if self.action == "remove" and not self._confirmed():
                return FOUND
            done = {name: await self._done(engine, name) for name in self.names}
        except (HubConfigBroken, EngineUnavailable) as error:
            sys.stderr.write(f"jhlauncher volumes: {error}\n")
            return UNKNOWN
        self._tell(done)
        return FOUND if any(done.values()) else FINE

    def _engine(self) -> Engine:
        hub = HubSide.read(self.hub_config)
        engine = hub.engine()
        if engine is None:
            raise EngineUnavailable(f"nothing is known of where {hub.spawner_class.__name__} starts servers")
        return engine

    def _confirmed(self) -> bool:
        """Whether somebody wants it, with all that is in the volumes."""
        if self.yes:
            return True
        if not sys.stdin.isatty():
            raise EngineUnavailable("nobody can be asked here whether to remove them: give --yes")
        question = f"Remove {', '.join(map(plain, self.names))}, with all that is in there? [y/N] "
        return self.out.input(question, markup=False).strip().lower() in ("y", "yes")

    async def _done(self, engine: Engine, name: str) -> str:
        """Why it could not be done; "" if it was."""
        try:
            if self.action == "grow":
                await engine.grow_volume(name, self.size)
            else:
                await engine.remove_volume(name)
        except Refused as error:
            return str(error)
        return ""

    def _tell(self, done: dict[str, str]) -> None:
        word = {"grow": "grown", "remove": "removed"}[self.action]
        if self.as_json:
            self._json([{"name": name, "done": f"not {word}: {why}" if why else word} for name, why in done.items()])
            return
        for name, why in done.items():
            if why:
                sys.stderr.write(f"jhlauncher volumes: not {word}: {plain(why)}\n")
            else:
                self.out.out(f"{plain(name)}\t{word}")

    def _print(self, volumes: list[Kept]) -> None:
        if self.as_json:
            self._json([asdict(volume) for volume in volumes])
        elif not self.out.is_terminal:
            for volume in volumes:
                self.out.out("\t".join(map(plain, _fields(volume))).rstrip())
        else:
            self.out.print(_table(volumes), soft_wrap=False)


def _table(volumes: list[Kept]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("Name", "User", "Size", "Used", "In use by"):
        table.add_column(title, overflow="fold", justify="right" if title in ("Size", "Used") else "left")
    for volume in volumes:
        table.add_row(*map(as_text, _fields(volume)))
    return table


def _fields(volume: Kept) -> tuple[str, ...]:
    return volume.name, volume.user, _amount(volume.size), _amount(volume.used), ", ".join(volume.used_by)


def _amount(size: Any) -> str:
    """Bytes, rounded to what people read."""
    if size is None:
        return "-"
    power = max(power for power in range(5) if size >= 1024**power or not power)
    return format_bytes(size) if size % 1024**power == 0 else f"{size / 1024**power:.1f}{' KMGT'[power].strip()}"
