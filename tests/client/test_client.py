"""The Python client, against the whole service on a real socket; both of its forms."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from jhlauncher.client import (
    BlockingClient,
    Event,
    Forbidden,
    InvalidRequest,
    LauncherClient,
    LauncherError,
    LaunchFailed,
    NotFound,
    PolicyDenied,
    ServerConflict,
    Unauthenticated,
    Unreachable,
)
from jhlauncher.ports import SERVICES, free_port
from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub, Misbehaviour

pytestmark = pytest.mark.asyncio

SETTINGS: dict[str, Any] = {"Starter": {"progress_delay": 0.05}, "Hub": {"retry_timeout": 1}}


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[LauncherClient]:
    async with LauncherClient(service.url, PLATFORM_TOKEN, patience=5) as client:
        yield client


class Restartable:
    """A service that can be ended and started again, at the same address and with the same database."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port(SERVICES)}"
        self.url = f"{self.address}/services/launcher/"
        self._hub = hub
        self._database = {"url": f"sqlite:///{folder}/launches.sqlite"}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        sections = {**SETTINGS, "LauncherApp": {"bind_url": self.address, "shutdown_timeout": 0.2}}
        await self._stack.enter_async_context(running_service(self._hub, Database=self._database, **sections))

    async def stop(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()


@pytest_asyncio.fixture
async def restartable(hub: FakeHub, tmp_path: Path) -> AsyncIterator[Restartable]:
    service = Restartable(hub, tmp_path)
    await service.start()
    yield service
    await service.stop()


async def test_launch_tells_each_step_and_ends_with_the_server(client: LauncherClient, hub: FakeHub):
    hub.auto_finish = False
    events: list[Event] = []
    async for event in client.launch(username="ada", image="image:1"):
        events.append(event)
        if event.name == "starting":
            await hub.starting.wait()
            hub.servers["ada", ""].emit(50, "Half of it", phase="pulling")
            hub.servers["ada", ""].finish()
    assert [event.name for event in events if event.id][:2] == ["queued", "starting"]
    assert [event.progress for event in events if event.progress] == sorted(
        event.progress for event in events if event.progress
    )
    ready = events[-1]
    assert (ready.name, ready.progress) == ("ready", 100)
    assert ready.launch is not None
    assert str(ready.launch.url).endswith("/user/ada/")
    assert ready.launch.token
    assert ready.launch.token not in repr(events)
    assert ready.launch.token not in f"{ready.launch} {ready.launch!r}"


async def test_a_launch_that_fails_is_an_error_with_its_reason(client: LauncherClient, hub: FakeHub):
    hub.misbehaviours.add(Misbehaviour.IGNORES_OPTIONS)
    with pytest.raises(LaunchFailed) as caught:
        async for _ in client.launch(username="ada", image="image:1"):
            pass
    assert (caught.value.reason, caught.value.status) == ("spawner_not_wrapped", 500)


async def test_a_launch_that_is_cancelled_is_an_error(client: LauncherClient, hub: FakeHub):
    hub.auto_finish = False

    async def cancelled_in_the_middle() -> None:
        async for event in client.launch(username="ada", image="image:1"):
            if event.name == "starting":
                [launch] = [launch async for launch in client.list(username="ada")]
                await client.stop(launch.id)

    with pytest.raises(LaunchFailed) as caught:
        await cancelled_in_the_middle()
    assert caught.value.reason == "cancelled"


@pytest.mark.parametrize(
    ("error", "reason", "request_"),
    [
        (InvalidRequest, "invalid_request", {"username": "ada", "image": "image:1", "colour": "red"}),
        (InvalidRequest, "invalid_request", {"username": "ada"}),
        (ServerConflict, "server_starting", {"username": "busy", "image": "image:1"}),
    ],
)
async def test_what_is_refused_is_an_error_of_its_class(
    client: LauncherClient, hub: FakeHub, error: type[LauncherError], reason: str, request_: dict[str, Any]
):
    hub.auto_finish = False
    await client.submit(username="busy", image="image:1")
    await hub.starting.wait()
    with pytest.raises(error) as caught:
        await client.submit(**request_)
    assert caught.value.reason == reason


async def test_who_may_not_is_told_so(service: Service, hub: FakeHub):
    hub.identify("token-of-ada", "ada", "user", "access:services", "servers!user=ada")
    async with LauncherClient(service.url, "token-of-ada") as client:
        with pytest.raises(Forbidden):
            await client.submit(username="bob", image="image:1")
        with pytest.raises(PolicyDenied):
            await client.submit(username="ada", image="image:1")
        with pytest.raises(NotFound):
            await client.get("0123456789abcdef")
    async with LauncherClient(service.url, "no-such-token") as client:
        with pytest.raises(Unauthenticated):
            await client.options()


async def test_lists_are_read_to_their_end(client: LauncherClient, hub: FakeHub):
    body = [{"username": f"user-{number}", "image": "image:1"} for number in range(230)]
    batch = await client.submit_batch(body)
    assert len([launch async for launch in client.list()]) == 230
    assert len([launch async for launch in client.list(most=201)]) == 201
    assert len([launch async for launch in client.list(most=3)]) == 3
    assert [launch.username async for launch in client.list(username="user-7")] == ["user-7"]
    assert (await client.get_batch(batch["id"]))["id"] == batch["id"]
    states = ["queued", "starting", "ready"]
    assert len([launch async for launch in client.list(state=states)]) == 230


async def test_a_class(client: LauncherClient, hub: FakeHub):
    hub.users["bob"] = {"groups": ["course-1"]}
    image = {"image": "image:1"}
    batch = await client.submit_batch(users=["ada"], group="course-1", launch=image, stagger=0.1, mode="all")
    assert [item["username"] for item in batch["items"]] == ["ada", "bob"]
    second = await client.submit_batch([{"username": "eve", **image}])
    assert [each["id"] async for each in client.batches()] == [second["id"], batch["id"]]
    seen = []
    async with aclosing(client.batch_events(batch["id"])) as events:
        async for event in events:
            seen.append((event.data["username"], event.name))
            if {("ada", "ready"), ("bob", "ready")} <= set(seen):
                break
    items = await client.extend_batch(batch["id"], 7200)
    assert [item["error"] for item in items] == [None, None]
    longer = await client.extend(items[0]["launch"]["id"], None)
    assert (longer.lifetime, longer.expires) == (None, None)
    await client.stop_batch(batch["id"])
    assert [event.name async for event in client.batch_events(batch["id"])][-1] == "stopped"
    assert await client.stop_batch(batch["id"]) is None
    found = await client.get_batch(batch["id"])
    assert found["counts"] == {"stopped": 2, "refused": 0}


async def test_the_same_key_is_the_same_launch(client: LauncherClient):
    request = {"username": "ada", "image": "image:1", "idempotency_key": "monday"}
    assert (await client.submit(**request)).id == (await client.submit(**request)).id


async def test_a_plan_starts_nothing(client: LauncherClient, hub: FakeHub):
    assert (await client.plan(username="ada", image="image:1"))["decision"] == "start"
    assert not hub.servers


async def test_a_server_is_stopped(client: LauncherClient):
    async for event in client.launch(username="ada", image="image:1"):
        launch = event.launch
    assert launch is not None
    assert await client.stop(launch.id, wait=10) is None
    assert (await client.get(launch.id)).state == "stopped"
    past = await client.past_events(launch.id)
    assert [event.id for event in past] == list(range(1, len(past) + 1))
    assert [event.id async for event in client.events(launch.id, after=past[-2].id)] == [past[-1].id]
    assert [event async for event in client.events(launch.id, after=past[-1].id)] == []


async def test_a_service_that_is_restarted_in_the_middle_of_a_stream(restartable: Restartable, hub: FakeHub):
    hub.auto_finish = False
    async with LauncherClient(restartable.url, PLATFORM_TOKEN, patience=20) as client:
        events: list[Event] = []
        async with asyncio.timeout(40), aclosing(client.launch(username="ada", image="image:1")) as following:
            async for event in following:
                events.append(event)
                if event.name == "starting":
                    await hub.starting.wait()
                    hub.servers["ada", ""].emit(40, "Before the restart")
                elif event.message == "Before the restart":
                    await restartable.stop()
                    hub.servers["ada", ""].emit(60, "While nobody was there")
                    restarting = asyncio.create_task(restartable.start())
                elif event.message == "While nobody was there":
                    hub.servers["ada", ""].finish()
        await restarting
        numbers = [event.id for event in events if event.id]
        assert numbers == sorted(set(numbers)), "each event once, in order"
        assert numbers == list(range(1, len(numbers) + 1)), "and none is missing"
        assert events[-1].launch is not None
        assert events[-1].launch.state == "ready"


async def test_the_blocking_client_meanwhile_too(restartable: Restartable, hub: FakeHub):
    hub.auto_finish = False
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[str] = asyncio.Queue()

    def notebook() -> tuple[Any, list[int]]:
        numbers = []
        with BlockingClient(restartable.url, PLATFORM_TOKEN, patience=20) as client:
            for event in client.launch(username="ada", image="image:1"):
                numbers.append(event.id)
                loop.call_soon_threadsafe(messages.put_nowait, event.message)
            return event.launch, [number for number in numbers if number]

    working = asyncio.create_task(asyncio.to_thread(notebook))
    async with asyncio.timeout(40):
        await hub.starting.wait()
        hub.servers["ada", ""].emit(40, "Before the restart")
        while await messages.get() != "Before the restart":
            pass
        await restartable.stop()
        await restartable.start()
        hub.servers["ada", ""].finish()
        launch, numbers = await working
    assert launch.state == "ready"
    assert numbers == list(range(1, len(numbers) + 1))


async def test_the_blocking_client_has_the_same_methods(service: Service):
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(LauncherClient) | {"close", "url"} == public(BlockingClient)
    for name in public(LauncherClient):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (LauncherClient, BlockingClient))
        assert ours.parameters == theirs.parameters, name

    def notebook() -> None:
        client = BlockingClient(service.url, PLATFORM_TOKEN)
        launch = client.submit(username="ada", image="image:1")
        assert client.get(launch.id, wait=10).state == "ready"
        assert next(iter(client.events(launch.id))).name == "queued"
        assert [each.id for each in client.list()] == [launch.id]
        assert client.past_events(launch.id)[0].name == "queued"
        assert client.options("ada")["username"] == "ada"
        assert client.plan(username="bob", image="image:1")["decision"] == "start"
        assert client.extend(launch.id, 60).lifetime is not None
        assert client.stop(launch.id, wait=10) is None
        batch = client.submit_batch(users=["eve"], launch={"image": "image:1"})
        assert [each["id"] for each in client.batches()] == [batch["id"]]
        assert next(iter(client.batch_events(batch["id"]))).name == "queued"
        assert [item["error"] for item in client.extend_batch(batch["id"], 60)] == [None]
        client.stop_batch(batch["id"])
        with pytest.raises(NotFound):
            client.get("0123456789abcdef")
        for event in client.launch(username="bob", image="image:1"):
            if event.name == "starting":
                break  # what is left in the middle is closed
        client.close()
        client.close()

    await asyncio.to_thread(notebook)


async def test_a_stream_that_is_left_is_closed(client: LauncherClient, service: Service, hub: FakeHub):
    hub.auto_finish = False
    launch = await client.submit(username="ada", image="image:1")
    async with aclosing(client.events(launch.id)) as events:
        async for _ in events:
            break
    feed = service.app.parts.feed
    await until(lambda: not feed._listeners)


async def test_a_service_that_is_not_there(hub: FakeHub):
    url = f"http://127.0.0.1:{free_port(SERVICES)}/services/launcher/"
    async with LauncherClient(url, PLATFORM_TOKEN, patience=0.2) as client:
        with pytest.raises(Unreachable, match="can't be reached at"):
            await client.options()
        with pytest.raises(Unreachable):
            async for _ in client.events("0123456789abcdef"):
                pass


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Something else at a launcher's address, where it is."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port(SERVICES)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "error", "reason"),
    [
        (503, "<html>the proxy's page", Unreachable, "unreachable"),
        (404, "<html>a page of something else", LauncherError, "not_the_launcher"),
        (200, "<html>a page of something else", LauncherError, "not_the_launcher"),
        (200, '{"id": "of something else"}', LauncherError, "not_the_launcher"),
        (400, '{"message": "of something else"}', LauncherError, "not_the_launcher"),
    ],
)
async def test_what_is_not_the_launcher_is_recognised(status: int, body: str, error: type[LauncherError], reason: str):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=0.2) as client:
        with pytest.raises(error) as caught:
            await client.get("0123456789abcdef")
        assert caught.value.reason == reason


async def test_patience_begins_when_it_does_not_answer():
    """A stream in which nothing happens for long, and which then breaks, is resumed all the same."""
    requests: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        requests.append(request.headers.get("Last-Event-ID", ""))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if len(requests) == 1:
            await response.write(b'id: 7\nevent: starting\ndata: {"message": "It is its turn"}\n\n')
            for _ in range(6):
                await asyncio.sleep(0.1)  # longer than the patience, in all
                await response.write(b": alive\n\n")
            request.transport.abort()  # type: ignore[union-attr]
        else:
            await response.write(b'id: 8\nevent: stopped\ndata: {"message": "It has stopped"}\n\n')
        return response

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=0.3) as client:
        assert [event.name async for event in client.events("0123456789abcdef")] == ["starting", "stopped"]
    assert requests == ["", "7"]


@pytest.mark.parametrize("status", [302, 307])
async def test_it_is_not_sent_elsewhere(status: int):
    """Neither the token nor what is asked, which may have secrets in `env`."""
    elsewhere: list[str] = []

    async def trap(request: web.Request) -> web.StreamResponse:
        elsewhere.append(await request.text())
        return web.json_response({})

    async with answering(trap) as away:

        async def send_away(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": f"{away}launches"})

        async with answering(send_away) as url, LauncherClient(url, PLATFORM_TOKEN, patience=0.1) as client:
            with pytest.raises(LauncherError) as caught:
                await client.submit(username="ada", image="i", env={"SECRET": "x"})
            assert caught.value.reason == "not_the_launcher"
            with pytest.raises(LauncherError):
                await anext(client.events("0123456789abcdef"))
    assert elsewhere == []


@pytest.mark.parametrize("body", ["{}", "[]", "", '{"items": 1', "[" * 100_000])
async def test_answers_that_make_no_sense(body: str):
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, headers={"Retry-After": "\u00b2"})

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=0.1) as client:
        for ask in (client.options(), client.past_events("1"), anext(client.list()), client.get("1"), client.plan()):
            with pytest.raises(LauncherError):
                await ask


async def test_what_can_not_be_answered_now_is_asked_again_and_done_once():
    keys: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            request.transport.close()  # type: ignore[union-attr]  # accepted, and the answer is lost
            await asyncio.sleep(0)
        if len(keys) == 2:
            error = {"error": "The service is stopping.", "reason": "shutting_down", "details": {}, "status": 503}
            return web.json_response(error, status=503, headers={"Retry-After": "1"})
        launch = {"id": "1", "state": "new-state", "username": "ada", "server_name": "", "image": "i"}
        return web.json_response(launch | {"created": "2026-01-01T00:00:00Z", "new_field": 1})

    async with answering(answer) as url, LauncherClient(url, PLATFORM_TOKEN, patience=5) as client:
        began = asyncio.get_running_loop().time()
        launch = await client.submit(username="ada", image="i")
        assert asyncio.get_running_loop().time() - began > 0.7, "as Retry-After says"
    assert launch.state == "new-state"
    assert len(keys) == 3
    assert len(set(keys)) == 1


async def test_a_script_that_leaves_everything_open_ends(service: Service):
    script = f"""
from jhlauncher.client import BlockingClient
client = BlockingClient({service.url!r}, {PLATFORM_TOKEN!r})
launch = client.submit(username="ada", image="image:1")
events = client.events(launch.id)
print(next(events).name)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out, err) == (0, b"queued\n", b"")


async def test_a_closed_client_says_so(service: Service):
    def notebook() -> None:
        client = BlockingClient(service.url, PLATFORM_TOKEN)
        client.close()
        with pytest.raises(RuntimeError, match="is closed"):
            client.options()

    await asyncio.to_thread(notebook)


async def test_it_must_be_opened(service: Service):
    with pytest.raises(RuntimeError, match="async with"):
        await LauncherClient(service.url, PLATFORM_TOKEN).options()
