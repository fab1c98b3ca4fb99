"""What goes over the wire and what a launch is: validated once, at the edge, and trusted after.

`LaunchRequest` is the body of ``POST containers`` in the words of its clients (``vols``, ``pvc``); `LaunchSpec` is
what it means, in this project's words, for every engine. Unknown fields, wrong types and malformed names are refused
with the field's name; a refused value is never repeated in the message, since it may be a secret.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from .errors import InvalidRequest

# the rule of JupyterHub 6 for new servers, kept with every Hub so that what works today works after the upgrade
_SERVER_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_VOLUME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i|iB|B)?")
_RESERVED_ENV = re.compile(r"(JUPYTERHUB_|JPY_|LD_|PYTHON).*|PATH")

MAX_ENV_BYTES = 32_768
"""All names and values of ``env`` together."""


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _printable(value: str) -> str:
    _check(all(unicodedata.category(char) not in ("Cc", "Cs") for char in value), "has control characters")
    return value


def _user_name(value: str) -> str:
    """What JupyterHub accepts, less the control characters that it lets through."""
    _check(0 < len(value) <= 255, "must have 1 to 255 characters")
    _check("/" not in value, "must not contain a slash")
    _check(value == value.strip(), "must not begin or end with space")
    _check(value not in (".", ".."), "must not be a relative path")
    return _printable(value)


def _any_server_name(value: str) -> str:
    _check(len(value) <= 255 and "/" not in value and value not in (".", ".."), "is not a server name")
    return _printable(value)


def _new_server_name(value: str) -> str:
    _check(
        value == "" or (len(value) <= 30 and bool(_SERVER_NAME.fullmatch(value))),
        "must be empty (the default server) or 1 to 30 lower-case letters, digits and single hyphens, "
        "beginning with a letter",
    )
    return value


def _image(value: str) -> str:
    _check(len(value) <= 512 and bool(_IMAGE.fullmatch(value)), "is not an image reference")
    return value


def _volume_name(value: str) -> str:
    _check(
        len(value) <= 253 and bool(_VOLUME.fullmatch(value)),
        "must be 1 to 253 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit",
    )
    return value


def _mount_path(value: str) -> str:
    _check(value.startswith("/"), "must be an absolute path")
    _check(len(value) <= 4096, "is too long")
    parts = value.strip("/").split("/")
    _check(parts != [""], "must not be the root folder")
    _check(not {"", ".", ".."}.intersection(parts), "must not have empty, '.' or '..' parts")
    _check(parts[0] not in ("proc", "sys", "dev"), "must not be below /proc, /sys or /dev")
    return _printable("/" + "/".join(parts))


def _subpath(value: str) -> str:
    _check(not value.startswith("/"), "must be relative")
    _check(len(value) <= 4096, "is too long")
    parts = value.strip("/").split("/") if value else []
    _check(not {"", ".", ".."}.intersection(parts), "must not have empty, '.' or '..' parts")
    return _printable("/".join(parts))


def _env_name(value: str) -> str:
    _check(len(value) <= 255 and bool(_ENV_NAME.fullmatch(value)), "is not an environment variable's name")
    _check(not _RESERVED_ENV.fullmatch(value), "is the platform's own and can't be set")
    return value


def _env_value(value: str) -> str:
    _check("\0" not in value, "has a NUL character")
    return value


def parse_bytes(value: int | str) -> int:
    """A number of bytes from ``1073741824``, ``"1G"``, ``"512M"`` or ``"1.5Gi"``; K, M, G, T are powers of 1024.

    JupyterHub's ``ByteSpecification`` has the same units; from here on, sizes are plain numbers.

    Raises:
        ValueError: it is none of these.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BYTES.fullmatch(value) if isinstance(value, str) and len(value) <= 32 else None
    _check(match is not None, "must be a number of bytes, or one with K, M, G or T")
    assert match is not None  # noqa: S101  (for mypy: _check raised otherwise)
    number, unit = match.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))


def format_bytes(size: int) -> str:
    """The shortest text that `parse_bytes` reads as this size."""
    power = next((power for power in (4, 3, 2, 1) if size % 1024**power == 0 and size), 0)
    return f"{size // 1024**power}{' KMGT'[power].strip()}"


def _none_as_empty(value: Any) -> Any:
    """Clients of several languages send null for what they leave out."""
    return "" if value is None else value


def _text(pattern: str, most: int, *, null: bool = False) -> WithJsonSchema:
    """What the validators accept, as JSON Schema; they are a little stricter."""
    schema: dict[str, Any] = {"type": ["string", "null"] if null else "string", "pattern": pattern, "maxLength": most}
    return WithJsonSchema(schema)


_PATH = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_CONTROL = r"\x00-\x1f\x7f-\x9f"
UserName = Annotated[
    str,
    AfterValidator(_user_name),
    _text(rf"^[^\s/.{_CONTROL}]([^/{_CONTROL}]*[^\s/{_CONTROL}])?$", 255),
]
ServerName = Annotated[
    str,
    AfterValidator(_any_server_name),
    BeforeValidator(_none_as_empty),
    _text(rf"^([^/.{_CONTROL}][^/{_CONTROL}]*)?$", 255),
]
NewServerName = Annotated[
    str,
    AfterValidator(_new_server_name),
    BeforeValidator(_none_as_empty),
    _text(r"^([a-z][a-z0-9]*(-[a-z0-9]+)*)?$", 30, null=True),
]
Image = Annotated[str, AfterValidator(_image), _text(f"^{_IMAGE.pattern}$", 512)]
VolumeName = Annotated[str, AfterValidator(_volume_name), _text(f"^{_VOLUME.pattern}$", 253)]
MountPath = Annotated[str, AfterValidator(_mount_path), _text(f"^/(?!(proc|sys|dev)(/|$)){_PATH}(/{_PATH})*/?$", 4096)]
SubPath = Annotated[
    str, AfterValidator(_subpath), BeforeValidator(_none_as_empty), _text(f"^({_PATH}(/{_PATH})*)?$", 4096, null=True)
]
EnvName = Annotated[
    str, AfterValidator(_env_name), _text(r"^(?!JUPYTERHUB_|JPY_|LD_|PYTHON|PATH$)[A-Za-z_][A-Za-z0-9_]*$", 255)
]
Environment = dict[EnvName, Annotated[str, AfterValidator(_env_value), _text(r"^[^\x00]*$", MAX_ENV_BYTES)]]
Cores = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Devices = Annotated[int, Field(ge=0, le=1000)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
GroupName = Annotated[str, Field(min_length=1, max_length=255)]
"""Of a group at the Hub."""
TemplateName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(gt=0, lt=2**63),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2**63},
                {"type": "string", "pattern": r"^[1-9][0-9]{0,5}(\.[0-9]{1,3})?[KMGT]?(i|iB|B)?$"},
            ]
        }
    ),
]
"""``1073741824`` or ``"1G"``, as `parse_bytes` reads them."""


PullPolicy = Literal["Always", "IfNotPresent", "Never"]
"""Kubernetes' words, for every engine."""


class Model(BaseModel):
    """Strict: no unknown fields, no conversions (``"1"`` is not 1, 1 is not true)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Resource(Model):
    """How much of something: what is guaranteed (``request``) and what is the most (``limit``)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        request, limit = getattr(self, "request", None), getattr(self, "limit", None)
        _check(request is not None or limit is not None, "needs a request or a limit")
        if request is not None and limit is not None:
            _check(request <= limit, "request must not exceed limit")
        return self


class Cpu(_Resource):
    """CPU cores; 0.5 is half of one."""

    request: Cores | None = None
    limit: Cores | None = None


class Memory(_Resource):
    """Bytes, as a number or with K, M, G, T."""

    request: ByteSize | None = None
    limit: ByteSize | None = None


class Gpu(_Resource):
    """Whole devices. An engine can't guarantee fewer than it allows, so a request must equal the limit."""

    request: Devices | None = None
    limit: Devices | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _check(None in (self.request, self.limit) or self.request == self.limit, "request must equal limit")
        return self

    @property
    def count(self) -> int:
        """The number of devices."""
        return (self.limit if self.limit is not None else self.request) or 0


class NewVolume(Model):
    """How a volume that does not exist is made. Each engine takes what it knows; a local one is a plain folder."""

    size: ByteSize = 1024**3
    """Bytes; Kubernetes."""
    storage_class: str | None = None
    """Kubernetes; None: the cluster's default class."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Kubernetes."""
    driver: str = "local"
    """Docker and Docker Swarm."""
    driver_options: dict[str, str] = {}
    """Docker and Docker Swarm."""


class Volume(Model):
    """Storage that outlives the server, mounted into it."""

    name: VolumeName
    mount: MountPath
    subpath: SubPath = ""
    read_only: bool = False
    create: NewVolume | None = None
    """By the policy: make it if there is none."""


class RequestedVolume(Model):
    """One of ``vols``: the volume ``pvc`` is to appear at ``mount``."""

    pvc: VolumeName
    mount: MountPath
    subpath: SubPath = ""
    read_only: bool = False


def _check_together(volumes: Sequence[Volume | RequestedVolume], env: dict[str, str]) -> None:
    """What can't be seen from one field alone."""
    mounts = [volume.mount for volume in volumes]
    _check(len(mounts) == len(set(mounts)), "two volumes have the same mount")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in env.items())
    _check(size <= MAX_ENV_BYTES, f"env has more than {MAX_ENV_BYTES} bytes")


class LaunchSpec(Model):
    """What was asked and allowed, in the same words for every engine."""

    image: Image
    pull_policy: PullPolicy | None = None
    """By the policy; None: as the spawner is configured."""
    pull_secrets: list[str] = []
    """By the policy: what the engine knows the registry's credentials as."""
    volumes: list[Volume] = Field(default_factory=list, max_length=100)
    cpu: Cpu | None = None
    memory: Memory | None = None
    gpu: Gpu | None = None
    env: Environment = Field(default_factory=dict, max_length=200)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_together(self.volumes, self.env)
        return self


def _image_or_template(value: str | None, info: ValidationInfo) -> str | None:
    _check(value is not None or info.data.get("template") is not None, "required field is missing")
    return value


class SharedLaunch(Model):
    """What is asked of the launcher, but for whom."""

    server_name: NewServerName = ""
    template: TemplateName | None = None
    """A named spec of the administrator's to start from; what the request gives takes its place."""
    image: Annotated[Image | None, AfterValidator(_image_or_template)] = Field(None, validate_default=True)
    """Required without a template."""
    lifetime: Seconds | None = None
    """Seconds from ready after which the server is stopped; None: as the policy says."""
    queue_timeout: Seconds | None = None
    """Seconds after which it need not start any more; None: as the service is configured."""
    vols: Annotated[list[RequestedVolume], BeforeValidator(lambda v: [] if v is None else v)] = Field(
        default_factory=list, max_length=100
    )
    cpu: Cpu | None = None
    memory: Memory | None = None
    gpu: Gpu | None = None
    env: Annotated[Environment, BeforeValidator(lambda v: {} if v is None else v)] = Field(
        default_factory=dict, max_length=200
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_together(self.vols, self.env)
        return self

    def spec(self) -> LaunchSpec:
        """The same in the words of the engines."""
        volumes = [
            Volume(name=vol.pvc, mount=vol.mount, subpath=vol.subpath, read_only=vol.read_only) for vol in self.vols
        ]
        return LaunchSpec(
            image=self.image or "", volumes=volumes, cpu=self.cpu, memory=self.memory, gpu=self.gpu, env=self.env
        )


class LaunchRequest(SharedLaunch):
    """The body of ``POST launches`` and of ``POST containers``."""

    username: UserName


MAX_BATCH = 1000
"""Launches in a batch."""


class BatchRequest(Model):
    """The body of ``POST batches``: either ``launches``, or ``launch`` with ``users``, a ``group`` or both."""

    launches: list[LaunchRequest] | None = Field(None, min_length=1, max_length=MAX_BATCH)
    users: list[UserName] | None = Field(None, min_length=1, max_length=MAX_BATCH)
    """Whose servers; who is named twice gets one."""
    group: GroupName | None = None
    """Its members get a server, too."""
    launch: SharedLaunch | None = None
    """What each of them gets."""
    stagger: float = Field(0, ge=0, le=600, allow_inf_nan=False)
    """Seconds between the starts: the n-th of the request waits for its turn from n times as long after the first."""
    mode: Literal["all", "some"] = "some"
    """``all``: none is launched if one can't be accepted. ``some``: each by itself."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        people = self.users is not None or self.group is not None
        _check(self.launches is not None or people, "needs launches, or launch with users or a group")
        _check(
            self.launches is None or not (people or self.launch), "launches stand alone, without users, group, launch"
        )
        _check(self.launches is not None or self.launch is not None, "launch: required field is missing")
        return self


class ExtendRequest(Model):
    """The body of ``PATCH launches/ID`` and of ``PATCH batches/ID``."""

    lifetime: Seconds | None
    """Seconds from now after which the server is stopped, or from ready if it is not up yet; None: never."""


def query_integer(value: Any) -> Any:
    """A number in a query, where everything is text; what is none is left to its field to refuse."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= 18 else value


def query_flag(value: Any) -> Any:
    """``true`` or ``false`` in a query, or 1 or 0; what is neither is left to its field to refuse."""
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value) if isinstance(value, str) else value


class NoQuery(Model):
    """The query of what takes none."""


class ServerQuery(Model):
    """The query of ``GET`` and ``DELETE containers``; also reaches servers named under older rules."""

    username: UserName
    server_name: ServerName = ""


class AboutQuery(Model):
    """The query of ``GET options`` and ``GET templates``; a user's own token needs none."""

    username: UserName | None = None
    """Whose server it would be."""
    group: GroupName | None = None
    """Instead: a class, for whose first member it is told."""
    server_name: ServerName = ""


Phase = Literal["queued", "starting", "scheduling", "pulling", "creating", "waiting", "ready", "failed"]
"""Where a start is: waiting for its turn, taken up, looking for a machine, fetching the image, making volumes and
container, waiting for the server to answer; the last two are its end. An engine passes through those that it has."""


class ProgressEvent(Model):
    """One step of a start, as it is shown to a person."""

    progress: int = Field(ge=0, le=100)
    """Per cent; never less than in the event before."""
    message: str
    phase: Phase = "starting"

    @property
    def final(self) -> bool:
        """Nothing follows."""
        return self.phase in ("ready", "failed")


@dataclass(frozen=True)
class Caller:
    """Who asks, as the Hub identified them."""

    name: str
    kind: Literal["user", "service"]
    groups: frozenset[str]
    scopes: frozenset[str]
    """Expanded, as ``GET /hub/api/user`` lists them: ``servers!user=alice`` and the like."""

    @property
    def label(self) -> str:
        """``user:alice`` or ``service:platform``."""
        return f"{self.kind}:{self.name}"

    def reaches_service(self, name: str) -> bool:
        """Whether the caller may use this service of the Hub's."""
        return not self.scopes.isdisjoint({"access:services", f"access:services!service={name}"})

    def holds(self, scope: str, user: str, server: str, groups: frozenset[str] = frozenset()) -> bool:
        """Whether a scope of the caller covers this user's server.

        `jupyterhub.services.auth.check_scopes` can't tell who is in a group and leaves that to its callers, so the
        four filters are read here (https://jupyterhub.readthedocs.io/en/stable/rbac/scopes.html).
        """
        covering = {scope, f"{scope}!user={user}", f"{scope}!server={user}/{server}"}
        covering.update(f"{scope}!group={group}" for group in groups)
        return not covering.isdisjoint(self.scopes)

    def filters(self, by: Literal["user", "server", "group"], *scopes: str) -> frozenset[str]:
        """What the caller's scopes of these names are filtered to."""
        prefixes = [f"{scope}!{by}=" for scope in scopes]
        return frozenset(
            held.removeprefix(prefix) for prefix in prefixes for held in self.scopes if held.startswith(prefix)
        )

    def filters_by_group(self, scope: str) -> bool:
        """Whether the target's groups matter for `holds`."""
        return bool(self.filters("group", scope))


@dataclass(frozen=True)
class Launched:
    """A server that is ready, and the token that opens it and nothing else."""

    username: str
    server_name: str
    token: str
    path: str
    """The server's escaped URL path, ``/user/alice/p1/``."""
    full_url: str | None
    """Its absolute URL, where the Hub knows it."""


ModelType = TypeVar("ModelType", bound=Model)


def parse(model: type[ModelType], data: bytes | dict[str, Any]) -> ModelType:
    """``data`` (JSON text, or values already decoded) as a ``model``.

    Raises:
        InvalidRequest: with one entry per bad field in ``details["fields"]``.

    """
    try:
        return model.model_validate_json(data) if isinstance(data, bytes) else model.model_validate(data)
    except ValidationError as error:
        fields = [
            # pydantic marks that the key of a dict is meant
            {"field": ".".join(str(part) for part in problem["loc"] if part != "[key]"), "problem": _problem(problem)}
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    text = "; ".join(
        f"{field['field']}: {field['problem']}" if field["field"] else field["problem"] for field in fields
    )
    raise InvalidRequest(f"The request is not valid. {text}", details={"fields": fields}) from None


def _problem(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return {"extra_forbidden": "unknown field", "missing": "required field is missing"}.get(problem["type"], text)
