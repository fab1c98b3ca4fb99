"""What may be asked: ``POST api/userjobs``, validated before anything is touched."""

from __future__ import annotations

import posixpath
import re
import shlex
import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..errors import InvalidRequest, PolicyDenied
from ..models import ByteSize, Model, UserName, format_bytes
from .errors import MissingKey
from .systems import Allowed, Host, System, TimeLimit, Word

_RESERVED = re.compile(r"(SLURM|SBATCH|LD|BASH|JUPYTERHUB|JHLAUNCHER)_.*|PATH|ENV|IFS|SHELL")
_MAX_SCRIPT = 64 * 1024
_MAX_ENVIRONMENT = 32 * 1024
_MIB = 1024**2
_PRIVATE = ("script", "environment", "marker", "home")


def _printable(value: str) -> str:
    # category C: control, formatting (which can hide what is really there), surrogates, unassigned
    if any(unicodedata.category(char)[0] in "CZ" and char != " " for char in value):
        raise ValueError("has control or invisible characters")
    return value


def _directory(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    if "%" in value or "\\" in value:
        raise ValueError("must have no % and no backslash")  # which mean something to Slurm in the output's path
    return _printable(value)


def _output(value: str) -> str:
    if "%" in value.replace("%j", "") or "\\" in value:
        raise ValueError("may have %j, for the job's number, and no other % and no backslash")
    return _printable(value)


def _script(value: str) -> str:
    if not value.startswith("#!"):
        raise ValueError("must begin with #!, for example #!/bin/bash")
    if "\0" in value or "\r" in value:
        raise ValueError("has NUL characters or carriage returns; its lines must end with a newline")
    for number, line in enumerate(value.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            break  # Slurm reads its own options no further; it does not mind what stands before a comment
        if line.startswith("#SBATCH"):
            raise ValueError(f"has an option of Slurm's in line {number}; say it as a field of the job")
    if len(value.encode(errors="surrogatepass")) > _MAX_SCRIPT:
        raise ValueError(f"has more than {_MAX_SCRIPT} bytes")
    return value


def _variable(name: str) -> str:
    if _RESERVED.fullmatch(name):
        raise ValueError("is not for jobs to set; a script can set it")
    return name


def _text(value: str) -> str:
    if "\0" in value or any(unicodedata.category(char) == "Cs" for char in value):
        raise ValueError("has NUL characters, or is not Unicode")
    return value


def _ports(value: Any) -> Any:
    """Numbers where a client sends texts; a JSON object has no other keys."""
    if not isinstance(value, dict):
        return value
    return {_number(name): _number(port) for name, port in value.items()}


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,4}", value) else value


Port = Annotated[int, Field(ge=1, le=65535)]
Ports = Annotated[dict[Port, Port], BeforeValidator(_ports), Field(max_length=20)]
"""By the port at which it is wanted, the one at the node."""
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
ServiceName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
"""A name that a Service of Kubernetes may have (RFC 1035)."""
Variable = Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_variable)]


class JobRequest(Model):
    """A job; partition, project and time that are not said are the first and the most that are allowed."""

    script: Annotated[str, AfterValidator(_script)] | None = None
    """What runs on the first node, beginning with ``#!``; or else ``command``."""
    command: Annotated[list[Annotated[str, AfterValidator(_text)]], Field(min_length=1, max_length=1000)] | None = None
    """A program and its arguments."""
    name: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""
    """Default: that of the user job."""
    partition: Word | None = None
    time: TimeLimit | None = None
    """Seconds, or as Slurm has it, ``1:30:00``; rounded up to minutes."""
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    cpus: Annotated[int, Field(ge=1, le=100_000)] = 1
    """On each node."""
    memory: ByteSize | None = None
    """On each node: bytes, or ``"4G"``."""
    gpus: Annotated[int, Field(ge=0, le=1000)] = 0
    """On each node."""
    project: Word | None = None
    """That it is charged to: Slurm's ``--account``."""
    environment: dict[Variable, Annotated[str, AfterValidator(_text)]] = {}
    working_directory: Annotated[str, Field(max_length=4096), AfterValidator(_directory)] | None = None
    """Default: the account's home."""
    output: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_output)] = "slurm-%j.out"
    """The file with what it prints, below the working directory if it is not absolute; ``%j`` is the job's number."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.script is None) == (self.command is None):
            raise ValueError("needs a script or a command, and not both")
        if self.command and len(self.program.encode()) > _MAX_SCRIPT:
            raise ValueError(f"command has more than {_MAX_SCRIPT} bytes")
        if sum(len(name) + len(value.encode()) for name, value in self.environment.items()) > _MAX_ENVIRONMENT:
            raise ValueError(f"environment has more than {_MAX_ENVIRONMENT} bytes")
        return self

    @property
    def program(self) -> str:
        """The script that Slurm gets."""
        return self.script or f"#!/bin/sh\nexec {shlex.join(self.command or [])}\n"


class UserJobRequest(Model):
    """The body of ``POST api/userjobs``: a forward to a node, or a job, which may have forwards of its own."""

    service: ServiceName
    """What it is called, and where there is a cluster, the Service in front of it."""
    ports: Ports = {}
    hostname: Annotated[str, Field(min_length=1, max_length=63)]
    """The system's name."""
    target_node: Host | None = None
    job: JobRequest | None = None
    username: UserName | None = None
    """Of who it is for; for credentials of the K8s Manager only."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.job and self.target_node is not None:
            raise ValueError("target_node is where a job runs, which Slurm says")
        if not self.job and (self.target_node is None or not self.ports):
            raise ValueError("needs a job, or a target_node and ports")
        return self


def check_keys(body: Any) -> None:
    """Refuse a body without what each needs, in the words and the order of the K8s Manager.

    Raises:
        MissingKey: a key is not there.
        InvalidRequest: it is no object.

    """
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    needed = ("service", "hostname") if body.get("job") is not None else ("service", "ports", "hostname", "target_node")
    for key in needed:
        if key not in body:
            raise MissingKey(key)


@dataclass(frozen=True)
class Submission:
    """What Slurm is asked for: all is said, and has been found allowed."""

    name: str
    script: str
    partition: str
    minutes: int
    nodes: int
    cpus: int
    memory: int | None
    """MiB on each node."""
    gpus: int
    project: str | None
    environment: dict[str, str]
    home: str
    """The account's."""
    working_directory: str
    output: str
    """An absolute path."""
    marker: str
    """By which it is known if the answer was lost."""

    def public(self) -> dict[str, Any]:
        """What is kept and told of it; the script and the environment may have secrets."""
        kept = {name: value for name, value in vars(self).items() if name not in _PRIVATE}
        return {**kept, "time": kept.pop("minutes") * 60, "memory": self.memory and self.memory * _MIB}


def submission(request: JobRequest, service: str, system: System, account: str, marker: str) -> Submission:
    """What Slurm is asked for.

    Raises:
        PolicyDenied: it is not allowed on this system; ``details["fields"]`` names what.

    """
    allowed = system.allowed
    _refuse_beyond(request, allowed)
    home = system.home.replace("{account}", account)
    directory = request.working_directory or home
    seconds = request.time or allowed.time
    return Submission(
        name=request.name or service,
        script=request.program,
        partition=request.partition or allowed.partitions[0],
        minutes=-(-seconds // 60),
        nodes=request.nodes,
        cpus=request.cpus,
        memory=request.memory and -(-request.memory // _MIB),
        gpus=request.gpus,
        project=request.project or next(iter(allowed.projects), None),
        environment=request.environment,
        home=home,
        working_directory=directory,
        output=posixpath.join(directory, request.output),
        marker=marker,
    )


def _words(field: str, value: int) -> str:
    if field == "memory":
        return format_bytes(value)
    return str(timedelta(seconds=value)) if field == "time" else str(value)


def _refuse_beyond(request: JobRequest, allowed: Allowed) -> None:
    if not allowed.partitions:
        raise PolicyDenied("There are no jobs on this system, only forwards.")
    problems = []
    for field, values in (("partition", allowed.partitions), ("project", allowed.projects)):
        value = getattr(request, field)
        if value is not None and value not in values:
            problems.append((field, f"must be one of {', '.join(values)}" if values else "can't be chosen"))
    for field in ("time", "nodes", "cpus", "memory", "gpus"):
        value, most = getattr(request, field), getattr(allowed, field)
        if value is not None and most is None:
            problems.append((field, "can't be chosen"))
        elif value is not None and value > most:
            problems.append((field, f"must be at most {_words(field, most)}"))
    if problems:
        text = "; ".join(f"{field} {problem}" for field, problem in problems)
        fields = [{"field": f"job.{field}", "problem": problem} for field, problem in problems]
        raise PolicyDenied(f"This system does not allow that job: {text}.", details={"fields": fields})
