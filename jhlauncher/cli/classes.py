"""``jhlauncher batch``: a class is started, watched, given more time and stopped as one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from argparse import Namespace
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import shtab

from ..client import LauncherClient
from ..records import ACTIVE, STATES
from .common import DONE, FAILED, REFUSED, STOPPING, UNAVAILABLE, Command, Usage, launch_body
from .output import Output
from .parser import Parsers, add_wait, duration, more_time, what_to_start
from .people import columns, of_roster, roster

_WAITING = ("queued", "starting")


def arguments(add: Parsers) -> None:
    """What may stand behind each command."""
    start = add["batch start"]
    people = start.add_argument_group("for whom; all that are named")
    people.add_argument("--group", metavar="NAME", help="the members of this group of JupyterHub's")
    people.add_argument("--user", "-u", metavar="NAME", nargs="+", action="extend", default=[], help="these people")
    file = people.add_argument("--users-file", metavar="FILE", help="a name a line; - is standard input")
    file.complete = shtab.FILE  # type: ignore[attr-defined]
    roster(start, "--roster", "those of a CSV file who have accounts, see `jhlauncher users`")
    columns(start)
    what_to_start(start)
    start.add_argument("--stagger", metavar="TIME", type=duration, default=0, help="so long between the starts: 5s")
    start.add_argument("--all-or-none", action="store_true", help="start nothing if one of them can't be accepted")
    start.add_argument("--idempotency-key", metavar="KEY", help="the same request with the same key is the same class")
    add_wait(start, "return when all are ready or have failed, or as soon as they are accepted")
    add["batch list"].add_argument("--limit", "-n", metavar="N", type=int, default=50, help="at most; default: 50")
    add["batch list"].add_argument("--quiet", "-q", action="store_true", help="only their ids, a line each")
    for name in ("show", "extend", "stop"):
        add[f"batch {name}"].add_argument("batch", metavar="ID", help="of a class; `jhlauncher batch list` has them")
    more_time(add["batch extend"])
    add_wait(add["batch stop"], "return when all have stopped, or as soon as that is accepted")


async def start(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Start a server for each of many people."""
    users = [*args.user, *(_names(args.users_file) if args.users_file else []), *await of_roster(client, args)]
    if not users and not args.group:
        raise Usage("Say for whom: --group NAME, --user NAME ..., --users-file FILE or --roster ROSTER.")
    batch = await client.submit_batch(
        users=users or None,
        group=args.group,
        launch=launch_body(args),
        stagger=args.stagger,
        mode="all" if args.all_or_none else "some",
        idempotency_key=args.idempotency_key,
    )
    if args.wait:
        try:
            batch = await _until_settled(client, batch, output)
        except asyncio.CancelledError:
            output.note(f"The class goes on: jhlauncher batch show {batch['id']}, or batch stop {batch['id']}")
            raise
    output.batch_started(batch)
    return DONE if _is_well(batch) else FAILED


def _names(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"The names can't be read from {file}: {error}.") from None
    return [name for line in text.splitlines() if (name := line.strip()) and not name.startswith("#")]


def _is_well(batch: dict[str, Any]) -> bool:
    """Whether nobody was left out, and no start came to nothing."""
    counts = batch["counts"]
    return not any(counts.get(state) for state in ("refused", "failed", "expired", "cancelled"))


async def _until_settled(client: LauncherClient, batch: dict[str, Any], output: Output) -> dict[str, Any]:
    """The batch when all its launches are ready or have ended."""
    states = {item["launch"]["id"]: item["launch"]["state"] for item in batch["items"] if item["launch"]}
    with output.class_progress(len(states)) as tell:
        tell(Counter(states.values()))
        if any(state in _WAITING for state in states.values()):
            async with aclosing(client.batch_events(batch["id"])) as events:
                async for event in events:
                    if event.name in STATES:
                        states[event.data["launch"]] = event.name
                        tell(Counter(states.values()))
                    if not any(state in _WAITING for state in states.values()):
                        break
    return await client.get_batch(batch["id"])


async def list_batches(client: LauncherClient, args: Namespace, output: Output) -> int:
    """List classes."""
    async with aclosing(client.batches(most=args.limit)) as found:
        output.batches([batch async for batch in found], quiet=args.quiet)
    return DONE


async def show(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Show what each server is doing."""
    output.batch(await client.get_batch(args.batch))
    return DONE


async def extend(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Give all servers more time; one that is refused does not stop the others."""
    items = await client.extend_batch(args.batch, args.lifetime)
    output.batch_extended(items)
    return REFUSED if any(item["error"] for item in items) else DONE


async def stop(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Stop all servers."""
    ending = await client.stop_batch(args.batch)
    if ending and args.wait:
        ending = await _until_over(client, ending)
    output.batch_ends(args.batch, ending)
    return UNAVAILABLE if ending and args.wait else DONE


async def _until_over(client: LauncherClient, batch: dict[str, Any]) -> dict[str, Any] | None:
    """None when all have ended, or the batch if that takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOPPING), aclosing(client.batch_events(batch["id"])) as events:
            async for _ in events:
                pass
    found = await client.get_batch(batch["id"])
    return found if any(found["counts"].get(state) for state in ACTIVE) else None


COMMANDS: dict[str, Command] = {
    "batch start": start,
    "batch list": list_batches,
    "batch show": show,
    "batch extend": extend,
    "batch stop": stop,
}
"""What each does."""
