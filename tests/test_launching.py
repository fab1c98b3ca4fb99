"""Launches through the whole service, in front of a Hub that misbehaves as JupyterHub was seen to."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

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
    """User, server, progress, token: that the server is up, and whose it is, the progress proves."""
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
        "POST /users/alice/tokens": 1,
    }


@pytest.mark.parametrize("proof", [{"mark": "0" * 64}, {"mark": 1}, {"mark": "é"}, {"url": None}, {"more": 1}])
async def test_a_false_proof_is_not_believed(service: Service, proof: dict[str, object]):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    server = service.hub.servers["alice", ""]
    server.proof = {"url": "/user/mallory/", **proof}
    server.finish()
    status, answer = await launch
    assert (status, answer["url"].endswith("/user/alice/")) == (200, True)
    assert service.hub.requests.count("GET /users/alice") == 1, "the Hub was asked"


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
    async with running_service(hub, Launcher={"start_timeout": 2}, StartBound={"throttle_delay": 0.4}) as service:
        status, error = await service.launch()
    assert (status, error["reason"]) == (500, "throttled")
    assert 2 <= hub.count()["POST /users/alice/server"] <= 6


async def test_timeout_stops_the_server(hub: FakeHub):
    hub.auto_finish = False
    async with running_service(hub, Launcher={"start_timeout": 2}) as service:
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


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_somebody_else_who_answers_for_the_hub(service: Service, method: str):
    """A gateway that has lost the Hub for a moment knows no page of it: neither user nor server is gone for that."""
    paths = ["/users", "/users/alice", "/users/alice/server", "/users/alice/server/progress", "/users/alice/tokens"]
    service.hub.somebody_elses.update({f"{method} {path}": 1 for path in paths})
    status, launch = await service.request("POST", "launches?wait=10", json={"username": "alice", "image": "image:1"})
    assert (status, launch["state"]) == (200, "ready"), launch
    assert service.hub.servers["alice", ""].ready
    status, _ = await service.request("DELETE", f"launches/{launch['id']}?wait=10")
    assert status == 204
    assert not service.hub.servers["alice", ""].active
    assert not service.hub.tokens


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
    (token,) = service.hub.tokens.values()
    assert token["note"].startswith("jhlauncher alice/p1 (")
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


async def test_launch_goes_on_when_its_client_goes_away(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    launch.cancel()
    await until(lambda: not service.app.serving.requests)
    server = service.hub.servers["alice", ""]
    assert server.pending == "spawn"
    server.finish()
    # and the next launch is told so, once it is known
    async with asyncio.timeout(5):
        while (error := (await service.launch())[1]["reason"]) != "server_running":
            assert error == "server_starting"


async def test_running_requests_are_cut_short_at_the_end(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    drain = asyncio.create_task(service.app.serving.drain(0.2))
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
    drain = asyncio.create_task(service.app.serving.drain(20))
    await asyncio.sleep(0)
    service.hub.servers["alice", ""].finish()
    assert (await launch)[0] == 200
    await asyncio.wait_for(drain, 5)


async def test_one_upstream_stream_for_many_listeners(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)

    async def listen() -> list[str]:
        return [event.message async for event in service.app.parts.progress.follow("alice", "")]

    listeners = [asyncio.create_task(listen()) for _ in range(50)]
    await asyncio.sleep(0)
    service.hub.servers["alice", ""].finish()
    for messages in await asyncio.gather(*listeners):
        assert messages[-1] == "Server ready"
    await launch
    assert service.hub.count()["GET /users/alice/server/progress"] == 1


async def test_300_launches_pending_at_once_cost_four_requests_each(hub: FakeHub):
    async with running_service(hub, Starter={"progress_delay": 0.05}, StartBound={"concurrent_starts": 300}) as service:
        await launch_300(service)


async def launch_300(service: Service) -> None:
    """None of them by polling: nothing is asked while they are pending."""
    service.hub.auto_finish = False
    service.hub.slow_spawn_timeout = 60
    launches = [asyncio.create_task(service.launch(username=f"user{n}")) for n in range(300)]
    followed = lambda: sum(path.endswith("/progress") for path in service.hub.requests) - service.hub.too_early  # noqa: E731
    await until(lambda: followed() == 300, timeout=120)
    pending = len(service.hub.requests)
    for _ in range(3):  # three steps of every start are told to nobody but the streams
        for server in service.hub.servers.values():
            server.emit(50, "working")
        assert (await service.request("GET", "health"))[0] == 200
    assert len(service.hub.requests) == pending
    for server in service.hub.servers.values():
        server.finish()
    assert {status for status, _ in await asyncio.gather(*launches)} == {200}
    assert sum(service.hub.count().values()) - service.hub.too_early == 4 * 300


async def test_throttled_for_longer_than_there_is_time(hub: FakeHub):
    hub.throttle = [3600]
    async with running_service(hub, Launcher={"start_timeout": 2}) as service:
        status, error = await service.launch()
    assert (status, error["reason"]) == (500, "throttled")


async def test_delete_while_throttled(service: Service):
    service.hub.throttle = [30]
    launch = asyncio.create_task(service.launch())
    await until(lambda: not service.hub.throttle)
    assert await service.request("DELETE", "containers?username=alice") == (200, "")
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")
    assert service.hub.count()["POST /users/alice/server"] == 1


async def test_delete_before_the_hub_has_taken_up_the_start(service: Service):
    """The Hub gets to the start only after the launch was cancelled; it is stopped all the same."""
    service.hub.auto_finish = False
    service.hub.hold_starts.clear()
    launch = asyncio.create_task(service.launch())
    await until(lambda: "POST /users/alice/server" in service.hub.requests)
    delete = asyncio.create_task(service.request("DELETE", "containers?username=alice"))
    await until(lambda: service.hub.requests.count("GET /users/alice") >= 1)
    assert not service.hub.servers
    service.hub.hold_starts.set()
    assert await delete == (200, "")
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")
    assert not service.hub.servers["alice", ""].active


async def test_stop_goes_on_when_its_caller_leaves(service: Service):
    await service.launch()
    service.hub.misbehaviours.add(Misbehaviour.SLOW_TO_STOP)
    delete = asyncio.create_task(service.request("DELETE", "containers?username=alice"))
    await until(lambda: "DELETE /users/alice/server" in service.hub.requests)
    delete.cancel()
    await until(lambda: not service.hub.tokens)
    await until(lambda: not service.hub.servers["alice", ""].active)


async def test_two_stops_at_once_are_one(service: Service):
    await service.launch()
    service.hub.misbehaviours.add(Misbehaviour.SLOW_TO_STOP)
    path = "containers?username=alice"
    answers = await asyncio.gather(*(service.request("DELETE", path) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    assert service.hub.count()["DELETE /users/alice/server"] == 1


async def test_tokens_go_even_if_the_stop_takes_too_long(hub: FakeHub):
    async with running_service(hub, Launcher={"stop_timeout": 0.2}) as service:
        await service.launch()
        hub.misbehaviours.add(Misbehaviour.SLOW_TO_STOP)
        status, error = await service.request("DELETE", "containers?username=alice")
        assert (status, error["reason"]) == (500, "stop_failed")
        assert not hub.tokens


async def test_tokens_of_a_server_that_others_stopped_go_with_the_next_delete(service: Service):
    await service.launch()
    service.hub.servers["alice", ""].ready = False
    status, error = await service.request("DELETE", "containers?username=alice")
    assert (status, error["reason"]) == (400, "server_not_found")
    assert not service.hub.tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("POST /users/alice/tokens", b"<html>"),
        ("POST /users/alice/tokens", b"{}"),
        ("GET /users/alice", b"<html>"),
        ("GET /users/alice", b'{"name": "alice"}'),
        ("POST /users", b"[]"),
        ("GET /user", b"[]"),
        ("GET /user", b"<html>"),
    ],
)
async def test_strange_answers_of_the_hub(service: Service, path: str, body: bytes):
    """A proxy's page with status 200, say. The error is named, and nothing is left running."""
    service.hub.strange_answers[path] = body
    status, error = await service.launch()
    assert (status, error["reason"]) in ((500, "hub_error"), (500, "hub_unavailable"))
    service.hub.strange_answers.clear()
    if path.endswith("tokens"):
        assert not service.hub.servers["alice", ""].active


async def test_strange_events_are_passed_over(service: Service):
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await until(lambda: "GET /users/alice/server/progress" in service.hub.requests)
    server = service.hub.servers["alice", ""]
    for event in (5, None, [], {"progress": float("nan")}, {"progress": "many"}, {}):
        server.events.append(event)
    server.finish()
    assert (await launch)[0] == 200


async def test_failure_of_the_start_before_is_not_taken_for_ours(service: Service):
    """The Hub repeats it until the next start has begun."""
    service.hub.auto_finish = False
    first = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    service.hub.servers["alice", ""].fail("Spawn failed: the old one")
    assert (await first)[0] == 500
    service.hub.hold_starts.clear()
    second = asyncio.create_task(service.launch())
    await until(lambda: service.hub.requests.count("GET /users/alice/server/progress") >= 2)
    service.hub.hold_starts.set()
    await until(lambda: service.hub.servers["alice", ""].pending == "spawn")
    service.hub.servers["alice", ""].finish()
    assert (await second)[0] == 200


async def test_forged_marks_are_not_believed(service: Service):
    """A user may start a server with options that look as if the launcher's mixin had made them."""
    service.hub.misbehaviours.add(Misbehaviour.IGNORES_OPTIONS)
    service.hub.auto_finish = False
    launch = asyncio.create_task(service.launch())
    await service.hub.starting.wait()
    server = service.hub.servers["alice", ""]
    server.user_options["launcher"].update(applied=True, up=True)
    server.pending, server.ready = None, True
    server.emit(100, "Server ready", ready=True)
    assert (await launch)[1]["reason"] == "cancelled"
    assert not service.hub.tokens


async def test_policy_judges_the_name_that_the_hub_has(hub: FakeHub):
    hub.rename = lambda name: name.removeprefix("corp-")
    rules = [{"name": "students", "users": ["stu-*"], "images": ["small:*"]}, {"name": "rest", "images": ["*"]}]
    async with running_service(hub, Policy={"rules": rules}) as service:
        status, error = await service.launch(username="corp-stu-1", image="big:1")
        assert (status, error["reason"]) == (403, "policy_denied")
        status, answer = await service.launch(username="corp-stu-2", image="small:1")
        assert (status, answer["username"]) == (200, "stu-2")


async def test_signing_keys_that_differ_are_the_administrators_fault(service: Service):
    service.hub.start_answer = (403, "The launch options were not signed by the launcher service for this server.")
    status, error = await service.launch()
    assert (status, error["reason"]) == (500, "hub_refused")
    assert "same signing key" in error["error"]


async def test_requests_that_break_off_leave_nothing(service: Service):
    for path, headers in (
        ("health", b""),
        ("containers", b"Authorization: token unknown\r\n"),
        ("containers", f"Authorization: token {PLATFORM_TOKEN}\r\n".encode()),
    ):
        address = service.url.split("/")[2].split(":")
        _, writer = await asyncio.open_connection(address[0], int(address[1]))
        head = f"POST /services/launcher/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n".encode()
        writer.write(head + headers + b"\r\n" + b"x" * 100)
        await writer.drain()
        writer.close()
        await until(lambda: not service.app.serving.requests)


async def test_refusal_before_the_body_is_read_says_that_the_connection_closes(service: Service):
    async with service.client.post(f"{service.url}containers", data=b"x" * 1000) as response:
        assert (response.status, response.headers["Connection"]) == (401, "close")
    for _ in range(3):
        status, _ = await service.request("POST", token="unknown", json={})
        assert status == 401


@pytest.mark.parametrize(
    ("path", "token", "closes"),
    [("launches", "", True), ("launches", "no-such-token", True), ("nothing", PLATFORM_TOKEN, True),
     ("launches?limit=x", PLATFORM_TOKEN, False), ("launches", PLATFORM_TOKEN, False)],
)  # fmt: skip
async def test_a_connection_that_is_closed_is_said_to_be(service: Service, path: str, token: str, closes: bool):
    """JupyterHub's proxy sends its next request over the same connection, and answers 503 when that is gone."""
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    request = f"GET {address.path}{path} HTTP/1.1\r\nHost: x\r\n"
    writer.write((request + (f"Authorization: token {token}\r\n" if token else "") + "\r\n").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(re.search(r"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    await reader.readexactly(length)
    assert ("Connection: close" in head) == closes
    writer.write((request + "\r\n").encode())
    if closes:
        assert await reader.read() == b""
    else:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
    writer.close()
