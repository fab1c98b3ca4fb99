"""One line for ``jupyterhub_config.py``: ``install_launcher(c, engine="local")``."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue
from traitlets.utils.importstring import import_item

from ._version import __version__
from .engines import ENGINES, MIXINS
from .ports import SERVICES, free_port
from .signing import KEY_ENV, MANAGED_ENV, MIN_KEY_LENGTH, derive_key, key_fingerprint

CULLER = "jupyterhub-idle-culler"
"""The service that stops idle servers, and its role."""

INFO = "jhlauncher"
"""The key of the service's ``info`` at the Hub under which the Hub's side says how it is configured."""

_NEW_SECRET = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def install_launcher(
    c: Config,
    engine: str | None = None,
    *,
    spawner_class: type | str | None = None,
    name: str = "launcher",
    url: str | None = None,
    api_token: str | None = None,
    signing_key: str | None = None,
    images: Iterable[str] = (),
    server_state: bool = False,
    idle_timeout: int | None = None,
    config_file: str | None = None,
    secret_file: str | None = "jhlauncher_secret",  # noqa: S107  (a file's name)
) -> None:
    """Add the launcher to a JupyterHub.

    Adds the service, a role with the least scopes that it needs, the right of every user to reach it, the spawner
    class and the signing key. It may come before or after the administrator's own ``c.JupyterHub.services`` and
    ``load_roles`` lines, and keeps them.

    Args:
        c: the configuration object of ``jupyterhub_config.py``.
        engine: where servers run: "kubernetes", "docker", "swarm" or "local"; each but the last needs the extra of its
            name, as in ``pip install ".[docker]"``.
        spawner_class: instead of an engine, any spawner class (or its import string or entry point), to which the
            launcher's mixin is added.
        name: the service's name; it answers at /services/NAME/.
        url: where an external launcher service listens; without it, the Hub starts and manages one on a free port of
            127.0.0.1.
        api_token: the service's token; required with ``url``. A managed service gets one from the Hub.
        signing_key: the secret shared by service and spawner; derived from ``api_token`` or ``secret_file`` otherwise.
        images: what ordinary users may launch by the default policy (see `Policy.images`). Managed service only.
        server_state: let the service read the spawners' state, for the ``state`` of ``GET containers``.
        idle_timeout: seconds without activity after which a server is stopped, by jupyterhub-idle-culler (the extra
            "culler"), which becomes another managed service. None: servers are not stopped for that.
        config_file: configuration of the managed service.
        secret_file: where the secret is kept from which the signing key derives, if neither is given: what was
            launched before a restart of the Hub must be recognised after it. Made, for its owner's eyes only, if there
            is none. None: a new one at every start of the Hub.

    Raises:
        ValueError: the arguments contradict each other.

    """
    if (engine is None) == (spawner_class is None):
        raise ValueError("install_launcher needs either engine= or spawner_class=")
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"install_launcher: unknown engine {engine!r}; there are: {', '.join(ENGINES)}")
    if url and not api_token:
        raise ValueError("install_launcher: an external service (url=) needs its api_token=")
    if url and (config_file or images):
        raise ValueError(
            "install_launcher: an external service has config_file and images ($JHLAUNCHER_IMAGES) on its own side"
        )
    if signing_key and len(signing_key) < MIN_KEY_LENGTH:
        raise ValueError(f"install_launcher: signing_key= needs at least {MIN_KEY_LENGTH} characters")
    if isinstance(images, str):
        raise ValueError(f"install_launcher: images= is a list, for example [{images!r}]")
    if engine is not None:
        _check_installed(ENGINES[engine], f"engine={engine!r}", engine)
    culler, culler_role = _culler(idle_timeout) if idle_timeout is not None else ([], [])
    key = signing_key or derive_key(api_token or _secret(secret_file))
    c.JupyterHub.spawner_class = _mixed(spawner_class) if spawner_class else ENGINES[engine or ""]
    c.LauncherSpawnerMixin.signing_key = key
    c.SetsPasswords.signing_key = key  # of the authenticators in jhlauncher.authenticators
    c.LauncherSpawnerMixin.launcher_path = f"/services/{name}/"

    service: dict[str, Any] = {
        "name": name,
        "url": url or f"http://127.0.0.1:{free_port(SERVICES)}",
        # what the page may do for who looks at it, as far as they may do it themselves; the administrator installs it
        "oauth_client_allowed_scopes": ["admin:users", "read:users:groups", "servers"],
        "oauth_no_confirm": True,
    }
    if urlsplit(service["url"]).port is None:
        raise ValueError("install_launcher: url= needs a port, as JupyterHub demands")
    c.LauncherSpawnerMixin.launcher_url = service["url"]
    if api_token:  # of a managed service's own, the Hub makes one, which costs it less to check than what it was given
        service["api_token"] = api_token
    if not url:
        service["command"] = [sys.executable, "-m", "jhlauncher"]
        if config_file:
            service["command"].append(f"--config={config_file}")
        service["environment"] = {
            KEY_ENV: key,
            MANAGED_ENV: "1",
            "JHLAUNCHER_IMAGES": json.dumps(list(images)),
        }
    # `servers` is what starts, stops and reads them on every version of JupyterHub
    scopes = ["admin:users", "servers", "tokens", *(["admin:server_state"] if server_state else [])]
    scopes.append(f"read:services!service={name}")  # what the Hub's side says of itself, for `jhlauncher check`
    role = {
        "name": name if len(name) >= 3 else f"{name}-service",
        "description": "Launch servers for users, and mint tokens for them",
        "scopes": scopes,
        "services": [name],
    }
    c["JupyterHub"] = _section(c.JupyterHub, [service, *culler], [role, *culler_role], key_fingerprint(key))


def _culler(idle_timeout: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The service that stops idle servers, and its role (https://github.com/jupyterhub/jupyterhub-idle-culler)."""
    if isinstance(idle_timeout, bool) or not isinstance(idle_timeout, int) or idle_timeout < 1:
        raise ValueError(f"install_launcher: idle_timeout= is a whole number of seconds, not {idle_timeout!r}")
    _check_installed("jupyterhub_idle_culler", "idle_timeout=", "culler")
    command = [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={idle_timeout}"]
    scopes = ["list:users", "read:users:activity", "read:servers", "delete:servers"]
    return (
        [{"name": CULLER, "command": command}],
        [{"name": CULLER, "description": "Stop idle servers", "scopes": scopes, "services": [CULLER]}],
    )


def _secret(file: str | None) -> str:
    return _kept_secret(Path(file)) if file else secrets.token_hex(32)


_reading = ContextVar("reading", default=False)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A configuration is only read: no secret is made, which then would be whoever's reads it."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def _kept_secret(path: Path) -> str:
    """The secret in a file, which is made if there is none, as JupyterHub does with its cookie secret.

    Raises:
        ValueError: others may read it, it is empty, or it can't be read or written.

    """
    if _reading.get() and not path.exists():
        return secrets.token_hex(32)
    try:
        with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, _NEW_SECRET, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        if path.stat().st_mode & 0o077:
            raise ValueError(f"install_launcher: {path} must be readable by its owner only (chmod 600 {path})")
        secret = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ValueError(
            f"install_launcher: the secret can't be kept in {path} ({error.strerror}); give signing_key=, "
            "another secret_file=, or secret_file=None for a new secret at every start"
        ) from None
    if len(secret) < MIN_KEY_LENGTH:
        raise ValueError(f"install_launcher: {path} must have at least {MIN_KEY_LENGTH} characters")
    return secret


def _check_installed(what: str, argument: str, extra: str) -> None:
    """Say here what is missing, rather than have JupyterHub fail to import a class or to start a service."""
    try:
        import_item(what)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"install_launcher({argument}) needs the package {error.name}, "
            f"which the extra [{extra}] of jhlauncher installs"
        ) from error


def _section(
    values: Config, services: list[dict[str, Any]], roles: list[dict[str, Any]], key_fingerprint: str
) -> Config:
    """The section ``values``; whoever reads it finds our services and roles among the administrator's.

    Added on reading, because later lines of the configuration may assign ``services`` and ``load_roles`` anew.
    traitlets reads a section with ``items`` when it merges or copies it.
    """

    class Section(Config):
        def items(self) -> Any:
            theirs, their_roles = (_as_list(self.get(key)) for key in ("services", "load_roles"))
            launcher, *others = services
            told = {**launcher, "info": {INFO: _info(self, key_fingerprint)}}
            ours = {
                "services": _with_services(theirs, [told, *others]),
                "load_roles": _with_roles(their_roles, roles),
            }
            return {**dict(super().items()), **ours}.items()

        def copy(self) -> dict[str, Any]:
            return Config(dict(self.items()))

        def __deepcopy__(self, memo: Any) -> Config:
            return copy.deepcopy(Config(dict(self.items())), memo)

    return Section(dict(values.items()))


def _info(section: Config, key_fingerprint: str) -> dict[str, Any]:
    """What the Hub's side says of itself to who may read this service there."""
    spawner = section.get("spawner_class")
    return {
        "version": __version__,
        "key_fingerprint": key_fingerprint,
        "spawner_class": f"{spawner.__module__}.{spawner.__qualname__}" if isinstance(spawner, type) else str(spawner),
        "launches": _understands_launches(spawner),
        "named_servers": bool(section.get("allow_named_servers", False)),
    }


def _understands_launches(spawner: Any) -> bool:
    from .spawner import LauncherSpawnerMixin

    try:
        return issubclass(_resolve(spawner), LauncherSpawnerMixin)
    except (ImportError, TypeError, AttributeError):
        return False


def _as_list(value: Any) -> list[dict[str, Any]]:
    """The list, however it was written: assigned, or appended to with nothing assigned before."""
    return value.get_value([]) if isinstance(value, LazyConfigValue) else list(value or ())


def _with_services(services: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {service.get("name") for service in services}
    if ours[0]["name"] in names:
        raise ValueError(
            f"There is another service named {ours[0]['name']!r}; choose a name with install_launcher(name=)"
        )
    # a culler of the administrator's own stays
    return [*services, *(service for service in ours if service["name"] not in names)]


def _with_roles(roles: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roles and ours, and every user may reach the service (JupyterHub's role "user" is everybody's)."""
    access = f"access:services!service={ours[0]['services'][0]}"
    everybody = [role for role in roles if role.get("name") == "user"] or [{"name": "user"}]
    others = [role for role in roles if role.get("name") != "user"]
    names = {role.get("name") for role in others}
    return [
        *others,
        *({**role, "scopes": [*role.get("scopes", ["self"]), access]} for role in everybody),
        ours[0],
        *(role for role in ours[1:] if role["name"] not in names),
    ]


def _mixed(spawner_class: type | str) -> type:
    """The class with the mixin of its engine, or with the one that fits any."""
    from .spawner import LauncherSpawnerMixin

    base = _resolve(spawner_class)
    if issubclass(base, LauncherSpawnerMixin):
        return base
    ancestors = {ancestor.__name__ for ancestor in base.__mro__}
    known = next((mixin for name, mixin in MIXINS.items() if name in ancestors), None)
    mixin = import_item(known) if known else LauncherSpawnerMixin
    return type(f"Launcher{base.__name__}", (mixin, base), {"__module__": base.__module__})


def _resolve(spawner_class: type | str) -> type:
    if isinstance(spawner_class, type):
        return spawner_class
    for entry in entry_points(group="jupyterhub.spawners"):
        if entry.name.lower() == spawner_class.lower():
            return entry.load()  # type: ignore[no-any-return]
    return import_item(spawner_class)  # type: ignore[no-any-return]
