"""Why a start failed: one list of words for every engine, with the proof, and without the secrets.

The spawner in the Hub makes a `Failure` while the container is still there; it reaches the launcher sealed in the
server's options, and people through the Hub's own pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .models import Model, format_bytes

Reason = Literal[
    "image_not_found",
    "image_pull_denied",
    "volume_not_found",
    "volume_failed",
    "unschedulable",
    "quota_exceeded",
    "out_of_memory",
    "crashed",
    "never_ready",
    "timeout",
    "start_failed",
    "refused_by_hub",
]
"""The machine words; docs/reasons.md explains each."""

MAX_LINES = 50
"""The most log lines and engine events that a failure carries."""
MAX_LINE_LENGTH = 500
MAX_MESSAGE_LENGTH = 1500
_MAX_RAW_LENGTH = 65_536

_HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|PWD|CREDENTIAL|AUTH|API_?KEY|PRIVATE|ACCESS_?KEY", re.IGNORECASE)
# of what anybody may print: it takes a time that is proportional to the text, whatever is in it
_SECRET_TEXT = re.compile(
    r"""(?ix)
    ((?:token|passw|secret|credential|api_?key|access_?key)\w{0,64}["']?\s{0,8}[=:]\s{0,8}
     | authorization:\s{0,8}(?:bearer|basic|token)\s{1,8}
     | \bbearer\s{1,8}
     )(?:"[^"]*"|'[^']*'|[^\s"'&,;]+)
    | (?<=://)[^\s/@]+(?=@)
    """
)
_DENIED = re.compile(r"unauthorized|denied|forbidden|no basic auth|authentication required", re.IGNORECASE)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def _last_lines(lines: list[str]) -> list[str]:
    """Bounded, but not cut to size yet: half of a secret could not be recognised."""
    return [_CONTROL.sub("", line[:_MAX_RAW_LENGTH]) for line in lines[-MAX_LINES:]]


Lines = Annotated[list[str], BeforeValidator(_last_lines)]


class Evidence(Model):
    """What an engine has to say of a start that failed."""

    exit_code: int | None = None
    log: Lines = Field(default_factory=list)
    """The container's last lines."""
    events: Lines = Field(default_factory=list)
    """The engine's events of this start, the last one at the end."""


class Failure(Evidence):
    """Why a start failed."""

    reason: Reason
    message: str
    """A sentence that a person can act on."""
    refused: bool = False
    """It was refused before anything was started."""

    def details(self) -> dict[str, Any]:
        """What is known beside the message, for `LaunchFailed`."""
        return self.model_dump(include={"exit_code", "log", "events"}, exclude_none=True)

    def with_evidence(self, evidence: Evidence) -> Failure:
        """The same with what was not known yet."""
        return self.model_copy(update={k: v for k, v in evidence if getattr(self, k) in (None, [])})

    def scrubbed(self, secrets: list[str]) -> Failure:
        """The same without these secrets (of `secrets_of`) and what looks like one; lines are cut to size."""
        return self.model_copy(
            update={
                "message": hide(self.message, secrets)[:MAX_MESSAGE_LENGTH],
                "log": [hide(line, secrets)[:MAX_LINE_LENGTH] for line in self.log],
                "events": [hide(line, secrets)[:MAX_LINE_LENGTH] for line in self.events],
            }
        )

    def as_html(self) -> str:
        """For the Hub's pages."""
        parts = [html.escape(self.message)]
        if self.exit_code is not None:
            parts.append(f"Exit code: {self.exit_code}")
        for title, lines in (("Events", self.events), ("Last lines of its log", self.log)):
            if lines:
                parts.append(f"{title}:<pre>{html.escape(chr(10).join(lines))}</pre>")
        return "<br>".join(parts)


def hide(text: str, secrets: list[str]) -> str:
    """The text without these secrets, and without what looks like one."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return _SECRET_TEXT.sub(lambda match: (match[1] or "") + _HIDDEN, text)


class StartFailed(Exception):
    """A start came to nothing, and it is known why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def secrets_of(env: Mapping[str, object], given: dict[str, str]) -> list[str]:
    """The values of an environment that must not be shown, the longest first: one may be a part of another.

    Args:
        env: the whole environment; what is named like a secret is one. Spawners also take what is not text.
        given: the part that a caller gave; any of it may be one. What is too short to be one would only make other
            text unreadable.

    """
    named = [value for name, value in env.items() if _SECRET_NAME.search(name) and isinstance(value, str)]
    values = named + list(given.values())
    lines = {line for value in values for line in (value, *value.splitlines()) if len(line.strip()) >= 6}
    return sorted(lines, key=len, reverse=True)


def pull_failure(image: str, text: str) -> Failure:
    """Why an image could not be had, from the words of the registry or the engine."""
    if _DENIED.search(text.replace(image, "")):
        return Failure(
            reason="image_pull_denied",
            message=f"The registry does not give out the image {image}: it needs other credentials, or there is no "
            f"such image. ({_one_line(text)})",
        )
    return Failure(
        reason="image_not_found",
        message=f"The image {image} could not be found. Check its name and tag, and that its registry can be "
        f"reached. ({_one_line(text)})",
    )


OUT_OF_MEMORY = "A program in the server took more memory than it may have, and was ended; the rest goes on."


def ended(exit_code: int | None, *, out_of_memory: bool, memory_limit: int | None = None) -> Failure:
    """The failure of a server whose process has ended by itself, before it was ready or after."""
    if out_of_memory:
        limit = f" (limit: {format_bytes(memory_limit)})" if memory_limit else ""
        return Failure(
            reason="out_of_memory",
            message=f"The server ran out of memory{limit}. Ask for more.",
            exit_code=exit_code,
        )
    code = "" if exit_code is None else f" with exit code {exit_code}"
    return Failure(
        reason="crashed",
        message=f"The server's process ended{code}. The last lines of its log may say why.",
        exit_code=exit_code,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
