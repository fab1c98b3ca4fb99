"""The systems that jobs run on: how each is reached, who has which account there, and what a job may ask for."""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from traitlets import Dict, TraitError, validate
from traitlets.config import LoggingConfigurable

from ..models import ByteSize, Model
from .errors import NoAccount

_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4})(?::(\d{1,2}))?(?::(\d{1,2}))?")


def parse_time(value: Any) -> int:
    """Seconds from a number of them, or from Slurm's ``minutes``, ``m:s``, ``h:m:s``, ``d-h``, ``d-h:m``, ``d-h:m:s``.

    The forms are those of sbatch's ``--time`` (https://slurm.schedmd.com/sbatch.html#OPT_time).

    Raises:
        ValueError: it is none of these.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not match or not value.isascii():
        raise ValueError("must be a number of seconds, or a time like 30 (minutes), 1:30:00 or 2-12:00:00")
    days, *parts = (int(part) if part else None for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:
        units: tuple[int, ...] = (3600, 60, 1)
    else:
        units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    return (days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))


def _no_root(name: str) -> str:
    if name == "root":
        raise ValueError("root runs no jobs for others")
    return name


Account = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$"), AfterValidator(_no_root)]
"""The name of an account on a system."""
Word = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
"""What Slurm calls its partitions and projects."""
TimeLimit = Annotated[int, BeforeValidator(parse_time), Field(gt=0, le=366 * 86400)]
"""Seconds, or a text as Slurm has it."""
_HOST = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$"
Host = Annotated[str, Field(max_length=253, pattern=_HOST)]
"""A host's name or address."""
File = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=4096)]
"""The path of a file."""
FilePattern = File
"""The path of a file; ``{account}`` stands for an account's name."""


class _Configured(Model):
    """What an administrator writes: as strict as a request, but for the types that a configuration file has."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ssh(_Configured):
    """How a system is reached with SSH."""

    address: Host
    """Of its login node."""
    port: int = Field(22, ge=1, le=65535)
    known_hosts: File
    """With the host's keys, as ``ssh-keyscan`` writes it; no other host is spoken to."""
    key: FilePattern
    """The private key; one for each account, or one that all of them accept."""
    python: Annotated[str, Field(pattern=r"^[A-Za-z0-9/_.-]+$")] = "python3"
    """Python 3 on the login node, which starts Slurm's commands."""


class Slurmrestd(_Configured):
    """Slurm's REST API, in place of its commands (https://slurm.schedmd.com/rest.html)."""

    url: Annotated[str, Field(pattern=r"^(https?://[^/\s]+|unix:/[^\x00]+)$")]
    """``https://HOST:PORT``, or ``unix:/PATH`` of a socket; ``{account}`` stands for an account's name."""
    token_file: FilePattern | None = None
    """With a JWT of the account, or one that may speak for it; read anew each time. A socket needs none."""
    api_version: Annotated[str, Field(pattern=r"^v0\.0\.\d+$")] = "v0.0.38"
    cafile: File | None = None
    """Of who has signed the server's certificate, if the system does not know them."""


class Allowed(_Configured):
    """The most that a job may ask for; of partitions, projects and time also what it gets if it does not ask."""

    partitions: list[Word] = []
    """Those that may be used; the first is the default. None: there are no jobs here, only forwards."""
    time: TimeLimit = 86400
    """The longest time limit; a job that has none gets this one."""
    nodes: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[int, Field(ge=1)] = 1
    """For each task; there is one on each node."""
    memory: ByteSize | None = None
    """On each node. None: nobody may say how much; Slurm has a default."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """On each node."""
    projects: list[Word] = []
    """What Slurm calls accounts, that jobs are charged to. The first is the default; none: Slurm has a default."""


class System(_Configured):
    """A system that jobs run on, or that is forwarded to."""

    ssh: Ssh | None = None
    """How it is reached; or else it is this machine (``local``), or reached by slurmrestd alone."""
    local: bool = False
    """Whether it is this machine: commands are run here, and nodes are reached from here."""
    slurmrestd: Slurmrestd | None = None
    bin: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9/_.-]+)?$")] = ""
    """The folder of Slurm's commands; "": they are found by themselves."""
    query_account: Account | None = None
    """Whose right it is to see the jobs of all; needed for jobs."""
    accounts: dict[str, Account] = {}
    """The account of each of this Hub's users."""
    credential_accounts: dict[str, dict[str, Account]] = {}
    """By credential of the K8s Manager, the account of each of its Hub's users; "" is the Hub itself."""
    home: FilePattern = "/home/{account}"
    """An account's home, where jobs run that do not say where."""
    allowed: Allowed = Allowed()
    target_nodes: list[str] = []
    """Patterns of nodes that anybody with an account may forward to; others only while their own job runs there.

    ``*`` and ``?`` stand for no dot and no colon: ``node*`` is no host of another domain.
    """
    max_jobs: int = Field(10, ge=0)
    """That a user has at once, waiting or running."""
    max_ports: int = Field(10, ge=0)
    """That are forwarded for a user at once, those of waiting jobs as well."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ssh and self.local:
            raise ValueError("is reached with ssh, or local, not both")
        if not self.ssh and not self.local and not self.slurmrestd:
            raise ValueError("needs ssh, local or slurmrestd")
        if self.allowed.partitions and not self.query_account:
            raise ValueError("has partitions, and no query_account, with whose right jobs are looked after")
        return self

    @property
    def all_accounts(self) -> set[str]:
        """That somebody has, or that is ours."""
        ours = [self.query_account] if self.query_account else []
        return {*ours, *self.accounts.values()}.union(*(users.values() for users in self.credential_accounts.values()))

    def reaches(self, node: str) -> bool:
        """Whether anybody with an account may forward to this node."""
        return any(_matches(node, pattern) for pattern in self.target_nodes)


@dataclass(frozen=True)
class Owner:
    """Whose a user job is."""

    credential: str
    """Of the K8s Manager; "": the Hub that the service belongs to."""
    username: str
    """At that Hub."""

    def __str__(self) -> str:
        return f"{self.username} of {self.credential}" if self.credential else self.username


class Systems(LoggingConfigurable):
    """The systems that jobs run on."""

    systems = Dict(
        help="""Systems by name, each a dictionary; docs/userjobs.md has its keys.

        For example {"cluster": {"ssh": {"address": "login.example.org", "known_hosts": "/etc/jhlauncher/known_hosts",
        "key": "/etc/jhlauncher/keys/{account}"}, "query_account": "slurmview", "accounts": {"ada": "ada01"},
        "allowed": {"partitions": ["batch"], "time": "12:00:00", "cpus": 8, "memory": "32G"}}}.
        """
    ).tag(config=True, key="userjobs.systems")

    @validate("systems")
    def _valid_systems(self, proposal: Any) -> dict[str, Any]:
        for name, value in proposal.value.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", name):
                raise TraitError(f"systems: {name!r} is not a name for a system")
            _check_here(name, _system(name, value))
        return dict(proposal.value)

    def load(self) -> dict[str, System]:
        """The systems, by name."""
        return {name: _system(name, value) for name, value in self.systems.items()}


def _system(name: str, value: Any) -> System:
    try:
        return System.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["systems", name, *map(str, first["loc"])])
        raise TraitError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def _check_here(name: str, system: System) -> None:
    """Refuse what this machine can't do."""
    if system.ssh:
        try:
            import asyncssh  # noqa: F401
        except ImportError:
            raise TraitError(
                f"systems.{name}.ssh needs the package asyncssh, which the extra [userjobs] installs"
            ) from None
        if not os.access(system.ssh.known_hosts, os.R_OK):
            raise TraitError(f"systems.{name}.ssh.known_hosts: {system.ssh.known_hosts} can't be read")
        for account in system.all_accounts:
            key = system.ssh.key.replace("{account}", account)
            if not os.access(key, os.R_OK):
                raise TraitError(f"systems.{name}.ssh.key: {key} can't be read")
            if Path(key).stat().st_mode & 0o077:
                raise TraitError(f"systems.{name}.ssh.key: others may read {key}: chmod 600 {key}")
    if system.local and os.geteuid() != 0:
        others = system.all_accounts - {pwd.getpwuid(os.geteuid()).pw_name}
        if others:
            raise TraitError(f"systems.{name}: only a service of root's can run jobs as {min(others)} on this machine")


def _matches(node: str, pattern: str) -> bool:
    if any(node.count(separator) != pattern.count(separator) for separator in ".:"):
        return False
    if "." in pattern and not any(char.isalpha() for char in pattern) and any(char.isalpha() for char in node):
        return False  # 10.0.*.* is for addresses, and 10.0.example.org a name
    return fnmatch.fnmatchcase(node, pattern)


def _account(owner: Owner, system: System) -> str | None:
    accounts = system.credential_accounts.get(owner.credential, {}) if owner.credential else system.accounts
    return accounts.get(owner.username)


def has_account(owner: Owner, system: System, account: str) -> bool:
    """Whether this is somebody's account."""
    return _account(owner, system) == account


def account_of(owner: Owner, name: str, system: System) -> str:
    """The account of somebody on a system.

    Raises:
        NoAccount: nobody has said which.

    """
    account = _account(owner, system)
    if account is None:
        raise NoAccount(f"You have no account on {name}; its administrator says who has which.")
    return account
