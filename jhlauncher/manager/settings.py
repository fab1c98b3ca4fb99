"""``config.json``: the K8s Manager's way to configure it, mapped onto traits.

Every trait with the tag ``key`` is the value at that path of the file. What a command line or a configuration file of
traitlets sets goes before the file. The file is read again when it has changed; one that is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from traitlets import Float, TraitError, Unicode, default
from traitlets.config import Configurable, LoggingConfigurable

from .. import environment

_AT_START = ("startup.", "tunnel", "userjobs.")
"""Keys that count when the process starts."""


class ConfigFile(LoggingConfigurable):
    """The file, and the parts that it configures."""

    path = Unicode(help="The file. Default: $CONFIG_PATH; with neither, there is none.").tag(config=True)
    interval = Float(5, min=0.1, help="Seconds between two looks whether the file has changed.").tag(config=True)

    @default("path")
    def _default_path(self) -> str:
        return environment.text("CONFIG_PATH")

    def load(self, parts: Iterable[Configurable]) -> None:
        """Configure the parts.

        Raises:
            TraitError: the file can't be read, or has an unknown key or a wrong value, which is named.

        """
        self._settings = {
            key: (part, name) for part in parts for name, trait in part.traits(config=True).items()
            if (key := trait.metadata.get("key"))
        }  # fmt: skip
        self._initial = {key: getattr(part, name) for key, (part, name) in self._settings.items()}
        self._seen = self._stamp()
        if self.path:
            self._apply(self._read())

    async def start(self) -> None:
        """Look for changes from now on."""
        self._task = asyncio.create_task(self._look(), name="config.json")

    async def stop(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _look(self) -> None:
        while self.path:
            await asyncio.sleep(self.interval)
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                values = await asyncio.to_thread(self._read)
                self._apply({key: value for key, value in values.items() if not key.startswith(_AT_START)})
                self.log.info("%s has changed; it is in force", self.path)
            except TraitError as error:
                self.log.error("What has changed is not in force: %s", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        """What differs when the file is another."""
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, Any]:
        """The file's values by their keys."""
        try:
            content = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TraitError(f"{self.path} can't be read: {error}") from None
        if not isinstance(content, dict):
            raise TraitError(f"{self.path} must have a JSON object")
        return dict(self._flat(content, ""))

    def _flat(self, content: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in content.items():
            key = prefix + name
            if key in self._settings:
                yield key, value
            elif not any(known.startswith(f"{key}.") for known in self._settings):
                raise TraitError(f"{self.path}: {key} is not a setting")
            elif not isinstance(value, dict):
                raise TraitError(f"{self.path}: {key} must be an object")
            else:
                yield from self._flat(value, f"{key}.")

    def _apply(self, values: dict[str, Any]) -> None:
        """Set all of them, or none."""
        before = {key: getattr(part, name) for key, (part, name) in self._settings.items()}
        try:
            for key, (part, name) in self._settings.items():
                wanted = values.get(key, before[key] if key.startswith(_AT_START) else self._initial[key])
                if not self._set_elsewhere(part, name):
                    self._set(key, wanted)
        except TraitError:
            for key, value in before.items():
                self._set(key, value)
            raise

    def _set(self, key: str, value: Any) -> None:
        part, name = self._settings[key]
        try:
            setattr(part, name, value)
        except TraitError as error:
            raise TraitError(f"{self.path}: {key}: {error}") from None

    def _set_elsewhere(self, part: Configurable, name: str) -> bool:
        """Whether traitlets' own configuration says what this trait is."""
        return any(name in self.config.get(cls.__name__, {}) for cls in type(part).__mro__)
