"""``jhlauncher jobs``: jobs on systems with Slurm are submitted, watched and cancelled, and nodes forwarded to."""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import sys
from argparse import Namespace
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import shtab

from ..client import InvalidRequest, LauncherClient, LauncherError, UserJob
from ..models import format_bytes
from .common import DONE, FAILED, Command, Usage, status_of, told_apart
from .output import Output, ago
from .parser import Parsers, duration, size, variable

_TAIL = 4096
"""Bytes of the end of a job's output that are printed, unless said otherwise."""


def arguments(add: Parsers) -> None:
    """What may stand behind each command."""
    _submit(add["jobs submit"])
    add["jobs show"].add_argument("name", metavar="NAME", help="of a job; `jhlauncher jobs list` has them")
    add["jobs show"].add_argument(
        "--tail", metavar="BYTES", type=int, default=_TAIL, help=f"so much of the end of its output; default: {_TAIL}"
    )
    add["jobs cancel"].add_argument("names", metavar="NAME", nargs="+", help="of a job or a forward")
    add["jobs cancel"].add_argument("--keep", action="store_true", help="jobs can be looked at still")
    forward = add["jobs forward"]
    forward.add_argument("name", metavar="NAME", help="what it will be called")
    forward.add_argument("--node", metavar="NODE", required=True, help="one for everybody, or where your job runs")
    _where(forward)


def _submit(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [option ...] SCRIPT\n       %(prog)s [option ...] -- COMMAND [ARGUMENT ...]"
    script = parser.add_argument("script", metavar="SCRIPT", nargs="?", help="a file; - is standard input")
    script.complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument("--name", metavar="NAME", help="what it is called; default: made from SCRIPT or COMMAND")
    parser.add_argument("--wait", action="store_true", help="follow it to its end, and print the end of its output")
    _where(parser)
    needs = parser.add_argument_group("what it needs; `jhlauncher jobs systems` says what you may have")
    needs.add_argument("--partition", metavar="NAME", help="default: the first that you may use")
    needs.add_argument("--time", metavar="TIME", type=_time, help="at most so long: 90m, 2h, or Slurm's 1:30:00")
    needs.add_argument("--nodes", metavar="N", type=int, help="default: 1")
    needs.add_argument("--cpus", metavar="N", type=int, help="on each node; default: 1")
    needs.add_argument("--memory", metavar="SIZE", type=size, help="on each node: 4G, 500M")
    needs.add_argument("--gpus", metavar="N", type=int, help="on each node; default: 0")
    needs.add_argument("--project", metavar="NAME", help="that it is charged to, what Slurm calls an account")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--env",
        "-e",
        metavar="NAME[=VALUE]",
        type=variable,
        action="append",
        default=[],
        help="without a value: the one it has here",
    )
    how.add_argument("--chdir", metavar="/FOLDER", help="where; default: your home there")
    how.add_argument("--output", metavar="FILE", help="for what it prints; default: slurm-%%j.out, with its number")


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="NAME", help="where; needed only if there are several")
    parser.add_argument(
        "--port",
        metavar="WANTED[:REMOTE]",
        type=_port,
        action="append",
        default=[],
        help="forward to this port of its node, which is called WANTED here",
    )


def _time(text: str) -> int | str:
    """Seconds from ``90m``; what Slurm has, such as ``30`` (minutes) and ``2-12:00``, as it is."""
    if re.fullmatch(r"[0-9:-]+", text):
        return text
    try:
        return int(duration(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m, 2h, 1:30:00 or 2-12:00:00") from None


def _port(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port such as 8888, or two such as 8888:80")
    return int(match[1]), int(match[2] or match[1])


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """Of ``jobs submit``, what stands before ``--``, and the command behind it."""
    if words[:2] != ["jobs", "submit"] or "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


# -- submit


async def submit(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Submit a job."""
    program, ports = _program(args), _ports(args)
    service = args.name or _named_after(args)
    system = await _system(client, args, "jobs")
    try:
        found = await client.submit_job(service, system, ports=ports, **program, **_asked(args))
    except InvalidRequest as error:
        output.error(error)
        _tell_of_options(program, output)
        return status_of(error)
    if not args.wait:
        output.result(_fields(found), found.service)
        return DONE
    try:
        found = await _until_ended(client, found, output)
    except asyncio.CancelledError:
        output.note(f"The job goes on: jhlauncher jobs show {service}, or jobs cancel {service}")
        raise
    return await _tell_end(client, found, output)


def _program(args: Namespace) -> dict[str, Any]:
    """What runs."""
    if bool(args.script) == bool(args.program):
        raise Usage("Say what runs, a SCRIPT or -- COMMAND: jhlauncher jobs submit --help")
    if args.program:
        return {"command": args.program}
    try:
        return {"script": sys.stdin.read() if args.script == "-" else Path(args.script).read_text()}
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"The script can't be read: {error}.") from None


def _named_after(args: Namespace) -> str:
    """A name that nothing else has: the program's, as far as a Service of Kubernetes may have it, and some digits."""
    stem = Path(args.script or args.program[0]).stem.lower()
    word = re.sub(r"[^a-z0-9]+", "-", stem).lstrip("-0123456789")[:50].rstrip("-")
    return f"{word or 'job'}-{secrets.token_hex(2)}"


def _asked(args: Namespace) -> dict[str, Any]:
    """What the job asks for."""
    names = ("partition", "time", "nodes", "cpus", "memory", "gpus", "project", "output")
    given = {name: getattr(args, name) for name in names} | {"working_directory": args.chdir}
    return {name: value for name, value in given.items() if value is not None} | {"environment": dict(args.env)}


async def _system(client: LauncherClient, args: Namespace, what: str) -> str:
    """The one that is named, or the only one that has jobs, or forwards."""
    if args.system:
        return str(args.system)
    names = [str(system["name"]) for system in await client.systems() if system.get(what)]
    if not names:
        raise Usage(f"There is no system with {what} where you have an account.")
    if len(names) > 1:
        raise Usage(f"Say where: --system {' or --system '.join(names)}")
    return names[0]


def _ports(args: Namespace) -> dict[int, int]:
    ports = dict(args.port)
    if len(ports) < len(args.port):
        raise Usage("A port can be wanted once: two of --port have the same.")
    return ports


def _tell_of_options(program: dict[str, Any], output: Output) -> None:
    """Say where Slurm's options in a script belong."""
    lines = [line for line in program.get("script", "").splitlines() if line.startswith("#SBATCH")]
    if lines:
        output.note("Take these lines out of the script, and give this command such options (--help has them):")
        for line in lines:
            output.note(f"  {line}")


async def _until_ended(client: LauncherClient, job: UserJob, output: Output) -> UserJob:
    """A job when it has ended, or is there no longer."""
    told, reached = "", False
    with output.live() as tell:
        async with aclosing(client.follow_userjob(job.service)) as following:
            async for job in following:
                if (how := _how(job)) != told:
                    tell(told := how)
                if job.forwarding and not reached:
                    reached = True
                    for wanted, address in job.addresses.items():
                        output.aside(f"{wanted} is reached at {address}")
    return job


def _how(job: UserJob) -> str:
    """How it is, in a line."""
    where = f" on {job.target_node}" if job.target_node else ""
    why = f" ({_why(job)})" if _why(job) else ""
    return f"{job.service} is {job.state}{where}{why}"


def _why(job: UserJob) -> str:
    return ", ".join(words for words in (job.job.reason if job.job else "", job.problem) if words)


async def _tell_end(client: LauncherClient, job: UserJob, output: Output) -> int:
    """Print what came of a job; the exit status."""
    if not job.final:
        output.note(f"{job.service} was cancelled and forgotten.")
        return FAILED
    try:
        job = await client.userjob(job.service, tail=_TAIL)
    except LauncherError as error:
        output.note(f"The end of its output can't be had: {error.message}")
    if output.for_programs:
        output.json(_fields(job))
    else:
        _tell_tail(job, _TAIL, output)
        _tell_state(job, output)
    return DONE if job.state == "COMPLETED" else FAILED


def _tell_state(job: UserJob, output: Output) -> None:
    if job.job is None or job.state == "COMPLETED":
        return output.note(f"{job.service} is {job.state}")
    ends = (("exit code", job.job.exit_code), ("signal", job.job.signal))
    words = "".join(f", {what} {number}" for what, number in ends if number is not None)
    return output.error(LauncherError(f"{job.service} is {job.state}{words}", reason=job.job.reason or job.state))


def _tell_tail(job: UserJob, most: int, output: Output) -> None:
    """Print the end of its output."""
    if not job.job or not job.tail:
        return
    output.text(job.tail)
    if len(job.tail.encode(errors="replace")) >= most:
        output.note(f"This is the end; all of it is in {job.job.output}")


# -- list, show and the others


async def list_jobs(client: LauncherClient, args: Namespace, output: Output) -> int:
    """List jobs and forwards."""
    found = await client.userjobs()
    if output.for_programs:
        output.json([_fields(job) for job in found])
    else:
        output.table((_listed(job) for job in found), "No jobs.")
    return DONE


def _listed(job: UserJob) -> dict[str, object]:
    return {
        "name": job.service,
        "system": job.hostname,
        "state": job.state or ("forwarding" if job.forwarding else "forward"),
        "reason": _why(job),
        "node": job.target_node or "",
        "addresses": ", ".join(job.addresses.values()),
        "age": ago(job.created),
    }


async def show(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Show one, and the end of its output."""
    job = await client.userjob(args.name, tail=args.tail)
    if output.for_programs:
        output.json(_fields(job))
    else:
        output.fields(_shown(job))
        if job.tail:
            output.line("")
        _tell_tail(job, args.tail, output)
    return DONE


def _shown(job: UserJob) -> dict[str, object]:
    listed = {name: value for name, value in _listed(job).items() if name not in ("addresses", "age")}
    ports = {f"port {wanted}": address for wanted, address in job.addresses.items()}
    fields = _fields(job)
    asked = {name: value for name, value in (fields["job"] or {}).items() if name not in ("name", "reason", "node")}
    if job.job:
        asked |= {"memory": _memory(job.job.memory), "time": timedelta(seconds=job.job.time or 0)}
    return {**listed, **ports, "created": fields["created"], **asked}


async def cancel(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Cancel jobs and end forwards; the status is the first one's that could not be."""
    removals = (client.remove_userjob(name, keep=args.keep) for name in args.names)
    answers = await asyncio.gather(*removals, return_exceptions=True)
    _, refused = told_apart(answers)
    done = {name: answer is None for name, answer in zip(args.names, answers, strict=True)}
    if output.for_programs:
        output.json([{"service": name, "cancelled": cancelled} for name, cancelled in done.items()])
    else:
        for name in (name for name, cancelled in done.items() if cancelled):
            output.line(f"{name} is {'cancelled' if args.keep else 'gone'}")
    for error in refused:
        output.error(error)
    return status_of(refused[0]) if refused else DONE


async def forward(client: LauncherClient, args: Namespace, output: Output) -> int:
    """Forward to a node."""
    if not args.port:
        raise Usage("Say which port: --port WANTED[:REMOTE]")
    found = await client.forward(args.name, await _system(client, args, "forwards"), args.node, _ports(args))
    output.result(_fields(found), *(found.addresses[wanted] for wanted, _ in args.port))
    return DONE


async def systems(client: LauncherClient, args: Namespace, output: Output) -> int:
    """List systems."""
    found = await client.systems()
    if output.for_programs:
        output.json(found)
    else:
        output.table((_allowed(system) for system in found), "You have an account on no system.")
    return DONE


def _allowed(system: dict[str, Any]) -> dict[str, object]:
    """What a job may ask for; nothing, where there are only forwards."""
    most = system["allowed"]
    limits = {
        "partitions": ", ".join(most["partitions"]),
        "projects": ", ".join(most["projects"]),
        "time": timedelta(seconds=most["time"]),
        **{name: most[name] for name in ("nodes", "cpus", "gpus")},
        "memory": _memory(most["memory"]),
    }
    limits = limits if system["jobs"] else dict.fromkeys(limits, "")
    return {"name": system["name"], "account": system["account"], **limits, "problem": system["problem"]}


def _memory(size: int | None) -> str:
    return "" if size is None else format_bytes(size)


def _fields(job: UserJob) -> dict[str, Any]:
    return job.model_dump(mode="json")


COMMANDS: dict[str, Command] = {
    "jobs submit": submit,
    "jobs list": list_jobs,
    "jobs show": show,
    "jobs cancel": cancel,
    "jobs forward": forward,
    "jobs systems": systems,
}
"""What each does."""
