"""What a launcher service can find out about itself and its Hub: where it runs, with its settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from traitlets import TraitError

from .._version import __version__
from ..app import LauncherApp
from ..database import Database
from ..errors import LauncherError, Unauthenticated
from ..hub import NEEDED_SCOPES, Hub
from ..install import INFO
from ..models import Caller
from ..signing import MIN_KEY_LENGTH, derive_key, key_fingerprint
from .findings import Finding, good, problem, skipped, warning
from .on_systems import of_systems
from .probing import Address, Answer, NoAnswer, NotTrusted, ask

_OLDEST_HUB = (5, 4)
_APART = 30
"""Seconds that the clocks of two machines may differ before somebody should know."""
_REFUSED = 300
"""Seconds beyond which launches are refused, unless `LauncherSpawnerMixin.signature_lifetime` is another."""
_INSTALL = "Configure the Hub with install_launcher of this version (docs/install.md), and restart it."


class ServiceSide:
    """Looks at one launcher service.

    Args:
        app: with its settings.
        hub: its connection to the Hub, not started.
        database: its database, not started.
        where: JupyterHub's address as clients see it.

    """

    def __init__(self, app: LauncherApp, hub: Hub, database: Database, where: Address) -> None:
        self._app = app
        self._hub = hub
        self._database = database
        self._where = where

    async def findings(self) -> AsyncIterator[Finding]:
        """Everything that can be found out, in the order in which it matters."""
        try:
            self._hub.validate_settings()
        except TraitError as error:
            yield problem("settings", str(error), "Give the service what docs/install.md says of an external service.")
        else:
            async for finding in self._of_the_hub():
                yield finding
        yield self._key_length()
        yield await of_the_proxy(self._where, self._app.prefix)
        yield await self._of_the_database()
        async for finding in of_systems(self._app):
            yield finding

    # -- the Hub

    async def _of_the_hub(self) -> AsyncIterator[Finding]:
        url = self._hub.api_url.rstrip("/") + "/"
        try:
            answer = await ask(url, self._hub.ssl_context())
        except NoAnswer as error:
            remedy = "Start JupyterHub; JUPYTERHUB_API_URL is http://HUB:8081/hub/api, as seen from this machine."
            yield problem("hub", f"JupyterHub does not answer at {url}: {error}", remedy)
            return
        version = answer.get("version")
        if answer.status != 200 or not isinstance(version, str):
            remedy = "JUPYTERHUB_API_URL must end in the Hub's base URL and hub/api: http://HUB:8081/hub/api."
            yield problem("hub", f"What answers at {url} ({answer.status}) is not JupyterHub's API.", remedy)
            return
        if _numbers(version) < _OLDEST_HUB:
            yield problem("hub", f"JupyterHub {version} is too old.", "Upgrade to JupyterHub 5.4 or newer.")
            return
        yield good("hub", f"JupyterHub {version} answers at {url}")
        yield _of_the_clock(answer)
        await self._hub.start()
        try:
            async for finding in self._of_the_token():
                yield finding
        except LauncherError as error:
            yield problem("hub", error.message, "Look into JupyterHub's log.")
        finally:
            await self._hub.stop()

    async def _of_the_token(self) -> AsyncIterator[Finding]:
        name = self._app.service_name
        try:
            holder = await self._hub.identify(self._hub.api_token)
        except Unauthenticated:
            remedy = "JUPYTERHUB_API_TOKEN must be the api_token= of install_launcher; restart the Hub after a change."
            yield problem("token", "JupyterHub does not know the launcher's token.", remedy)
            return
        if holder.kind != "service" or holder.name != name:
            message = f"The launcher's token is of the {holder.kind} {holder.name}, not of the service {name}."
            remedy = "Give it the api_token= of install_launcher, or set LauncherApp.service_name."
            yield problem("token", message, remedy)
            return
        yield good("token", f"JupyterHub knows the token as the service {name}'s.")
        yield _of_the_scopes(holder)
        model = await self._hub.service(name)
        info = ((model or {}).get("info") or {}).get(INFO)
        if not model or not isinstance(info, dict):
            yield warning("hub's side", "The Hub does not say how its side of the launcher is configured.", _INSTALL)
            return
        yield self._of_the_address(model)
        yield self._of_the_key(str(info.get("key_fingerprint")))
        for finding in of_the_hubs_side(info):
            yield finding

    def _of_the_address(self, model: dict[str, Any]) -> Finding:
        theirs, ours = urlsplit(model.get("url") or ""), urlsplit(self._app.bind_url)
        if model.get("prefix") and model["prefix"] != self._app.prefix:
            message = f"The Hub sends {model['prefix']} to the launcher, which answers at {self._app.prefix}."
            return problem("address", message, "JUPYTERHUB_SERVICE_PREFIX must be /BASE_URL/services/NAME/.")
        if (theirs.scheme, theirs.port) != (ours.scheme, ours.port):
            message = f"The Hub's proxy looks for the launcher at {model.get('url')}, which listens on {ours.geturl()}."
            remedy = "Make url= of install_launcher and JUPYTERHUB_SERVICE_URL agree, or see that a Service maps them."
            return warning("address", message, remedy)
        return good("address", f"The Hub's proxy looks for the launcher at {model.get('url')}.")

    # -- the signing key

    @property
    def _signing_key(self) -> str:
        return self._app.signing_key or (derive_key(self._hub.api_token) if self._hub.api_token else "")

    def _of_the_key(self, fingerprint: str) -> Finding:
        if key_fingerprint(self._signing_key) == fingerprint:
            return good("signing key", "It is the same on the Hub's side.")
        return problem(
            "signing key",
            "The Hub's side has another signing key: it refuses every launch as not signed.",
            "Give signing_key= of install_launcher to the service as JHLAUNCHER_SIGNING_KEY; without one, both derive "
            "it from the api_token.",
        )

    def _key_length(self) -> Finding:
        given = self._app.signing_key
        if given and len(given) < MIN_KEY_LENGTH:
            message = f"The signing key has {len(given)} characters, and must have at least {MIN_KEY_LENGTH}."
            return problem("signing key", message, "Make one with: openssl rand -hex 32")
        if not self._signing_key:
            return skipped("signing key", "It derives from the launcher's token, and there is none.")
        return good("signing key", "It is given." if given else "It is derived from the token.")

    # -- the rest

    async def _of_the_database(self) -> Finding:
        database = self._database
        try:
            database.validate_settings()
            version = await asyncio.to_thread(database.look)
        except TraitError as error:
            remedy = (
                "Its place is JHLAUNCHER_DB_URL; an older schema is upgraded, with all replicas stopped, by upgrade-db."
            )
            return problem("database", _sentence(str(error)), remedy)
        if version is None:
            return good("database", f"{database.label} is empty; the service will make its tables.")
        return good("database", f"{database.label} has the schema of this version ({version}).")


def of_the_hubs_side(info: dict[str, Any]) -> list[Finding]:
    """What `install_launcher` has left at the Hub to be seen."""
    findings = []
    spawner = info.get("spawner_class")
    if info.get("launches"):
        findings.append(good("spawner", f"The Hub's spawner class is {spawner}."))
    else:
        message = f"The Hub's spawner class {spawner} does not understand launches: it would start something else."
        remedy = "Let no line after install_launcher set c.JupyterHub.spawner_class; give it spawner_class= instead."
        findings.append(problem("spawner", message, remedy))
    if info.get("version") != __version__:
        message = f"The Hub's side has jhlauncher {info.get('version')}, this is {__version__}."
        findings.append(warning("version", message, "Install the same version on both sides."))
    if not info.get("named_servers"):
        message = "Named servers are off: nobody can launch a second server."
        findings.append(warning("named servers", message, "c.JupyterHub.allow_named_servers = True"))
    else:
        findings.append(good("named servers", "They are on."))
    return findings


async def of_the_proxy(where: Address, prefix: str) -> Finding:
    """Whether the launcher answers where clients ask for it."""
    if not where.url:
        remedy = "Set JUPYTERHUB_URL to it, as it is reached from here."
        return skipped("proxy", "JupyterHub's address as clients see it is not known here.", remedy)
    url = where.below(f"{prefix}health")
    try:
        answer = await ask(url, trusting=where.on_loopback)
    except NotTrusted as error:
        remedy = "Clients need the certificate of who has signed it; or use one that is signed publicly."
        return warning("proxy", f"The certificate at {url} is not trusted here: {error}", remedy)
    except NoAnswer as error:
        return problem("proxy", f"JupyterHub's proxy does not answer at {url}: {error}", "Start it; check its address.")
    if answer.status == 200 and answer.get("status") == "ok":
        return good("proxy", f"The launcher answers through it at {url}")
    if answer.status in (502, 503, 504):
        message = f"JupyterHub's proxy answers {answer.status} at {url}: it does not reach the launcher."
        return problem("proxy", message, "Start the launcher; check url= of install_launcher, as seen from the proxy.")
    message = f"What answers at {url} ({answer.status}) is not the launcher."
    remedy = "Check JupyterHub's address and base URL, and the service's name; restart a Hub that was just configured."
    return problem("proxy", message, remedy)


def _of_the_clock(answer: Answer) -> Finding:
    try:
        hub = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except ValueError:
        return skipped("clock", "The Hub does not say what time it is.")
    apart = abs(time.time() - hub)
    if apart < _APART:
        return good("clock", "The Hub's clock and this one agree.")
    remedy = f"Synchronise both (NTP). Beyond {_REFUSED} s (signature_lifetime), launches are refused."
    rate = warning if apart < _REFUSED else problem
    return rate("clock", f"The Hub's clock and this one are {apart:.0f} s apart.", remedy)


def _of_the_scopes(holder: Caller) -> Finding:
    missing = NEEDED_SCOPES - {scope.partition("!")[0] for scope in holder.scopes}
    whole = {scope for scope in holder.scopes if "!" not in scope}
    if missing:
        lacking = ", ".join(sorted(missing))
        remedy = "Let install_launcher make the role, or give these scopes to the one that you made."
        return problem("scopes", f"The launcher's role lacks {lacking}.", remedy)
    if filtered := NEEDED_SCOPES - whole:
        message = f"The launcher's role has {', '.join(sorted(filtered))} for some users only."
        return warning("scopes", message, "For the others, launches are refused. Take the filter out if not wanted.")
    return good("scopes", f"The launcher's role has {', '.join(sorted(NEEDED_SCOPES))}.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
