"""Browsers: the login through the Hub, cookies, and the proof that our own page sent a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from tests.conftest import Service, running_service, until
from tests.fake_hub import PLATFORM_TOKEN, FakeHub

pytestmark = pytest.mark.asyncio

PAGE = {"Accept": "text/html"}
POLICY = {"rules": [{"name": "everybody", "images": ["*"]}]}


class Browser:
    """Keeps cookies, and goes where it is sent only when told to."""

    def __init__(self, client: aiohttp.ClientSession, hub: FakeHub) -> None:
        self.client = client
        self.hub = hub

    async def open(self, url: str, **headers: str) -> tuple[int, str, str]:
        """Status, body, and where it is sent."""
        async with self.client.get(url, headers=PAGE | headers, allow_redirects=False) as response:
            return response.status, await response.text(), response.headers.get("Location", "")

    async def log_in(self, service: Service, user: str = "ada", via: Service | None = None) -> tuple[int, str, str]:
        """Ask for the page, and come back from the Hub with a code, perhaps to another replica."""
        _, _, location = await self.open(service.url)
        query = parse_qs(urlsplit(location).query)
        self.hub.codes["code"] = self.hub.identify(f"token-of-{user}", user, "user", "access:services", "servers")
        return await self.open(f"{(via or service).url}oauth_callback?code=code&state={query['state'][0]}")

    @property
    def xsrf(self) -> str:
        return next(cookie.value for cookie in self.client.cookie_jar if cookie.key == "_xsrf")

    async def ask(self, service: Service, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """As a script in the page does."""
        headers = {"X-XSRFToken": self.xsrf} | kwargs.pop("headers", {})
        async with self.client.request(method, f"{service.url}{path}", headers=headers, **kwargs) as response:
            return response.status, await response.json()


@pytest_asyncio.fixture
async def service(hub: FakeHub) -> AsyncIterator[Service]:
    async with running_service(hub, Policy=POLICY) as service:
        yield service


@pytest_asyncio.fixture
async def browser(hub: FakeHub) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        yield Browser(client, hub)


async def test_a_stranger_is_sent_to_the_hub(service: Service, browser: Browser):
    status, _, location = await browser.open(f"{service.url}launch?template=course-1")
    query = parse_qs(urlsplit(location).query)
    assert status == 302
    assert urlsplit(location).path == "/hub/api/oauth2/authorize"
    assert query["client_id"] == ["service-launcher"]
    assert query["redirect_uri"][0].endswith("/services/launcher/oauth_callback")


async def test_who_has_logged_in_sees_the_page_that_they_asked_for(service: Service, browser: Browser):
    status, _, location = await browser.log_in(service)
    assert (status, location) == (302, "/services/launcher/")
    status, page, _ = await browser.open(service.url)
    assert status == 200
    assert 'data-user="ada"' in page
    assert "token-of-ada" not in page
    for cookie in browser.client.cookie_jar:
        assert "token-of-ada" not in cookie.value
        assert cookie["path"].rstrip("/") == "/services/launcher"
        assert bool(cookie["httponly"]) == (cookie.key != "_xsrf")


async def test_another_replica_goes_on_with_a_login(service: Service, browser: Browser, hub: FakeHub):
    async with running_service(hub, Policy=POLICY) as replica:
        status, _, location = await browser.log_in(service, via=replica)
        assert (status, location) == (302, "/services/launcher/")
        assert (await browser.open(replica.url))[0] == 200
        assert (await browser.open(service.url))[0] == 200


async def test_a_login_that_this_browser_did_not_begin(service: Service, browser: Browser, hub: FakeHub):
    _, _, location = await browser.open(service.url)
    state = parse_qs(urlsplit(location).query)["state"][0]
    hub.codes["code"] = hub.identify("token-of-eve", "eve", "user", "access:services")
    browser.client.cookie_jar.clear()
    status, page, _ = await browser.open(f"{service.url}oauth_callback?code=code&state={state}")
    assert status == 401
    assert "The login has failed" in page
    assert (await browser.open(service.url))[0] == 302
    assert "code" in hub.codes, "not even asked for"


@pytest.mark.parametrize("query", ["", "code=code", "state=x", "code=code&state=forged", "error=access_denied"])
async def test_what_is_no_login_is_refused(service: Service, browser: Browser, query: str):
    await browser.open(service.url)
    status, page, _ = await browser.open(f"{service.url}oauth_callback?{query}")
    assert status == 401
    assert "<h1>" in page
    assert (await browser.open(service.url))[0] == 302


async def test_a_code_is_good_once(service: Service, browser: Browser, hub: FakeHub):
    _, _, location = await browser.open(service.url)
    state = parse_qs(urlsplit(location).query)["state"][0]
    status, page, _ = await browser.open(f"{service.url}oauth_callback?code=used&state={state}")
    assert status == 401
    assert "Log in again" in page


async def test_a_cookie_alone_does_nothing(service: Service, browser: Browser, hub: FakeHub):
    await browser.log_in(service)
    await browser.open(service.url)
    body = {"username": "ada", "image": "image:1"}
    for headers in ({"X-XSRFToken": ""}, {"X-XSRFToken": "2|forged|forged"}):
        status, error = await browser.ask(service, "POST", "launches", json=body, headers=headers)
        assert (status, error["reason"]) == (403, "xsrf_failed")
    status, error = await browser.ask(
        service, "POST", f"launches?_xsrf={'x' * 20}", json=body, headers={"X-XSRFToken": ""}
    )
    assert (status, error["reason"]) == (403, "xsrf_failed")
    assert not hub.servers
    status, launch = await browser.ask(service, "POST", "launches?wait=10", json=body)
    assert (status, launch["state"]) == (200, "ready")
    assert launch["token"] is None, "a browser does not need it"


async def test_a_session_manages_nobodys_account(service: Service, browser: Browser, hub: FakeHub):
    """A script of somebody's server may run on this origin, while an administrator looks."""
    await browser.log_in(service)
    await browser.open(service.url)
    assert (await browser.ask(service, "GET", "launches"))[0] == 200
    for method, body in (("GET", {}), ("POST", {"json": {"users": []}}), ("DELETE", {"json": {"usernames": ["ada"]}})):
        status, error = await browser.ask(service, method, "users", **body)
        assert (status, "not from a browser" in error["error"]) == (403, True)


async def test_a_navigation_shows_the_page_only(service: Service, browser: Browser, hub: FakeHub):
    """A page elsewhere on this origin, such as on somebody's server, could read what is shown in its frame."""
    await browser.log_in(service)
    await browser.open(service.url)
    for headers in ({}, {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"}):
        for path in ("launches", "launches/events", "options", "containers?username=ada"):
            status, body, _ = await browser.open(f"{service.url}{path}", **headers)
            assert (status, "xsrf_failed" in body) == (403, True), path
    async with browser.client.get(f"{service.url}launches", headers={"X-XSRFToken": browser.xsrf}) as response:
        assert response.status == 200
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


async def test_containers_give_a_browser_no_token(service: Service, browser: Browser):
    await browser.log_in(service)
    await browser.open(service.url)
    body = {"username": "ada", "image": "image:1"}
    status, launched = await browser.ask(service, "POST", "containers", json=body)
    assert (status, launched["token"]) == (200, None)


async def test_who_logs_in_after_another_is_not_the_other(service: Service, browser: Browser, hub: FakeHub):
    """JupyterHub's logout takes the token away and begins a new session in the browser."""
    await browser.log_in(service, "ada")
    browser.client.cookie_jar.update_cookies({"jupyterhub-session-id": "one"}, URL(service.url))
    assert (await browser.open(service.url))[0] == 200
    del hub.identities["token-of-ada"]
    browser.client.cookie_jar.update_cookies({"jupyterhub-session-id": "two"}, URL(service.url))
    assert (await browser.open(service.url))[0] == 302


async def test_words_of_strangers_are_neither_shown_nor_logged(
    service: Service, browser: Browser, caplog: pytest.LogCaptureFixture
):
    query = "error=x&error_description=Call%20me%0A[I%20LauncherApp]%20200%20POST"
    status, page, _ = await browser.open(f"{service.url}oauth_callback?{query}")
    assert (status, "Call me" in page) == (401, False)
    assert "Call me" not in caplog.text


async def test_a_link_that_is_too_long_for_a_cookie(service: Service, browser: Browser):
    _, _, location = await browser.open(f"{service.url}launch?template=x&path={'y' * 3000}")
    assert urlsplit(location).path == "/hub/api/oauth2/authorize"
    assert all(len(cookie.key + cookie.value) < 4000 for cookie in browser.client.cookie_jar)


async def test_logins_of_strangers_hold_up_no_launch(hub: FakeHub, browser: Browser):
    async with running_service(hub, Hub={"retry_timeout": 0.2}) as service:
        await service.request("GET", "launches")  # a caller who is known
        _, _, location = await browser.open(service.url)
        state = parse_qs(urlsplit(location).query)["state"][0]
        hub.hold_codes.clear()
        logins = [
            asyncio.create_task(browser.open(f"{service.url}oauth_callback?code=c{number}&state={state}"))
            for number in range(60)
        ]
        await until(lambda: hub.requests.count("POST /oauth2/token") >= 50)
        async with asyncio.timeout(5):
            assert (await service.launch())[0] == 200
        hub.hold_codes.set()
        await asyncio.gather(*logins)


async def test_a_token_in_the_header_needs_no_proof_and_comes_first(service: Service, browser: Browser):
    await browser.log_in(service)
    headers = {"Authorization": f"token {PLATFORM_TOKEN}", "X-XSRFToken": ""}
    body = {"username": "ada", "image": "image:1"}
    status, launch = await browser.ask(service, "POST", "launches?wait=10", json=body, headers=headers)
    assert (status, launch["caller"]) == (200, "service:platform")
    assert launch["token"]
    headers = {"Authorization": "token no-such-token"}
    assert (await browser.ask(service, "GET", "launches", headers=headers))[0] == 401


async def test_a_session_ends_with_its_token(service: Service, browser: Browser, hub: FakeHub):
    async with running_service(hub, Hub={"auth_cache_seconds": 0.01}) as impatient:
        await browser.log_in(impatient)
        assert (await browser.open(impatient.url))[0] == 200
        del hub.identities["token-of-ada"]
        async with asyncio.timeout(5):  # not remembered for longer than it says
            while (await browser.open(impatient.url))[0] != 302:
                pass


async def test_who_may_not_reach_the_service_is_told_on_a_page(service: Service, browser: Browser, hub: FakeHub):
    await browser.log_in(service)
    hub.identities["token-of-ada"]["scopes"] = ["servers"]
    async with running_service(hub, Policy=POLICY) as replica:
        status, page, _ = await browser.open(replica.url)
        assert status == 403
        assert "access:services!service=launcher" in page


async def test_programs_get_json_at_the_page_s_addresses(service: Service):
    status, body = await service.request("GET", "", headers={"Accept": "application/json"})
    assert (status, body["service"]) == (200, "jhlauncher")
    for path, headers in (("launch", {}), ("oauth_callback", {"Accept": "*/*"})):
        status, body = await service.request("GET", path, token="no-such-token", headers=headers)
        assert status in (400, 401)
        assert body.keys() == {"error", "reason", "details", "status"}


async def test_what_a_person_may_do_is_in_the_page(service: Service, browser: Browser, hub: FakeHub):
    await browser.log_in(service)
    hub.identities["token-of-ada"]["scopes"] = ["access:services", "servers!group=course-1", "servers!user=ada"]
    async with running_service(hub, Policy=POLICY) as replica:
        _, page, _ = await browser.open(replica.url)
    assert "data-everybody" not in page
    assert 'data-groups="[&#34;course-1&#34;]"' in page
    _, page, _ = await browser.open(service.url)
    assert "data-everybody" in page


async def test_nothing_in_the_page_can_be_made_to_run(service: Service, browser: Browser, hub: FakeHub):
    name = "<img src=x onerror=alert(1)>"
    await browser.log_in(service)
    hub.identities["token-of-ada"]["name"] = name
    async with running_service(hub, Policy=POLICY) as replica:
        async with browser.client.get(replica.url, headers=PAGE) as response:
            page, policy = await response.text(), response.headers["Content-Security-Policy"]
    assert "<img src=x" not in page
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


async def test_who_forgets_the_slash_is_led_to_the_page_on_another_connection(service: Service):
    """Tornado closes this one, and a proxy that is not told sends its next request into the void."""
    async with service.client.get(service.url.rstrip("/"), allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == "/services/launcher/"
        assert response.headers["Connection"] == "close"
