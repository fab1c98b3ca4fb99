"""Gives a volume that was just made to the user who is to write in it.

A new volume of Docker's belongs to root, unless the image has a folder at its mount. What an image runs as is known
only inside it, so this looks at a container that is made but not started, through the API that ``docker cp`` uses.
"""

from __future__ import annotations

import io
import tarfile
import time
from contextlib import closing
from typing import Any

from docker.errors import NotFound

from ..models import Volume

_MAX_PASSWD = 1 << 20
"""Bytes of /etc/passwd that are read."""


def give_fresh_volumes(client: Any, container: str, volumes: list[Volume]) -> None:
    """Give those of the volumes that are empty and root's to the container's user.

    Args:
        client: docker-py's APIClient; this blocks.
        container: one that has these volumes mounted and does not run.
        volumes: those read-only or mounted in part are left alone.

    """
    candidates = [volume.mount for volume in volumes if not volume.read_only and not volume.subpath]
    owner = _owner(client, container) if candidates else (0, 0)
    for mount in candidates if owner[0] else ():
        if _is_fresh(client, container, mount):
            parent, _, name = mount.rpartition("/")
            client.put_archive(container, parent or "/", _folder(name, *owner))


def _owner(client: Any, container: str) -> tuple[int, int]:
    """The user and group that the container runs as."""
    user, _, group = (client.inspect_container(container)["Config"].get("User") or "0").partition(":")
    entries = [line.split(":") for line in _passwd(client, container).splitlines()]
    numbered = [entry for entry in entries if len(entry) > 3 and entry[2].isdigit() and entry[3].isdigit()]
    entry = next((entry for entry in numbered if user in (entry[0], entry[2])), None)
    uid = int(user) if user.isdigit() else int(entry[2]) if entry else 0
    return uid, int(group) if group.isdigit() else int(entry[3]) if entry else 0


def _passwd(client: Any, container: str) -> str:
    """The image's list of users; empty if it has none that can be used. It may be anything: an image is a user's."""
    try:
        stream, _ = client.get_archive(container, "/etc/passwd")
    except NotFound:
        return ""
    with closing(stream), tarfile.open(fileobj=_Reader(stream), mode="r|") as archive:
        member = archive.next()
        file = archive.extractfile(member) if member and member.isfile() and member.size <= _MAX_PASSWD else None
        return file.read().decode(errors="replace") if file else ""


def _is_fresh(client: Any, container: str, mount: str) -> bool:
    """Whether the folder is root's and empty. Only the beginning of it is read."""
    stream, _ = client.get_archive(container, mount)
    with closing(stream), tarfile.open(fileobj=_Reader(stream), mode="r|") as archive:
        folder = archive.next()
        return bool(folder and folder.uid == 0 and not folder.mode & 0o022 and archive.next() is None)


def _folder(name: str, uid: int, gid: int) -> bytes:
    """An archive that says whose a folder is; Docker takes no word on ``.``."""
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o755, uid, gid
    folder.mtime = int(time.time())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(folder)
    return archive.getvalue()


class _Reader(io.RawIOBase):
    """A stream of chunks as a file."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
