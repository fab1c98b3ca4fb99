"""Settings that come from environment variables, and what is said when one is wrong."""

from __future__ import annotations

import os

from traitlets import TraitError


def number(name: str, default: float) -> float:
    """The positive number in the variable ``name``; ``default`` if it is unset or empty.

    Raises:
        TraitError: it is something else.

    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise TraitError(f"${name} must be a positive number, not {text!r}")
    return value


def text(name: str, default: str = "") -> str:
    """The variable ``name`` without surrounding space; ``default`` if it is unset or empty."""
    return os.environ.get(name, "").strip() or default
