"""What may stand on the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable

import shtab

from ..client.settings import TOKEN_ENV, URL_ENV
from ..models import parse_bytes
from ..records import STATES
from .names import COMMANDS, NESTED

EXIT_CODES = """\
exit status:
  0    done
  1    the launch failed, or was ended before it was ready; of a class: one of them; of a job: it did not complete
  2    the command line or the settings are wrong, or there is nothing to print
  3    the launcher refuses it
  4    the launcher does not answer, or could not do it
  130  interrupted; a launch or job that was accepted goes on
  141  who read the output has closed it
"""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds, from ``5400``, ``90m``, ``1.5h`` or ``2d``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 5400, 90m, 1.5h or 2d")
    return float(match[1]) * _UNITS[match[2]]


def size(text: str) -> int:
    """Bytes, from ``2G``."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def volume(text: str) -> dict[str, object]:
    """One of ``vols``, from ``NAME[/SUBPATH]:MOUNT[:ro]``."""
    name, _, rest = text.partition(":")
    mount, _, mode = rest.partition(":")
    if not name or not mount.startswith("/") or mode not in ("", "ro", "rw"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:/MOUNT or NAME:/MOUNT:ro")
    pvc, _, subpath = name.partition("/")
    found: dict[str, object] = {"pvc": pvc, "mount": mount}
    return found | ({"subpath": subpath} if subpath else {}) | ({"read_only": True} if mode == "ro" else {})


def variable(text: str) -> tuple[str, str]:
    """A name and its value, from ``NAME=VALUE``, or ``NAME`` for the value that it has here."""
    name, given, value = text.partition("=")
    if not given and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} has no value here; give it one with {name}=VALUE")
    return name, value if given else os.environ[name]


def states(text: str) -> list[str]:
    """States, with commas between."""
    found = text.split(",")
    if unknown := set(found) - set(STATES):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is not a state; there are {', '.join(STATES)}")
    return found


Parsers = dict[str, argparse.ArgumentParser]
"""By what is said: ``launch``, or ``batch start``."""


def build(*nested: Callable[[Parsers], None]) -> argparse.ArgumentParser:
    """The parser of all commands; what is said stands in ``command``.

    Args:
        nested: each adds the arguments of commands with two words.

    """
    parser = argparse.ArgumentParser(prog="jhlauncher", description="Launch servers on a JupyterHub with jhlauncher.")
    add = _commands(parser)
    for arguments in nested:
        arguments(add)
    _launch(add["launch"])
    _list(add["list"])
    for name in ("show", "events", "logs"):
        add[name].add_argument("launch", metavar="ID", help="of a launch; `jhlauncher list` has them")
    for name in ("stop", "extend"):
        add[name].add_argument("launches", metavar="ID", nargs="+", help="of a launch")
    more_time(add["extend"])
    add_wait(add["events"], "follow it to its end, or only tell what has happened so far")
    add_wait(add["stop"], "return when the servers have stopped, or as soon as that is accepted")
    for name in ("launch", "list", "show", "events"):
        add[name].add_argument("--show-token", action="store_true", help="print the token that opens the server, too")
    add["options"].add_argument("--user", "-u", metavar="NAME", help="whose server it would be; default: yours")
    add["options"].add_argument("--server-name", "-s", metavar="NAME", default="", help="default: the default server")
    add["completion"].add_argument("shell", choices=("bash", "zsh"), help="for which shell")
    return parser


def _commands(parser: argparse.ArgumentParser) -> Parsers:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add: Parsers = {}
    for name, summary in COMMANDS.items():
        if name not in NESTED:
            add[name] = _command(commands, name, summary)
            continue
        group = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        within = group.add_subparsers(required=True, metavar="COMMAND")
        add |= {f"{name} {word}": _command(within, word, text, name) for word, text in NESTED[name].items()}
    return add


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, group: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=f"{group} {name}".strip())
    if name == "completion":
        return parser
    parser.add_argument("--json", action="store_true", help="print JSON, and errors as JSON to standard error")
    where = parser.add_argument_group("where the launcher is")
    where.add_argument("--url", help=f"its address, https://HUB/services/launcher/; default: ${URL_ENV}")
    tokens = where.add_mutually_exclusive_group()
    tokens.add_argument("--token", help=f"of JupyterHub, which other users may see here; default: ${TOKEN_ENV}")
    token_file = tokens.add_argument("--token-file", metavar="FILE", help="a file with the token; - is standard input")
    config = where.add_argument(
        "--config", metavar="FILE", help="with url and token; default: ~/.config/jhlauncher/client.toml"
    )
    where.add_argument(
        "--patience",
        metavar="TIME",
        type=duration,
        default=60,
        help="ask again for so long while it does not answer; default: 1m",
    )
    token_file.complete = config.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def add_wait(parser: argparse.ArgumentParser, what: str) -> None:
    """Whether to wait."""
    parser.add_argument("--wait", action=argparse.BooleanOptionalAction, default=True, help=f"{what}; default: --wait")


def more_time(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument(
        "--lifetime",
        metavar="TIME",
        type=lifetime,
        required=True,
        help="stop after so long from now: 90m, 2h; none: when somebody stops it, where the policy allows that",
    )


def lifetime(text: str) -> float | None:
    """Seconds, or None for ``none``."""
    return None if text == "none" else duration(text)


def _launch(parser: argparse.ArgumentParser) -> None:
    what = what_to_start(parser)
    what.add_argument("--user", "-u", metavar="NAME", help="whose server it will be; default: yours")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="the same request with the same key is the same launch"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would become of it, and start nothing")
    add_wait(parser, "return when it is ready, or as soon as it is accepted")


def what_to_start(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a server is to have."""
    what = parser.add_argument_group("what to start; `jhlauncher options` says what you may")
    what.add_argument("--template", "-t", metavar="NAME", help="a template of the administrator's")
    what.add_argument("--image", "-i", metavar="IMAGE", help="what to start; required without a template")
    what.add_argument("--server-name", "-s", metavar="NAME", help="a named server; default: the default server")
    what.add_argument("--cpu", metavar="CORES", type=float, help="at most so many cores")
    what.add_argument("--memory", metavar="SIZE", type=size, help="at most so much memory: 2G, 512M")
    what.add_argument("--gpu", metavar="N", type=int, help="so many GPUs")
    what.add_argument(
        "--volume", "-v", metavar="NAME:/MOUNT[:ro]", type=volume, action="append", help="NAME/FOLDER mounts a folder"
    )
    what.add_argument(
        "--env",
        "-e",
        metavar="NAME[=VALUE]",
        type=variable,
        action="append",
        help="without a value: the one it has here",
    )
    what.add_argument("--lifetime", metavar="TIME", type=duration, help="stop it after so long: 90m, 2h")
    what.add_argument("--queue-timeout", metavar="TIME", type=duration, help="wait for its turn for so long at most")
    return what


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", "-a", action="store_true", help="those that have ended, too")
    parser.add_argument("--user", "-u", metavar="NAME", help="only this user's")
    parser.add_argument("--group", metavar="NAME", help="only of users in this group")
    parser.add_argument(
        "--state", metavar="STATE", type=states, help=f"only in this state, or several with commas: {', '.join(STATES)}"
    )
    parser.add_argument("--template", "-t", metavar="NAME", help="only of this template")
    parser.add_argument("--batch", metavar="ID", help="only of this batch")
    parser.add_argument("--limit", "-n", metavar="N", type=int, default=50, help="how many at most; default: 50")
    parser.add_argument("--quiet", "-q", action="store_true", help="only their ids, a line each")
