"""Makes the documentation's pictures, from the running page: ``make pictures``."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from tests.page.conftest import HUB, PUPILS, chromium, in_state, log_in, start
from tests.real_hub import RealHub

FOLDER = Path(__file__).parent.parent.parent / "docs/_static"
SERVICE = """
c.Policy.templates = {
    "astronomy-1": {"description": "Introduction to astronomy", "image": "plain", "lifetime": 7200},
    "lab": {"description": "JupyterLab, nothing else", "image": "lab"},
    "reduction": {"description": "Data reduction, with the telescope's tools", "image": "crashing"},
    "slow": {"description": "Large images", "image": "slow"},
}
c.Policy.rules = [
    {
        "name": "everybody", "images": ["plain", "lab"], "templates": ["*"], "lifetime": 36000, "env": ["COURSE_*"],
        "limits": {"user": {"servers": 3}},
    },
]
"""
WIDE, PHONE = {"width": 1200, "height": 820}, {"width": 390, "height": 844}


async def main() -> None:
    """Start a Hub, let a person and a teacher do something, and keep how that looks."""
    with tempfile.TemporaryDirectory() as folder:
        with RealHub(Path(folder), service=SERVICE, after=HUB).running() as hub:
            async with chromium() as browser:
                await a_person(browser, hub)
                await a_teacher(browser, hub)


async def visit(browser: Browser, hub: RealHub, user: str, **options: Any) -> Page:
    context = await browser.new_context(locale="en-GB", **options)
    page = await context.new_page()
    await page.goto(hub.launcher_url)
    await log_in(page, user)
    await page.wait_for_url(hub.launcher_url)
    return page


async def a_person(browser: Browser, hub: RealHub) -> None:
    page = await visit(browser, hub, "ada", color_scheme="light", viewport=WIDE)
    await start(page, "lab")
    await in_state(page, "ready")
    for template, name, state in (("reduction", "reduction", "failed"), ("slow", "images", "starting")):
        await page.get_by_text("More", exact=True).click()
        await page.get_by_label("Server name").fill(name)
        await start(page, template)
        await in_state(page, state)
        await page.reload()
    await page.get_by_text("starts at once").or_(page.get_by_text("is running already")).first.wait_for()
    await keep(page, "page-light")
    await page.emulate_media(color_scheme="dark")
    await keep(page, "page-dark")
    await page.set_viewport_size(PHONE)
    await keep(page, "page-phone")


async def a_teacher(browser: Browser, hub: RealHub) -> None:
    page = await visit(browser, hub, "teacher", color_scheme="light", viewport=WIDE)
    await page.get_by_label("For a class").check()
    await page.get_by_label("For these people").fill("\n".join(PUPILS[:8]))
    await page.get_by_label("For these people").blur()
    await page.get_by_role("radio", name="astronomy-1").check()
    await page.get_by_text("Each server starts at once").wait_for()
    await page.get_by_role("button", name="Start 8 servers").click()
    await page.get_by_text("What each server is doing").click()
    await page.locator('.launch[data-state="ready"]').nth(2).wait_for()
    await keep(page, "page-class")


async def keep(page: Page, name: str) -> None:
    await page.screenshot(path=FOLDER / f"{name}.png", animations="disabled")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(main())
