"""Disks of a fixed size on a Docker host: volumes that have a file system of their own.

Docker's own volumes are folders of one file system, which anybody can fill. A disk is an image file with a loop device,
or a logical volume of LVM; Docker mounts it by itself, as it does any volume of its driver ``local`` that names a
device.

What has to be done on the host is done by a container of a trusted image that lives as long as it takes (``disks.sh``),
so that it works wherever the Hub runs that can talk to Docker.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal, cast

import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

Kind = Literal["loopback", "lvm"]
KIND_LABEL = "jhlauncher.disk"
"""Of a Docker volume that is a disk: its kind."""
SMALLEST = 16 * 1024**2
"""Bytes of the smallest disk: less has no room for ext4's journal."""

_NAMES = "/run/jhlauncher/disks"
"""On the host: links from the disks' names to their loop devices. A reboot removes both."""
_LVM = ("/etc/lvm", "/run/lvm", "/run/lock/lvm")
"""On the host: LVM's settings, and by what its commands keep clear of each other."""
_BLOCK = 4096
"""Bytes; sizes are a multiple of it."""
_HELPER_LABEL = "jhlauncher.disks"
_PATIENCE = 3600
"""Seconds for growing a file system, which must not be cut off."""
_LOST = 2 * _PATIENCE
"""Seconds after which nobody waits for a helper container any more."""
SCRIPT = (files(__package__) / "disks.sh").read_text()


class DiskError(Exception):
    """It could not be done; the text says what, and why."""


class _NotAllowed(DiskError):
    """The Docker host can't give a container the capability that the work needs."""


@dataclass(frozen=True)
class Disk:
    """A disk that is there, whether or not Docker has a volume of it."""

    name: str
    size: int
    """Bytes."""
    used: int | None
    """Bytes; None if the file system can't be mounted."""


@dataclass(frozen=True)
class Disks:
    """The disks of one kind on one Docker host. Everything blocks, and may raise `DiskError`.

    Args:
        client: docker-py's APIClient.
        kind: what they are.
        image: of the helper container.
        folder: on the host, for image files.
        group: LVM's volume group.
        timeout: seconds for one piece of work.

    """

    client: Any
    kind: Kind
    image: str
    folder: str
    group: str
    timeout: float = 120

    def options(self, name: str) -> dict[str, str]:
        """Of Docker's driver ``local``."""
        device = f"{_NAMES}/{name}" if self.kind == "loopback" else f"/dev/{self.group}/{name}"
        return {"type": "ext4", "device": device, "o": "nosuid,nodev"}

    def create(self, name: str, size: int) -> None:
        """Make an empty disk of so many bytes; one that is there already stays as it is."""
        if size < SMALLEST:
            raise DiskError(f"The disk {name} can't be made: {size} bytes are less than {SMALLEST}, the smallest size")
        self._run(f"The disk {name} can't be made", "create", name, _whole(size))

    def attach(self, names: list[str]) -> None:
        """Have the devices at the places at which Docker mounts them."""
        self._run(f"The disk {', '.join(names)} can't be attached", "attach", *names)

    def grow(self, name: str, size: int) -> None:
        """Give a disk so many bytes, and its file system with it, also while it is in use.

        For the latter, the Docker host must have the capability SYS_RESOURCE; some virtual machines have it not.
        """
        failed = f"The disk {name} can't be grown"
        patient = replace(self, timeout=max(self.timeout, _PATIENCE))
        try:
            patient._run(failed, "grow", name, _whole(size), more=["SYS_RESOURCE"])
        except _NotAllowed:  # said by older Docker Engines at the start, and by the kernel under later ones
            patient._run(failed, "grow_unused", name, _whole(size))

    def remove(self, name: str) -> None:
        """Destroy a disk that nobody uses, if it is there."""
        self._run(f"The disk {name} can't be removed", "remove", name)

    def listed(self) -> list[Disk]:
        """All of them."""
        lines = self._run("The disks can't be listed", "list").splitlines()
        return [Disk(name, int(size), int(used[0]) if used else None) for name, size, *used in map(str.split, lines)]

    def _run(self, failed: str, *arguments: str, more: Sequence[str] = ()) -> str:
        """What the helper prints, that has these capabilities, too."""
        if self.kind == "lvm" and not self.group:
            raise DiskError(f"{failed}: no volume group is configured (LauncherDockerSpawner.disks_volume_group)")
        try:
            self._remove_lost()
            container = self._create(arguments, ["SYS_ADMIN", *more])
            try:
                return self._wait(container, failed)
            finally:
                with suppress(NotFound):
                    self.client.remove_container(container, v=True, force=True)
        except ImageNotFound:
            build = f"docker build -f etc/docker/Dockerfile --target disks -t {self.image} ."
            message = f"{failed}: the image {self.image}, which does it, is not on the Docker host. Build it: {build}"
            raise DiskError(message) from None
        except APIError as error:
            kind = _NotAllowed if "apply caps" in str(error.explanation) else DiskError
            raise kind(f"{failed}: {error.explanation or error}") from error
        except (DockerException, OSError) as error:
            raise DiskError(f"{failed}: the Docker Engine does not answer: {error}") from error

    def _create(self, arguments: tuple[str, ...], capabilities: list[str]) -> str:
        """A container that may mount, and use the devices that it needs; no more."""
        devices, binds = ["b 7:* rwm", "c 10:237 rwm"], [f"{self.folder}:/disks", "/sys/devices/virtual/block:/loops"]
        if self.kind == "lvm":
            devices, binds = ["b *:* rwm", "c 10:236 rwm"], [f"{folder}:{folder}" for folder in _LVM]
        host = self.client.create_host_config(
            network_mode="none",
            cap_add=capabilities,
            security_opt=["apparmor=unconfined", "label=disable"],
            device_cgroup_rules=devices,
            binds=["/dev:/dev", f"{_NAMES}:/names", *binds],
        )
        container = self.client.create_container(
            self.image,
            ["-euc", SCRIPT, "disks", self.kind, self.group, *arguments],
            entrypoint=["sh"],
            user="0:0",
            host_config=host,
            labels={_HELPER_LABEL: arguments[0]},
        )
        return cast("str", container["Id"])

    def _wait(self, container: str, failed: str) -> str:
        self.client.start(container)
        try:
            status = self.client.wait(container, timeout=self.timeout)["StatusCode"]
        except (requests.Timeout, requests.ConnectionError) as error:
            if "timed out" not in str(error):
                raise
            raise DiskError(f"{failed}: it takes more than {self.timeout:g} seconds") from None
        if status:
            said = self.client.logs(container, stdout=False, stderr=True).decode(errors="replace")
            kind = _NotAllowed if "Permission denied to resize" in said else DiskError
            raise kind(f"{failed}: {' '.join(said.split()) or f'exit status {status}'}")
        return cast("bytes", self.client.logs(container, stdout=True, stderr=False)).decode()

    def _remove_lost(self) -> None:
        """Remove helpers that have ended without anybody's notice, as when the Hub is killed."""
        for container in self.client.containers(all=True, filters={"label": _HELPER_LABEL, "status": "exited"}):
            if time.time() - container["Created"] > _LOST:
                with suppress(APIError):  # others may be about to remove it, too
                    self.client.remove_container(container["Id"], v=True, force=True)


def _whole(size: int) -> str:
    """At least so many bytes, in whole blocks."""
    return str(-(-size // _BLOCK) * _BLOCK)
