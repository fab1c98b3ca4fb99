"""``jhlauncher users``: people get accounts from a roster, are listed, and removed."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import shtab

from ..client import LauncherClient
from ..roster import COLUMNS, FORMULA
from .common import DONE, FAILED, Command, Usage
from .output import Output
from .parser import Parsers

_REPORTED = ("row", "said", "username", "status", "mail", "problems")


def arguments(add: Parsers) -> None:
    """What may stand behind each command."""
    importing = add["users import"]
    roster(importing, "roster", "a CSV file, see `jhlauncher users template`; - is standard input")
    importing.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    importing.add_argument("--partial", action="store_true", help="do what can be done, even if some rows are bad")
    importing.add_argument(
        "--mail",
        choices=("once", "again", "no"),
        default="once",
        help="to those who have not had one, to all of them again, or to nobody; default: once",
    )
    importing.add_argument(
        "--adopt", action="store_true", help="mail accounts, too, that were not made with these addresses"
    )
    columns(importing)
    report = importing.add_argument("--report", metavar="FILE", help="write a CSV file with what became of each row")
    report.complete = shtab.FILE  # type: ignore[attr-defined]
    add["users list"].add_argument("name", metavar="NAME", nargs="?", default="", help="a part of their user names")
    add["users list"].add_argument("--limit", "-n", metavar="N", type=int, default=200, help="at most; default: 200")
    removing = add["users remove"]
    removing.add_argument("usernames", metavar="NAME", nargs="*", help="user names")
    roster(removing, "--roster", "those of a CSV file, too; its people are recognised as when they were imported")
    columns(removing)
    removing.add_argument("--yes", "-y", action="store_true", help="do not ask before")


def roster(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """A roster as an argument."""
    parser.add_argument(name, metavar="ROSTER", help=text).complete = shtab.FILE  # type: ignore[attr-defined]


def columns(parser: argparse.ArgumentParser) -> None:
    """How the columns of a roster are headed."""
    parser.add_argument(
        "--column",
        metavar="WHAT=HEADING",
        type=_column,
        action="append",
        default=[],
        help=f"how a column is headed; WHAT is one of {', '.join(COLUMNS)}",
    )


def _column(text: str) -> tuple[str, str]:
    what, given, heading = text.partition("=")
    if not given or what not in COLUMNS or not heading.strip() or "," in heading:
        raise argparse.ArgumentTypeError(f"{text!r} is not WHAT=HEADING, with one of {', '.join(COLUMNS)}")
    return what, heading


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Usage(f"The roster can't be read: {error}.") from None


# -- import


async def import_users(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Give the people of a roster accounts."""
    done: dict[str, Any] = {}
    with Report(args.report) as report, output.counting("People") as tell:
        events = client.enrol(
            _read(args.roster),
            mode="some" if args.partial else "all",
            mail=args.mail,
            dry_run=args.dry_run,
            adopt=args.adopt,
            columns=dict(args.column),
        )
        async with aclosing(events):
            async for event in events:
                if event.name == "done":
                    done = dict(event.data)
                else:
                    report.add(event.data)
                    tell(event.data)
    if output.for_programs:
        output.json(done)
    else:
        _tell(done, output, everybody=args.dry_run)
    bad = any(done["counts"].get(what) for what in ("refused", "failed", "mail_failed", "mail_unknown"))
    return FAILED if bad else DONE


def _tell(done: dict[str, Any], output: Output, *, everybody: bool) -> None:
    shown = [result for result in done["users"] if everybody or result["problems"]]
    output.table((_shown(result) for result in shown), "")
    for heading in done["ignored"]:
        output.note(f"The column {heading!r} says nothing here, and was left out.")
    output.line(("Would be: " if done["dry_run"] else "") + (_counted(done["counts"]) or "nobody"))


def _shown(result: Mapping[str, Any]) -> dict[str, object]:
    fields = {name: result[name] for name in _REPORTED if name not in ("said", "problems")}
    return {"row": fields.pop("row"), "person": result["said"], **_plain(fields), "why": "; ".join(result["problems"])}


def _plain(fields: Mapping[str, Any]) -> dict[str, object]:
    return {name: "" if value in (None, "none") else value for name, value in fields.items()}


def _counted(counts: Mapping[str, int]) -> str:
    """``28 created, 2 refused, 28 mails sent``."""
    accounts = [f"{number} {what}" for what, number in counts.items() if not what.startswith("mail_")]
    mails = [f"{number} mailed {_MAILED[what]}" for what, number in counts.items() if what.startswith("mail_")]
    return ", ".join(accounts + mails)


_MAILED = {"mail_sent": "now", "mail_earlier": "before", "mail_failed": "in vain", "mail_unknown": "perhaps"}


class Report:
    """A CSV file with what became of each row, written as it happens; nothing if there is no name.

    What a spreadsheet would take for a formula is quoted with an apostrophe
    (https://owasp.org/www-community/attacks/CSV_Injection).

    Args:
        file: its name.

    """

    def __init__(self, file: str | None) -> None:
        self._name = file

    def __enter__(self) -> Report:
        if self._name:
            try:
                handle = os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            except OSError as error:
                raise Usage(f"The report can't be written: {error}.") from None
            self._file = os.fdopen(handle, "w", encoding="utf-8-sig", newline="")
            self._writer = csv.writer(self._file)
            self._writer.writerow(["row", "person", *_REPORTED[2:]])
        return self

    def __exit__(self, *error: object) -> None:
        if self._name:
            self._file.close()

    def add(self, result: Mapping[str, Any]) -> None:
        """Add a row."""
        if self._name:
            cells = {**result, "problems": "; ".join(result["problems"])}
            self._writer.writerow([_harmless(cells[name]) for name in _REPORTED])
            self._file.flush()


def _harmless(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(FORMULA) else text


# -- list and remove


async def list_users(client: LauncherClient, args: Namespace, output: Output) -> int:
    """List people."""
    async with aclosing(client.users(name=args.name, most=args.limit)) as found:
        users = [user async for user in found]
    if output.for_programs:
        output.json(users)
    else:
        output.table((_listed(user) for user in users), "Nobody.")
    return DONE


def _listed(user: Mapping[str, Any]) -> dict[str, object]:
    return {
        "username": user["username"],
        "name": user["name"] or "",
        "e-mail": ", ".join(user["emails"]),
        "groups": ", ".join(user["groups"]),
        "admin": "yes" if user["admin"] else "",
        "mail": "" if user["mail"] in (None, "none") else user["mail"],
        "servers": len(user["servers"]) or "",
    }


async def remove_users(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Remove people."""
    usernames = [*args.usernames, *await of_roster(client, args)]
    if not usernames:
        raise Usage("Say whom: NAME ... or --roster ROSTER.")
    if not args.yes:
        _confirm(usernames)
    results: list[dict[str, Any]] = []
    for start in range(0, len(usernames), _TOGETHER):
        with output.counting("Removed") as tell:
            async with aclosing(client.remove_users(usernames[start : start + _TOGETHER])) as events:
                async for event in events:
                    if event.name == "done":
                        results += event.data["users"]
                    else:
                        tell(event.data)
    if output.for_programs:
        output.json({"users": results})
    else:
        failed = [result for result in results if result["status"] == "failed"]
        output.table(({"username": result["username"], "why": result["problem"]} for result in failed), "")
        removed = sum(result["status"] == "removed" for result in results)
        output.line(f"{removed} removed, {len(failed)} not, {len(results) - removed - len(failed)} were not there")
    return FAILED if any(result["status"] == "failed" for result in results) else DONE


_TOGETHER = 1000
"""Whom one request may name."""


async def of_roster(client: LauncherClient, args: Namespace) -> Iterable[str]:
    """The user names of those of a roster who have accounts."""
    if not args.roster:
        return []
    events = client.enrol(_read(args.roster), mode="some", mail="no", dry_run=True, columns=dict(args.column))
    async with aclosing(events):
        return [e.data["username"] async for e in events if e.name == "user" and e.data["status"] == "exists"]


def _confirm(usernames: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Usage("To remove accounts without being asked, add --yes.")
    shown = ", ".join(usernames[:10]) + (", ..." if len(usernames) > 10 else "")
    sys.stderr.write(f"Remove {len(usernames)} accounts ({shown}) and stop their servers? Type yes: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise Usage("Nobody was removed.")


COMMANDS: dict[str, Command] = {
    "users import": import_users,
    "users list": list_users,
    "users remove": remove_users,
}
"""What each does."""
