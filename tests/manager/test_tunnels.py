"""Hubs are told when the manager starts, until they take it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from jhlauncher.manager.tunnels import Tunnels
from tests.conftest import until
from tests.manager.receivers import Receiver

pytestmark = pytest.mark.asyncio


async def told(receiver: Receiver, number: int = 1, **settings: object) -> None:
    """Tell, until the Hub has been asked so often."""
    entry = {"hostname": "here", "restart_url": f"{receiver.url}/hub/api/restart"}
    tunnels = Tunnels(**{"tunnel": [entry], "retry_delay": 0.01, **settings})
    await tunnels.start()
    try:
        await until(lambda: len(receiver.requests) >= number)
        await asyncio.wait(tunnels._tasks, timeout=5)
    finally:
        await tunnels.stop()


async def test_a_hub_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNNEL_BASIC", "Basic abc")
    with Receiver().running() as receiver:
        await told(receiver)
    request = receiver.requests[0]
    assert (request["method"], request["path"], request["body"]) == ("POST", "/hub/api/restart", {"hostname": "here"})
    headers = {name.lower(): value for name, value in request["headers"].items()}
    assert (headers["uuidcode"], headers["authorization"]) == ("StartUp", "Basic abc")


async def test_bug_a_hub_that_was_away_was_never_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNNEL_BASIC", "Basic abc")
    with Receiver().running() as receiver:
        for status in (500, 503, 401):
            receiver.answers.put(status)
        await told(receiver, 4)
    assert [request["status"] for request in receiver.requests] == [500, 503, 401, 204]


async def test_a_stage_has_an_address_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTHER", "Basic abc")
    with Receiver().running() as receiver:
        entry = {"restart_url": "http://127.0.0.1:1/", "cred_env_name": "OTHER"}
        entry["stage"] = {"production": {"restart_url": f"{receiver.url}/production"}}
        await told(receiver, tunnel=[entry], stage="production")
    assert receiver.requests[0]["path"] == "/production"


@pytest.mark.parametrize("missing", ["url", "credential"])
async def test_without_an_address_or_a_credential_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
):
    if missing == "url":
        monkeypatch.setenv("TUNNEL_BASIC", "Basic abc")
    url = {} if missing == "url" else {"restart_url": "http://127.0.0.1:1/"}
    log = logging.getLogger("tunnels")
    with Receiver().running() as receiver, caplog.at_level("CRITICAL", "tunnels"):
        await told(receiver, 0, tunnel=[{"hostname": "here", **url}], log=log)
    assert "The tunnel of here is not restarted" in caplog.text
    assert receiver.requests == []


async def test_it_gives_up_at_last(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("TUNNEL_BASIC", "Basic abc")
    log = logging.getLogger("tunnels")
    with Receiver().running() as receiver, caplog.at_level("CRITICAL", "tunnels"):
        receiver.answer = 500
        await told(receiver, 2, retry_timeout=0.1, log=log)
    assert "can't be told to restart the tunnel: it answered 500" in caplog.text
    assert "abc" not in caplog.text
