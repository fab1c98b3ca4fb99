"""The ``local`` engine, as an operator looks at it: can servers be started, and which processes are servers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .findings import Finding, good, problem
from .found import EngineUnavailable, Found, Kept, Refused, belongs, variables

_PROCESSES = Path("/proc")
_GRACE = 10
"""Seconds between SIGTERM and SIGKILL."""


class LocalEngine:
    """The ``local`` engine.

    Args:
        spawner: one that is configured as the Hub's are; of nobody's server.

    """

    forgetting_removes_volumes = False

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner

    async def check(self) -> AsyncIterator[Finding]:
        """Whether there is what servers need."""
        root = Path(self._spawner.root_dir)
        if os.access(next(path for path in (root, *root.parents) if os.access(path, os.F_OK)), os.W_OK):
            yield good("engine", f"Homes and volumes are kept in {root}.")
        else:
            yield problem("engine", f"The folder {root} can't be written.", "Set c.LauncherLocalSpawner.root_dir.")
        for name, entry in self._spawner.environments.items():
            command = next(iter(_words(entry.get("cmd") or self._spawner.cmd)), "")
            if not shutil.which(command):
                yield problem(
                    "image",
                    f"The command {command} of the image {name!r} is not there.",
                    "Install it beside the Hub (jupyterhub-singleuser: pip install jupyterlab), or mend "
                    "c.LauncherLocalSpawner.environments.",
                )

    async def servers(self, api_url: str) -> list[Found]:
        """Processes that lead a session, as the spawner starts them."""
        return await asyncio.to_thread(_servers, api_url)

    async def remove(self, found: Found) -> None:
        """End the process and what it has started."""
        pid, _, began = found.id.partition("@")
        path = _PROCESSES / pid
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _began(path) != began:
                return
            try:
                os.killpg(int(pid), number)
            except ProcessLookupError:
                return
            except PermissionError:
                raise EngineUnavailable(f"the process {pid} is another user's") from None
            deadline = time.monotonic() + _GRACE
            while _began(path) == began and time.monotonic() < deadline:  # noqa: ASYNC110  (nothing tells)
                await asyncio.sleep(0.05)
        if _began(path) == began:
            raise EngineUnavailable(f"the process {pid} does not end")

    async def volumes(self) -> list[Kept]:
        """The folders."""
        return await asyncio.to_thread(self._volumes)

    def _volumes(self) -> list[Kept]:
        folder, users = Path(self._spawner.volumes_dir), self._users_of_folders()
        folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return [Kept(path.name, "", None, _used(path), tuple(users.get(path.name, ()))) for path in folders]

    def _users_of_folders(self) -> dict[str, list[str]]:
        """The homes of running servers, below the folder of all homes, that have a link into each volume."""
        root, volumes = Path(self._spawner.root_dir), Path(self._spawner.volumes_dir).resolve()
        users: dict[str, list[str]] = {}
        for home in sorted(_homes(root / "homes")):
            server = home.relative_to(root / "homes")
            with suppress(OSError):
                for link in json.loads((root / "links" / f"{server}.json").read_text()):
                    target = Path(link).resolve()
                    if target.is_relative_to(volumes):
                        users.setdefault(target.relative_to(volumes).parts[0], []).append(str(server))
        return users

    async def grow_volume(self, name: str, size: int) -> None:
        """A folder has no size."""
        raise Refused(f"{name}: on the local engine it is a folder, and has no size")

    async def remove_volume(self, name: str) -> None:
        """Remove the folder, with all that is in it."""
        found = {volume.name: volume for volume in await self.volumes()}.get(name)
        if not found:
            raise Refused(f"{name}: there is no such folder in {self._spawner.volumes_dir}")
        if found.used_by:
            raise Refused(f"{name}: it is in use by {', '.join(found.used_by)}")
        try:
            await asyncio.to_thread(shutil.rmtree, Path(self._spawner.volumes_dir, name))
        except OSError as error:
            raise Refused(f"{name}: {error}") from error


def _homes(folder: Path) -> set[Path]:
    """The homes, below a folder, of processes that run."""
    found = set()
    for path in _PROCESSES.glob("[0-9]*/environ"):
        with suppress(OSError):
            home = Path(variables(path.read_bytes().decode(errors="replace").split("\0")).get("HOME", ""))
            if home.is_relative_to(folder):
                found.add(home)
    return found


def _used(folder: Path) -> int:
    """Bytes of all that is in a folder."""
    used = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                used += Path(path, name).lstat().st_blocks * 512
    return used


def _servers(api_url: str) -> list[Found]:
    if not _PROCESSES.is_dir():
        raise EngineUnavailable("processes are found in /proc, which this system has not")
    return [found for path in _PROCESSES.glob("[0-9]*") if (found := _server(path, api_url))]


def _server(path: Path, api_url: str) -> Found | None:
    """The server that this process leads, if it is one of the Hub's."""
    with suppress(OSError, IndexError):
        pid, session = int(path.name), int(_stat(path)[3])
        if session != pid or session in (1, os.getsid(0)) or not _beside_us(path):  # a session's id is its leader's
            return None
        environment = variables((path / "environ").read_bytes().decode(errors="replace").split("\0"))
        if belongs(environment, api_url):
            since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(path.stat().st_ctime))
            name = f"process {path.name}"
            user, server = environment["JUPYTERHUB_USER"], environment.get("JUPYTERHUB_SERVER_NAME", "")
            token = environment.get("JUPYTERHUB_API_TOKEN", "")
            return Found("process", f"{path.name}@{_began(path)}", name, user, server, since, token)
    return None


def _beside_us(path: Path) -> bool:
    """Whether a process is in no container but ours: what is in another may have a Hub at the same address."""
    return all((path / "ns" / kind).readlink() == (_PROCESSES / "self/ns" / kind).readlink() for kind in ("net", "pid"))


def _words(command: Any) -> list[str]:
    return [command] if isinstance(command, str) else list(command)


def _stat(path: Path) -> list[str]:
    """The fields of ``stat`` behind the command's name, of which the first is the state (proc(5))."""
    return (path / "stat").read_text().rpartition(")")[2].split()


def _began(path: Path) -> str:
    """When the process began, in ticks since the machine did; "" if it has ended."""
    with suppress(OSError, IndexError):
        fields = _stat(path)
        return "" if fields[0] == "Z" else fields[19]
    return ""
