"""One's own servers: what a person without any special right sees and does."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import Page, Route, expect

from tests.page.conftest import Visit, in_state, log_in, start
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_hub]

WATCH_BARS = """
    window.seen = [];
    new MutationObserver(() => {
      const now = document.querySelector(".launch [role=progressbar]")?.getAttribute("aria-valuenow");
      if (now !== null && now !== undefined) window.seen.push(Number(now));
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
"""

ASK = """
    async ([method, path, headers]) => {
      const xsrf = /_xsrf=([^;]*)/.exec(document.cookie)[1];
      const base = document.body.dataset.base;
      const answer = await fetch(base + path, { method, headers: { "X-XSRFToken": xsrf, ...headers } });
      return [answer.status, await answer.text()];
    }
"""
"""A request as a script in the page would send it."""


async def test_from_the_login_to_jupyterlab(visit: Visit):
    page = await visit("ada")
    await expect(page.get_by_text("Nothing runs.")).to_be_visible()
    await page.evaluate(WATCH_BARS)
    await start(page, "lab")
    await in_state(page, "ready")
    seen = await page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert len(set(seen)) > 1
    await expect(page.get_by_text("Stops by itself in 9 h 59 min")).to_be_visible()
    async with page.context.expect_page() as opening:
        await page.get_by_role("link", name="Open", exact=True).click()
    lab = await opening.value
    await lab.wait_for_selector("#jp-main-dock-panel")
    assert "/user/ada/lab" in lab.url


async def test_a_failed_launch_says_why(visit: Visit):
    page = await visit("grace")
    await start(page, "broken")
    await in_state(page, "failed")
    launch = page.locator('.launch[data-state="failed"]')
    await expect(launch.locator(".reason")).to_contain_text("exit code 3")
    await expect(launch.get_by_text("crashed", exact=True)).to_be_visible()
    log = launch.get_by_label("Log of Default server")
    await expect(log).to_contain_text("ZeroDivisionError: division by zero")
    await expect(log).to_contain_text("the token is [hidden]")
    await page.reload()
    await expect(page.get_by_label("Log of Default server")).to_be_visible()


async def test_stopping_asks_before(visit: Visit):
    page = await visit("linus")
    await start(page, "course-1")
    await in_state(page, "ready")
    await page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Keep it running").click()
    await expect(page.locator('.launch[data-state="ready"]')).to_be_visible()
    await page.get_by_role("button", name="Stop").click()
    await dialog.get_by_role("button", name="Stop it").click()
    await in_state(page, "stopped")
    await expect(page.get_by_role("heading", name="Ended")).to_be_visible()


async def test_a_start_can_be_cancelled(visit: Visit):
    page = await visit("barbara")
    await start(page, "slow")
    await in_state(page, "starting")
    await page.get_by_role("button", name="Cancel").click()
    await in_state(page, "cancelled")


async def test_a_lost_connection_picks_up_where_it_was(visit: Visit):
    page = await visit("alan")
    await start(page, "slow")
    await in_state(page, "starting")
    await page.context.set_offline(True)
    await expect(page.get_by_text("This device is offline. Servers go on")).to_be_visible()
    # the server becomes ready while nothing reaches this page
    other = await visit("alan")
    await in_state(other, "ready")
    await expect(page.locator('.launch[data-state="starting"]')).to_be_visible()
    await page.context.set_offline(False)
    await in_state(page, "ready")
    await expect(page.get_by_text("This device is offline")).to_be_hidden()
    await page.get_by_text("Events", exact=True).click()
    told = await page.locator(".launch .events li").all_inner_texts()
    events = [re.sub(r"^\S+( [AP]M)? ", "", text) for text in told]
    assert events[0] == "Waiting for its turn"
    assert events[-1] == "The server is ready"
    assert len(events) == len(set(events)), events


async def test_a_tab_that_nobody_sees_lets_go_of_its_stream(visit: Visit):
    """Browsers have six connections to a host: many tabs would hold up everything on it."""
    page = await visit("mary")
    await page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => Boolean(window.away) })")
    await page.reload()
    await page.get_by_text("starts at once").wait_for()
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.url))
    await page.clock.install()
    look = "(away) => { window.away = away; document.dispatchEvent(new Event('visibilitychange')); }"
    await page.evaluate(look, True)
    await page.clock.fast_forward(30_000)
    await expect(page.get_by_text("The connection to the launcher is lost")).to_be_hidden()
    other = await visit("mary")
    await start(other, "course-1")
    await in_state(other, "ready")
    assert any("launches/events" in url for url in ended)
    assert await page.locator(".launch").count() == 0
    await page.evaluate(look, False)
    await in_state(page, "ready")


async def test_it_says_why_before_it_is_sent(visit: Visit):
    page = await visit("edsger")
    button = page.get_by_role("button", name="Start", exact=True)
    await page.get_by_role("radio", name="An image of my choice").check()
    image = page.get_by_role("combobox", name="Image")
    assert await image.locator("option").all_inner_texts() == ["plain", "lab", "other"]
    await image.select_option("plain")
    await expect(button).to_be_enabled()
    await page.get_by_role("spinbutton", name="Memory").fill("7")
    await expect(page.locator('[data-field="memory"] .problem')).to_contain_text("less than or equal to 1")
    await expect(button).to_be_disabled()
    await page.get_by_role("spinbutton", name="Memory").fill("")
    await page.get_by_text("More", exact=True).click()
    await page.get_by_role("button", name="Add a variable").click()
    await page.get_by_label("Variable", exact=True).fill("SECRET")
    await expect(page.locator('[data-field="env"] .problem')).to_contain_text("not allowed")
    await expect(button).to_be_disabled()


async def test_limits_count_what_runs(visit: Visit):
    page = await visit("limited")
    await expect(page.get_by_text("limited: 0 of 3 servers in use")).to_be_visible()
    await start(page, "course-1")
    await expect(page.get_by_text("limited: 1 of 3 servers in use")).to_be_visible()
    await in_state(page, "ready")
    await expect(page.get_by_text("Or give this one a name of its own")).to_be_visible()
    await expect(page.get_by_role("link", name="Open it")).to_be_visible()


async def test_another_s_server_is_neither_seen_nor_stopped(visit: Visit, hub: RealHub):
    owner = await visit("owner")
    await start(owner, "course-1")
    await in_state(owner, "ready")
    launch = await owner.locator(".launch").get_attribute("data-id")
    page = await visit("mallory")
    await expect(page.get_by_text("Nothing runs.")).to_be_visible()
    await expect(page.get_by_role("button", name="Everyone's")).to_be_hidden()
    for method, path in (("GET", f"launches/{launch}"), ("DELETE", f"launches/{launch}")):
        status, body = await page.evaluate(ASK, [method, path, {}])
        assert (status, "launch_not_found" in body) == (404, True)
    status, body = await page.evaluate(ASK, ["GET", "launches?username=owner", {}])
    assert (status, json.loads(body)["items"]) == (200, [])
    status, body = await page.evaluate(ASK, ["DELETE", "containers?username=owner", {}])
    assert (status, "missing_scope" in body) == (403, True)
    assert (await hub.api("GET", "/users/owner"))[1]["servers"][""]["ready"]


async def test_a_browser_gets_no_token(visit: Visit):
    page = await visit("konrad")
    await start(page, "course-1")
    await in_state(page, "ready")
    launch = await page.locator(".launch").get_attribute("data-id")
    for path in (f"launches/{launch}", "launches", f"launches/{launch}/events"):
        status, body = await page.evaluate(ASK, ["GET", path, {"Accept": "application/json"}])
        assert status == 200
        assert not re.search(r'"token": ?"', body)
    assert "HttpOnly" not in await page.evaluate("document.cookie")
    assert "launcher" not in await page.evaluate("document.cookie")


async def test_an_answer_that_is_lost_is_asked_for_again(visit: Visit, hub: RealHub):
    page = await visit("vera")
    lost: list[str] = []

    async def lose(route: Route) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(await (await route.fetch()).text())  # it arrives, and is done
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/launches", lose)
    await start(page, "course-1")
    await page.get_by_text("Press Start again; it is not done twice.").wait_for()
    await page.get_by_role("button", name="Start", exact=True).click()
    await in_state(page, "ready")
    status, launches = await launches_of(hub, "vera")
    assert (status, len(launches)) == (200, 1)


async def test_settings_are_used_again_and_old_launches_shown(visit: Visit):
    page = await visit("emmy")
    await page.get_by_text("More", exact=True).click()
    await page.get_by_label("Server name").fill("first")
    await start(page, "broken")
    await in_state(page, "failed")
    await page.reload()
    await page.get_by_role("button", name="Use these settings again").click()
    await expect(page.get_by_role("radio", name="broken")).to_be_checked()
    await expect(page.get_by_label("Server name")).to_have_value("first")
    await expect(page.get_by_role("button", name="Show older ones")).to_be_hidden()


async def test_a_link_is_copied(visit: Visit, hub: RealHub):
    page = await visit("sofia", permissions=["clipboard-read", "clipboard-write"])
    await start(page, "course-1")
    await in_state(page, "ready")
    await page.get_by_role("button", name="Copy link").click()
    await page.get_by_role("button", name="Copied").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == f"{hub.url}user/sofia/"


async def test_without_the_xsrf_token_nothing_is_done(visit: Visit):
    page = await visit("ken")
    status, body = await page.evaluate(ASK, ["POST", "launches", {"X-XSRFToken": "wrong"}])
    assert (status, "xsrf_failed" in body) == (403, True)


async def test_with_the_keyboard_alone(visit: Visit):
    page = await visit("margaret")
    await page.get_by_text("starts at once").wait_for()
    await page.keyboard.press("Tab")
    assert await focused(page) == "Skip to the content"
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowDown")  # from course-1 to lab
    await page.keyboard.press("ArrowUp")
    await expect(page.get_by_role("radio", name="course-1")).to_be_checked()
    await page.keyboard.press("Enter")
    await in_state(page, "ready")
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await focused(page) == "Stop":
            break
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")  # the dialog has the focus on "Stop it"
    await in_state(page, "stopped")


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.textContent.trim()"))


async def test_without_systems_there_are_no_jobs(visit: Visit):
    page = await visit("vint")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.reload()
    await page.get_by_text("starts at once").wait_for()
    await expect(page.locator("#jobs")).to_have_count(0)
    assert not any("/api/" in url for url in asked)


async def test_nothing_may_be_started(visit: Visit):
    page = await visit("nobody")
    await expect(page.get_by_text("There is nothing that may be started here.")).to_be_visible()
    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_hidden()


async def test_who_is_logged_out_is_told(visit: Visit):
    page = await visit("donald")
    await page.get_by_text("starts at once").wait_for()
    await page.context.clear_cookies()
    await page.get_by_role("radio", name="lab").check()
    await expect(page.locator(".decision")).to_contain_text("You are logged out. Log in again")
    await page.reload()
    await log_in(page, "donald")
    await page.get_by_text("starts at once").wait_for()


async def test_a_link_fills_the_form_in(visit: Visit):
    page = await visit("frances", "launch?template=lab&server_name=analysis&lifetime=5400&memory=512M")
    await page.get_by_text("starts at once").wait_for()
    await expect(page.get_by_role("radio", name="lab")).to_be_checked()
    await expect(page.get_by_label("Server name")).to_have_value("analysis")
    await expect(page.get_by_label("Stop after")).to_have_value("90")
    await expect(page.get_by_label("Memory")).to_have_value("0.5")
    assert await page.locator(".launch").count() == 0


async def test_a_link_to_what_is_not_offered(visit: Visit):
    for link, said in (
        ("launch?template=nothing", "There is no template nothing for you."),
        ("launch?image=nothing", "The image nothing is not allowed."),
    ):
        page = await visit("lise", link)
        await page.get_by_text(said).wait_for()
        await expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
        await page.get_by_role("radio", name="course-1").check()
        await page.get_by_role("radio", name="lab").check()
        await expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
        await page.context.close()


async def test_a_link_starts_at_once_and_leads_to_the_server(visit: Visit, hub: RealHub):
    page = await visit("hedy", "launch?template=course-1&path=api/status")
    await page.wait_for_url(f"{hub.url}user/hedy/api/status*")
    # the same link again: the same server
    await page.goto(f"{hub.launcher_url}launch?template=course-1&path=api")
    await page.wait_for_url(re.compile(f"^{re.escape(hub.url)}user/hedy/api/?$"))
    status, launches = await launches_of(hub, "hedy")
    assert (status, len(launches)) == (200, 1)


async def test_a_link_does_not_lead_out_of_the_server(visit: Visit, hub: RealHub):
    page = await visit("trudy", "launch?template=course-1&path=//evil.example/")
    await page.wait_for_url(f"{hub.url}user/trudy/evil.example*")
    page = await visit("trudy2", "launch?template=course-1&path=..%2F..%2Fhub%2Flogout")
    await page.wait_for_url(re.compile(f"^{re.escape(hub.url)}user/trudy2/"))


async def test_other_links_start_nothing_by_themselves(visit: Visit, hub: RealHub):
    for link in ("launch?template=lab", "launch?template=course-1&server_name=x", "launch?image=plain"):
        page = await visit("carl", link)
        # it has looked at what may be started and what runs, and waits
        await page.get_by_text("starts at once").wait_for()
        await page.locator("#list:not([aria-busy])").wait_for()
        await page.wait_for_load_state("load")
        await page.context.close()
    assert await launches_of(hub, "carl") == (200, [])


async def launches_of(hub: RealHub, user: str) -> tuple[int, list[object]]:
    import aiohttp

    headers = {"Authorization": f"token {hub.platform_token}"}
    url = f"{hub.launcher_url}launches?username={user}"
    async with aiohttp.ClientSession(headers=headers) as client, client.get(url) as response:
        return response.status, (await response.json())["items"]


async def test_a_script_that_was_lost_on_the_way(visit: Visit):
    page = await visit("tess")
    await page.route("**/static/format.js", lambda route: route.abort("internetdisconnected"))
    await page.reload()
    again = page.get_by_role("link", name="load the page again")
    await expect(again).to_be_visible()
    await page.unroute_all()
    await again.click()
    await page.get_by_text("starts at once").wait_for()
    await expect(again).to_have_count(0)


async def test_an_address_with_nothing_at_it(visit: Visit, hub: RealHub):
    page = await visit("tim")
    answer = await page.goto(page.url + "nothing/here")
    assert answer is not None
    assert answer.status == 404
    await page.get_by_role("heading", name="This did not work").wait_for()
    await page.goto(hub.launcher_url.rstrip("/"))
    await page.get_by_text("starts at once").wait_for()
    assert page.url == hub.launcher_url
