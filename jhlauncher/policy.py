"""What a caller may ask for. Whether the caller may act on a server at all is decided before, by JupyterHub's scopes.

The first rule that matches decides, and what it does not allow is refused; with no matching rule, everything is.
A rule is a dict::

    {
        "name": "course-1",                       # shown to those it refuses
        # who: all that are given must match; patterns as in a shell
        "callers": ["service:platform"],          # who asks: "user:NAME" or "service:NAME"
        "users": ["stu-*"],                       # whose server it is
        "groups": ["course-1"],                   # a group of the user's
        # what: nothing is allowed that is not named
        "images": ["quay.io/jupyter/*"],
        "volumes": ["home-{username}", "course-data:ro"],   # ":ro": read-only mounts only
        "env": ["COURSE_*"],
        "cpu": 2, "memory": "4G", "gpu": 0,       # the most; None: as much as they like
        # how: nothing of this is the caller's to say
        "pull_policy": "IfNotPresent", "pull_secrets": ["registry"],
        "create_volumes": {"size": "10G"},        # make those of the volumes that do not exist, see `NewVolume`
    }

Only patterns in ``volumes`` know ``{username}``.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from traitlets import Dict, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import PolicyDenied
from .models import Caller, LaunchSpec, Model, NewVolume, PullPolicy, Volume, format_bytes, parse_bytes


def _caller_pattern(value: str) -> str:
    if not value.startswith(("user:", "service:", "*")):
        raise ValueError("must be user:NAME or service:NAME")
    return value


class Rule(Model):
    """One rule, validated."""

    name: str = Field(min_length=1)
    callers: list[Annotated[str, AfterValidator(_caller_pattern)]] = ["*"]
    users: list[str] = ["*"]
    groups: list[str] | None = None
    images: list[str] = []
    volumes: list[str] = []
    env: list[str] = []
    cpu: float | None = Field(0, ge=0)
    memory: Annotated[int, BeforeValidator(parse_bytes)] | None = Field(0, ge=0)
    gpu: int | None = Field(0, ge=0)
    pull_policy: PullPolicy | None = None
    pull_secrets: list[str] = []
    create_volumes: NewVolume | None = None

    def matches(self, caller: Caller, user: str, groups: frozenset[str]) -> bool:
        """Whether this rule decides for this caller and this user's server."""
        return (
            _any_match(self.callers, caller.label)
            and _any_match(self.users, user)
            and (self.groups is None or any(_any_match(self.groups, group) for group in groups))
        )

    def objections(self, user: str, spec: LaunchSpec) -> dict[str, str]:
        """What of the spec is not allowed: field -> why."""
        problems = {}
        if not _any_match(self.images, spec.image):
            problems["image"] = f"{spec.image} is not allowed; allowed: {', '.join(self.images) or 'none'}"
        for index, volume in enumerate(spec.volumes):
            if not self._allows_volume(user, volume):
                how = "read-only" if volume.read_only else "for writing"
                problems[f"vols.{index}"] = f"the volume {volume.name} is not allowed {how}"
        for name in spec.env:
            if not _any_match(self.env, name):
                problems[f"env.{name}"] = "this variable is not allowed"
        for field in ("cpu", "memory", "gpu"):
            most, asked = getattr(self, field), getattr(spec, field)
            if asked is None or most is None:
                continue
            if max(value for value in (asked.request, asked.limit) if value is not None) > most:
                text = format_bytes(most) if field == "memory" else f"{most:g}"
                problems[field] = f"more than the {text} that are allowed"
        return problems

    def completed(self, spec: LaunchSpec) -> LaunchSpec:
        """The spec with what is the policy's to say."""
        volumes = [volume.model_copy(update={"create": self.create_volumes}) for volume in spec.volumes]
        how = {"volumes": volumes, "pull_policy": self.pull_policy, "pull_secrets": self.pull_secrets}
        return spec.model_copy(update=how)

    def _allows_volume(self, user: str, volume: Volume) -> bool:
        for entry in self.volumes:
            pattern, _, mode = entry.partition(":")
            named = fnmatchcase(volume.name, pattern.replace("{username}", glob.escape(user)))
            if named and (mode != "ro" or volume.read_only):
                return True
        return False


@dataclass(frozen=True)
class Decision:
    """What was allowed, and by which rule."""

    spec: LaunchSpec
    rule: str


class Policy(LoggingConfigurable):
    """Decides what a caller may launch."""

    images = List(
        Unicode(),
        help="""Images that ordinary users may launch under the default rules; shell patterns.

        With none, only services may launch. Has no effect once `rules` is set.
        Default: $JHLAUNCHER_IMAGES, a JSON list, which install_launcher(images=...) sets.
        """,
    ).tag(config=True)
    rules = List(
        Dict(),
        help="""Who may ask for what: a list of dicts, the first that matches decides (see docs/policy.md).

        Default: services (which hold their scopes because an administrator gave them) may ask for anything, and
        users for the `images`, with no volumes, env or resources of their own choosing.
        """,
    ).tag(config=True)

    @default("images")
    def _default_images(self) -> list[str]:
        try:
            return list(json.loads(environment.text("JHLAUNCHER_IMAGES", "[]")))
        except (ValueError, TypeError):
            raise TraitError("$JHLAUNCHER_IMAGES must be a JSON list of images") from None

    @default("rules")
    def _default_rules(self) -> list[dict[str, Any]]:
        everything = {
            "images": ["*"],
            "volumes": ["*"],
            "env": ["*"],
            "cpu": None,
            "memory": None,
            "gpu": None,
        }
        return [
            {"name": "services", "callers": ["service:*"], **everything},
            {"name": "users", "images": self.images},
        ]

    @validate("rules")
    def _valid_rules(self, proposal: Any) -> list[dict[str, Any]]:
        for index, rule in enumerate(proposal.value):
            try:
                Rule.model_validate(rule)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in (index, *problem["loc"]))
                known = f"unknown key; there are: {', '.join(Rule.model_fields)}"
                text = known if problem["type"] == "extra_forbidden" else problem["msg"]
                raise TraitError(f"Policy.rules[{where}] (rule {rule.get('name')!r}): {text}") from None
        return list(proposal.value)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rules = [Rule.model_validate(rule) for rule in self.rules]

    @property
    def needs_groups(self) -> bool:
        """Whether any rule looks at the user's groups."""
        return any(rule.groups is not None for rule in self._rules)

    def authorise(self, caller: Caller, user: str, groups: frozenset[str], spec: LaunchSpec) -> Decision:
        """Allow the spec for this user's server.

        Raises:
            PolicyDenied: with the rule and each objection in ``details``.

        """
        rule = next((rule for rule in self._rules if rule.matches(caller, user, groups)), None)
        if rule is None:
            raise PolicyDenied("No rule of the launcher's policy is for you. Ask an administrator for one.")
        problems = rule.objections(user, spec)
        if problems:
            text = "; ".join(f"{field}: {why}" for field, why in problems.items())
            raise PolicyDenied(
                f"The policy (rule {rule.name!r}) does not allow this. {text}",
                details={
                    "rule": rule.name,
                    "fields": [{"field": f, "problem": p} for f, p in problems.items()],
                },
            )
        return Decision(rule.completed(spec), rule.name)


def _any_match(patterns: list[str], value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)
