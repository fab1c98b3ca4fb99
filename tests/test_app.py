"""The application: its settings, and its process from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from certipy import Certipy
from tornado.netutil import bind_unix_socket, ssl_options_to_context

from jhlauncher import __version__
from jhlauncher.app import LauncherApp
from jhlauncher.manager.app import ManagerApp
from jhlauncher.ports import SERVICES, free_port
from jhlauncher.service import HTTPService
from tests.conftest import running_service, until
from tests.fake_hub import PLATFORM_TOKEN, SERVICE_TOKEN, FakeHub, FakeServer

HUB = {"JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api", "JUPYTERHUB_API_TOKEN": "t" * 32}


def app_with(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> LauncherApp:
    for name, value in {**HUB, **environment}.items():
        monkeypatch.setenv(name, value)
    app = LauncherApp()
    app.initialize(list(arguments))
    return app


def test_environment_of_the_service_before_this_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUPYTERHUB_URL", "http://192.168.0.31:30711")
    monkeypatch.setenv("JUPYTERHUB_API_PREFIX", "/hub/api")
    app = app_with(
        monkeypatch,
        JUPYTERHUB_API_URL="",
        JUPYTERHUB_SERVICE_PREFIX="/services/my-launcher/",
        STATUS_CHECK_INTERVAL="2",
        STATUS_CHECK_COUNT="60",
        USER_TOKEN_LIFETIME="600",
        LOG_LEVEL="10",
    )
    launcher = app.parts.launcher
    assert app.parts.hub.api_url == "http://192.168.0.31:30711/hub/api"
    assert app.public_url == "http://192.168.0.31:30711"
    assert (app.prefix, app.service_name) == ("/services/my-launcher/", "my-launcher")
    assert (launcher.start_timeout, launcher.token_lifetime) == (120, 600)
    assert app.log_level == logging.DEBUG


def test_defaults(monkeypatch: pytest.MonkeyPatch):
    app = app_with(monkeypatch)
    launcher = app.parts.launcher
    assert (launcher.start_timeout, launcher.token_lifetime) == (300, 1800)
    assert (app.prefix, app.bind_url, app.public_url) == ("/services/launcher/", "http://127.0.0.1:5000", "")
    assert app.log_level == logging.INFO


@pytest.mark.parametrize("text", ["/services/launcher", "services/launcher/", "/services/launcher/"])
def test_prefix_is_a_folder(monkeypatch: pytest.MonkeyPatch, text: str):
    assert app_with(monkeypatch, JUPYTERHUB_SERVICE_PREFIX=text).prefix == "/services/launcher/"


@pytest.mark.parametrize(("text", "level"), [("WARNING", 30), ("debug", 10), ("40", 40)])
def test_log_level_by_number_or_name(monkeypatch: pytest.MonkeyPatch, text: str, level: int):
    assert app_with(monkeypatch, LOG_LEVEL=text).log_level == level


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = tmp_path / "config.py"
    config.write_text("c = get_config()\nc.Launcher.start_timeout = 7\nc.Policy.images = ['a:*']\n")
    app = app_with(monkeypatch, "--debug", f"--config={config}", LOG_LEVEL="50", STATUS_CHECK_COUNT="3")
    assert app.log_level == logging.DEBUG
    assert app.parts.launcher.start_timeout == 7


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        [sys.executable, "-m", "jhlauncher", *arguments], env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({}, [], "Hub's API is not known"),
        ({**HUB, "JUPYTERHUB_API_TOKEN": ""}, [], "no token for the Hub"),
        ({**HUB, "JUPYTERHUB_API_URL": "hub:8081"}, [], "http://"),
        ({**HUB, "JUPYTERHUB_API_PREFIX": "/other/api"}, [], "contradicts"),
        ({**HUB, "JUPYTERHUB_SERVICE_NAME": "a", "JUPYTERHUB_SERVICE_PREFIX": "/services/b/"}, [], "contradicts"),
        ({**HUB, "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1"}, [], "http://HOST:PORT"),
        ({**HUB, "JUPYTERHUB_SERVICE_URL": "https://127.0.0.1:1"}, [], "key and a certificate"),
        ({**HUB, "JUPYTERHUB_SSL_KEYFILE": "/key"}, [], "needs both"),
        ({**HUB, "JUPYTERHUB_SSL_KEYFILE": "/no", "JUPYTERHUB_SSL_CERTFILE": "/no"}, [], "/no can't be read"),
        ({**HUB, "JUPYTERHUB_URL": "hub.example.org"}, [], "public URL"),
        ({**HUB, "STATUS_CHECK_INTERVAL": "0"}, [], "STATUS_CHECK_INTERVAL"),
        ({**HUB, "STATUS_CHECK_COUNT": "many"}, [], "STATUS_CHECK_COUNT"),
        ({**HUB, "USER_TOKEN_LIFETIME": "-1"}, [], "USER_TOKEN_LIFETIME"),
        ({**HUB, "LOG_LEVEL": "loud"}, [], "LOG_LEVEL"),
        ({**HUB, "JHLAUNCHER_SIGNING_KEY": "short"}, [], "at least 32"),
        (HUB, ["--config=/nowhere.py"], "no configuration file /nowhere.py"),
        (HUB, ["--config=/etc/hostname"], "must end in .py"),
        (HUB, ["--Hub.request_timeout=-1"], "request_timeout"),
        ({**HUB, "USER_TOKEN_LIFETIME": "0.5"}, [], "token_lifetime"),
        (HUB, ["--LauncherApp.shutdown_timeout=soon"], "shutdown_timeout"),
        (HUB, ["--Policy.rules={}"], "rules"),
        (HUB, ["--Launcher.start_timout=3"], "Launcher.start_timout is not a setting"),
        (HUB, ["--Lancher.start_timeout=3"], "Lancher has no settings here"),
        (HUB, ["demo", "bogus"], "unknown argument 'bogus'"),
        (HUB, ["--no-such-option"], "no-such-option"),
        (HUB, ["start"], "start"),
    ],
)
def test_wrong_settings_are_one_clear_line_and_status_2(environment: dict[str, str], arguments: list[str], said: str):
    result = run(*arguments, **environment)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_version_and_help():
    assert run("--version").stdout.strip() == __version__
    text = run("--help-all").stdout
    for trait in ("Launcher.start_timeout", "Hub.retry_timeout", "Policy.rules", "LauncherApp.shutdown_timeout"):
        assert f"--{trait}" in text


def test_generated_configuration_is_valid(tmp_path: Path):
    path = tmp_path / "jhlauncher_config.py"
    assert run("--generate-config", f"--config={path}").returncode == 0
    assert "# c.Launcher.token_lifetime = 1800" in path.read_text()
    again = run("--generate-config", f"--config={path}")
    assert (again.returncode, "is not overwritten" in again.stderr) == (2, True)
    compile(path.read_text(), path, "exec")


@asynccontextmanager
async def process(hub: FakeHub, *arguments: str, **environment: str) -> AsyncIterator[tuple[Any, str]]:
    """The service as a process of its own, and its URL."""
    port = free_port(SERVICES)
    scheme = "https" if "JUPYTERHUB_SSL_KEYFILE" in environment else "http"
    env = {
        "PATH": os.environ["PATH"],
        "JUPYTERHUB_API_TOKEN": SERVICE_TOKEN,
        "JUPYTERHUB_API_URL": hub.api_url,
        "JUPYTERHUB_SERVICE_NAME": "launcher",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/launcher/",
        "JUPYTERHUB_SERVICE_URL": f"{scheme}://127.0.0.1:{port}",
        **environment,
    }
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jhlauncher", *arguments), env=env, stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr
    line = await asyncio.wait_for(child.stderr.readline(), 60)
    assert b"Listening" in line
    try:
        yield child, f"{scheme}://127.0.0.1:{port}/services/launcher/"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def accepts_connections(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as sock:
        return sock.connect_ex((address.hostname, address.port)) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_graceful_stop(hub: FakeHub, number: signal.Signals):
    """Running launches get their time, and then an honest error; new ones are not taken."""
    hub.auto_finish = False
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    async with (
        process(hub, "--LauncherApp.shutdown_timeout=1") as (child, url),
        aiohttp.ClientSession(headers=headers) as client,
    ):

        async def launch(user: str) -> tuple[int, Any]:
            body = {"username": user, "image": "i"}
            async with client.post(f"{url}containers", json=body) as response:
                return response.status, await response.json()

        quick, slow = (asyncio.create_task(launch(user)) for user in ("quick", "slow"))
        await until(lambda: len(hub.servers) == 2)
        child.send_signal(number)
        await until(lambda: not accepts_connections(url))
        hub.servers["quick", ""].finish()
        assert (await quick)[0] == 200
        status, error = await slow
        assert (status, error["reason"]) == (503, "shutting_down")
        assert await asyncio.wait_for(child.wait(), 5) == 0


@pytest.mark.asyncio
async def test_internal_tls(tmp_path: Path):
    """The certificates that the Hub hands out are used both ways: towards the Hub, and for whoever calls."""
    certipy = Certipy(store_dir=str(tmp_path))
    for name in ("hub-ca", "services-ca"):
        certipy.create_ca(name)
    alt_names = ["IP:127.0.0.1", "DNS:localhost"]
    hub_files = certipy.create_signed_pair("hub", "hub-ca", alt_names=alt_names)["files"]
    service_files = certipy.create_signed_pair("service", "services-ca", alt_names=alt_names)["files"]
    bundles = certipy.trust_from_graph({"hub-ca": ["services-ca"], "services-ca": ["hub-ca"]})

    def context(files: dict[str, str], ca: str) -> ssl.SSLContext:
        return ssl_options_to_context(
            {"certfile": files["cert"], "keyfile": files["key"], "ca_certs": ca, "cert_reqs": ssl.CERT_REQUIRED},
            server_side=True,
        )

    hub = FakeHub()
    await hub.start(ssl_options=context(hub_files, bundles["hub-ca"]))
    environment = {
        "JUPYTERHUB_SSL_KEYFILE": service_files["key"],
        "JUPYTERHUB_SSL_CERTFILE": service_files["cert"],
        "JUPYTERHUB_SSL_CLIENT_CA": bundles["services-ca"],
    }
    client_context = ssl.create_default_context(cafile=bundles["hub-ca"])
    client_context.load_cert_chain(hub_files["cert"], hub_files["key"])
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    try:
        async with process(hub, **environment) as (_, url), aiohttp.ClientSession(headers=headers) as client:
            async with client.get(f"{url}ready", ssl=client_context) as response:
                assert (response.status, (await response.json())["ready"]) == (200, True)
            body = {"username": "alice", "image": "i"}
            async with client.post(f"{url}containers", json=body, ssl=client_context) as response:
                assert response.status == 200, await response.text()
            stranger = ssl.create_default_context(cafile=bundles["hub-ca"])
            with pytest.raises(aiohttp.ClientError):
                async with client.get(f"{url}health", ssl=stranger):
                    pass
    finally:
        await hub.stop()


@pytest.mark.asyncio
async def test_unix_socket_of_a_hub(hub: FakeHub, tmp_path: Path):
    """JupyterHub listens on one where its hub_bind_url says so."""
    path = tmp_path / "hub.sock"
    hub._server.add_socket(bind_unix_socket(str(path)))
    api_url = f"http+unix://{str(path).replace('/', '%2F')}/hub/api"
    async with running_service(hub, Hub={"api_url": api_url}) as service:
        status, body = await service.request("GET", "ready", token=None)
        assert (status, body["ready"]) == (200, True)
        status, body = await service.launch()
        assert status == 200, body


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("public_url", "headers", "expected"),
    [
        ("https://hub.example.org/base", {}, "https://hub.example.org/user/alice/"),
        ("", {"X-Forwarded-Proto": "https", "Host": "hub.example.org"}, "https://hub.example.org/user/alice/"),
        ("", {"Forwarded": "for=1.2.3.4;proto=https", "Host": "h:8443"}, "https://h:8443/user/alice/"),
        ("", {"Host": "h:8000"}, "http://h:8000/user/alice/"),
    ],
)
async def test_urls_behind_a_proxy(hub: FakeHub, public_url: str, headers: dict[str, str], expected: str):
    async with running_service(hub, LauncherApp={"public_url": public_url}) as service:
        body = {"username": "alice", "image": "i"}
        _, answer = await service.request("POST", json=body, headers=headers)
        assert answer["url"] == expected


@pytest.mark.asyncio
async def test_url_that_the_hub_knows(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    model = FakeServer.model
    monkeypatch.setattr(FakeServer, "model", lambda self: {**model(self), "full_url": "https://alice.hub.example.org/"})
    async with running_service(hub) as service:
        _, answer = await service.launch()
        assert answer["url"] == "https://alice.hub.example.org/"


def test_configuration_names_every_trait_with_help():
    for section in (LauncherApp, HTTPService, ManagerApp, *LauncherApp.classes, *ManagerApp.classes):
        for name, trait in section.class_own_traits(config=True).items():
            assert len(trait.help) > 10, f"{section.__name__}.{name} has no help"
