"""Logins with GitHub at the Hub of etc/swarm, in front of an OAuth provider on loopback that follows a script."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import pytest_asyncio

from jhlauncher.ports import SERVICES, free_port
from tests.deployments.support import ETC, Visitor, needs, run

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real_hub,
    pytest.mark.skipif(bool(needs("openssl")), reason=needs("openssl")),
]

SECRET = "the secret of the application at GitHub"


@dataclass
class Provider:
    """As much of GitHub as logging in takes (https://docs.github.com/apps/oauth-apps), and who is at the keyboard."""

    login: str = "Octocat"
    denies: bool = False
    """They do not let the Hub know who they are."""
    lies: bool = False
    """The code that they come back with is not the provider's."""
    stranger: bool = False
    """Nothing is wrong with them, but nobody has let them in."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """What the Hub has sent to have a code redeemed."""
    codes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/login/oauth/authorize":
            assert query["client_id"] == "client-1"
            code = secrets.token_hex(8)
            if not self.provider.lies:
                self.provider.codes.add(code)
            answer = {"error": "access_denied"} if self.provider.denies else {"code": code}
            self.send_response(302)
            self.send_header("Location", f"{query['redirect_uri']}?{urlencode({**answer, 'state': query['state']})}")
            self.end_headers()
        elif parts.path == "/api/v3/user" and self.headers["Authorization"].endswith("access-1"):
            self._json(200, {"login": self.provider.login, "id": 1, "email": "o@example.org"})
        else:
            self._json(404, {"message": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.provider.asked.append(form)
        if form.get("client_secret") == SECRET and form.get("code") in self.provider.codes:
            self.provider.codes.remove(form["code"])
            self._json(200, {"access_token": "access-1", "token_type": "bearer", "scope": ""})
        else:
            self._json(200, {"error": "bad_verification_code"})  # GitHub's errors have the status 200

    def _json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@dataclass
class SwarmsHub:
    """The Hub of the stack, as a process; its servers' swarm is not asked for anything here."""

    folder: Path
    provider: Provider
    url: str

    def visitor(self, token: str = "") -> Visitor:
        return Visitor(self.url, token, trusting=self.folder / "secrets/tls_cert")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmsHub]:
    folder = tmp_path_factory.mktemp("github") / "swarm"
    shutil.copytree(ETC / "swarm", folder)
    run("./make-secrets", cwd=folder)
    (folder / "secrets/oauth_client_secret").write_text(SECRET + "\n")
    public, hub_port, api = (free_port(SERVICES) for _ in range(3))
    config = (folder / "jupyterhub_config.py").read_text()
    config = config.replace("/run/secrets", str(folder / "secrets")).replace("/srv/jupyterhub/data", str(folder))
    config = config.replace("/tmp/jupyterhub-proxy.pid", str(folder / "proxy.pid")).replace("8443", str(public))
    config += f"c.JupyterHub.hub_port = {hub_port}\nc.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{api}'\n"
    (folder / "jupyterhub_config.py").write_text(config)
    provider = Provider()
    url = f"https://localhost:{public}"
    settings = dict(
        line.split("=", 1) for line in (folder / "compose.env").read_text().splitlines() if line[:1].isupper()
    )
    settings |= {
        "AUTHENTICATOR_TYPE": "github",
        "AUTHENTICATOR_ADMIN_USERS": "octocat,grace",
        "OAUTH_CLIENT_ID": "client-1",
        "OAUTH_CLIENT_SECRET_FILE_PATH": str(folder / "secrets/oauth_client_secret"),
        "OAUTH_CALLBACK_URL": f"{url}/hub/oauth_callback",
        # of the stack
        "IMAGE_PREFIX": "localhost:5000/dlcc/",
        "STACK": "jupyterhub",
        "HUB_ADDRESS": "127.0.0.1",
        "SERVERS_NETWORK": "jupyterhub_servers",
        # of oauthenticator: GitHub elsewhere
        "GITHUB_URL": provider.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "jupyterhub", "--config", "jupyterhub_config.py"]
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log)
    try:
        yield SwarmsHub(folder, provider, url)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        provider.server.shutdown()
        provider.server.server_close()


@pytest_asyncio.fixture
async def platform(hub: SwarmsHub) -> AsyncIterator[Visitor]:
    async with hub.visitor((hub.folder / "secrets/platform_token").read_text().strip()) as platform:
        await platform.ready()
        yield platform


async def test_log_in_with_github(hub: SwarmsHub, platform: Visitor):
    async with hub.visitor() as user:
        status, page = await user.request("GET", "hub/login?next=/hub/home")
        assert "Sign in with GitHub" in page
        status, page = await user.request("GET", "hub/oauth_login?next=/hub/home")
        assert status == 200
        assert "octocat" in page
        # and from there to the launcher's page
        status, page = await user.request("GET", "services/launcher/", headers={"Accept": "text/html"})
        assert status == 200
        assert "Looking for your servers" in page
    (asked,) = hub.provider.asked
    assert asked["redirect_uri"] == f"{hub.url}/hub/oauth_callback"
    status, model = await platform.request("GET", "hub/api/users/octocat")
    assert (status, model["admin"]) == (200, True)


@pytest.mark.parametrize("what", ["denies", "lies", "stranger"])
async def test_who_may_not_stays_outside(hub: SwarmsHub, platform: Visitor, what: str):
    hub.provider.login = f"mallory-{what}"
    setattr(hub.provider, what, True)
    try:
        async with hub.visitor() as user:
            status, page = await user.request("GET", "hub/oauth_login?next=/hub/home")
            assert status >= 400, page
            assert SECRET not in page
            status, _ = await user.request("GET", "hub/home", allow_redirects=False)
            assert status == 302
    finally:
        setattr(hub.provider, what, False)
    status, _ = await platform.request("GET", f"hub/api/users/mallory-{what}")
    assert status == 404


async def test_the_secret_is_in_no_log(hub: SwarmsHub, platform: Visitor):
    log = (hub.folder / "log").read_text()
    for name in ("oauth_client_secret", "platform_token", "signing_key", "proxy_auth_token", "cookie_secret"):
        assert (hub.folder / "secrets" / name).read_text().strip() not in log, name
