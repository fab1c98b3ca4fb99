"""Malformed requests: each gets its exact status and the one error shape, and none reaches the Hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.web import Application
from traitlets.config import Config

from jhlauncher.app import LauncherApp
from tests.fake_hub import PLATFORM_TOKEN, SERVICE_TOKEN, FakeHub

GOOD = {"username": "alice", "image": "image:1"}
VOL = {"pvc": "data", "mount": "/data"}


def but(**changes: Any) -> dict[str, Any]:
    """A good body, but for something."""
    return {**GOOD, **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


# what is sent -> the field that is named
BODIES: list[tuple[Any, str]] = [
    # not a JSON object
    (b"", ""),
    (b"{", ""),
    (b"[]", ""),
    (b"null", ""),
    (b'"text"', ""),
    (b"image=image:1&username=alice", ""),
    (b"\xff\xfe{}", ""),
    (b'{"username": "alice", "image": "\\ud800"}', ""),
    (b"[" * 100_000, ""),
    # missing, unknown
    ({}, "image"),
    (without("image"), "image"),
    (without("username"), "username"),
    (but(colour="red"), "colour"),
    (but(volumes=[VOL]), "volumes"),
    (but(user_options={"image": "x"}), "user_options"),
    # image
    (but(image=None), "image"),
    (but(image=""), "image"),
    (but(image=7), "image"),
    (but(image=["image:1"]), "image"),
    (but(image="two words"), "image"),
    (but(image="line\nbreak"), "image"),
    (but(image="-rm"), "image"),
    (but(image="a" * 513), "image"),
    (but(image="image;id"), "image"),
    # username
    (but(username=None), "username"),
    (but(username=""), "username"),
    (but(username=1), "username"),
    (but(username="."), "username"),
    (but(username=".."), "username"),
    (but(username="a/b"), "username"),
    (but(username=" alice"), "username"),
    (but(username="alice\n"), "username"),
    (but(username="nul\0"), "username"),
    (but(username="a" * 256), "username"),
    # server_name
    (but(server_name=0), "server_name"),
    (but(server_name="a/b"), "server_name"),
    (but(server_name=".."), "server_name"),
    (but(server_name="UPPER"), "server_name"),
    (but(server_name="1st"), "server_name"),
    (but(server_name="a--b"), "server_name"),
    (but(server_name="end-"), "server_name"),
    (but(server_name="a" * 31), "server_name"),
    # vols
    (but(vols={}), "vols"),
    (but(vols="data"), "vols"),
    (but(vols=[None]), "vols.0"),
    (but(vols=[{}]), "vols.0.pvc"),
    (but(vols=[{"pvc": "data"}]), "vols.0.mount"),
    (but(vols=[{"mount": "/data"}]), "vols.0.pvc"),
    (but(vols=[{**VOL, "size": "1G"}]), "vols.0.size"),
    (but(vols=[{**VOL, "pvc": "../data"}]), "vols.0.pvc"),
    (but(vols=[{**VOL, "pvc": ""}]), "vols.0.pvc"),
    (but(vols=[{**VOL, "pvc": "-v"}]), "vols.0.pvc"),
    (but(vols=[{**VOL, "pvc": "{username}"}]), "vols.0.pvc"),
    (but(vols=[{**VOL, "mount": "data"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "mount": "/"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "mount": "/a/../etc"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "mount": "/a//b"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "mount": "/proc/self"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "mount": "/a\nb"}]), "vols.0.mount"),
    (but(vols=[{**VOL, "subpath": "/etc"}]), "vols.0.subpath"),
    (but(vols=[{**VOL, "subpath": "../x"}]), "vols.0.subpath"),
    (but(vols=[{**VOL, "subpath": "a/./b"}]), "vols.0.subpath"),
    (but(vols=[{**VOL, "read_only": "yes"}]), "vols.0.read_only"),
    (but(vols=[{**VOL, "read_only": 1}]), "vols.0.read_only"),
    (but(vols=[VOL, {**VOL, "pvc": "other"}]), ""),
    (but(vols=[{"pvc": "data", "mount": f"/{n}"} for n in range(101)]), "vols"),
    # resources
    (but(cpu=1), "cpu"),
    (but(cpu={}), "cpu"),
    (but(cpu={"limit": 0}), "cpu.limit"),
    (but(cpu={"limit": -1}), "cpu.limit"),
    (but(cpu={"limit": "1"}), "cpu.limit"),
    (but(cpu={"limit": True}), "cpu.limit"),
    (b'{"username": "alice", "image": "i", "cpu": {"limit": NaN}}', "cpu.limit"),
    (b'{"username": "alice", "image": "i", "cpu": {"limit": 1e999}}', "cpu.limit"),
    (but(cpu={"request": 2, "limit": 1}), "cpu"),
    (but(cpu={"max": 1}), "cpu.max"),
    (but(memory="1G"), "memory"),
    (but(memory={"limit": "lots"}), "memory.limit"),
    (but(memory={"limit": "-1G"}), "memory.limit"),
    (but(memory={"limit": 0}), "memory.limit"),
    (but(memory={"limit": True}), "memory.limit"),
    (but(memory={"limit": 1.5}), "memory.limit"),
    (but(memory={"limit": "1" * 100 + "G"}), "memory.limit"),
    (but(memory={"request": "2G", "limit": "1G"}), "memory"),
    (but(gpu={"limit": -1}), "gpu.limit"),
    (but(gpu={"limit": 0.5}), "gpu.limit"),
    (but(gpu={"request": 1, "limit": 2}), "gpu"),
    # env
    (but(env=[]), "env"),
    (but(env={"A": 1}), "env.A"),
    (but(env={"A": None}), "env.A"),
    (but(env={"A": "nul\0"}), "env.A"),
    (but(env={"": "x"}), "env."),
    (but(env={"1A": "x"}), "env.1A"),
    (but(env={"A=B": "x"}), "env.A=B"),
    (but(env={"JUPYTERHUB_API_TOKEN": "x"}), "env.JUPYTERHUB_API_TOKEN"),
    (but(env={"JPY_API_TOKEN": "x"}), "env.JPY_API_TOKEN"),
    (but(env={"PATH": "x"}), "env.PATH"),
    (but(env={"LD_PRELOAD": "x"}), "env.LD_PRELOAD"),
    (but(env={"PYTHONPATH": "x"}), "env.PYTHONPATH"),
    (but(env={"A": "x" * 40_000}), ""),
    (but(env={f"A{n}": "x" for n in range(201)}), "env"),
]

# method, path below the prefix, headers beside the token, body -> status, reason, field
REQUESTS: list[tuple[str, str, dict[str, str], bytes | None, int, str, str | None]] = [
    ("GET", "containers", {}, None, 400, "invalid_request", "username"),
    ("GET", "containers?username=", {}, None, 400, "invalid_request", "username"),
    ("GET", "containers?username=a/b", {}, None, 400, "invalid_request", "username"),
    ("GET", "containers?username=a%00", {}, None, 400, "invalid_request", "username"),
    ("GET", "containers?username=%ff", {}, None, 400, "invalid_request", None),
    ("GET", "containers?username=a&username=b", {}, None, 400, "invalid_request", "username"),
    ("GET", "containers?username=a&server_name=b/c", {}, None, 400, "invalid_request", "server_name"),
    ("GET", "containers?username=a&user=b", {}, None, 400, "invalid_request", "user"),
    ("GET", "containers?" + "&".join(f"x{n}=1" for n in range(200)), {}, None, 400, "invalid_request", None),
    ("DELETE", "containers", {}, None, 400, "invalid_request", "username"),
    ("DELETE", "containers?server_name=p1", {}, None, 400, "invalid_request", "username"),
    ("PUT", "containers", {}, b"{}", 405, "method_not_allowed", None),
    ("PATCH", "containers", {}, b"{}", 405, "method_not_allowed", None),
    ("OPTIONS", "containers", {}, None, 405, "method_not_allowed", None),
    ("POST", "health", {}, b"{}", 405, "method_not_allowed", None),
    ("GET", "nothing", {}, None, 404, "not_found", None),
    ("GET", "containers/alice", {}, None, 404, "not_found", None),
    ("GET", "../../hub/api/users", {}, None, 404, "not_found", None),
    ("POST", "containers", {}, b'{"x": "' + b"y" * 1_100_000 + b'"}', 400, "too_large", None),
    ("GET", "containers?username=a", {"Authorization": ""}, None, 401, "unauthenticated", None),
    ("GET", "containers?username=a", {"Authorization": "token"}, None, 401, "unauthenticated", None),
    ("GET", "containers?username=a", {"Authorization": "token a b"}, None, 401, "unauthenticated", None),
    ("GET", "containers?username=a", {"Authorization": "Basic YTpi"}, None, 401, "unauthenticated", None),
    ("POST", "containers", {"Authorization": "token unknown"}, b"{}", 401, "unauthenticated", None),
]


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """As pytest-tornado's own, which calls what Tornado has deprecated."""
    loop = IOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)  # type: ignore[attr-defined]
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


@pytest.fixture
def fake_hub(io_loop: IOLoop) -> Iterator[FakeHub]:
    hub = FakeHub()
    io_loop.run_sync(hub.start)
    yield hub
    io_loop.run_sync(hub.stop)


@pytest.fixture
def app(io_loop: IOLoop, fake_hub: FakeHub) -> Iterator[Application]:
    launcher = LauncherApp(config=Config(Hub=Config(api_url=fake_hub.api_url, api_token=SERVICE_TOKEN)))
    launcher.initialize([])
    io_loop.run_sync(launcher.parts.hub.start)
    yield launcher.web_application()
    io_loop.run_sync(launcher.parts.hub.stop)


def check(response: Any, status: int, reason: str, field: str | None, hub: FakeHub) -> dict[str, Any]:
    """The one error shape, and no request to the Hub but the one that asks who the caller is."""
    body = json.loads(response.body)
    assert response.code == status, body
    assert response.headers["Content-Type"] == "application/json"
    assert body.keys() == {"error", "reason", "details", "status"}
    assert (body["status"], body["reason"]) == (status, reason)
    assert body["error"].endswith((".", "`")) or body["details"]
    assert "Traceback" not in body["error"]
    if field is not None:
        assert field in [problem["field"] for problem in body["details"]["fields"]], body
    assert not hub.count()
    return body


def named(case: Any) -> str:
    return repr(case)[:60] if isinstance(case, dict | bytes) else str(case)


@pytest.mark.parametrize(("body", "field"), BODIES, ids=named)
@pytest.mark.gen_test
async def test_bad_body(http_client: Any, base_url: str, fake_hub: FakeHub, body: Any, field: str):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await http_client.fetch(
        f"{base_url}/services/launcher/containers",
        method="POST",
        headers={"Authorization": f"token {PLATFORM_TOKEN}"},
        body=data,
        raise_error=False,
    )
    check(response, 400, "invalid_request", field, fake_hub)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "reason", "field"),
    REQUESTS,
    ids=[f"{r[0]} {r[1][:50]}" for r in REQUESTS],
)
@pytest.mark.gen_test
async def test_bad_request(
    http_client: Any,
    base_url: str,
    fake_hub: FakeHub,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes | None,
    status: int,
    reason: str,
    field: str | None,
):
    response = await http_client.fetch(
        f"{base_url}/services/launcher/{path}",
        method=method,
        headers={"Authorization": f"token {PLATFORM_TOKEN}", **headers},
        body=body,
        raise_error=False,
        allow_nonstandard_methods=True,
    )
    check(response, status, reason, field, fake_hub)
    if status == 401:
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="JupyterHub"'
    if status == 405:
        assert "GET" in response.headers["Allow"]


@pytest.mark.gen_test
async def test_refused_values_are_not_repeated(http_client: Any, base_url: str, fake_hub: FakeHub):
    secret = "s3cr3t-value"
    body = but(
        env={"API_KEY": f"{secret}\0"}, memory={"limit": secret}, cpu=secret, **{"vols": [{"pvc": f"!{secret}"}]}
    )
    response = await http_client.fetch(
        f"{base_url}/services/launcher/containers",
        method="POST",
        headers={"Authorization": f"token {PLATFORM_TOKEN}"},
        body=json.dumps(body),
        raise_error=False,
    )
    assert secret not in json.dumps(check(response, 400, "invalid_request", "env.API_KEY", fake_hub))


@pytest.mark.gen_test
async def test_health_needs_nobody(http_client: Any, base_url: str, fake_hub: FakeHub):
    response = await http_client.fetch(f"{base_url}/services/launcher/health")
    assert json.loads(response.body) == {"status": "ok"}
    assert not fake_hub.requests


@pytest.mark.gen_test
async def test_ready_names_its_checks(http_client: Any, base_url: str, fake_hub: FakeHub):
    response = await http_client.fetch(f"{base_url}/services/launcher/ready")
    checks = json.loads(response.body)["checks"]
    assert {name: check["ok"] for name, check in checks.items()} == {"hub": True, "scopes": True}
    for _ in range(20):
        await http_client.fetch(f"{base_url}/services/launcher/ready")
    assert len(fake_hub.requests) == 1, "probes of a moment ask the Hub once"


@pytest.mark.gen_test
async def test_index_names_the_resources(http_client: Any, base_url: str):
    response = await http_client.fetch(f"{base_url}/services/launcher/")
    resources = json.loads(response.body)["resources"]
    assert resources == sorted(
        ["batches", "containers", "health", "launches", "metrics", "openapi.json", "options", "ready", "templates"]
    )


@pytest.mark.gen_test
async def test_not_ready_without_the_scopes(http_client: Any, base_url: str, fake_hub: FakeHub):
    fake_hub.identify(SERVICE_TOKEN, "launcher", "service", "admin:users", "servers!group=course-1")
    response = await http_client.fetch(f"{base_url}/services/launcher/ready", raise_error=False)
    assert response.code == 503
    assert json.loads(response.body)["checks"]["scopes"]["message"] == "The launcher's role lacks tokens."


@pytest.mark.gen_test
async def test_not_ready_says_why(http_client: Any, base_url: str, fake_hub: FakeHub):
    del fake_hub.identities[SERVICE_TOKEN]
    response = await http_client.fetch(f"{base_url}/services/launcher/ready", raise_error=False)
    assert response.code == 503
    assert "own token" in json.loads(response.body)["checks"]["hub"]["message"]
