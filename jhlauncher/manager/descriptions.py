"""Descriptions of services: ``<descriptions>/<credential>/<service_type>/<service_option>/service.yaml``.

Beside it there may be ``update.yaml``, which is applied on request while the service runs, and a folder ``input``,
which the service gets as a packed file. What is read here is rendered by `jhlauncher.manager.rendering`.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from traitlets import Dict, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from .. import environment
from . import rendering
from .errors import BadDescription
from .files import below, tree
from .rendering import Json, Rendered, Value

_MAX_BYTES = 4 * 1024 * 1024
"""Of an input, packed; a ConfigMap takes a quarter of it."""


class Wanted(NamedTuple):
    """Which description, for whom, and what its keywords are to stand for."""

    credential: str
    service: str
    """The path below the credential."""
    id: str
    user_id: int
    secret_name: str
    secret_certs_name: str
    namespace: str


class Descriptions(LoggingConfigurable):
    """The descriptions, and how they are read."""

    base = Unicode(
        "/tmp/services/services",  # noqa: S108  (as documented for the K8s Manager)
        help="Folder in which what PATCH will apply to a service is kept while it is there.",
    ).tag(config=True, key="services.base")
    descriptions = Unicode(
        "/tmp/services/descriptions",  # noqa: S108
        help="Folder of the descriptions: <credential>/<service_type>/<service_option>/service.yaml below it.",
    ).tag(config=True, key="services.descriptions")
    yaml_filename = Unicode("service.yaml", help="Name of a description's file.").tag(
        config=True, key="services.yaml_filename"
    )
    yaml_filename_update = Unicode("update.yaml", help="Name of the file that PATCH applies.").tag(
        config=True, key="services.yaml_filename_update"
    )
    deployment_main_name_prefix = Unicode(
        "depl-", help="The Deployment (or StatefulSet) whose pod is the service is named so, followed by its id."
    ).tag(config=True, key="services.deployment_main_name_prefix")
    container_main_name = Unicode("main", help="The container of that pod which is the service.").tag(
        config=True, key="services.container_main_name"
    )
    input_dir = Unicode("input", help="Folder beside a description that is packed as .tar.gz, in base64.").tag(
        config=True, key="services.input_dir"
    )
    descriptions_ignore_files = List(
        Unicode(), help="Files of an input that are left out: names, or patterns as of the shell."
    ).tag(config=True, key="services.descriptions_ignore_files")
    credential_mapping = Dict(
        key_trait=Unicode(), value_trait=Unicode(), help="Credential: the one whose descriptions it uses."
    ).tag(config=True, key="services.credential_mapping")
    skip_stage = List(
        Unicode(), help="Stages; files of an input that begin with another of them and _ are left out."
    ).tag(config=True, key="services.skip.stage")
    skip_credential = List(
        Unicode(), help="Credentials; files of an input that begin with another of them and _ are left out."
    ).tag(config=True, key="services.skip.credential")
    indicators = List(
        Unicode(), default_value=["<", ">"], minlen=2, maxlen=2, help="What is before and after a keyword."
    ).tag(config=True, key="services.replace.indicators")
    input_keyword = Unicode("input", help="Keyword for the packed input.").tag(
        config=True, key="services.replace.input_keyword"
    )
    drfid_keyword = Unicode("id", help="Keyword for the id: servername, hyphen, start_id.").tag(
        config=True, key="services.replace.drfid_keyword"
    )
    uniqueuserid_keyword = Unicode("unique_user_id", help="Keyword for credential, underscore, user id.").tag(
        config=True, key="services.replace.uniqueuserid_keyword"
    )
    userid_keyword = Unicode("user_id", help="Keyword for the id of the user at their Hub.").tag(
        config=True, key="services.replace.userid_keyword"
    )
    secretname_keyword = Unicode("secret_name", help="Keyword for the Secret with the environment.").tag(
        config=True, key="services.replace.secretname_keyword"
    )
    secretcertsname_keyword = Unicode("secret_certs_name", help="Keyword for the Secret with certificates.").tag(
        config=True, key="services.replace.secretcertsname_keyword"
    )
    namespace_keyword = Unicode("namespace", help="Keyword for the namespace.").tag(
        config=True, key="services.replace.namespace_keyword"
    )
    replace_stage = Dict(
        key_trait=Unicode(), value_trait=Dict(), help="Stage: {keyword: value}; for the stage in $STAGE."
    ).tag(config=True, key="services.replace.stage")
    replace_credential = Dict(key_trait=Unicode(), value_trait=Dict(), help="Credential: {keyword: value}.").tag(
        config=True, key="services.replace.credential"
    )
    replace_stage_credential = Dict(
        key_trait=Unicode(), value_trait=Dict(), help="Stage: {credential: {keyword: value}}; goes before the others."
    ).tag(config=True, key="services.replace.stage_credential")
    stage = Unicode(help="Which stage this is. Default: $STAGE in small letters.").tag(config=True)

    @default("stage")
    def _default_stage(self) -> str:
        return environment.text("STAGE").lower()

    @validate("indicators")
    def _valid_indicators(self, proposal: Any) -> list[str]:
        if not all(proposal.value):
            raise TraitError("Descriptions.indicators: neither may be empty")
        return list(proposal.value)

    @validate("replace_stage", "replace_credential")
    def _valid_values(self, proposal: Any) -> Json:
        for values in proposal.value.values():
            _check_scalars(f"Descriptions.{proposal.trait.name}", values)
        return dict(proposal.value)

    @validate("replace_stage_credential")
    def _valid_nested_values(self, proposal: Any) -> Json:
        for credentials in proposal.value.values():
            for values in credentials.values():
                if not isinstance(values, dict):
                    raise TraitError("Descriptions.replace_stage_credential: must be {stage: {credential: {...}}}")
                _check_scalars("Descriptions.replace_stage_credential", values)
        return dict(proposal.value)

    # -- blocking, for a thread: file systems may hang

    def look(self) -> None:
        """Say so in the log if there are no descriptions at all."""
        if not Path(self.descriptions).is_dir():
            self.log.warning("services.descriptions: there is no folder %s", self.descriptions)

    def render(self, wanted: Wanted) -> Rendered:
        """The objects of a service. Reads files; changes nothing.

        Raises:
            BadDescription: there is no such description, or it is wrong.

        """
        root = Path(self.descriptions)
        folder = below(root, self.credential_mapping.get(wanted.credential, wanted.credential), wanted.service)
        main = folder / self.yaml_filename if folder else None
        if folder is None or main is None or not main.is_file():
            raise BadDescription(f"there is no description of {wanted.service} for {wanted.credential}")
        packed = self._pack(folder / self.input_dir, wanted.credential)
        replace = rendering.replacement(self._values(wanted, packed), (self.indicators[0], self.indicators[1]))
        update = folder / self.yaml_filename_update
        return rendering.check(
            rendering.load(_read(main), replace, self.yaml_filename),
            rendering.load(_read(update), replace, self.yaml_filename_update) if update.is_file() else [],
            namespace=wanted.namespace,
            main_name=self.deployment_main_name_prefix + wanted.id,
            container=self.container_main_name,
        )

    def _values(self, wanted: Wanted, packed: str) -> dict[str, Value]:
        """What keywords stand for; of two with the same name, the first counts."""
        stage, credential = self.stage, wanted.credential
        configured = [
            self.replace_stage_credential.get(stage, {}).get(credential, {}) if stage else {},
            self.replace_stage.get(stage, {}) if stage else {},
            self.replace_credential.get(credential, {}),
        ]
        ours = [
            (self.input_keyword, Value(packed)),
            (self.drfid_keyword, Value(wanted.id)),
            (self.uniqueuserid_keyword, Value(f"{credential}_{wanted.user_id}")),
            (self.userid_keyword, Value(str(wanted.user_id), typed=True)),
            (self.secretname_keyword, Value(wanted.secret_name)),
            (self.secretcertsname_keyword, Value(wanted.secret_certs_name)),
            (self.namespace_keyword, Value(wanted.namespace)),
        ]
        theirs = [(keyword, Value(_text(value), typed=True)) for each in configured for keyword, value in each.items()]
        return dict(reversed([*ours, *theirs]))

    def _pack(self, folder: Path, credential: str) -> str:
        """The folder as ``input`` in a .tar.gz, in base64, the same every time; nothing if there is none."""
        if not folder.is_dir():
            return ""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(folder, arcname="input", recursive=False, filter=_anonymous)
            for name, path in tree(folder, self._left_out(credential), within=Path(self.descriptions)):
                plain = name if path.is_dir() else name.parent / self._plain(name.name, credential)
                archive.add(path.resolve(), arcname=str("input" / plain), recursive=False, filter=_anonymous)
        if buffer.tell() > _MAX_BYTES:
            raise BadDescription(f"{folder.name} has more than {_MAX_BYTES} bytes, packed")
        return base64.b64encode(buffer.getvalue()).decode()

    def _left_out(self, credential: str) -> list[str]:
        """Patterns of the files of an input that are for others."""
        others = [name for name in self.skip_credential if name != credential]
        patterns = [*self.descriptions_ignore_files, *(f"{name}_*" for name in others)]
        if self.stage:
            patterns += [f"{name}_*" for name in self.skip_stage if name != self.stage]
            patterns += [f"{self.stage}_{name}_*" for name in others]
        return patterns

    def _plain(self, name: str, credential: str) -> str:
        """A file's name without the stage and credential that it is for."""
        stages = [f"{self.stage}_{credential}_", f"{self.stage}_"] if self.stage else []
        prefix = next((prefix for prefix in [*stages, f"{credential}_"] if name.startswith(prefix)), "")
        return name.removeprefix(prefix)

    # -- what is kept of a service

    def keep(self, key: str, rendered: Rendered) -> None:
        """Keep what PATCH is to apply, for the owner's eyes only.

        Raises:
            BadDescription: it can't be written.

        """
        if not rendered.update:
            return
        path = self._kept(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(0o600)
            path.write_text(json.dumps(rendered.update), encoding="utf-8")
        except OSError as error:
            raise BadDescription(f"what is to be kept can't be written: {error}") from error

    def kept_update(self, key: str) -> list[Json]:
        """The objects that PATCH applies to a service.

        Raises:
            BadDescription: what was kept can't be read.

        """
        path = self._kept(key)
        objects: list[Json] = json.loads(_read(path)) if path.is_file() else []
        return objects

    def forget(self, key: str) -> None:
        """Remove what was kept of a service."""
        with suppress(OSError):
            self._kept(key).unlink(missing_ok=True)

    def _kept(self, key: str) -> Path:
        return Path(self.base) / f"{key}.json"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDescription(f"{path.name} can't be read: {error}") from error


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _text(value: Any) -> str:
    """A configured value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_scalars(what: str, values: Json) -> None:
    for keyword, value in values.items():
        if not isinstance(value, str | int | float):
            raise TraitError(f"{what}: the value of {keyword!r} must be a text, number or boolean")
