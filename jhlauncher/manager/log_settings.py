"""What a log handler may be configured with: pure functions over the bodies of ``api/logs/handler``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import BadInput
from .rendering import Json

LEVELS = {
    "NOTSET": 0, "TRACE": 5, "DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "FATAL": 50,
    "CRITICAL": 50, "DEACTIVATE": 99,
}  # fmt: skip
FORMATTERS = ["simple", "json"]
STREAMS = ["ext://sys.stdout", "ext://sys.stderr"]
WHEN = ["s", "m", "h", "d", *(f"w{day}" for day in range(7)), "midnight"]
SOCKTYPES = ["ext://socket.SOCK_STREAM", "ext://socket.SOCK_DGRAM"]

DEFAULTS: dict[str, Json] = {
    "stream": {"formatter": "simple", "level": 10, "stream": STREAMS[0]},
    "file": {
        "formatter": "simple", "level": 10, "filename": "/tmp/file.log", "when": "midnight", "backupCount": 7,  # noqa: S108
    },
    "smtp": {"formatter": "simple", "level": 10, "mailhost": "", "fromaddr": "", "toaddrs": [], "subject": ""},
    "syslog": {"formatter": "json", "level": 10, "address": ["127.0.0.1", 514], "socktype": SOCKTYPES[0]},
}  # fmt: skip
"""What a new handler has where nothing else is said."""


def level_number(level: int | str) -> int:
    """A level that `check` has found good, as logging counts it."""
    if isinstance(level, int):
        return level
    return LEVELS[level.upper()] if level.upper() in LEVELS else int(level)


def check(handler: str, configuration: Any) -> Json:
    """The configuration, if a handler of this kind can have it.

    Raises:
        BadInput: it has an unknown key, or a value that can't be.

    """
    if not isinstance(configuration, dict):
        raise BadInput([f"Configuration must be of type dict not {type(configuration)}"])
    known = DEFAULTS[handler].keys()
    for key, value in configuration.items():
        if key not in known:
            raise BadInput([f"Unsupported key: {key}. Supported keys: {sorted(known)}"])
        _CHECKS[key](key, value)
    return configuration


def _one_of(supported: list[str]) -> Callable[[str, Any], None]:
    def check_choice(key: str, value: Any) -> None:
        if value not in supported:
            raise BadInput([f"Unsupported {key}: {value}. Supported {key}s: {supported}"])

    return check_choice


def _level(key: str, value: Any) -> None:
    numbers = sorted(set(LEVELS.values()))
    number = isinstance(value, int) and not isinstance(value, bool) and value in numbers
    text = isinstance(value, str) and (value.upper() in LEVELS or value in map(str, numbers))
    if not number and not text:
        raise BadInput([f"Unsupported {key}: {value}. Supported {key}s: {[*numbers, *LEVELS]}"])


def _when(key: str, value: Any) -> None:
    _one_of(WHEN)(key, value.lower() if isinstance(value, str) else value)


def _count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10_000:
        raise BadInput([f"{key} must be a number from 0 to 10000"])


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or any(char in value for char in "\r\n\0"):
        raise BadInput([f"{key} must be a text of one line"])


def _texts(key: str, value: Any) -> None:
    if not isinstance(value, list):
        raise BadInput([f"{key} must be a list"])
    for each in value:
        _text(key, each)


def _port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _place(key: str, value: Any) -> None:
    if isinstance(value, list):
        if len(value) != 2 or not _port(value[1]):
            raise BadInput([f"{key} must be a host, or a host and a port"])
        value = value[0]
    _text(key, value)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "formatter": _one_of(FORMATTERS),
    "level": _level,
    "stream": _one_of(STREAMS),
    "filename": _text,
    "when": _when,
    "backupCount": _count,
    "mailhost": _place,
    "fromaddr": _text,
    "toaddrs": _texts,
    "subject": _text,
    "address": _place,
    "socktype": _one_of(SOCKTYPES),
}
