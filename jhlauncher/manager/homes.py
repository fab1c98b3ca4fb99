"""Homes of users: a folder for each, made from a skeleton when they come for the first time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from traitlets import Dict, Integer, List, Unicode
from traitlets.config import LoggingConfigurable

from .errors import HomeFailed
from .files import below, tree


class Userhomes(LoggingConfigurable):
    """Where homes are, and what a new one has."""

    base = Unicode(
        "/mnt/userhomes", help="Folder of the homes: <credential><suffix>/<user_id> below it. Empty: none are made."
    ).tag(config=True, key="userhomes.base")
    skel = Unicode(
        "/mnt/shared-data/git_config/userhome_skel",
        help="Folder of the skeletons: what is in <credential><suffix> below it is copied into a new home.",
    ).tag(config=True, key="userhomes.skel")
    uid = Integer(1000, min=0, help="Who owns what is in a new home.").tag(config=True, key="userhomes.uid")
    gid = Integer(1000, min=0, help="The group of what is in a new home.").tag(config=True, key="userhomes.gid")
    credential_mapping = Dict(
        key_trait=Unicode(), value_trait=Unicode(), help="Credential: the one whose homes it uses."
    ).tag(config=True, key="userhomes.credential_mapping")
    service_suffix = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="Service, as <service_type>/<service_option>: what follows the credential in its homes' folder.",
    ).tag(config=True, key="userhomes.service_suffix")
    skel_ignore_files = List(
        Unicode(), help="Files of a skeleton that are left out: names, or patterns as of the shell."
    ).tag(config=True, key="userhomes.skel_ignore_files")

    def prepare(self, credential: str, service: str, user_id: int, key: str) -> None:
        """Make a user's home if there is none; one that is there is left as it is. Blocks: for a thread.

        Args:
            credential: whose user it is.
            service: the one that is started.
            user_id: at their Hub.
            key: the service's, for the name of what is not complete yet.

        Raises:
            HomeFailed: it can't be made.

        """
        if not self.base:
            return
        folder = self._folder(credential, service)
        home, new = below(Path(self.base), folder, str(user_id)), below(Path(self.base), folder, f".new-{key}")
        if home is None or new is None:
            raise HomeFailed(f"the home of user {user_id} would not be below {self.base}")
        if os.path.lexists(home):
            return
        try:
            self._copy(below(Path(self.skel), folder), new)
            _rename_new(new, home)
        except OSError as error:
            raise HomeFailed(f"the home of user {user_id} can't be made: {error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def abandon(self, credential: str, service: str, key: str) -> None:
        """Remove what `prepare` has left if its process was killed. Blocks."""
        new = below(Path(self.base), self._folder(credential, service), f".new-{key}") if self.base else None
        if new:
            shutil.rmtree(new, ignore_errors=True)

    def _folder(self, credential: str, service: str) -> str:
        """Below `base` and `skel`."""
        return f"{self.credential_mapping.get(credential, credential)}{self.service_suffix.get(service, '')}"

    def _copy(self, skeleton: Path | None, new: Path) -> None:
        """A new home, beside where it is to be. Links that lead out of the skeleton are left out."""
        new.mkdir(parents=True, mode=0o755)
        if skeleton and skeleton.is_dir():
            for name, path in tree(skeleton, self.skel_ignore_files, within=skeleton):
                if path.is_dir():
                    (new / name).mkdir()
                    shutil.copystat(path, new / name)
                elif path.is_file():
                    shutil.copy2(path, new / name)
        for folder, _, files in os.walk(new):
            for entry in (Path(folder), *(Path(folder, file) for file in files)):
                os.chown(entry, self.uid, self.gid, follow_symlinks=False)


def _rename_new(new: Path, home: Path) -> None:
    """Put a new home in its place, unless another is there by now."""
    try:
        new.rename(home)
    except OSError:
        if not os.path.lexists(home):
            raise
