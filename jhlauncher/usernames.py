"""User names for people: readable, unique, and the same whenever the same people are asked for again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

from anyascii import anyascii

LONGEST = 32
"""Characters; what Linux accounts may have (useradd(8))."""

_OTHER = re.compile(r"[^a-z0-9]+")


def folded(text: str) -> str:
    """The text as letters, digits and hyphens of ASCII: ``Жанна д'Арк`` is ``zhanna-d-ark``. May be empty."""
    return _OTHER.sub("-", anyascii(unicodedata.normalize("NFC", text)).lower()).strip("-")


def derived(name: str, taken: Container[str], numbers: dict[str, int] | None = None) -> str:
    """A user name for this person's name that nobody has yet: ``anna-rossi``, or ``anna-rossi-2``.

    It has at most `LONGEST` characters and begins with a letter, so that it is a name for accounts, volumes, pods and
    containers alike.

    Args:
        name: in any script.
        taken: user names that are somebody's.
        numbers: where to go on counting, for many of one name; it is kept here.

    Raises:
        ValueError: nothing of it can be written in ASCII.

    """
    base = folded(name)
    if not base:
        raise ValueError("no user name can be made of it; give one in the column username")
    if not base[0].isalpha():
        base = f"u-{base}"
    numbers = {} if numbers is None else numbers
    number = numbers.get(base, 1)
    while True:
        suffix = f"-{number}" if number > 1 else ""
        candidate = base[: LONGEST - len(suffix)].rstrip("-") + suffix
        if candidate not in taken:
            numbers[base] = number
            return candidate
        number += 1
