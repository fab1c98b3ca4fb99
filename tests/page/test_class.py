"""Many servers: a teacher with a group, and who may do everything."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.page.conftest import PUPILS, Visit, in_state, start
from tests.real_hub import RealHub

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_hub]

WATCH_CLASS = """
    window.seen = [];
    new MutationObserver(() => {
      const bar = document.querySelector(".batch [role=progressbar]");
      if (bar) window.seen.push(Number(bar.getAttribute("aria-valuenow")));
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
"""


async def name_class(page: Page, template: str, *names: str) -> None:
    await page.get_by_label("For a class").check()
    await page.get_by_label("For these people").fill("\n".join(names))
    await page.get_by_label("For these people").blur()
    await page.get_by_role("radio", name=template).check()
    await page.get_by_text("Each server starts at once").wait_for()


async def test_a_class_of_twenty(visit: Visit, hub: RealHub):
    page = await visit("teacher")
    await name_class(page, "course-1", *PUPILS)
    await page.evaluate(WATCH_CLASS)
    await page.get_by_role("button", name="Start 20 servers").click()
    batch = page.locator(".batch")
    await expect(batch.get_by_role("heading", name="A class of 20")).to_be_visible()
    await expect(batch.get_by_role("status")).to_have_text("20 ready", timeout=120_000)
    seen = await page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert len(set(seen)) > 3
    assert await page.locator('.launch[data-state="ready"]').count() == 20
    _, users = await hub.api("GET", "/users?state=ready")
    assert {user["name"] for user in users} >= set(PUPILS)
    # who comes later sees the same
    later = await visit("teacher")
    await later.get_by_role("button", name="Everyone's").click()
    await expect(later.locator(".batch").get_by_role("status")).to_have_text("20 ready")
    # some of them are stopped, then all
    await page.get_by_role("checkbox", name=PUPILS[3]).check()
    await page.get_by_role("checkbox", name=PUPILS[7]).check()
    await page.get_by_role("button", name="Stop 2 servers").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
    await expect(batch.get_by_role("status")).to_have_text("18 ready, 2 ended")
    await expect(later.locator(".batch").get_by_role("status")).to_have_text("18 ready, 2 ended")
    await batch.get_by_role("button", name="Stop all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
    await expect(batch.get_by_role("status")).to_have_text("20 ended")


async def test_a_class_with_somebody_else_s_pupil(visit: Visit):
    page = await visit("teacher")
    await name_class(page, "slow", PUPILS[0], "stranger")
    await page.get_by_role("button", name="Start 2 servers").click()
    batch = page.locator(".batch")
    await expect(batch.get_by_role("status")).to_contain_text("1 not accepted")
    await expect(batch.get_by_role("listitem")).to_contain_text("stranger")
    await batch.get_by_role("button", name="Stop all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
    await expect(batch.get_by_role("status")).to_have_text("1 ended, 1 not accepted")


async def test_a_group_whose_starts_are_put_off(visit: Visit):
    page = await visit("teacher")
    await page.get_by_label("For a class").check()
    await page.get_by_label("Everybody in the group").select_option("course-2")
    await page.get_by_label("Seconds between two starts").fill("600")
    await page.get_by_role("radio", name="course-1").check()
    await page.get_by_text("Each server starts at once").wait_for()
    await page.get_by_role("button", name="Start 20 servers").click()
    batch = page.locator(".batch")
    await expect(batch.get_by_role("heading", name="A class of 20 (course-2)")).to_be_visible()
    await expect(batch.get_by_role("status")).to_have_text("1 ready, 19 waiting")
    await batch.get_by_text("What each server is doing").click()
    people = batch.get_by_role("row")
    await expect(people).to_have_count(21)
    await expect(people.nth(1)).to_contain_text(re.compile(f"{PUPILS[0]}ready.* ago"))
    await expect(people.nth(2)).to_contain_text(re.compile(f"{PUPILS[1]}queuedStarts at "))
    await expect(page.locator(".launch").filter(has_text=PUPILS[2])).to_contain_text("Starts at ")
    await batch.get_by_role("button", name="Stop all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
    await expect(batch.get_by_role("status")).to_have_text("20 ended")
    await expect(people.nth(2)).to_contain_text("cancelled")


async def test_more_time(visit: Visit):
    page = await visit("teacher")
    await name_class(page, "course-1", PUPILS[15], PUPILS[16])
    await page.get_by_role("button", name="Start 2 servers").click()
    batch = page.locator(".batch")
    await expect(batch.get_by_role("status")).to_have_text("2 ready")
    await batch.get_by_text("What each server is doing").click()
    own = await visit(PUPILS[15])
    mine = own.locator('.launch[data-state="ready"]')
    await expect(mine).to_contain_text(re.compile("in (2 h|1 h 59 min)"))
    # who is not allowed so much is told so; Escape changes nothing
    await mine.get_by_role("button", name="Extend").click()
    await own.get_by_role("dialog").press("Escape")
    await own.get_by_role("dialog").wait_for(state="detached")
    await mine.get_by_role("button", name="Extend").click()
    await own.get_by_label("Time from now on").fill("20")
    await own.get_by_label("Time from now on").press("Enter")
    await expect(mine).to_contain_text("more than the 36000 seconds that are allowed")
    await mine.get_by_role("button", name="Extend").click()
    await own.get_by_label("Time from now on").fill("5")
    await own.get_by_role("dialog").get_by_role("button", name="Extend").click()
    await expect(mine).to_contain_text(re.compile("in (5 h|4 h 59 min)"))
    # all of the class, which each is shown at once
    row = batch.get_by_role("row").nth(1)
    await expect(row).to_contain_text(re.compile(r"\d:\d\d"))
    await batch.get_by_role("button", name="Extend all").click()
    await page.get_by_label("Unit of the time").last.select_option("until stopped")
    await page.get_by_role("dialog").get_by_role("button", name="Extend").click()
    await expect(page.locator("#announce")).to_have_text("2 servers extended.")
    await expect(mine).to_contain_text("Ready since")
    await expect(mine.get_by_role("button", name="Extend")).to_have_count(0)
    await expect(row).not_to_contain_text(re.compile(r"\d:\d\d"))
    await batch.get_by_role("button", name="Stop all").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop them").click()
    await in_state(own, "stopped")
    await expect(batch.get_by_role("status")).to_have_text("2 ended")


async def test_the_first_click_counts(visit: Visit):
    """Pressing the button takes the focus from the names, whose offer is then asked for."""
    page = await visit("teacher")
    await page.get_by_label("For a class").check()
    await page.get_by_label("For these people").fill(f"{PUPILS[10]}\n{PUPILS[11]}")
    await page.get_by_text("Each server starts at once").wait_for()
    await page.get_by_role("radio", name="broken").check()
    await page.get_by_label("For these people").press("End")
    await page.get_by_label("For these people").press_sequentially(f"\n{PUPILS[12]}")
    await page.get_by_role("button", name="Start 3 servers").click(delay=300)
    await expect(page.locator(".batch").get_by_role("status")).to_have_text("3 failed")


async def test_a_form_for_somebody_else(visit: Visit):
    page = await visit("teacher")
    whom = page.get_by_label("Whose server", exact=True)
    await page.get_by_text("More", exact=True).click()
    await page.get_by_role("button", name="Add a variable").click()
    await page.get_by_label("Variable", exact=True).fill("COURSE_DAY")
    await whom.fill("stranger")
    await whom.blur()
    await expect(page.locator(".decision")).to_contain_text("stranger")
    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    await whom.fill(PUPILS[1])
    await whom.press("Tab")
    await expect(page.locator(".decision")).not_to_contain_text("stranger")
    assert await page.evaluate("document.activeElement.closest('form') !== null"), "the focus is where it was"
    await expect(page.get_by_label("Variable", exact=True)).to_have_value("COURSE_DAY")
    await page.get_by_role("button", name="Remove this variable").click()
    await start(page, "course-1")
    pupil = await visit(PUPILS[1])
    await in_state(pupil, "ready")
    await expect(page.get_by_role("heading", name=PUPILS[1])).to_be_visible()
    # a class in which one has a server already: the others get theirs
    await page.get_by_label("For a class").check()
    await page.get_by_label("For these people").fill(f"{PUPILS[1]}\n{PUPILS[2]}")
    await page.get_by_label("For these people").blur()
    await page.get_by_text(
        "is running already. Use it as it is, or stop it first. The others can be started."
    ).wait_for()
    await page.get_by_role("button", name="Start 2 servers").click()
    await expect(page.locator(".batch").get_by_role("status")).to_have_text("1 ready, 1 not accepted")
    await pupil.get_by_role("button", name="Stop").click()
    await pupil.get_by_role("button", name="Stop it").click()
    await in_state(page, "stopped")


async def test_filters(visit: Visit):
    own = await visit("student")
    await start(own, "course-1")
    await in_state(own, "ready")
    other = await visit("outsider")
    await start(other, "broken")
    await in_state(other, "failed")
    page = await visit("overseer")
    await page.get_by_role("button", name="Everyone's").click()
    student, outsider = (page.locator(".launch").filter(has_text=name) for name in ("student", "outsider"))
    await expect(student).to_be_visible()
    await expect(outsider).to_be_visible()
    await page.get_by_label("Only in this state").select_option("ready")
    await expect(outsider).to_be_hidden()
    await page.get_by_label("Only in this state").select_option("")
    await only(page, "group", "course-1")
    await expect(student).to_be_visible()
    await expect(outsider).to_be_hidden()
    await only(page, "group", "")
    await only(page, "user", "outsider")
    await expect(outsider).to_be_visible()
    await expect(student).to_be_hidden()
    await page.get_by_role("button", name="Mine").click()
    await expect(page.get_by_text("Nothing runs.")).to_be_visible()


async def only(page: Page, what: str, name: str) -> None:
    box = page.get_by_label(f"Only of this {what}")
    await box.fill(name)
    await box.blur()


async def test_a_teacher_sees_nobody_else(visit: Visit, hub: RealHub):
    other = await visit("secretive")
    await start(other, "course-1")
    await in_state(other, "ready")
    page = await visit("teacher")
    await page.get_by_role("button", name="Everyone's").click()
    await page.locator("#list:not([aria-busy])").wait_for()
    pupil = await visit(PUPILS[5])
    await start(pupil, "broken")
    await page.locator(".launch").filter(has_text=PUPILS[5]).wait_for()  # what comes later is there
    await expect(page.locator(".launch").filter(has_text="secretive")).to_have_count(0)
    options = await page.get_by_label("Only of this group").locator("option").all_inner_texts()
    assert options == ["every group", "course-2"]
