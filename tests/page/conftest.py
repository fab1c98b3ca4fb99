"""A real Hub with the launcher, and people with real browsers: Chromium without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from tests.real_hub import RealHub

CHROMIUM = os.environ.get("JHLAUNCHER_TEST_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
WRAPPER = Path(__file__).with_name("chromium.py")
PASSWORD = "a long enough password for the tests"
PUPILS = [f"pupil-{number:02}" for number in range(20)]

SERVICE = """
c.Policy.templates = {
    "course-1": {"description": "Introduction to astronomy", "image": "plain", "lifetime": 7200},
    "lab": {"description": "JupyterLab", "image": "lab"},
    "broken": {"description": "It crashes", "image": "crashing"},
    "slow": {"description": "It takes four seconds", "image": "slow"},
}
c.Policy.rules = [
    {"name": "teachers", "callers": ["user:teacher"], "templates": ["*"], "env": ["COURSE_*"]},
    {"name": "nothing", "callers": ["user:nobody"]},
    {
        "name": "everybody", "images": ["plain", "lab", "other"], "templates": ["*"], "start_links": ["course-1"],
        "lifetime": 36000, "memory": "1G", "volumes": ["*"], "env": ["COURSE_*"],
        "limits": {"user": {"servers": 3}},
    },
]
"""
HUB = f"""
c.JupyterHub.load_groups = {{**c.JupyterHub.load_groups, "course-2": {{"users": {PUPILS!r}}}}}
c.JupyterHub.load_roles.append({{"name": "teacher", "users": ["teacher"], "scopes": ["servers!group=course-2"]}})
c.JupyterHub.load_roles.append({{"name": "overseer", "users": ["overseer"], "scopes": ["servers"]}})
SLOW = '''
import time
print("counting to four", flush=True)
time.sleep(4)
raise SystemExit(__import__("jupyterhub.singleuser", fromlist=["main"]).main())
'''
c.LauncherLocalSpawner.environments["slow"] = {{
    "cmd": [sys.executable, "-c", SLOW, *singleuser[3:]], "environment": no_lab,
}}
"""
"""`course-2` is the teacher's; the overseer may do everything to everyone's servers."""

WAIT = 60_000
"""Milliseconds that a busy machine may need for what a page is to show."""
expect.set_options(timeout=WAIT)

Visit = Callable[..., Awaitable[Page]]
"""A page of a person who has logged in: ``await visit("ada")``."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium, or say where it is with JHLAUNCHER_TEST_BROWSER")
    with RealHub(tmp_path_factory.mktemp("hub"), service=SERVICE, after=HUB).running() as hub:
        yield hub


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser, without a window."""
    async with async_playwright() as playwright:
        # root, as whom containers often run tests, has no sandbox
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        env = {**os.environ, "JHLAUNCHER_TEST_BROWSER": CHROMIUM or ""}
        browser = await playwright.chromium.launch(executable_path=WRAPPER, env=env, args=arguments)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(hub: RealHub) -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, hub: RealHub) -> AsyncIterator[Visit]:
    """Open pages; whatever goes wrong in their scripts fails the test."""
    problems: list[str] = []
    contexts = []

    def said(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    async def visit(user: str, path: str = "", **options: Any) -> Page:
        context = await browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = await context.new_page()
        page.on("console", said)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(hub.launcher_url + path)
        await log_in(page, user)
        await page.wait_for_url(f"{hub.launcher_url}{path}")
        return page

    yield visit
    for context in contexts:
        await context.close()
    assert problems == []


async def log_in(page: Page, user: str) -> None:
    """Fill in the Hub's own form."""
    await page.fill("#username_input", user)
    await page.fill("#password_input", PASSWORD)
    await page.click("#login_submit")


async def start(page: Page, template: str) -> None:
    """Choose a template, and press the button when it can be pressed."""
    await page.get_by_role("radio", name=template).check()
    await page.get_by_text("starts at once").wait_for()
    await page.get_by_role("button", name="Start", exact=True).click()


async def in_state(page: Page, state: str) -> None:
    """A launch that is shown has come to this state."""
    await page.locator(f'.launch[data-state="{state}"]').first.wait_for()
