"""Launches through the whole service, in front of a Hub that misbehaves as JupyterHub was seen to."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub, Misbehaviour

pytestmark = pytest.mark.asyncio


async def test_contract_of_a_launch(service: Service):
    body = {
        "image": "jupyter/base-notebook:latest",
        "username": "voyager",
        "vols": [{"pvc": "data", "mount": "/home/jovyan/data"}],
        "cpu": {"request": 0.5, "limit": 1},
        "memory": {"request": "512M", "limit": "1G"},
        "gpu": {"request": 1, "limit": 1},
    }
    status, answer = await service.request("POST", json=body)
    assert status == 200
    origin = service.url.removesuffix("/services/launcher/")
    assert answer == {**body, "server_name": "", "token": "secret-a1", "url": f"{origin}/user/voyager/"}
    (token,) = service.hub.tokens.values()
    assert token["scopes"] == ["access:servers!server=voyager/"]
    assert token["expires_in"] == 1800


async def test_named_server(service: Service):
    status, answer = await service.launch(server_name="p1")
    assert (status, answer["server_name"]) == (200, "p1")
    assert answer["url"].endswith("/user/alice/p1/")
    assert next(iter(service.hub.tokens.values()))["scopes"] == ["access:servers!server=alice/p1"]


async def test_requests_for_a_new_user(service: Service):
    """The design's count: user, server, progress, a confirming GET, token."""
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    server = service.hub.servers["alice", ""]
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    server.finish()
    assert (await launch)[0] == 200
    assert service.hub.count() == {
        "POST /users": 1,
        "POST /users/alice/server": 1,
        "GET /users/alice/server/progress": 1,
        "GET /users/alice": 1,
        "POST /users/alice/tokens": 1,
    }


async def test_caller_is_identified_once(service: Service):
    await asyncio.gather(*(service.launch(username=f"user{n}") for n in range(20)))
    assert service.hub.requests.count("GET /user") == 1


async def test_events_rise_and_end_with_the_answer(service: Service):
    service.hub.auto_finish = False
    events = []
    async for name, data in service.events():
        events.append((name, data))
        server = service.hub.servers["alice", ""]
        if len(events) == 1:
            server.emit(30, "Pulling", raw_event={"kept": "out"})
            server.emit(20, "an older one")
            server.emit(30, "Pulling")
            server.emit(40, "Pulling")
            server.finish()
    assert [(name, data.get("progress"), data.get("message")) for name, data in events[:-1]] == [
        ("progress", 0, "Server requested"),
        ("progress", 30, "Pulling"),
        ("progress", 40, "Pulling"),
    ]
    assert events[0][1].keys() == {"progress", "message", "phase"}
    name, answer = events[-1]
    assert name == "ready"
    assert answer.keys() == {"image", "server_name", "token", "url", "username", "vols"}


async def test_failure_on_the_event_stream_has_the_one_error_shape(service: Service):
    service.hub.auto_finish = False
    events = []
    async for name, data in service.events():
        events.append((name, data))
        service.hub.servers["alice", ""].fail("Spawn failed: no such image")
    name, error = events[-1]
    assert name == "failed"
    assert error == {
        "error": "The server of alice did not start: no such image",
        "reason": "start_failed",
        "details": {},
        "status": 500,
    }


async def test_broken_stream_is_resumed_without_repeats(service: Service):
    service.hub.auto_finish = False
    service.hub.misbehaviours.add(Misbehaviour.BREAKS_STREAMS)
    messages = []
    async for _, data in service.events():
        messages.append(data.get("message"))
        server = service.hub.servers["alice", ""]
        if data.get("progress", 100) < 60:
            server.emit(data["progress"] + 20, f"step {len(messages)}")
        elif "token" not in data:
            server.finish()
    assert messages == ["Server requested", "step 1", "step 2", "step 3", None]
    assert service.hub.requests.count("GET /users/alice/server/progress") > 1


async def test_created_is_not_taken_for_ready(service: Service):
    service.hub.misbehaviours.add(Misbehaviour.CREATED_THOUGH_NOT_READY)
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    assert not launch.done()
    service.hub.servers["alice", ""].finish()
    assert (await launch)[0] == 200


async def test_false_ready_after_cancel_is_not_believed(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    assert await service.request("DELETE", "containers?username=alice") == (200, "")
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")
    assert not service.hub.tokens


async def test_false_ready_after_cancel_at_the_hub_is_not_believed(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    headers = {"Authorization": f"token {PLATFORM_TOKEN}"}
    async with service.client.delete(f"{service.hub.api_url}/users/alice/server", headers=headers) as response:
        assert response.status == 204
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")
    assert not service.hub.tokens
    assert service.hub.count()["DELETE /users/alice/server"] == 1


async def test_process_that_died_is_not_waited_for(service: Service):
    service.hub.misbehaviours.add(Misbehaviour.ERROR_WHILE_PENDING)
    status, error = await service.launch()
    assert (status, error["reason"]) == (500, "crashed")
    assert "status=1" in error["error"]
    assert not service.hub.servers["alice", ""].active


async def test_error_answer_while_events_are_followed(service: Service):
    """The Hub notices after 10 seconds that the process is gone, and would go on waiting for it."""
    service.hub.auto_finish = False
    service.hub.slow_spawn_timeout = 60
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    server = service.hub.servers["alice", ""]
    server.done.set()  # answers 500, the start is still pending
    status, error = await launch
    assert (status, error["reason"]) == (500, "crashed")
    assert not server.active


async def test_failed_start_tells_the_hubs_reason(service: Service):
    service.hub.auto_finish = False
    service.hub.slow_spawn_timeout = 60
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    service.hub.servers["alice", ""].fail("Spawn failed: quota")
    status, error = await launch
    assert status == 500
    assert error["error"] == "The server of alice did not start: quota"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Spawn failed: ", "timeout"),
        ("Spawn failed: Server at http://x/ didn't respond in 30 seconds", "never_ready"),
        ("Spawn cancelled", "cancelled"),
        ("Spawn failed", "start_failed"),
    ],
)
async def test_reasons(service: Service, message: str, reason: str):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    service.hub.servers["alice", ""].fail(message)
    status, error = await launch
    assert (status, error["reason"]) == (500, reason)


async def test_lost_answer_is_not_the_end(service: Service):
    service.hub.auto_finish = False
    service.hub.misbehaviours.add(Misbehaviour.LOSES_START_ANSWER)
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    service.hub.servers["alice", ""].finish()
    assert (await launch)[0] == 200
    assert service.hub.count()["POST /users/alice/server"] == 1


async def test_throttled_start_waits_as_told(service: Service):
    service.hub.throttle = [0.2, 0.1]
    status, _ = await service.launch()
    assert status == 200
    assert service.hub.count()["POST /users/alice/server"] == 3


async def test_throttled_until_time_is_over(hub: FakeHub):
    hub.throttle = [None] * 1000
    async with running_service(hub, Launcher={"start_timeout": 0.5, "throttle_delay": 0.1}) as service:
        status, error = await service.launch()
    assert (status, error["reason"]) == (500, "timeout")
    assert 3 <= hub.count()["POST /users/alice/server"] <= 6


async def test_timeout_stops_the_server(hub: FakeHub):
    hub.auto_finish = False
    async with running_service(hub, Launcher={"start_timeout": 0.3}) as service:
        status, error = await service.launch()
    assert (status, error["reason"]) == (500, "timeout")
    assert not hub.servers["alice", ""].active


async def test_running_server_is_refused(service: Service):
    assert (await service.launch())[0] == 200
    status, error = await service.launch()
    assert (status, error["reason"]) == (400, "server_running")
    assert service.hub.servers["alice", ""].active


async def test_stopping_server_is_refused_for_now(service: Service):
    await service.launch()
    server = service.hub.servers["alice", ""]
    server.pending, server.ready = "stop", False
    status, error = await service.launch()
    assert (status, error["reason"]) == (400, "server_stopping")


async def test_same_server_twice_at_once(service: Service):
    service.hub.auto_finish = False
    first = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    status, error = await service.launch(image="other:1")
    assert (status, error["reason"]) == (400, "server_starting")
    service.hub.servers["alice", ""].finish()
    assert (await first)[0] == 200


async def test_anothers_start_is_not_taken_for_ours(service: Service):
    """The Hub answers 202 to a second start and silently keeps the options of the first."""
    service.hub.auto_finish = False
    first = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    server = service.hub.servers["alice", ""]
    server.user_options = {"image": "chosen on the Hub's page"}
    server.finish()
    status, error = await first
    assert (status, error["reason"]) == (400, "server_starting")
    assert server.ready
    assert not service.hub.tokens


async def test_spawner_without_mixin_is_noticed(service: Service):
    service.hub.misbehaviours.add(Misbehaviour.IGNORES_OPTIONS)
    status, error = await service.launch()
    assert (status, error["reason"]) == (500, "spawner_not_wrapped")
    assert not service.hub.servers["alice", ""].active


async def test_no_server_is_left_when_no_token_can_be_had(service: Service):
    service.hub.misbehaviours.add(Misbehaviour.REFUSES_TOKENS)
    status, error = await service.launch()
    assert (status, error["reason"]) == (500, "hub_error")
    assert not service.hub.servers["alice", ""].active


async def test_refusal_of_the_hub_is_told(service: Service):
    service.hub.start_answer = (400, "image: x is not one of this Hub's images: a, b")
    status, error = await service.launch()
    assert (status, error["reason"]) == (400, "refused_by_hub")
    assert "a, b" in error["error"]


async def test_hub_that_is_gone(hub: FakeHub):
    async with running_service(hub, Hub={"retry_timeout": 0.3}) as service:
        await service.launch()
        await hub.stop()
        status, error = await service.launch(username="bob")
        assert (status, error["reason"]) == (500, "hub_unavailable")
        status, health = await service.request("GET", "ready")
        assert (status, health["checks"]["hub"]["ok"]) == (503, False)
        assert (await service.request("GET", "health"))[0] == 200


async def test_hub_that_comes_back_within_the_retries(hub: FakeHub, capsys: pytest.CaptureFixture[str]):
    async with running_service(hub, Hub={"retry_timeout": 10}) as service:
        await service.launch()
        port = hub.port
        await hub.stop()
        launch = asyncio.create_task(service.launch(username="bob"))
        await until(lambda: "Trying again" in capsys.readouterr().err)
        assert not launch.done()
        await hub.start(port=port)
        assert (await launch)[0] == 200


async def test_status(service: Service):
    await service.launch()
    status, model = await service.request("GET", "containers?username=alice")
    assert status == 200
    assert model == {
        "last_activity": "2026-01-01T00:00:00Z",
        "name": "",
        "pending": None,
        "progress_url": "/hub/api/users/alice/server/progress",
        "ready": True,
        "started": "2026-01-01T00:00:00Z",
        "state": {},
        "url": "/user/alice/",
    }
    token = service.hub.identify("t2", "seer", "service", "access:services", "read:servers", "admin:server_state")
    _, model = await service.request("GET", "containers?username=alice", token)
    assert model["state"] == {"pod_name": "jupyter-alice"}


async def test_stop_revokes_the_tokens(service: Service):
    await service.launch()
    await service.launch(server_name="p1")
    assert await service.request("DELETE", "containers?username=alice") == (200, "")
    assert [token["note"] for token in service.hub.tokens.values()] == ["jhlauncher alice/p1"]
    assert (await service.request("DELETE", "containers?username=alice&server_name=p1"))[0] == 200
    assert not service.hub.tokens


async def test_slow_stop_is_waited_for(service: Service):
    await service.launch()
    service.hub.misbehaviours.add(Misbehaviour.SLOW_TO_STOP)
    assert (await service.request("DELETE", "containers?username=alice"))[0] == 200
    assert not service.hub.servers["alice", ""].active


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("query", ["username=alice", "username=alice&server_name=p9", "username=nobody"])
async def test_no_such_server(service: Service, method: str, query: str):
    await service.launch(server_name="p1")
    status, error = await service.request(method, f"containers?{query}")
    assert (status, error["reason"]) == (400, "server_not_found")


async def test_client_that_goes_away_leaves_the_start_to_the_hub(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    launch.cancel()
    await until(lambda: not service.app.services.requests)
    server = service.hub.servers["alice", ""]
    assert server.pending == "spawn"
    server.finish()
    assert (await service.request("GET", "containers?username=alice"))[1]["ready"]
    assert not service.hub.tokens
    # and the next launch is told so
    assert (await service.launch())[1]["reason"] == "server_running"


async def test_running_requests_are_cut_short_at_the_end(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    drain = asyncio.create_task(service.app.services.drain(0.2))
    await asyncio.sleep(0)
    status, error = await service.request("GET", "health")
    assert (status, error["reason"]) == (503, "shutting_down")
    status, error = await launch
    assert (status, error["reason"]) == (503, "shutting_down")
    await drain


async def test_running_requests_may_end(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    drain = asyncio.create_task(service.app.services.drain(20))
    await asyncio.sleep(0)
    service.hub.servers["alice", ""].finish()
    assert (await launch)[0] == 200
    await asyncio.wait_for(drain, 5)


async def test_one_upstream_stream_for_many_listeners(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)

    async def listen() -> list[str]:
        return [event.message async for event in service.app.progress.follow("alice", "")]

    listeners = [asyncio.create_task(listen()) for _ in range(50)]
    await asyncio.sleep(0)
    service.hub.servers["alice", ""].finish()
    for messages in await asyncio.gather(*listeners):
        assert messages[-1] == "Server ready"
    await launch
    assert service.hub.count()["GET /users/alice/server/progress"] == 1


async def test_300_launches_pending_at_once_cost_five_requests_each(service: Service):
    """None of them by polling: nothing is asked while they are pending."""
    service.hub.auto_finish = False
    service.hub.slow_spawn_timeout = 60
    launches = [asyncio.create_task(service.launch(username=f"user{n}")) for n in range(300)]
    await until(lambda: sum(request.endswith("/progress") for request in service.hub.requests) == 300, timeout=30)
    pending = len(service.hub.requests)
    for _ in range(3):  # three steps of every start are told to nobody but the streams
        for server in service.hub.servers.values():
            server.emit(50, "working")
        assert (await service.request("GET", "health"))[0] == 200
    assert len(service.hub.requests) == pending
    for server in service.hub.servers.values():
        server.finish()
    assert {status for status, _ in await asyncio.gather(*launches)} == {200}
    assert sum(service.hub.count().values()) == 5 * 300
