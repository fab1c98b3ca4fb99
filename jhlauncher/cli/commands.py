"""What each command does; each returns the exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from contextlib import aclosing
from pathlib import Path
from typing import Any

import shtab

from ..client import InvalidRequest, Launch, LauncherClient, LauncherError
from ..client.settings import SettingsMissing
from ..records import ACTIVE
from ..roster import TEMPLATE
from . import classes, jobs, people
from .common import (
    BROKEN_PIPE,
    DONE,
    FAILED,
    INTERRUPTED,
    REFUSED,
    STOPPING,
    UNAVAILABLE,
    Command,
    Usage,
    launch_body,
    status_of,
    told_apart,
)
from .output import Output, log_of
from .parser import build


def run(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: the command and what follows it.

    """
    parser = build(classes.arguments, people.arguments, jobs.arguments)
    arguments, program = jobs.parted(arguments)
    args = parser.parse_args(arguments, Namespace(program=program))
    if args.command == "completion":
        sys.stdout.write(shtab.complete(parser, args.shell))
        return DONE
    if args.command == "users template":
        sys.stdout.write(TEMPLATE)
        return DONE
    output = Output(as_json=args.json, show_token=getattr(args, "show_token", False))
    try:
        token = _token_from(args.token_file) if args.token_file else args.token
        return asyncio.run(_connected(args, token, output))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (LauncherError, SettingsMissing, Usage) as error:
        output.error(error)
        return status_of(error)


async def _connected(args: Namespace, token: str | None, output: Output) -> int:
    async with LauncherClient(args.url, token, config_file=args.config, patience=args.patience) as client:
        return await _COMMANDS[args.command](client, args, output)


def _token_from(file: str) -> str:
    try:
        return (sys.stdin.read() if file == "-" else Path(file).read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsMissing(f"The token can't be read from {file}: {error}.") from None


async def launch(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Start a server."""
    request = await _request(client, args)
    if args.dry_run:
        plan = await client.plan(**request)
        output.plan(plan)
        return REFUSED if plan["decision"] == "refuse" else DONE
    found = await client.submit(idempotency_key=args.idempotency_key, **request)
    if not args.wait:
        output.accepted(found)
        return DONE
    try:
        found = await _until_ready(client, found, output)
    except asyncio.CancelledError:
        output.note(f"The launch goes on: jhlauncher events {found.id}, or jhlauncher stop {found.id}")
        raise
    if found.state == "ready":
        output.ready(found)
        return DONE
    output.failed(found)
    return FAILED


async def _request(client: LauncherClient, args: Namespace) -> dict[str, Any]:
    """The body of the request."""
    return {"username": args.user or await _own_name(client), **launch_body(args)}


async def _own_name(client: LauncherClient) -> str:
    try:
        return str((await client.options())["username"])
    except InvalidRequest:
        raise Usage("This token is a service's: say whose server it will be with --user NAME.") from None


async def _until_ready(client: LauncherClient, launch: Launch, output: Output) -> Launch:
    """The launch when it is ready or has ended."""
    with output.progress(launch) as tell:
        async with aclosing(client.events(launch.id)) as events:
            async for event in events:
                tell(event)
                if event.name == "ready" or event.final:
                    break
    return await client.get(launch.id)


async def list_launches(client: LauncherClient, args: Namespace, output: Output) -> int:
    """List launches."""
    state = args.state or (None if args.all else ACTIVE)
    filters = {"username": args.user, "group": args.group, "template": args.template, "batch": args.batch}
    async with aclosing(client.list(most=args.limit, state=state, **filters)) as found:
        output.launches([each async for each in found], quiet=args.quiet)
    return DONE


async def show(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Show a launch."""
    output.launch(await client.get(args.launch))
    return DONE


async def events(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Follow a launch."""
    if not args.wait:
        for event in await client.past_events(args.launch):
            output.event(event)
        return DONE
    async with aclosing(client.events(args.launch)) as following:
        async for event in following:
            output.event(event)
    return DONE


async def stop(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Stop servers, all at the same time; the status is the first one's that could not be."""
    wait = STOPPING if args.wait else 0
    answers = await asyncio.gather(
        *(client.stop(launch, wait=wait) for launch in args.launches), return_exceptions=True
    )
    found, refused = told_apart(answers)
    ending = [answer for answer in found if answer]
    output.ends([launch for launch, answer in zip(args.launches, answers, strict=True) if answer is None], ending)
    for error in refused:
        output.error(error)
    if refused:
        return status_of(refused[0])
    return UNAVAILABLE if args.wait and ending else DONE


async def extend(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Give servers more time; the status is the first one's that could not be."""
    answers = await asyncio.gather(
        *(client.extend(launch, args.lifetime) for launch in args.launches), return_exceptions=True
    )
    found, refused = told_apart(answers)
    output.extended(found)
    for error in refused:
        output.error(error)
    return status_of(refused[0]) if refused else DONE


async def logs(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Print the log of a failed launch."""
    found = await client.get(args.launch)
    if found.error is None:
        raise Usage(f"The launch {args.launch} is {found.state}; only one that failed has kept its log.")
    lines = list(log_of(found.error["details"]))
    if not lines:
        raise Usage(f"The launch {args.launch} has failed without a log: {found.error['error']}")
    if args.json:
        output.json(lines)
    else:
        for line in lines:
            output.line(line)
        output.error(LauncherError(found.error["error"], reason=found.error["reason"]))
    return DONE


async def options(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Show what may be launched."""
    output.options(await client.options(args.user, args.server_name))
    return DONE


_COMMANDS: dict[str, Command] = {
    "launch": launch,
    "list": list_launches,
    "show": show,
    "events": events,
    "extend": extend,
    "stop": stop,
    "logs": logs,
    "options": options,
    **classes.COMMANDS,
    **people.COMMANDS,
    **jobs.COMMANDS,
}
