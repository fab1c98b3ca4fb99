"""What can be found out where the Hub runs, from its configuration."""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from jupyterhub.proxy import ConfigurableHTTPProxy

from ..hub import NEEDED_SCOPES
from .findings import Finding, good, problem, skipped, warning
from .found import EngineUnavailable
from .hub_config import HubSide
from .probing import Address, NoAnswer, ask
from .service_side import of_the_hubs_side, of_the_proxy


async def findings(hub: HubSide, where: Address) -> AsyncIterator[Finding]:
    """Everything that can be found out, in the order in which it matters.

    Args:
        hub: as it is configured.
        where: JupyterHub's address as clients see it.

    """
    yield good("configuration", f"{hub.label} can be read.")
    if not hub.launcher:
        remedy = "Call install_launcher in jupyterhub_config.py (docs/install.md)."
        yield problem("service", "The Hub's configuration has no launcher in it.", remedy)
        return
    for finding in of_the_hubs_side(hub.info):
        yield finding
    yield _of_the_role(hub)
    yield _of_the_address(hub)
    if missing := _of_the_proxys_command(hub):
        yield missing
    async for finding in _of_the_engine(hub):
        yield finding
    prefix = f"{hub.app.base_url}services/{hub.launcher['name']}/"
    proxy = await of_the_proxy(where, prefix)
    yield proxy
    if proxy.status == "ok":
        yield await _of_the_launcher(where, prefix)
    else:
        yield skipped("launcher", "It could not be asked through the proxy.")


def _of_the_role(hub: HubSide) -> Finding:
    held = {scope.partition("!")[0] for scope in hub.scopes}
    if missing := NEEDED_SCOPES - held:
        message = f"No role in the configuration gives {', '.join(sorted(missing))} to the launcher."
        return problem("role", message, "Let no line after install_launcher make a role of its name.")
    return good("role", "The launcher has a role with the scopes that it needs.")


def _of_the_address(hub: HubSide) -> Finding:
    host = urlsplit(hub.api_url).hostname or ""
    if hub.servers_are_elsewhere and (host in ("localhost", "::1") or host.startswith("127.")):
        message = f"Servers are told to find the Hub at {hub.api_url}, which is their own loopback address."
        remedy = 'c.JupyterHub.hub_ip = "0.0.0.0", and hub_connect_ip: where servers reach the Hub.'
        return problem("hub's address", message, remedy)
    if hub.servers_are_elsewhere and (hub.listens == "localhost" or hub.listens.startswith("127.")):
        message = f"The Hub listens on {hub.listens} only, where servers do not reach it."
        return problem("hub's address", message, 'c.JupyterHub.hub_ip = "0.0.0.0"')
    if hub.servers_are_elsewhere and host == socket.gethostname():
        message = f"Servers are told to find the Hub at {hub.api_url}: is this machine's name one that they know?"
        return warning("hub's address", message, "c.JupyterHub.hub_connect_ip: where servers reach the Hub.")
    return good("hub's address", f"Servers are told to find the Hub at {hub.api_url}")


def _of_the_proxys_command(hub: HubSide) -> Finding | None:
    """The proxy's command is there, where the Hub starts it."""
    proxy = hub.proxy
    if not isinstance(proxy, ConfigurableHTTPProxy):
        return None
    if proxy.should_start and not shutil.which(proxy.command[0]):
        message = f"The Hub is to start its proxy with {proxy.command[0]}, which is not there."
        return problem("proxy's command", message, "npm install -g configurable-http-proxy, and its folder in PATH.")
    return None


async def _of_the_engine(hub: HubSide) -> AsyncIterator[Finding]:
    try:
        engine = hub.engine()
    except EngineUnavailable as error:
        remedy = "See that the Hub's process finds what its spawner talks to."
        yield problem("engine", f"The engine can't be used: {error}", remedy)
        return
    if engine is None:
        yield skipped("engine", f"Nothing is known of where {hub.spawner_class.__name__} starts servers.")
        return
    async for finding in engine.check():
        yield finding


async def _of_the_launcher(where: Address, prefix: str) -> Finding:
    """What the running service says of itself."""
    try:
        answer = await ask(where.below(f"{prefix}ready"), trusting=where.on_loopback)
    except NoAnswer as error:
        return problem("launcher", f"It does not answer: {error}", "Look into its log.")
    checks = answer.get("checks")
    checks = checks if isinstance(checks, dict) else {}
    wrong = [check["message"] for check in checks.values() if not check["ok"]]
    if answer.status != 200:
        return problem("launcher", " ".join(wrong) or f"It answers {answer.status}.", "Restart the Hub; see its log.")
    return good("launcher", "It is ready: the Hub takes its token, and its role has what it needs.")
