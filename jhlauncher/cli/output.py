"""What is printed: for people with colours and bars where there is a terminal, for programs as JSON.

Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..client import Event, Launch, LauncherError
from ..models import format_bytes
from ..records import STATES

_COLOURS = {
    "ready": "green", "failed": "red", "starting": "cyan", "queued": "yellow", "expired": "yellow",
    "COMPLETED": "green", "FAILED": "red", "RUNNING": "cyan", "PENDING": "yellow",
}  # fmt: skip


def plain(text: object) -> str:
    """Text without what a terminal would obey: it may come from a program in somebody's container."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def ago(time: datetime | None) -> str:
    """How long since, or until, a time: ``5 min``."""
    if time is None:
        return ""
    return _span(abs((datetime.now(UTC) - time).total_seconds()))


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 0.99 * length:  # what ends in an hour does so in "1 h", a moment later, too
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def server(launch: Launch) -> str:
    """``ada`` for the default server, ``ada/analysis`` for a named one."""
    return f"{launch.username}/{launch.server_name}" if launch.server_name else launch.username


class Output:
    """Where results go.

    Args:
        as_json: print JSON.
        show_token: print tokens, too.

    """

    def __init__(self, *, as_json: bool = False, show_token: bool = False) -> None:
        self._json = as_json
        self._show_token = show_token
        self._out = _console()
        self._err = _console(stderr=True)

    # -- results

    def json(self, value: Any) -> None:
        """A line of JSON."""
        self._out.out(json.dumps(value), highlight=False)

    def line(self, text: object) -> None:
        """A line of text that is a result."""
        self._out.out(plain(text), highlight=False)

    def result(self, fields: dict[str, Any], *lines: object) -> None:
        """What came of a command: lines, or for programs the whole."""
        if self._json:
            return self.json(fields)
        for line in lines:
            self.line(line)
        return None

    def text(self, text: str) -> None:
        """What some program has printed; of a line that it wrote over, the last that it wrote."""
        for line in text.removesuffix("\n").split("\n"):
            self.line(line.removesuffix("\r").rpartition("\r")[2])

    def fields(self, fields: Mapping[str, object]) -> None:
        """What is known of something, a line each, for people; what is empty is left out."""
        table = Table.grid(padding=(0, 2))
        for name, value in fields.items():
            if value not in (None, "", [], {}):
                table.add_row(f"[dim]{name}[/]", self._shown(name, value))
        self._out.print(table)

    def launch(self, launch: Launch) -> None:
        """All there is to say of a launch."""
        if self._json:
            return self.json(self._fields(launch))
        self.fields({name: value for name, value in self._fields(launch).items() if name not in ("links", "error")})
        if launch.error:
            self._failure(launch.error)
        return None

    def ready(self, launch: Launch) -> None:
        """What opens a server, for a person to click and a script to read."""
        if self._json:
            return self.json(self._fields(launch))
        self.line(launch.url)
        if self._show_token:
            self.line(launch.token)
        return None

    def failed(self, launch: Launch) -> None:
        """A launch that came to nothing: its end is no result, but for programs."""
        if self._json:
            return self.json(self._fields(launch))
        self._failure(launch.error or {"error": f"The launch {launch.id} is {launch.state}.", "reason": launch.state})
        return None

    def accepted(self, launch: Launch) -> None:
        """A launch that is not waited for."""
        if self._json:
            self.json(self._fields(launch))
        else:
            self.line(launch.id)

    def launches(self, launches: list[Launch], *, quiet: bool = False) -> None:
        """A table of launches."""
        if quiet:
            for launch in launches:
                self.line(launch.id)
            return None
        if self._json:
            return self.json([self._fields(launch) for launch in launches])
        if not launches:
            return self.note("No launches.")
        table = _table("ID", "SERVER", "WHAT", "STATE", "ASKED", "ENDS IN")
        for launch in launches:
            state = f"[{_COLOURS.get(launch.state, 'default')}]{launch.state}[/]"
            what = launch.template or launch.image
            row = (launch.id, server(launch), what, None, f"{ago(launch.created)} ago", ago(launch.expires))
            table.add_row(*(state if cell is None else escape(plain(cell)) for cell in row))
        self._out.print(table)
        return None

    def event(self, event: Event) -> None:
        """An event, a line."""
        if self._json:
            data = dict(event.data)
            if isinstance(data.get("launch"), dict):
                data["launch"] = self._fields(Launch(**data["launch"]))
            return self.json({"id": event.id or None, "event": event.name, "data": data})
        time = datetime.fromisoformat(event.data["time"]).astimezone().strftime("%H:%M:%S")
        colour = _COLOURS.get(event.name, "default")
        per_cent = f"{event.progress:3}%" if event.progress is not None else "    "
        self._out.print(f"[dim]{time}[/] {per_cent} [{colour}]{event.name:9}[/] {escape(plain(event.message))}")
        return None

    def ends(self, ended: list[str], ending: list[Launch]) -> None:
        """Which launches have ended, and which are going to."""
        if self._json:
            states = dict.fromkeys(ended, True) | {launch.id: False for launch in ending}
            return self.json([{"id": launch, "ended": whether} for launch, whether in states.items()])
        for launch in ended:
            self.line(f"{launch} has ended")
        for ending_one in ending:
            self.line(f"{ending_one.id} is stopping")
        return None

    def extended(self, launches: list[Launch]) -> None:
        """Launches that have another end."""
        if self._json:
            return self.json([self._fields(launch) for launch in launches])
        for launch in launches:
            self.line(f"{launch.id} {_end_of(launch)}")
        return None

    def options(self, options: dict[str, Any]) -> None:
        """What may be launched."""
        if self._json:
            return self.json(options)
        properties = options["request"]["properties"]
        self._out.print(f"For [bold]{escape(plain(options['username']))}[/], by the rule {escape(options['rule'])}")
        table = _table("TEMPLATE", "IMAGE", "")
        for name, template in options["templates"].items():
            table.add_row(*(escape(plain(cell or "")) for cell in (name, template["image"], template["description"])))
        if options["templates"]:
            self._out.print(table)
        images = properties["image"]
        allowed = images.get("enum") or images.get("examples") or []
        self.line(f"images: {', '.join(allowed) or 'none'}")
        for name in ("cpu", "memory", "gpu"):
            most = properties[name].get("x-maximum")
            self.line(f"{name}: {'no limit' if most is None else _amount(name, most)}")
        lifetime = properties["lifetime"].get("maximum")
        self.line(f"lifetime: {'no limit' if lifetime is None else _span(lifetime)}")
        for limit in options["limits"]:
            used, most = (_amount(limit["resource"], limit[which]) for which in ("used", "most"))
            self.line(f"{_whose(limit['key'])}: {used} of {most} {limit['resource']} in use")
        return None

    def plan(self, plan: dict[str, Any]) -> None:
        """What would become of a launch."""
        if self._json:
            return self.json(plan)
        if plan["error"]:
            self.line(f"It would be refused: {plan['error']['error']} ({plan['error']['reason']})")
        elif plan["decision"] == "queue":
            self.line(f"The policy allows it: it would wait at position {plan['position']}.")
        else:
            self.line("The policy allows it: it would start at once.")
        return None

    # -- classes

    def batch(self, batch: dict[str, Any]) -> None:
        """What each person's server is doing."""
        if self._json:
            return self.json(self._without_tokens(batch))
        group = f" of {batch['group']}" if batch.get("group") else ""
        asked = ago(datetime.fromisoformat(batch["created"]))
        self._out.print(
            f"[dim]{batch['id']}[/]{escape(plain(group))}, asked for {asked} ago: {_counted(batch['counts'])}"
        )
        table = _table("USER", "STATE", "DOING", "LAST USED", "ENDS IN")
        for item in batch["items"]:
            table.add_row(*self._person(item))
        self._out.print(table)
        return None

    def _person(self, item: dict[str, Any]) -> list[str]:
        launch = Launch(**item["launch"]) if item["launch"] else None
        user = server(launch) if launch else item["username"] or ""
        if launch is None:
            error = item["error"] or {"error": "not kept any more"}
            return [
                escape(plain(user)),
                "[red]refused[/]" if item["error"] else "",
                escape(plain(error["error"])),
                "",
                "",
            ]
        state = f"[{_COLOURS.get(launch.state, 'default')}]{escape(plain(launch.state))}[/]"
        used = item.get("last_activity")
        cells = (_doing(item, launch), f"{ago(datetime.fromisoformat(used))} ago" if used else "", ago(launch.expires))
        return [escape(plain(user)), state, *(escape(plain(cell)) for cell in cells)]

    def batch_started(self, batch: dict[str, Any]) -> None:
        """What became of a class: its id, and who has no server, with the reason."""
        if self._json:
            return self.json(self._without_tokens(batch))
        self.line(batch["id"])
        self.note(_counted(batch["counts"]))
        wrong = [item for item in batch["items"] if _error_of(item)]
        if wrong:
            table = _table("USER", "REASON", "")
            for item in wrong:
                error = _error_of(item)
                table.add_row(*(escape(plain(cell)) for cell in (_user_of(item), error["reason"], error["error"])))
            self._err.print(table)
        return None

    def batches(self, batches: list[dict[str, Any]], *, quiet: bool = False) -> None:
        """A table of classes."""
        if quiet:
            for batch in batches:
                self.line(batch["id"])
            return None
        if self._json:
            return self.json(batches)
        if not batches:
            return self.note("No classes.")
        table = _table("ID", "GROUP", "ASKED", "SERVERS")
        for batch in batches:
            asked = f"{ago(datetime.fromisoformat(batch['created']))} ago"
            cells = (batch["id"], batch.get("group") or "", asked, _counted(batch["counts"]))
            table.add_row(*(escape(plain(cell)) for cell in cells))
        self._out.print(table)
        return None

    def batch_extended(self, items: list[dict[str, Any]]) -> None:
        """Whose servers have another end, and whose have not."""
        if self._json:
            return self.json([self._without_token(item) for item in items])
        if not items:
            return self.note("Nothing of this class runs any more.")
        for item in items:
            launch = Launch(**item["launch"])
            said = item["error"]["error"] if item["error"] else _end_of(launch)
            self.line(f"{server(launch)}: {said}")
        return None

    def batch_ends(self, batch: str, ending: dict[str, Any] | None) -> None:
        """Whether a class has ended."""
        if self._json:
            return self.json({"id": batch, "ended": ending is None})
        self.line(f"{batch} is stopping: {_counted(ending['counts'])}" if ending else f"{batch} has ended")
        return None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """One bar for many of a kind, told of each by an event with ``done`` and ``total``; nothing for programs."""
        bar = Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
            console=self._err, transient=True, disable=self._json or not self._err.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task("", total=None)

            def follow(event: Mapping[str, Any]) -> None:
                said = escape(plain(event.get("said") or event.get("username") or ""))
                bar.update(task, completed=event["done"], total=event["total"], description=said)

            yield follow

    def table(self, rows: Iterable[Mapping[str, object]], empty: str) -> None:
        """Rows of a table, headed by their keys; or a note, if there are none and ``empty`` is not."""
        table = None
        for row in rows:
            table = table or _table(*(name.upper() for name in row))
            table.add_row(*(escape(plain(cell)) for cell in row.values()))
        if table:
            self._out.print(table)
        elif empty:
            self.note(empty)

    @property
    def for_programs(self) -> bool:
        """Whether JSON is printed."""
        return self._json

    @contextmanager
    def class_progress(self, total: int) -> Iterator[Callable[[Mapping[str, int]], None]]:
        """One bar for a class that is waited for, told how many are in each state; lines where there is no terminal."""
        if not self._err.is_terminal:
            yield lambda counts: None if self._json else self._err.out(_counted(counts), highlight=False)
            return
        bar = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
            console=self._err, transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task("", total=total)

            def follow(counts: Mapping[str, int]) -> None:
                settled = sum(number for state, number in counts.items() if state not in ("queued", "starting"))
                bar.update(task, completed=settled, description=_counted(counts))

            yield follow

    @contextmanager
    def live(self) -> Iterator[Callable[[str], None]]:
        """One line of how something is, told whenever that changes; lines where there is no terminal."""
        if not self._err.is_terminal:
            yield self.aside
            return
        bar = Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=self._err, transient=True)
        with bar:
            task = bar.add_task("", total=None)
            yield lambda text: bar.update(task, description=escape(plain(text)))

    def _without_tokens(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "items": [self._without_token(item) for item in batch["items"]]}

    def _without_token(self, item: dict[str, Any]) -> dict[str, Any]:
        launch = item["launch"]
        return {**item, "launch": launch and self._fields(Launch(**launch))}

    # -- what is no result

    def aside(self, text: str) -> None:
        """What happens meanwhile, for a person."""
        if not self._json:
            self._err.print(escape(plain(text)))

    def note(self, text: str) -> None:
        """Something to know, for a person."""
        if not self._json:
            self._err.print(f"[dim]{escape(plain(text))}[/]")

    def error(self, error: LauncherError | ValueError) -> None:
        """What went wrong."""
        body = error.as_dict() if isinstance(error, LauncherError) else {"error": str(error), "reason": "usage"}
        if self._json:
            self._err.out(json.dumps(body), highlight=False)
        else:
            self._failure(body)

    @contextmanager
    def progress(self, launch: Launch) -> Iterator[Callable[[Event], None]]:
        """A bar for a launch that is waited for; lines where there is no terminal, nothing for programs."""
        if not self._err.is_terminal:
            yield self._tell_in_lines
            return
        bar = Progress(
            TextColumn("{task.fields[server]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("{task.description}"), console=self._err, transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task("Waiting for its turn", total=None, server=escape(plain(server(launch))))

            def follow(event: Event) -> None:
                done = {"total": 100, "completed": event.progress} if event.progress is not None else {}
                bar.update(task, description=escape(plain(event.message)), **done)  # type: ignore[arg-type]

            yield follow

    def _tell_in_lines(self, event: Event) -> None:
        if not self._json and not event.final:
            self._err.out(plain(event.message), highlight=False)

    # -- parts

    def _fields(self, launch: Launch) -> dict[str, Any]:
        return launch.model_dump(mode="json", exclude=None if self._show_token else {"token"})

    def _shown(self, name: str, value: Any) -> str:
        text = escape(plain(value))
        return f"[{_COLOURS.get(value, 'default')}]{text}[/]" if name == "state" else text

    def _failure(self, error: dict[str, Any]) -> None:
        self._err.print(f"[red]{escape(plain(error['error']))}[/] [dim]({escape(plain(error['reason']))})[/]")
        details = error.get("details") or {}
        for problem in details.get("fields", []):
            if problem["problem"] in error["error"]:
                continue
            self._err.print(f"  {escape(plain(problem['field']))}: {escape(plain(problem['problem']))}")
        for row in details.get("rows", []):
            self._err.print(
                f"  row {row['row']} {escape(plain(row['said']))}: {escape(plain('; '.join(row['problems'])))}"
            )
        for item in details.get("items", []):
            self._err.print(f"  {escape(plain(item['error']))} [dim]({escape(plain(item['reason']))})[/]")
        for line in log_of(details):
            self._err.print(f"  [dim]{escape(plain(line))}[/]")


def log_of(details: dict[str, Any]) -> Iterable[str]:
    """The log lines in an error's details."""
    log = details.get("log") or []
    return log.splitlines() if isinstance(log, str) else log


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, whose exit status is not rich's."""
        raise BrokenPipeError


def _console(**kwargs: Any) -> Console:
    console = _Console(highlight=False, emoji=False, soft_wrap=True, **kwargs)
    if not console.is_terminal:
        console.width = 10_000  # nothing is cut off for who reads it from a pipe
    return console


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True, overflow="fold")  # to be copied: never cut off
    for name in columns:
        table.add_column(name)
    return table


def _amount(resource: str, amount: float) -> str:
    return format_bytes(int(amount)) if resource == "memory" else f"{amount:g}"


def _end_of(launch: Launch) -> str:
    """Until when a server runs."""
    if launch.lifetime is None:
        return "runs until somebody stops it"
    if launch.expires is None:
        return f"is stopped {launch.lifetime:g} seconds after it is ready"
    return f"is stopped in {ago(launch.expires)}"


def _counted(counts: Mapping[str, int]) -> str:
    """``3 starting, 17 ready``."""
    return ", ".join(f"{counts[state]} {state}" for state in (*STATES, "refused") if counts.get(state)) or "nothing"


def _error_of(item: dict[str, Any]) -> dict[str, Any]:
    """Why a person of a class has no server; empty if they have, or may get one."""
    error: dict[str, Any] = item["error"] or (item["launch"] or {}).get("error") or {}
    return error


def _user_of(item: dict[str, Any]) -> str:
    return server(Launch(**item["launch"])) if item["launch"] else item["username"] or ""


def _doing(item: dict[str, Any], launch: Launch) -> str:
    """What a server is doing, in a few words."""
    if launch.error:
        return f"{launch.error['error']} ({launch.error['reason']})"
    if launch.ended_by and not launch.final:
        return "is being stopped"
    if progress := item.get("progress"):
        return f"{progress['progress']}% {progress['message']}"
    if launch.state == "queued" and launch.not_before and launch.not_before > datetime.now(UTC):
        return f"starts in {ago(launch.not_before)}"
    return "waits for its turn" if launch.state == "queued" else ""


def _whose(key: str) -> str:
    """Whom a limit is for: ``ada``, ``group course-1`` or ``all together``."""
    kind, _, name = key.partition(":")
    return {"user": name, "group": f"group {name}"}.get(kind, "all together")
