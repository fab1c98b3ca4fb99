"""The rules of the policy and the templates, as the administrator writes them.

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
        "lifetime": 3600,                         # seconds: the most, and what holds for who asks for none
        "templates": ["course-*"],                # what a template gives is allowed as it is
        "start_links": ["course-1"],              # templates that a link may start without being asked again
        # how: nothing of this is the caller's to say
        "pull_policy": "IfNotPresent", "pull_secrets": ["registry"],
        "limits": {"user": {"servers": 2}, "group": {"cpu": 100, "memory": "1T"}, "all": {"gpu": 8}},
        "when_full": "queue",                     # or "refuse"
        "weight": 2,                              # of its share of the slots, see `jhlauncher.store`
        "create_volumes": {"size": "10G"},        # make those of the volumes that do not exist, see `NewVolume`
    }

Only patterns in ``volumes`` know ``{username}``.
"""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .models import (
    Caller,
    Cpu,
    Gpu,
    Image,
    LaunchRequest,
    LaunchSpec,
    Memory,
    Model,
    NewVolume,
    PullPolicy,
    RequestedVolume,
    Seconds,
    format_bytes,
    parse,
    parse_bytes,
)
from .records import Limit, Resource


class LimitSet(Model):
    """The most that several launches may have together."""

    servers: int | None = Field(None, ge=0)
    cpu: float | None = Field(None, ge=0)
    memory: Annotated[int, BeforeValidator(parse_bytes)] | None = Field(None, ge=0)
    gpu: int | None = Field(None, ge=0)

    def stated(self) -> dict[Resource, float]:
        """What is limited."""
        return {name: most for name, most in self if most is not None}  # type: ignore[misc]


class Template(Model):
    """A named spec to start from. ``{username}`` in the names of volumes, subpaths and values is the user's name."""

    description: str = ""
    image: Image | None = None
    vols: list[dict[str, Any]] = []
    cpu: Cpu | None = None
    memory: Memory | None = None
    gpu: Gpu | None = None
    env: dict[str, str] = {}
    lifetime: Seconds | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self.applied(LaunchRequest(username="ada", image="image:1"))
        return self

    def applied(self, request: LaunchRequest) -> LaunchRequest:
        """The request with what the template gives, where the request gives nothing; variables are put together.

        Raises:
            InvalidRequest: together they make no valid request, or there is no image.

        """

        def filled(text: str) -> str:
            return text.replace("{username}", request.username)

        given = {name: getattr(self, name) for name in ("image", "cpu", "memory", "gpu", "lifetime")}
        mine: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        mine["env"] = {name: filled(value) for name, value in self.env.items()}
        mine["vols"] = [
            {key: filled(value) if isinstance(value, str) else value for key, value in volume.items()}
            for volume in self.vols
        ]
        asked = {name: getattr(request, name) for name in request.model_fields_set}
        theirs = {name: value for name, value in asked.items() if value not in (None, [], {})}
        env = {**mine["env"], **theirs.get("env", {})}
        for field in ("cpu", "memory"):
            ours = getattr(self, field)
            if ours and field in theirs:
                theirs[field] = _limited(theirs[field], ours.limit)
        return parse(LaunchRequest, {**mine, **theirs, "env": env, "template": None})


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
    lifetime: Seconds | None = None
    templates: list[str] = []
    start_links: list[str] = []
    pull_policy: PullPolicy | None = None
    pull_secrets: list[str] = []
    create_volumes: NewVolume | None = None
    limits: dict[Literal["user", "group", "all"], LimitSet] = {}
    when_full: Literal["queue", "refuse"] = "queue"
    weight: float = Field(1, gt=0, le=1000)

    @model_validator(mode="after")
    def _groups_are_named(self) -> Self:
        if "group" in self.limits and self.groups is None:
            raise ValueError("limits of a group need groups")
        return self

    def matches(self, caller: Caller, user: str, groups: frozenset[str]) -> bool:
        """Whether this rule decides for this caller and this user's server."""
        return (
            any_match(self.callers, caller.label)
            and any_match(self.users, user)
            and (self.groups is None or any(any_match(self.groups, group) for group in groups))
        )

    def objections(self, user: str, request: LaunchRequest) -> dict[str, str]:
        """What the request itself gives and may not: field -> why. What a template gives is the administrator's."""
        problems = {}
        if request.template is not None and not any_match(self.templates, request.template):
            problems["template"] = f"{request.template} is not allowed; allowed: {_listed(self.templates)}"
        if request.image is not None and not any_match(self.images, request.image):
            problems["image"] = f"{request.image} is not allowed; allowed: {_listed(self.images)}"
        for index, volume in enumerate(request.vols):
            if not self._allows_volume(user, volume):
                how = "read-only" if volume.read_only else "for writing"
                problems[f"vols.{index}"] = f"the volume {volume.pvc} is not allowed {how}"
        for name in request.env:
            if not any_match(self.env, name):
                problems[f"env.{name}"] = "this variable is not allowed"
        for field in ("cpu", "memory", "gpu"):
            most, asked = getattr(self, field), getattr(request, field)
            if asked is None or most is None:
                continue
            if max(value for value in (asked.request, asked.limit) if value is not None) > most:
                text = format_bytes(most) if field == "memory" else f"{most:g}"
                problems[field] = f"more than the {text} that are allowed"
        if None not in (self.lifetime, request.lifetime) and request.lifetime > self.lifetime:  # type: ignore[operator]
            problems["lifetime"] = f"more than the {self.lifetime:g} seconds that are allowed"
        return problems

    def objection_to_lifetime(self, seconds: float | None) -> str | None:
        """Why a server may not go on for so many seconds, or (None) until somebody stops it."""
        if self.lifetime is None or (seconds is not None and seconds <= self.lifetime):
            return None
        return f"more than the {self.lifetime:g} seconds that are allowed"

    def unstated(self, spec: LaunchSpec) -> dict[str, str]:
        """What must be given, since there is a limit on it: what a spawner gives by itself can't be counted."""
        limited = {resource for limits in self.limits.values() for resource in limits.stated()}
        return {
            field: "its limit must be given: the policy counts it"
            for field in ("cpu", "memory")
            if field in limited and (getattr(spec, field) is None or getattr(spec, field).limit is None)
        }

    def limits_for(self, user: str, groups: frozenset[str]) -> list[Limit]:
        """The limits that hold for this user's launches."""
        mine = sorted(group for group in groups if any_match(self.groups or [], group))
        of = {"user": [f"user:{user}"], "group": [f"group:{group}" for group in mine], "all": ["all"]}
        return [
            Limit(key, resource, most, self.when_full == "queue")
            for kind, limits in self.limits.items()
            for key in of[kind]
            for resource, most in limits.stated().items()
        ]

    def share_of(self, caller: Caller, groups: frozenset[str]) -> str:
        """Whose share of the slots a launch takes: the group's where the rule names groups, and else the caller's."""
        mine = sorted(group for group in groups if any_match(self.groups or [], group))
        return f"group:{mine[0]}" if mine else caller.label

    def completed(self, spec: LaunchSpec) -> LaunchSpec:
        """The spec with what is the policy's to say."""
        volumes = [volume.model_copy(update={"create": self.create_volumes}) for volume in spec.volumes]
        how = {"volumes": volumes, "pull_policy": self.pull_policy, "pull_secrets": self.pull_secrets}
        limited = {field: _limited(getattr(spec, field), getattr(self, field)) for field in ("cpu", "memory")}
        return spec.model_copy(update=how | limited)

    def _allows_volume(self, user: str, volume: RequestedVolume) -> bool:
        for entry in self.volumes:
            pattern, _, mode = entry.partition(":")
            named = fnmatchcase(volume.pvc, pattern.replace("{username}", glob.escape(user)))
            if named and (mode != "ro" or volume.read_only):
                return True
        return False


def any_match(patterns: list[str], value: str) -> bool:
    """Whether one of the patterns (as in a shell) matches."""
    return any(fnmatchcase(value, pattern) for pattern in patterns)


def _limited(given: Cpu | Memory | None, most: float | None) -> Cpu | Memory | None:
    """What was given, with a limit: else a small request would get as much as the machine has."""
    if given is None or given.limit is not None or most is None:
        return given
    return given.model_copy(update={"limit": max(most, given.request or 0)})


def _listed(patterns: list[str]) -> str:
    more = ["..."] if len(patterns) > 10 else []
    return ", ".join(patterns[:10] + more) or "none"
