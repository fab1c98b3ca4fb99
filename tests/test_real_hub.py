"""The contract on a real JupyterHub with real single-user servers, on the local engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import running_service
from tests.real_hub import SIGNING_KEY, RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


@pytest.fixture(scope="module")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    with RealHub(tmp_path_factory.mktemp("hub")).running() as hub:
        yield hub


@asynccontextmanager
async def second_launcher(hub: RealHub, **launcher: Any) -> AsyncIterator[str]:
    """An external launcher service at the same Hub; its URL."""
    config = {"api_url": hub.api_url}
    app = {"prefix": "/services/second-launcher/", "signing_key": SIGNING_KEY}

    class Token:
        api_url = hub.api_url

    async with running_service(
        Token, Hub={**config, "api_token": hub.second_token}, LauncherApp=app, Launcher=launcher
    ) as service:  # type: ignore[arg-type]
        yield service.url


async def get(url: str, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"token {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as client, client.get(url) as response:
        return response.status, await response.text()


async def environment_of(hub: RealHub, user: str, server: str = "") -> dict[str, str]:
    """The environment of a server's process."""
    _, model = await hub.api("GET", f"/users/{user}")
    pid = model["servers"][server]["state"]["pid"]
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)


async def test_life_of_a_server(real_hub: RealHub):
    """Launch, use, ask, refuse a second one, stop; each with the contract's status code."""
    assert (await real_hub.launcher("GET", "?username=voyager"))[0] == 400
    assert (await real_hub.launcher("DELETE", "?username=voyager"))[0] == 400
    body = {"username": "voyager", "image": "plain", "vols": [{"pvc": "data", "mount": "/home/jovyan/data"}]}
    status, launched = await real_hub.launcher("POST", **body)
    assert status == 200, launched
    assert {**launched, "token": ""} == {
        **body,
        "server_name": "",
        "token": "",
        "url": f"{real_hub.url}user/voyager/",
    }
    assert (await get(launched["url"] + "api/status", launched["token"]))[0] == 200
    assert (await get(launched["url"] + "api/status"))[0] == 403

    status, model = await real_hub.launcher("GET", "?username=voyager")
    assert (status, model["ready"], model["pending"], model["url"]) == (200, True, None, "/user/voyager/")
    assert model.keys() == {
        "last_activity", "name", "pending", "progress_url", "ready", "started", "state", "url",
    }  # fmt: skip
    status, error = await real_hub.launcher("POST", **body)
    assert (status, error["reason"]) == (400, "server_running")

    assert await real_hub.launcher("DELETE", "?username=voyager") == (200, "")
    status, error = await real_hub.launcher("GET", "?username=voyager")
    assert (status, error["reason"]) == (400, "server_not_found")
    assert (await real_hub.launcher("DELETE", "?username=voyager"))[0] == 400
    # the token went with the server
    assert (await real_hub.api("GET", "/user", token=launched["token"]))[0] == 403


async def test_url_and_token_open_jupyterlab(real_hub: RealHub):
    """``'{}/?token={}'.format(url, token)``, in a client that keeps cookies as a browser does."""
    status, launched = await real_hub.launcher("POST", username="labber", image="lab")
    assert status == 200, launched
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{launched['url']}/?token={launched['token']}") as response:
            assert (response.status, response.url.path) == (200, "/user/labber/lab")
            assert "JupyterLab" in await response.text()
        # the cookie goes on without the token
        async with browser.get(f"{launched['url']}lab") as response:
            assert (response.status, response.history) == (200, ())
    await real_hub.launcher("DELETE", "?username=labber")


async def test_named_and_default_server_side_by_side_with_tokens_of_their_own(real_hub: RealHub):
    volume = {"pvc": "shared", "mount": "/home/jovyan/here"}
    launches = await asyncio.gather(
        real_hub.launcher("POST", username="twin", image="plain", env={"WHICH": "default"}),
        real_hub.launcher("POST", username="twin", server_name="p1", image="other", vols=[volume]),
    )
    assert [status for status, _ in launches] == [200, 200], launches
    default, named = (launched for _, launched in launches)
    assert (named["server_name"], named["url"]) == ("p1", f"{real_hub.url}user/twin/p1/")
    for own, other in ((default, named), (named, default)):
        assert (await get(own["url"] + "api/status", own["token"]))[0] == 200
        assert (await get(other["url"] + "api/status", own["token"]))[0] == 403
    # nor does it open the Hub, another user, or the launcher
    assert (await real_hub.api("GET", "/users", token=default["token"]))[0] == 403
    assert (await real_hub.api("POST", "/users/twin/servers/p2", token=default["token"], json={}))[0] in (403, 404)
    assert (await real_hub.launcher("GET", "?username=twin", token=default["token"]))[0] == 403

    assert (await environment_of(real_hub, "twin"))["WHICH"] == "default"
    environment = await environment_of(real_hub, "twin", "p1")
    assert environment["IMAGE"] == "other"
    assert "WHICH" not in environment
    await real_hub.launcher("DELETE", "?username=twin")
    assert (await get(named["url"] + "api/status", named["token"]))[0] == 200
    await real_hub.launcher("DELETE", "?username=twin&server_name=p1")


async def test_volume_outlives_its_server_and_nothing_else_does(real_hub: RealHub):
    vols = [{"pvc": "kept", "mount": "/home/jovyan/work", "subpath": "a/b"}]
    env = {"JSON": '{"a": 1}', "LINES": "one\ntwo", "QUOTES": 'it\'s "so"', "UNICODE": "ünï 🎈", "BRACES": "{username}"}
    _, launched = await real_hub.launcher("POST", username="keeper", image="plain", vols=vols, env=env)
    content = {"type": "file", "format": "text", "content": "written inside"}
    headers = {"Authorization": f"token {launched['token']}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        async with client.put(f"{launched['url']}api/contents/work/note.txt", json=content) as response:
            assert response.status == 201
    assert env.items() <= (await environment_of(real_hub, "keeper")).items()
    # what the Hub stores and shows has no value of env in it
    _, model = await real_hub.api("GET", "/users/keeper")
    assert "written" not in str(model)
    assert "🎈" not in str(model)
    await real_hub.launcher("DELETE", "?username=keeper")

    _, launched = await real_hub.launcher("POST", username="keeper", image="plain")
    assert not env.keys() & (await environment_of(real_hub, "keeper")).keys()
    assert (await get(f"{launched['url']}api/contents/work/note.txt", launched["token"]))[0] == 404
    await real_hub.launcher("DELETE", "?username=keeper")

    other = [{"pvc": "kept", "mount": "/home/jovyan/elsewhere/deep"}]
    _, launched = await real_hub.launcher("POST", username="reader", image="plain", vols=other)
    status, text = await get(f"{launched['url']}api/contents/elsewhere/deep/a/b/note.txt", launched["token"])
    assert status == 200
    assert "written inside" in text
    await real_hub.launcher("DELETE", "?username=reader")


async def test_token_lifetime_is_as_configured(real_hub: RealHub):
    async with second_launcher(real_hub, token_lifetime=2) as url:
        status, launched = await real_hub.launcher("POST", url=url, username="brief", image="plain")
        assert status == 200, launched
        assert launched["url"].endswith("/user/brief/")
        _, tokens = await real_hub.api("GET", "/users/brief/tokens")
        (token,) = [token for token in tokens["api_tokens"] if token["note"].startswith("jhlauncher")]
        lifetime = datetime.fromisoformat(token["expires_at"]) - datetime.fromisoformat(token["created"])
        assert lifetime.total_seconds() == pytest.approx(2, abs=0.1)
        async with asyncio.timeout(10):
            while (await real_hub.api("GET", "/user", token=launched["token"]))[0] == 200:
                await asyncio.sleep(0.2)
        await real_hub.launcher("DELETE", "?username=brief", url=url)


async def test_default_token_lifetime(real_hub: RealHub):
    await real_hub.launcher("POST", username="usual", image="plain")
    _, tokens = await real_hub.api("GET", "/users/usual/tokens")
    (token,) = [token for token in tokens["api_tokens"] if token["note"].startswith("jhlauncher")]
    # beside what every token may, to say whose it is
    assert [scope for scope in token["scopes"] if not scope.startswith("read:users:")] == [
        "access:servers!server=usual/"
    ]
    lifetime = datetime.fromisoformat(token["expires_at"]) - datetime.fromisoformat(token["created"])
    assert lifetime.total_seconds() == pytest.approx(1800, abs=1)
    await real_hub.launcher("DELETE", "?username=usual")


async def test_launch_that_crashes(real_hub: RealHub):
    status, error = await real_hub.launcher("POST", username="crasher", image="crashing")
    assert (status, error["reason"]) == (500, "crashed"), error
    assert "process ended with exit code 3" in error["error"]
    assert error["details"]["exit_code"] == 3
    log = "\n".join(error["details"]["log"])
    assert "ZeroDivisionError" in log
    assert "the token is [hidden]" in log
    assert (await real_hub.api("GET", "/users/crasher"))[1]["servers"] == {}
    # and the user is none the worse for it
    assert (await real_hub.launcher("POST", username="crasher", image="plain"))[0] == 200
    await real_hub.launcher("DELETE", "?username=crasher")


async def test_launch_that_takes_too_long(real_hub: RealHub):
    async with second_launcher(real_hub, start_timeout=2) as url:
        status, error = await real_hub.launcher("POST", url=url, username="sleeper", image="silent")
    assert (status, error["reason"]) == (500, "timeout")
    assert (await real_hub.api("GET", "/users/sleeper"))[1]["servers"] == {}


async def test_cancel_during_start(real_hub: RealHub):
    launch = asyncio.create_task(real_hub.launcher("POST", username="quitter", image="silent"))
    async with asyncio.timeout(30):
        while (await real_hub.launcher("GET", "?username=quitter"))[0] != 200:
            await asyncio.sleep(0.1)
    status, error = await real_hub.launcher("POST", username="quitter", image="plain")
    assert (status, error["reason"]) == (400, "server_starting")
    assert (await real_hub.launcher("DELETE", "?username=quitter"))[0] == 200
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")
    assert (await real_hub.api("GET", "/users/quitter"))[1]["servers"] == {}
    _, tokens = await real_hub.api("GET", "/users/quitter/tokens")
    assert not [token for token in tokens["api_tokens"] if token["note"].startswith("jhlauncher")]


async def test_cancel_behind_our_back(real_hub: RealHub):
    """Stopped at the Hub itself, whose event stream then says that the server is ready."""
    launch = asyncio.create_task(real_hub.launcher("POST", username="evader", image="silent"))
    async with asyncio.timeout(30):
        while (await real_hub.launcher("GET", "?username=evader"))[0] != 200:
            await asyncio.sleep(0.1)
    assert (await real_hub.api("DELETE", "/users/evader/server"))[0] in (202, 204)
    status, error = await launch
    assert (status, error["reason"]) == (500, "cancelled")


async def test_unknown_image_is_refused_by_name(real_hub: RealHub):
    status, error = await real_hub.launcher("POST", username="picky", image="no-such-image")
    assert (status, error["reason"]) == (400, "image_not_found")
    assert "no-such-image is not one of this Hub's images: plain, other" in error["error"]
    # and a start from the Hub's own page is none the worse for it
    token = await real_hub.user_token("picky")
    assert (await real_hub.api("POST", "/users/picky/server", token=token))[0] in (201, 202)
    await until_ready(real_hub, "picky")
    await real_hub.api("DELETE", "/users/picky/server")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu", {"limit": 1}),
        ("memory", {"limit": "1G"}),
        ("gpu", {"limit": 1}),
        ("vols", [{"pvc": "x", "mount": "/home/jovyan/x", "read_only": True}]),
        ("vols", [{"pvc": "x", "mount": "/srv/x"}]),
    ],
)
async def test_what_the_engine_has_not_is_refused_by_name(real_hub: RealHub, field: str, value: Any):
    status, error = await real_hub.launcher("POST", username="needy", image="plain", **{field: value})
    assert (status, error["reason"]) == (400, "refused_by_hub")
    assert ("volumes" if field == "vols" else field) in error["error"]


async def test_user_is_named_as_the_login_would(real_hub: RealHub):
    status, launched = await real_hub.launcher("POST", username="MiXeD", image="plain")
    assert (status, launched["username"]) == (200, "mixed")
    assert launched["url"].endswith("/user/mixed/")
    await real_hub.launcher("DELETE", "?username=MiXeD")
    # one whom somebody has created with capitals is left what they are
    await real_hub.api("POST", "/users/Capital")
    status, launched = await real_hub.launcher("POST", username="Capital", image="plain")
    assert (status, launched["username"]) == (200, "Capital")
    await real_hub.launcher("DELETE", "?username=Capital")


async def test_odd_but_legal_user_name(real_hub: RealHub):
    name = "zoë o+neil@1.example"
    status, launched = await real_hub.launcher("POST", username=name, image="plain")
    assert (status, launched["username"]) == (200, name), launched
    assert (await get(launched["url"] + "api/status", launched["token"]))[0] == 200
    async with aiohttp.ClientSession(headers={"Authorization": f"token {real_hub.platform_token}"}) as client:
        async with client.delete(f"{real_hub.launcher_url}containers", params={"username": name}) as response:
            assert response.status == 200


# -- who may


async def test_user_launches_for_themselves_and_nobody_else(real_hub: RealHub):
    token = await real_hub.user_token("alice")
    await real_hub.user_token("bob")
    status, launched = await real_hub.launcher("POST", token=token, username="alice", image="plain")
    assert status == 200, launched
    for method, query, body in (
        ("POST", "", {"username": "bob", "image": "plain"}),
        ("GET", "?username=bob", {}),
        ("DELETE", "?username=bob", {}),
    ):
        status, error = await real_hub.launcher(method, query, token=token, **body)
        assert (status, error["reason"]) == (403, "missing_scope")
    assert (await real_hub.launcher("DELETE", "?username=ALICE", token=token))[0] == 200
    # what the policy has not for ordinary users
    status, error = await real_hub.launcher("POST", token=token, username="alice", image="other")
    assert (status, error["reason"]) == (403, "policy_denied")


async def test_filtered_scopes_mean_just_that(real_hub: RealHub):
    access = "access:services!service=launcher"
    alice = await real_hub.user_token("alice", access, "servers!server=alice/p1")
    assert (await real_hub.launcher("POST", token=alice, username="alice", image="plain"))[0] == 403
    assert (await real_hub.launcher("GET", "?username=alice&server_name=p1", token=alice))[0] == 400
    reader = await real_hub.user_token("alice", access, "read:servers!user=alice")
    assert (await real_hub.launcher("GET", "?username=alice", token=reader))[0] == 400
    assert (await real_hub.launcher("DELETE", "?username=alice", token=reader))[0] == 403
    stranger = await real_hub.user_token("alice", "servers!user=alice")
    status, error = await real_hub.launcher("GET", "?username=alice", token=stranger)
    assert (status, error["details"]["needs"]) == (403, access)


async def test_scope_filtered_by_group(real_hub: RealHub):
    await real_hub.api("POST", "/users/teacher")
    await real_hub.api("POST", "/users/outsider")
    access = "access:services!service=launcher"
    token = await real_hub.user_token("admin-like")
    # only an administrator has servers!group= to give: the admin service mints it for an admin user
    await real_hub.api("PATCH", "/users/admin-like", json={"admin": True})
    body = {"scopes": [access, "servers!group=course-1"]}
    status, model = await real_hub.api("POST", "/users/admin-like/tokens", json=body)
    assert status == 201, model
    token = model["token"]
    assert (await real_hub.launcher("GET", "?username=student", token=token))[0] == 400
    assert (await real_hub.launcher("GET", "?username=outsider", token=token))[0] == 403
    status, launched = await real_hub.launcher("POST", token=token, username="student", image="plain")
    assert status == 200, launched
    assert (await real_hub.launcher("DELETE", "?username=student", token=token))[0] == 200


async def test_no_token_and_wrong_token(real_hub: RealHub):
    async with aiohttp.ClientSession() as client, client.get(f"{real_hub.launcher_url}containers") as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await real_hub.launcher("GET", "?username=alice", token="0" * 32))[0] == 401
    # a wrong token is not remembered: it may have come too early
    token = await real_hub.user_token("late")
    assert (await real_hub.launcher("GET", "?username=late", token=token))[0] == 400


# -- the signature


async def test_forged_options_are_refused_and_plain_starts_go_on(real_hub: RealHub):
    token = await real_hub.user_token("mallory")
    spec = {"image": "other", "volumes": [{"name": "kept", "mount": "/home/jovyan/stolen"}]}
    for forged in (
        {"spec": spec},
        {"id": "1", "issued": 1, "spec": spec, "env": None, "signature": "0" * 64},
        {"id": "1", "issued": 1, "spec": spec, "env": None, "signature": None},
        "other",
        [],
    ):
        status, error = await real_hub.api("POST", "/users/mallory/server", token=token, json={"launcher": forged})
        assert status == 403, (forged, error)
        assert "not signed by the launcher" in error["message"]
        assert (await real_hub.api("GET", "/users/mallory"))[1]["servers"] == {}
    # with no options, the Hub takes the last ones it knows: they must not be the refused ones
    status, _ = await real_hub.api("POST", "/users/mallory/server", token=token)
    assert status in (201, 202)
    await until_ready(real_hub, "mallory")
    environment = await environment_of(real_hub, "mallory")
    assert environment["FROM_CONFIG"] == "1"
    assert environment["IMAGE"] == "of the hook"
    await real_hub.api("DELETE", "/users/mallory/server")


async def test_signed_options_start_one_server_once(real_hub: RealHub):
    token = await real_hub.user_token("trudy")
    status, launched = await real_hub.launcher("POST", username="trudy", image="other", env={"SECRET": "s3cret"})
    assert status == 200, launched
    options = (await real_hub.api("GET", "/users/trudy"))[1]["servers"][""]["user_options"]
    assert "s3cret" not in str(options)
    await real_hub.launcher("DELETE", "?username=trudy")

    # from the Hub's own page: the stored options are not applied again
    assert (await real_hub.api("POST", "/users/trudy/server", token=token))[0] in (201, 202)
    await until_ready(real_hub, "trudy")
    assert (await environment_of(real_hub, "trudy"))["IMAGE"] == "of the hook"
    await real_hub.api("DELETE", "/users/trudy/server")

    # sent again by hand
    replay = {"launcher": {key: value for key, value in options["launcher"].items() if key != "applied"}}
    status, error = await real_hub.api("POST", "/users/trudy/server", token=token, json=replay)
    assert (status, "have started a server already" in error["message"]) == (403, True)
    # for another server, or another user
    status, error = await real_hub.api("POST", "/users/trudy/servers/p1", token=token, json=replay)
    assert (status, "not signed" in error["message"]) == (403, True)
    mallory = await real_hub.user_token("mallory")
    status, error = await real_hub.api("POST", "/users/mallory/server", token=mallory, json=replay)
    assert (status, "not signed" in error["message"]) == (403, True)


async def test_options_of_a_launch_whose_hook_failed_are_used_up(real_hub: RealHub):
    token = await real_hub.user_token("hooked")
    broken = real_hub.folder / "break-hooked"
    broken.touch()
    status, error = await real_hub.launcher("POST", username="hooked", image="other")
    assert (status, error["reason"]) == (500, "start_failed")
    broken.unlink()
    # with no options, the Hub takes the last ones it knows
    assert (await real_hub.api("POST", "/users/hooked/server", token=token))[0] in (201, 202)
    await until_ready(real_hub, "hooked")
    assert (await environment_of(real_hub, "hooked"))["IMAGE"] == "of the hook"
    await real_hub.api("DELETE", "/users/hooked/server")


async def test_administrators_hook_runs_and_does_not_undo_the_launch(real_hub: RealHub):
    status, launched = await real_hub.launcher("POST", username="steady", image="other")
    assert status == 200, launched
    environment = await environment_of(real_hub, "steady")
    assert (environment["IMAGE"], environment["FROM_HOOK"]) == ("other", "1")
    await real_hub.launcher("DELETE", "?username=steady")


async def until_ready(hub: RealHub, user: str) -> None:
    async with asyncio.timeout(60):
        while not (await hub.api("GET", f"/users/{user}"))[1]["servers"].get("", {}).get("ready"):
            await asyncio.sleep(0.2)


async def test_launcher_has_no_more_rights_than_it_needs(real_hub: RealHub):
    _, model = await real_hub.api("GET", "/services/launcher")
    assert model["roles"] == ["launcher"]
    assert model["admin"] is False


async def test_a_launch_takes_four_requests_to_the_hub(real_hub: RealHub):
    """User, server, progress and token; the progress proves that the server is up."""
    assert (await real_hub.launcher("POST", username="frugal", image="plain"))[0] == 200
    requests = [line for line in (real_hub.folder / "hub.log").read_text().splitlines() if "(launcher@" in line]
    mine = [re.search(r"(GET|POST|DELETE) /\S*/users/frugal(\S*)", line) for line in requests]
    await real_hub.launcher("DELETE", "?username=frugal")
    assert sorted(found.group(1, 2) for found in mine if found) == [
        ("GET", "/server/progress"),
        ("POST", "/server"),
        ("POST", "/tokens"),
    ]


async def test_nothing_secret_is_logged(real_hub: RealHub):
    _, launched = await real_hub.launcher("POST", username="discreet", image="plain", env={"SECRET": "pssst-pssst"})
    await real_hub.launcher("DELETE", "?username=discreet")
    log = (real_hub.folder / "hub.log").read_text()
    assert launched["token"] not in log
    assert "pssst-pssst" not in log
    assert real_hub.platform_token not in log
    assert SIGNING_KEY not in log
