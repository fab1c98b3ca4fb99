"""Where the launcher is, and the token for it: given, from the environment, or from a file.

The file is ``~/.config/jhlauncher/client.toml`` (below ``$XDG_CONFIG_HOME``, if that is set)::

    url = "https://hub.example.org/services/launcher/"
    token = "..."

In a server of JupyterHub's, the token is the server's own, if nobody says another and its environment has the address.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .. import environment

URL_ENV, TOKEN_ENV = "JHLAUNCHER_URL", "JHLAUNCHER_TOKEN"
_SERVERS_TOKEN_ENV = "JUPYTERHUB_API_TOKEN"  # noqa: S105  (a name)


class SettingsMissing(ValueError):
    """Where the launcher is, or the token for it, is not known, or is given in a form that can't be used."""


@dataclass(frozen=True)
class Settings:
    """Where the launcher is, and the token for it."""

    url: str
    """Ends with a slash."""
    token: str = field(repr=False)


def usual_file() -> Path:
    """Where the configuration file is looked for."""
    base = environment.text("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "jhlauncher" / "client.toml"


def settings(url: str | None = None, token: str | None = None, file: str | os.PathLike[str] | None = None) -> Settings:
    """What is given, else what the environment has, else what the file has; each of the two for itself.

    Without any token, that of the server that this runs in is taken, for an address of the environment only: whoever
    configures the server says both.

    Args:
        url: the service's address, ``https://HUB/services/launcher/``.
        token: of JupyterHub.
        file: instead of `usual_file`; it must be there.

    Raises:
        SettingsMissing: one of them is not known, or not good.

    """
    configured = "" if url else environment.text(URL_ENV)
    url = url or configured
    token = token or environment.text(TOKEN_ENV)
    # the address in a file is for the token in it: never is it sent somewhere else than was meant
    kept = {} if url and token else _from_file(Path(file) if file else usual_file(), needed=bool(file))
    if not url:
        url = kept.get("url", "")
        token = token or kept.get("token", "")
    elif not token and _same(kept.get("url", ""), url):
        token = kept.get("token", "")
    if not token and configured:
        token = environment.text(_SERVERS_TOKEN_ENV)
    if not url:
        raise SettingsMissing(f"Where is the launcher? Set ${URL_ENV}, or url in {file or usual_file()}.")
    if not _good(url):
        raise SettingsMissing(f"The launcher's address must be https://HUB/services/launcher/, not {url!r}.")
    if not token:
        raise SettingsMissing(f"There is no token for {url}. Set ${TOKEN_ENV}, or token in {file or usual_file()}.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsMissing("The token has characters that no token of JupyterHub's has.")
    return Settings(url.rstrip("/") + "/", token)


def _good(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        return False


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")


def _from_file(path: Path, *, needed: bool) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SettingsMissing(f"{path} may have a token, and others may read it: chmod 600 {path}")
            values = tomllib.load(file)
    except FileNotFoundError:
        if needed:
            raise SettingsMissing(f"There is no file {path}.") from None
        return {}
    except OSError as error:
        raise SettingsMissing(f"{path} can't be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsMissing(f"{path} is not valid TOML: {error}.") from None
    if unknown := values.keys() - {"url", "token"}:
        raise SettingsMissing(f"{path}: {min(unknown)} is not a setting; there are url and token.")
    if not all(isinstance(value, str) for value in values.values()):
        raise SettingsMissing(f"{path}: url and token are texts.")
    return values
