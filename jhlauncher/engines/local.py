"""The ``local`` engine: a server is a process beside the Hub."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Bool, Dict, List, Unicode, default, observe

from ..failures import MAX_LINES, Evidence, Failure, ended
from ..models import Cpu, Gpu, Memory, Volume
from ..ports import SERVERS, free_port
from ..spawner import LauncherSpawnerMixin


class LauncherLocalSpawner(LauncherSpawnerMixin, SimpleLocalProcessSpawner):  # type: ignore[misc]
    """The ``local`` engine: servers as processes of the Hub's own user, for people who trust each other.

    There is no isolation between users (see `SimpleLocalProcessSpawner`). An image is a name in `environments`, a
    volume a folder below `volumes_dir`, linked at its mount in the server's home. What a server prints is in a file
    below `root_dir`, that of the latest start.
    """

    if TYPE_CHECKING:
        popen_kwargs: dict[str, Any]
        proc: subprocess.Popen[bytes]
        port: int

    environments = Dict(
        help="""What the images are: {name: {"cmd": [...], "environment": {...}}}; both keys may be left out.

        Default: one image, "singleuser", which is what `cmd` of the spawner says (jupyterhub-singleuser).
        """
    ).tag(config=True)
    root_dir = Unicode(
        help="Folder for the homes and volumes. Default: $XDG_DATA_HOME/jhlauncher or ~/.local/share/jhlauncher."
    ).tag(config=True)
    volumes_dir = Unicode(help="Folder with one folder per volume. Default: volumes below root_dir.").tag(config=True)
    create_volumes = Bool(
        True, help="Make the folders of volumes that do not exist, whether or not the policy has create_volumes."
    ).tag(config=True)
    home_mount = Unicode(
        "/home/jovyan",
        help="Mounts below this path appear in the server's home; others can't be had on this engine.",
    ).tag(config=True)
    ignored_fields = List(
        Unicode(),
        help="""Fields of a launch that are accepted without effect instead of refused: "cpu", "memory", "gpu".""",
    ).tag(config=True)

    @default("environments")
    def _default_environments(self) -> dict[str, Any]:
        return {"singleuser": {}}

    @default("root_dir")
    def _default_root_dir(self) -> str:
        data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
        return str(Path(data, "jhlauncher"))

    @default("volumes_dir")
    def _default_volumes_dir(self) -> str:
        return str(Path(self.root_dir, "volumes"))

    @default("home_dir")
    def _default_home_dir(self) -> str:
        """One home per server, so that servers side by side don't see each other's mounts."""
        return str(Path(self.root_dir, "homes", self.escaped_name, self._folder_name))

    @property
    def _folder_name(self) -> str:
        """A named server's is one level below, so that none can have the default server's."""
        return f"named/{self.name}" if self.name else "default"

    @property
    def escaped_name(self) -> str:
        """The user's name as the name of a folder."""
        return str(self.user.escaped_name)

    async def start(self) -> Any:
        """Start with only this launch's mounts, on a port that no connection takes meanwhile."""
        self._unlink_mounts()
        if not self.port:
            self.port = free_port(SERVERS)
        self._made = asyncio.Event()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("wb") as log:
            self.popen_kwargs = {"stdout": log, "stderr": subprocess.STDOUT, **self.popen_kwargs}
            return await super().start()

    async def watch_start(self) -> Failure:
        """The process tells of its end by itself."""
        await self._made.wait()
        return ended(await _exit_code(self.proc), out_of_memory=False)

    @observe("proc")
    def _proc_changed(self, change: Any) -> None:
        if change.new:
            self._made.set()

    async def why_ended(self) -> Failure | None:
        """As the process has ended; None after a restart of the Hub, whose child it is no more."""
        code = self.proc.poll() if self.proc else None
        return None if code is None else ended(code, out_of_memory=False)

    async def explain(self, error: Exception) -> Failure | None:
        """The command could not be run."""
        if isinstance(error, OSError):
            message = f"The server's command {' '.join(self.cmd)} could not be run: {error.strerror}."
            return Failure(reason="start_failed", message=message)
        return None

    async def collect_evidence(self) -> Evidence:
        """What it printed."""
        try:
            with self._log_file.open(errors="replace") as log:
                return Evidence(log=[line.rstrip("\n") for line in deque(log, MAX_LINES)])
        except FileNotFoundError:
            return Evidence()

    def apply_image(self, image: str) -> None:
        """Run the command, with the environment, that the table has for this name."""
        if image not in self.environments:
            known = ", ".join(self.environments)
            self.refuse("image", f"{image} is not one of this Hub's images: {known}", reason="image_not_found")
        entry = self.environments[image]
        if "cmd" in entry:
            self.cmd = entry["cmd"]
        self.environment = {**self.environment, **entry.get("environment", {})}

    def apply_cpu(self, cpu: Cpu) -> None:
        """A plain process has no limits."""
        self._ignore_or_refuse("cpu")

    def apply_memory(self, memory: Memory) -> None:
        """A plain process has no limits."""
        self._ignore_or_refuse("memory")

    def apply_gpu(self, gpu: Gpu) -> None:
        """A plain process sees every device or none."""
        self._ignore_or_refuse("gpu")

    def apply_volumes(self, volumes: list[Volume]) -> None:
        """Link the volumes' folders into the home."""
        for volume in volumes:
            if not (self.create_volumes or volume.create or Path(self.volumes_dir, volume.name).is_dir()):
                raise self.volume_missing(volume.name)
        links = {self._link(volume): self._folder(volume) for volume in volumes}
        for link in links:
            if not links.keys().isdisjoint(link.parents):
                self.refuse("volumes", f"the local engine can't mount one volume inside another, at {link.name}")
            if link.exists() or link.is_symlink():
                self.refuse("volumes", f"there is something at {link.name} in the server's home already")
            link.parent.mkdir(parents=True, exist_ok=True)
        self._links_file.parent.mkdir(parents=True, exist_ok=True)
        self._links_file.write_text(json.dumps([str(link) for link in links]))
        for link, folder in links.items():
            folder.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder)

    def packages_folder(self, volumes: list[Volume]) -> str:
        """A server's home stays, with or without volumes."""
        return str(Path(self.home_dir, ".local"))

    def _ignore_or_refuse(self, field: str) -> None:
        if field not in self.ignored_fields:
            self.refuse(field, "the local engine can't do this (LauncherLocalSpawner.ignored_fields may ignore it)")

    def _folder(self, volume: Volume) -> Path:
        if volume.read_only:
            self.refuse("volumes", "the local engine has no read-only mounts")
        return Path(self.volumes_dir, volume.name, volume.subpath)

    def _link(self, volume: Volume) -> Path:
        prefix = self.home_mount.rstrip("/") + "/"
        if not volume.mount.startswith(prefix):
            self.refuse("volumes", f"the local engine mounts only below {prefix}, not at {volume.mount}")
        return Path(self.home_dir, volume.mount.removeprefix(prefix))

    @property
    def _log_file(self) -> Path:
        """What the latest start of this server has printed."""
        return Path(self.root_dir, "logs", self.escaped_name, f"{self._folder_name}.log")

    @property
    def _links_file(self) -> Path:
        """The links of the latest launch, so that the next one can remove them even after a crash."""
        return Path(self.root_dir, "links", self.escaped_name, f"{self._folder_name}.json")

    def _unlink_mounts(self) -> None:
        Path(self.home_dir).mkdir(parents=True, exist_ok=True)
        try:
            links = json.loads(self._links_file.read_text())
        except FileNotFoundError:
            return
        for link in map(Path, links):
            if link.is_symlink():
                link.unlink()
        self._links_file.unlink()


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process."""
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux: nothing tells
        while process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return process.returncode
    gone = asyncio.Event()
    loop.add_reader(handle, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return process.wait()
