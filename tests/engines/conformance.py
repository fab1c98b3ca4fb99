"""What every engine must do, seen through the launcher and from inside the servers.

An engine's class says what it refuses; everything else must work. Each test records what it saw, and the table in
docs/engines.md is made of that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from jhlauncher import sse
from tests.engines.hubs import HUBS, EngineHub, missing
from tests.engines.inside import probe, run

HARD_ENV = {
    "JSON": '{"a": 1}',
    "BRACES": "{username.__class__} }{ {{.Node.Hostname}} {{{x}}}",
    "DOLLARS": "$HOME $(HOME) $$ $$(HOME) ${HOME}",
    "QUOTES": """it's "so" `here`""",
    "LINES": "one\ntwo\r\n\tthree\n",
    "UNICODE": "ünï 🎈 \u202e",
    "PERCENT": "%s %(x)s 100%",
    "EMPTY": "",
    "SPACE": "  around  ",
}


class EngineTests:
    """A Hub per engine and class of tests; classes run side by side."""

    engine: str
    refused: frozenset[str] = frozenset()
    """Fields that the engine refuses by name."""

    @pytest.fixture(scope="class")
    @classmethod
    def hub(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHub]:
        reason = missing(cls.engine)
        if reason:
            pytest.skip(reason)
        hub = HUBS[cls.engine](tmp_path_factory.mktemp(cls.engine))
        with hub.running():
            yield hub
            asyncio.run(cls._end(hub))

    @staticmethod
    async def _end(hub: EngineHub) -> None:
        """Stop everything; nothing may be left of it."""
        await hub.clean()
        async with asyncio.timeout(30):
            while await hub.remains():
                await asyncio.sleep(0.5)

    @pytest.fixture
    def saw(self, record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
        """Record what a field does on this engine."""

        def record(field: str, outcome: str) -> None:
            record_property("engine_table", (self.engine, field, outcome))

        return record

    async def launch(self, hub: EngineHub, user: str, **body: Any) -> dict[str, Any]:
        """Launch a server that must come up."""
        body = {"image": hub.images["image"], **body}
        status, launched = await hub.launcher("POST", username=user, **body)
        assert status == 200, launched
        return dict(launched)

    async def refusal(self, hub: EngineHub, user: str, **body: Any) -> dict[str, Any]:
        """Launch a server that must not."""
        body = {"image": hub.images["image"], **body}
        status, error = await hub.launcher("POST", username=user, **body)
        assert status >= 400, error
        return dict(error)

    async def works(self, hub: EngineHub, saw: Any, field: str, named: str, user: str, **body: Any) -> Any:
        """Launch with a field; None where the engine must refuse it by name, and does."""
        if field in self.refused:
            error = await self.refusal(hub, user, **body)
            assert (error["status"], error["reason"]) == (400, "refused_by_hub"), error
            assert f" {named}: " in error["error"]
            saw(field, "refused")
            return None
        return await self.launch(hub, user, **body)

    async def events(self, hub: EngineHub, **body: Any) -> list[tuple[str, Any]]:
        headers = {"Authorization": f"token {hub.platform_token}", "Accept": "text/event-stream"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.post(f"{hub.launcher_url}containers", json=body) as response,
        ):
            return [(e.name, json.loads(e.data)) async for e in sse.decode(response.content.iter_any())]


class Conformance(EngineTests):
    """One launch spec on any engine."""

    async def test_image(self, hub: EngineHub, saw: Any):
        one, other = await asyncio.gather(
            self.launch(hub, "image-one"), self.launch(hub, "image-other", image=hub.images["other"])
        )
        key = "IMAGE" if self.engine == "local" else "WHICH_IMAGE"
        assert (await probe(other))["env"][key] == "other"
        assert (await probe(one))["env"].get(key) != "other"
        saw("image", "works")

    async def test_env_arrives_exactly_and_does_not_stay(self, hub: EngineHub, saw: Any):
        launched = await self.launch(hub, "env", env=HARD_ENV)
        env = (await probe(launched))["env"]
        assert {name: env.get(name) for name in HARD_ENV} == HARD_ENV
        await hub.stop("env")
        env = (await probe(await self.launch(hub, "env")))["env"]
        assert not HARD_ENV.keys() & env.keys()
        saw("env", "works")

    async def test_volumes(self, hub: EngineHub, saw: Any):
        """Several volumes, one of them at two mounts, below the home; they outlive the server and can be shared."""
        image = hub.images[hub.writer_image]
        data, more = hub.volume("data"), hub.volume("more")
        for name in (data, more):
            await hub.create_volume(name)
        vols = [
            {"pvc": data, "mount": f"{hub.home}/data"},
            {"pvc": data, "mount": f"{hub.home}/again/{{here}} $(A)"},
            {"pvc": more, "mount": f"{hub.home}/more"},
        ]
        launched = await self.launch(hub, "writer", image=image, vols=vols)
        home = f"import pathlib; home = pathlib.Path({self.inside_home(hub)})\n"
        await run(launched, home + "(home / 'data/note').write_text('kept'); (home / 'more/other').write_text('x')")
        both = "print((home / 'again/{here} $(A)/note').read_text(), sorted(p.name for p in (home / 'more').iterdir()))"
        assert await run(launched, home + both) == "kept ['other']\n"
        await hub.stop("writer")

        plain = await self.launch(hub, "writer", image=image)
        assert await run(plain, home + "print((home / 'data/note').exists())") == "False\n"
        await hub.stop("writer")

        reader = [{"pvc": data, "mount": f"{hub.home}/elsewhere"}]
        again, shared = await asyncio.gather(
            self.launch(hub, "writer", image=image, vols=vols[:1]),
            self.launch(hub, "reader", image=image, vols=reader),
        )
        assert await run(again, home + "print((home / 'data/note').read_text())") == "kept\n"
        assert await run(shared, home + "print((home / 'elsewhere/note').read_text())") == "kept\n"
        for field in ("volumes", "the same volume at two mounts", "volumes shared by servers"):
            saw(field, "works")

    def inside_home(self, hub: EngineHub) -> str:
        """Code for the folder at which the mounts' parent appears."""
        return repr(hub.home)

    async def test_read_only_volume(self, hub: EngineHub, saw: Any):
        name = hub.volume("read-only")
        await hub.create_volume(name)
        vols = [{"pvc": name, "mount": f"{hub.home}/fixed", "read_only": True}]
        launched = await self.works(
            hub, saw, "read_only", "volumes", "read-only", image=hub.images[hub.writer_image], vols=vols
        )
        if launched:
            code = f"import pathlib\ntry:\n    pathlib.Path('{hub.home}/fixed/x').write_text('')\n"
            assert "Read-only file system" in await run(launched, code + "except OSError as error: print(error)")
            saw("read_only", "works")

    async def test_subpath(self, hub: EngineHub, saw: Any):
        name = hub.volume("parts")
        await hub.create_volume(name)
        vols = [
            {"pvc": name, "mount": f"{hub.home}/part", "subpath": "a/b"},
            {"pvc": name, "mount": f"{hub.home}/whole"},
        ]
        launched = await self.works(
            hub, saw, "subpath", "volumes", "subpath", image=hub.images[hub.writer_image], vols=vols
        )
        if launched:
            code = f"import pathlib; home = pathlib.Path({self.inside_home(hub)})\n"
            code += "print([p.name for p in (home / 'whole').iterdir()], (home / 'whole/a/b').is_dir())"
            assert await run(launched, code) == "['a'] True\n"
            saw("subpath", "works")

    async def test_volume_made_on_demand(self, hub: EngineHub, saw: Any):
        """By a rule of the policy, for its users only; it stays when the server goes."""
        name = hub.volume("on-demand")
        vols = [{"pvc": name, "mount": f"{hub.home}/new"}]
        launched = await self.launch(hub, "maker", image=hub.images[hub.writer_image], vols=vols)
        code = f"import pathlib; home = pathlib.Path({self.inside_home(hub)})\n"
        code += "(home / 'new/file').write_text('mine'); print('ok')"
        assert await run(launched, code) == "ok\n"
        await hub.stop("maker")
        assert await hub.has_volume(name)
        saw("volumes made on demand", "works")

    async def test_cpu(self, hub: EngineHub, saw: Any):
        launched = await self.works(hub, saw, "cpu", "cpu", "cpu", cpu={"request": 0.25, "limit": 0.5})
        if launched:
            seen = await probe(launched)
            assert int(seen["cpu"][0]) / int(seen["cpu"][1]) == 0.5
            saw("cpu", "works")

    async def test_memory(self, hub: EngineHub, saw: Any):
        launched = await self.works(hub, saw, "memory", "memory", "mem", memory={"request": "256M", "limit": "512M"})
        if launched:
            assert (await probe(launched))["memory"] == [str(512 * 1024**2)]
            saw("memory", "works")

    async def test_gpu(self, hub: EngineHub, saw: Any):
        """No machine of the tests' has one: the engine must be asked for it, and have none."""
        if "gpu" in self.refused:
            assert not await self.works(hub, saw, "gpu", "gpu", "gpu", gpu={"limit": 1})
        else:
            error = await self.refusal(hub, "gpu", gpu={"limit": 1})
            assert error["reason"] == "unschedulable", error
            saw("gpu", "asked for; none on the test machine")

    async def test_pull_policy_and_secrets_of_the_policy(self, hub: EngineHub, saw: Any):
        if self.engine == "local":
            error = await self.refusal(hub, "never-pull")
            assert error["reason"] == "refused_by_hub"
            saw("pull_policy (of the policy)", "refused")
            saw("pull_secrets (of the policy)", "refused")
            return
        error = await self.refusal(hub, "never-pull", image="no-such-image:1")
        assert error["reason"] == "image_not_found"
        # and not: that the registry could not be reached
        assert "the pull policy is to pull none" in error["error"] or "ErrImageNeverPull" in str(error["details"])
        await self.launch(hub, "never-pull")
        saw("pull_policy (of the policy)", "works")
        if self.engine == "swarm":
            error = await self.refusal(hub, "pull-secrets")
            assert error["reason"] == "refused_by_hub"
            assert "credentials of the Hub's Docker client only" in error["error"]
            saw("pull_secrets (of the policy)", "refused")

    async def test_named_and_default_server_side_by_side(self, hub: EngineHub, saw: Any):
        default, named = await asyncio.gather(
            self.launch(hub, "twin", env={"WHICH": "default"}),
            self.launch(hub, "twin", server_name="p1", env={"WHICH": "named"}),
        )
        assert (await probe(default))["env"]["WHICH"] == "default"
        assert (await probe(named))["env"]["WHICH"] == "named"
        await hub.stop("twin")
        assert (await probe(named))["env"]["WHICH"] == "named"
        saw("named servers", "works")

    async def test_stop_leaves_nothing(self, hub: EngineHub):
        await self.launch(hub, "stopper")
        assert await hub.remains_of("stopper")
        await hub.stop("stopper")
        assert not await hub.remains_of("stopper")

    async def test_cancel_during_start(self, hub: EngineHub, saw: Any):
        launch = asyncio.create_task(hub.launcher("POST", username="quitter", image=hub.images["silent"]))
        async with asyncio.timeout(30):
            while not await hub.remains_of("quitter"):
                await asyncio.sleep(0.1)
        await hub.stop("quitter")
        status, error = await launch
        assert (status, error["reason"]) == (500, "cancelled")
        async with asyncio.timeout(60):
            while await hub.remains_of("quitter"):
                await asyncio.sleep(0.2)
        await self.launch(hub, "quitter")
        saw("cancel during start", "works")

    async def test_cancel_at_once(self, hub: EngineHub):
        """Before there is anything to see; what the engine was asked to make must not appear afterwards."""
        launch = asyncio.create_task(hub.launcher("POST", username="hasty", image=hub.images["silent"]))
        async with asyncio.timeout(30):
            while (await hub.launcher("GET", "?username=hasty"))[0] != 200:
                await asyncio.sleep(0.02)
        await hub.stop("hasty")
        assert (await launch)[1]["reason"] == "cancelled"
        # and the next one, which waits for whatever the engine still had to do, is the only one
        await self.launch(hub, "hasty")
        assert len(await hub.remains_of("hasty")) == hub.parts
        await hub.stop("hasty")
        async with asyncio.timeout(60):
            while await hub.remains_of("hasty"):
                await asyncio.sleep(0.2)

    async def test_the_same_server_twice_at_once(self, hub: EngineHub):
        body = {"username": "double", "image": hub.images["image"]}
        results = await asyncio.gather(*(hub.launcher("POST", **body) for _ in range(2)))
        assert sorted(status for status, _ in results) == [200, 400], results
        refused = next(answer for status, answer in results if status == 400)
        assert refused["reason"] in ("server_starting", "server_running")

    async def test_progress(self, hub: EngineHub, saw: Any):
        events = await self.events(hub, username="watcher", image=hub.images["image"])
        *steps, (name, _) = events
        assert name == "ready", events
        numbers = [step["progress"] for _, step in steps]
        assert numbers == sorted(numbers)
        assert all(step.keys() == {"progress", "message", "phase"} for _, step in steps)
        phases = list(dict.fromkeys(step["phase"] for _, step in steps))
        saw("progress with phases", "works")
        assert phases[0] == "starting"
        assert phases[-1] == "waiting"
        assert self.engine == "local" or "creating" in phases

    async def test_plain_start_after_a_launch_is_plain(self, hub: EngineHub):
        """From the Hub's own page; it reuses the stored options."""
        await self.launch(hub, "plain", image=hub.images["other"], env={"OF_THE_LAUNCH": "1"})
        await hub.stop("plain")
        assert (await hub.api("POST", "/users/plain/server"))[0] in (201, 202)
        async with asyncio.timeout(60):
            while not ((await hub.api("GET", "/users/plain"))[1]["servers"].get("") or {}).get("ready"):
                await asyncio.sleep(0.2)
        _, token = await hub.api("POST", "/users/plain/tokens", json={"scopes": ["access:servers!server=plain/"]})
        server = {"url": f"{hub.url}user/plain/", "token": token["token"]}
        assert "OF_THE_LAUNCH" not in (await probe(server))["env"]


class Failures(EngineTests):
    """Why a launch failed, in the same words on every engine, and long before the Hub's time-outs."""

    BOUND = 120
    """Seconds; the spawner's start_timeout and http_timeout are 240."""

    async def failure(self, hub: EngineHub, reason: str, user: str, **body: Any) -> dict[str, Any]:
        began = time.monotonic()
        error = await self.refusal(hub, user, **body)
        assert error["reason"] == reason, error
        assert time.monotonic() - began < self.BOUND
        await self.on_the_hub(hub, user, error, body.get("server_name", ""))
        return error

    async def on_the_hub(self, hub: EngineHub, user: str, error: dict[str, Any], server: str) -> None:
        """The Hub's own page and event stream have the same to say."""
        sentence = error["error"].partition(" did not start: ")[2]
        headers = {"Authorization": f"token {hub.admin_token}"}
        path = f"servers/{server}" if server else "server"
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.get(f"{hub.url}hub/api/users/{user}/{path}/progress") as response,
        ):
            (event,) = [json.loads(e.data) async for e in sse.decode(response.content.iter_any())]
        assert event["failed"]
        assert event["message"] == f"Spawn failed: {sentence}"
        for line in error["details"].get("log", []):
            assert line.split("[hidden]")[0].replace("<", "&lt;").split("'")[0].split('"')[0] in event["html_message"]

    async def test_image_that_does_not_exist(self, hub: EngineHub, saw: Any):
        error = await self.failure(hub, "image_not_found", "noimage", image="no-such-image:1")
        assert "no-such-image:1" in error["error"]
        assert not await hub.remains_of("noimage")
        saw("image_not_found", "works")

    async def test_missing_volume(self, hub: EngineHub, saw: Any):
        name = hub.volume("missing")
        error = await self.failure(hub, "volume_not_found", "novolume", vols=[{"pvc": name, "mount": f"{hub.home}/x"}])
        assert name in error["error"]
        assert not await hub.has_volume(name)
        saw("volume_not_found", "works")

    async def test_crash_at_start(self, hub: EngineHub, saw: Any):
        error = await self.failure(
            hub, "crashed", "crasher", image=hub.images["crashing"], env={"SECRET_WORD": "swordfish"}
        )
        assert not await hub.remains_of("crasher")
        log = "\n".join(error["details"]["log"])
        assert "ZeroDivisionError" in log
        assert "the token is [hidden]" in log
        assert "swordfish" not in json.dumps(error) + (hub.folder / "hub.log").read_text()
        assert error["details"]["exit_code"] == (3 if self.engine == "local" else 1)
        # and the user is none the worse for it
        await self.launch(hub, "crasher")
        saw("crashed", "works")

    async def test_never_listening(self, hub: EngineHub, saw: Any):
        await asyncio.gather(
            self.failure(hub, "never_ready", "silent", image=hub.images["silent"]),
            self.failure(hub, "never_ready", "silent-mute", server_name="p1", image=hub.images["mute"]),
        )
        assert not await hub.remains_of("silent")
        saw("never_ready", "works")

    async def test_out_of_memory(self, hub: EngineHub, saw: Any):
        if "memory" in self.refused:
            saw("out_of_memory", "not applicable")
            return
        error = await self.failure(hub, "out_of_memory", "glutton", memory={"limit": "24M"})
        assert "24M" in error["error"]
        assert not await hub.remains_of("glutton")
        saw("out_of_memory", "works")

    @pytest.mark.parametrize("asked", [{"cpu": {"request": 500}}, {"memory": {"limit": "900G"}}], ids=str)
    async def test_impossible_resources(self, hub: EngineHub, saw: Any, asked: dict[str, Any]):
        if asked.keys() & self.refused:
            saw("unschedulable", "not applicable")
            return
        await self.failure(hub, "unschedulable", "giant", **asked)
        assert not await hub.remains_of("giant")
        saw("unschedulable", "works")
