"""How the page looks, and whether it can be used by those who do not see it: axe-core finds no serious fault."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.page.conftest import PUPILS, Visit, in_state, start

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_hub]

AXE = Path(sys.prefix) / "proxy/node_modules/axe-core/axe.min.js"
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
# axe-core puts styles of its own into the page, which our policy forbids
OPTIONS: dict[str, Any] = {"reduced_motion": "reduce", "bypass_csp": True}
RULES = "wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"


async def faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical."""
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("(tags) => axe.run({runOnly: {type: 'tag', values: tags}})", list(RULES))
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


async def check(page: Page) -> None:
    """Nothing serious, nothing broader than the screen: in light and dark, wide and on a phone."""
    for scheme, size in itertools.product(("light", "dark"), (PHONE, WIDE)):
        await page.set_viewport_size(size)  # type: ignore[arg-type]
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        await page.wait_for_function("(theme) => document.documentElement.dataset.bsTheme === theme", arg=scheme)
        await page.wait_for_function("document.getAnimations().every((animation) => animation.playState !== 'running')")
        assert await faults(page) == [], (scheme, size)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), size


async def test_every_state(visit: Visit):
    page = await visit("looker", **OPTIONS)
    await page.get_by_text("starts at once").wait_for()
    await check(page)
    await page.get_by_text("More", exact=True).click()
    await page.get_by_role("button", name="Add a volume").click()
    await page.get_by_role("button", name="Add a variable").click()
    await page.get_by_label("Variable", exact=True).fill("SECRET")
    await expect(page.locator('[data-field="env"] .problem')).to_contain_text("not allowed")
    await check(page)
    await page.get_by_role("button", name="Remove this variable").click()
    await page.get_by_role("button", name="Remove this volume").click()
    await start(page, "broken")
    await in_state(page, "failed")
    await page.get_by_text("Events", exact=True).click()
    await start(page, "slow")
    await in_state(page, "starting")
    await check(page)
    await in_state(page, "ready")
    await page.get_by_text("is running already").wait_for()
    await check(page)
    await page.get_by_role("button", name="Stop", exact=True).click()
    await page.get_by_role("dialog").wait_for()
    await check(page)
    await page.get_by_role("button", name="Keep it running").click()
    await page.context.set_offline(True)
    await page.get_by_text("This device is offline").wait_for()
    await check(page)


async def test_a_class(visit: Visit):
    page = await visit("teacher", **OPTIONS)
    await page.get_by_label("For a class").check()
    await page.get_by_label("For these people").fill(f"{PUPILS[0]}\nstranger")
    await page.get_by_label("For these people").blur()
    await page.get_by_role("radio", name="broken").check()
    await page.get_by_text("Each server starts at once").wait_for()
    await page.get_by_role("button", name="Start 2 servers").click()
    await page.get_by_text("1 failed, 1 not accepted").wait_for()
    await page.get_by_text("What each server is doing").click()
    await page.get_by_role("row", name="stranger").wait_for()
    await check(page)
    await page.get_by_role("radio", name="course-1").check()
    await page.get_by_label("For these people").fill(PUPILS[1])
    await page.get_by_label("For these people").blur()
    await page.get_by_role("button", name="Start 1 server", exact=True).click()
    await page.get_by_role("button", name="Extend all").first.click()
    await page.get_by_role("dialog").wait_for()
    await check(page)
    await page.get_by_role("button", name="Leave it").click()


async def test_a_page_of_an_error(visit: Visit):
    page = await visit("lost", **OPTIONS)
    answer = await page.goto(f"{page.url}oauth_callback?error=access_denied")
    assert answer is not None
    assert answer.status == 401
    await check(page)


async def test_the_theme_is_chosen(visit: Visit):
    page = await visit("chooser", color_scheme="light")
    await page.get_by_role("button", name="Switch theme").click()
    assert await page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
    await page.reload()
    assert await page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
