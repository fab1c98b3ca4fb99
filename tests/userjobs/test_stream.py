"""All of one's own user jobs in one stream: told whole, whenever something of them changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from jhlauncher import sse
from tests.conftest import Service
from tests.fake_hub import FakeHub
from tests.userjobs.conftest import Site, service_for

pytestmark = pytest.mark.asyncio

Lists = AsyncIterator[list[dict[str, Any]]]


@pytest_asyncio.fixture
async def service(site: Site, hub: FakeHub) -> AsyncIterator[Service]:
    async with service_for(site, hub, Hub={"auth_cache_seconds": 0.01}) as service:
        yield service


@asynccontextmanager
async def followed(service: Service, who: str = "ada") -> AsyncIterator[Lists]:
    """The lists that the stream tells somebody."""
    headers = {"Authorization": f"token token-of-{who}", "Accept": "text/event-stream"}
    async with asyncio.timeout(60), service.client.get(f"{service.url}api/userjobs/", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")

        async def lists() -> Lists:
            async for event in sse.decode(response.content.iter_any()):
                assert event.name == "userjobs"
                yield json.loads(event.data)

        yield lists()


async def post(service: Service, name: str, who: str, **body: Any) -> None:
    body = {"service": name, "hostname": "cluster", **body}
    status, answer = await service.request("POST", "api/userjobs/", token=f"token-of-{who}", json=body)
    assert status == 201, answer


async def until(lists: Lists, *wanted: tuple[str, str | None]) -> list[dict[str, Any]]:
    """The first list with these names and states of jobs; None is that of a forward without one."""
    async for views in lists:
        found = [(view["service"], view["job"] and view["job"]["state"]) for view in views]
        if found == list(wanted):
            return views
    raise AssertionError("the stream has ended")


async def test_the_whole_list_is_told_whenever_it_changes(service: Service):
    async with followed(service) as lists:
        assert await anext(lists) == []
        await post(service, "of-bob", "bob", target_node="localhost", ports={"8080": 8080})
        await post(service, "forward", "ada", target_node="localhost", ports={"8080": 8080})
        [view] = await until(lists, ("forward", None))
        assert list(view["ports"]) == ["8080"]
        await post(service, "job", "ada", job={"script": "#!/bin/sh\nexit 2\n", "memory": "10M"})
        views = await until(lists, ("job", "FAILED"), ("forward", None))
        assert views == (await service.request("GET", "api/userjobs/", token="token-of-ada"))[1]
        for name in ("job", "forward"):
            assert await service.request("DELETE", f"api/userjobs/{name}", token="token-of-ada") == (204, "")
        await until(lists)


async def test_it_ends_with_the_token(service: Service):
    async with followed(service) as lists:
        assert await anext(lists) == []
        del service.hub.identities["token-of-ada"]
        service.hub.identify("another-of-ada", "ada", "user", "access:services", "servers!user=ada")
        body = {"service": "forward", "hostname": "cluster", "target_node": "localhost", "ports": {"8080": 8080}}
        assert (await service.request("POST", "api/userjobs/", token="another-of-ada", json=body))[0] == 201
        async for _ in lists:
            pass  # what it is told meanwhile is of before


async def test_a_service_that_stops_does_not_wait_for_it(service: Service):
    async with followed(service) as lists:
        assert await anext(lists) == []
        async with asyncio.timeout(10):
            await service.app.serving.drain(60)
            assert [views async for views in lists] == []
