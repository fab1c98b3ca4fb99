"""What a ``jupyterhub_config.py`` says, read as JupyterHub reads it; nothing is started."""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from ..engines import ENGINES
from ..install import INFO, reading
from .found import Engine, EngineUnavailable
from .probing import Address

_OPERATED = {
    "KubeSpawner": ("on_kubernetes", "KubernetesEngine"),
    "SwarmSpawner": ("on_docker", "SwarmEngine"),
    "DockerSpawner": ("on_docker", "DockerEngine"),
    "LauncherLocalSpawner": ("on_local", "LocalEngine"),
}
"""Who looks at the engine of a spawner class and its descendants; the first that fits."""

_NOBODY = SimpleNamespace(name="nobody", escaped_name="nobody", id=0, url="/user/nobody/")
"""Whose server the spawner would start that only has to know its settings."""


class HubConfigBroken(Exception):
    """The configuration can't be read; the text says where, and why."""


class HubSide:
    """The Hub as it is configured.

    Args:
        config: of JupyterHub.
        label: what to call it.

    Raises:
        HubConfigBroken: a setting is wrong.

    """

    def __init__(self, config: Config, label: str) -> None:
        self.label = label
        try:
            self.app = JupyterHub(config=config)
            self.app.init_hub()
            self.spawner_class: type = self.app.spawner_class
            self.services: list[dict[str, Any]] = list(self.app.services)
            self.roles: list[dict[str, Any]] = list(self.app.load_roles)
            self.proxy = self.app.proxy_class(config=config)
            self.token, self.scopes, self.address = self._token(), self._scopes(), self._address()
        except (TraitError, ImportError, ValueError, AttributeError, TypeError) as error:
            # what a wrong value is stays here: it may be a secret
            raise HubConfigBroken(f"{label}: {str(error).partition(', not the ')[0]}") from error

    @classmethod
    def read(cls, path: str) -> HubSide:
        """The Hub that this file configures.

        Raises:
            HubConfigBroken: it can't be read, or a setting is wrong.

        """
        file = Path(path)
        if not file.is_file():
            raise HubConfigBroken(f"There is no file {path}")
        try:
            with reading():
                config = PyFileConfigLoader(file.name, path=str(file.parent)).load_config()
        except (Exception, SystemExit) as error:
            raise HubConfigBroken(f"{path}, line {_line(error, file)}: {type(error).__name__}: {error}") from error
        return cls(config, path)

    @classmethod
    def of_engine(cls, engine: str, *, network: str = "", namespace: str = "") -> HubSide:
        """A Hub with everything of this engine's as it is by default, but for where its servers are."""
        config = Config(JupyterHub=Config(spawner_class=ENGINES[engine]))
        if network:
            config.DockerSpawner.network_name = network
        if namespace:
            config.KubeSpawner.namespace = namespace
        return cls(config, f"the engine {engine}")

    @property
    def launcher(self) -> dict[str, Any] | None:
        """The launcher's service, as `install_launcher` has left it."""
        path = self.app.config.get("LauncherSpawnerMixin", {}).get("launcher_path", "")
        name = str(path).strip("/").rpartition("/")[2]
        return next(
            (each for each in self.services if each.get("name") == name and INFO in (each.get("info") or {})), None
        )

    @property
    def info(self) -> dict[str, Any]:
        """What `install_launcher` has left for others to see."""
        return dict(self.launcher["info"][INFO]) if self.launcher else {}

    def _token(self) -> str:
        """The launcher's at the Hub, if it is in the configuration."""
        return str((self.launcher or {}).get("api_token") or "")

    def _scopes(self) -> set[str]:
        """What the roles in the configuration give to the launcher."""
        name = (self.launcher or {}).get("name")
        return {
            scope for role in self.roles if name in (role.get("services") or ()) for scope in role.get("scopes") or ()
        }

    @property
    def api_url(self) -> str:
        """The Hub's API as servers know it."""
        spawner_url = self.app.config.get("Spawner", {}).get("hub_connect_url")
        if isinstance(spawner_url, str):
            return f"{spawner_url.rstrip('/')}{self.app.hub.base_url}api"
        return str(self.app.hub.api_url).rstrip("/")

    @property
    def listens(self) -> str:
        """The address at which the Hub listens; "" for all."""
        return str(self.app.hub.ip)

    @property
    def near_api_url(self) -> str:
        """The Hub's API as it is reached on the Hub's own machine, or in its container."""
        hub = self.app.hub
        return f"{hub.proto}://{_near(self.listens)}:{hub.port}{hub.base_url}api"

    def _address(self) -> Address:
        """Where the Hub's proxy is reached from here."""
        if self.app.public_url:
            return Address(str(self.app.public_url))
        if not self.proxy.should_start:
            return Address("")
        url = urlsplit(self.app.bind_url)
        scheme = "https" if self.app.ssl_cert else url.scheme
        return Address(
            f"{scheme}://{_near(url.hostname or '')}:{url.port or 8000}{self.app.base_url}", on_loopback=True
        )

    @property
    def servers_are_elsewhere(self) -> bool:
        """Whether servers have another network than the Hub, so that they don't reach its loopback address."""
        names = {cls.__name__ for cls in self.spawner_class.__mro__}
        on_host = self.app.config.get("DockerSpawner", {}).get("network_name") == "host"
        return "KubeSpawner" in names or ("DockerSpawner" in names and not on_host)

    def engine(self) -> Engine | None:
        """The engine on which the spawner class starts servers; None if it is none of ours.

        Raises:
            EngineUnavailable: it can't even be tried.

        """
        names = {cls.__name__ for cls in self.spawner_class.__mro__}
        known = next((where for name, where in _OPERATED.items() if name in names), None)
        if known is None:
            return None
        module, name = known
        arguments = {"_mock": True} if "KubeSpawner" in names else {"user": _NOBODY}
        try:
            spawner = self.spawner_class(config=self.app.config, **arguments)
        except Exception as error:  # whatever a client says that finds no configuration
            raise EngineUnavailable(str(error)) from error
        operated: Engine = getattr(import_module(f".{module}", __package__), name)(spawner)
        return operated


def _near(host: str) -> str:
    """Where something is reached on its own machine that listens at this address."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104


def _line(error: BaseException, file: Path) -> int | str:
    """The line of the file at which it went wrong."""
    if isinstance(error, SyntaxError):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or "?" for frame in reversed(frames) if Path(frame.filename).name == file.name), "?")
