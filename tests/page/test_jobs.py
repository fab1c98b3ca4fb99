"""User jobs on the page: a real Slurm behind a real sshd, a real Hub before it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import aiohttp
import pytest
from playwright.async_api import Locator, Page, expect

from jhlauncher.ports import SERVICES, free_port
from tests.page.conftest import CHROMIUM, Visit
from tests.page.test_looks import OPTIONS, check
from tests.real_hub import RealHub
from tests.userjobs.conftest import Site, shared_site  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real_hub]

SERVICE = """
c.Systems.systems = {{"cluster": {system!r}}}
c.JobWatch.interval = 0.5
c.Forwards.retry_delay = 0.1
"""
SERVES = "#!/bin/bash\necho serving\nexec python3 -u -m http.server {port}\n"


@pytest.fixture(scope="module")
def hub(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:  # noqa: F811
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium, or say where it is with JHLAUNCHER_TEST_BROWSER")
    allowed = {"partitions": ["batch"], "time": 600, "memory": "500M", "cpus": 2}
    service = SERVICE.format(system=shared_site.system(allowed=allowed))
    with RealHub(tmp_path_factory.mktemp("hub"), service=service).running() as hub:
        yield hub
    shared_site.cancel_all()


async def submit(page: Page, name: str, script: str, **fields: str) -> Locator:
    """Fill the form in, and press its button; where the job is shown."""
    for label, value in {"Name": name, "Script": script, "Memory": "0.02", **fields}.items():
        await page.locator("#job-form").get_by_label(label, exact=True).fill(value)
    await page.get_by_role("button", name="Start the job").click()
    return job(page, name)


def job(page: Page, name: str) -> Locator:
    return page.locator(".job").filter(has=page.get_by_role("heading", name=name, exact=True))


async def in_state(row: Locator, state: str) -> None:
    await expect(row).to_have_attribute("data-state", state, timeout=120_000)  # others may have the node


async def cancel(page: Page, name: str) -> None:
    await job(page, name).get_by_role("button", name="Cancel").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel it").click()
    await in_state(job(page, name), "CANCELLED")
    await job(page, name).get_by_role("button", name="Remove").click()
    await expect(job(page, name)).to_have_count(0)


async def test_from_the_form_to_what_the_job_serves(visit: Visit, shared_site: Site):  # noqa: F811
    page, other = await visit("ada", **OPTIONS), await visit("ada")
    await expect(page.get_by_role("link", name="Jobs")).to_be_visible()
    await expect(page.get_by_text("No jobs. What you start appears here.")).to_be_visible()
    await expect(page.get_by_text(f"You are {shared_site.ada} there.")).to_be_visible()
    port = free_port(SERVICES)
    row = await submit(page, "web", SERVES.format(port=port), Ports=f"80:{port}", Time="5")
    await in_state(row, "RUNNING")
    await expect(row).to_contain_text(re.compile(r"cluster · job \d+ · batch · 1 CPU, 21M · on \w+"))
    await expect(row).to_contain_text(re.compile(r"Runs for \d+ s, until .* at most"))
    await expect(row.get_by_label("Addresses of web")).to_contain_text(f"port {port}, forwarded to ")
    address = await row.locator("code").inner_text()
    await fetched(f"http://{address}/")
    # what it has printed, then and later
    await row.get_by_role("button", name="Output").click()
    output = row.get_by_label("Output of web")
    await expect(output).to_contain_text("serving")
    await expect(row).to_contain_text(f"/home/{shared_site.ada}/slurm-")
    await fetched(f"http://{address}/?again")
    await row.get_by_role("button", name="Refresh").click()
    await expect(output).to_contain_text('"GET /?again HTTP/1.1" 200')
    await check(page)
    # another tab has seen all of that, without having asked
    await in_state(job(other, "web"), "RUNNING")
    await row.get_by_role("button", name="Cancel").click()
    await page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    await in_state(row, "RUNNING")
    await cancel(page, "web")
    await expect(page.locator("#job-list")).to_be_focused()
    await expect(job(other, "web")).to_have_count(0)


async def fetched(url: str) -> None:
    """It is served; the port is open before the program listens."""
    async with aiohttp.ClientSession() as client, asyncio.timeout(60):
        while True:
            try:
                async with client.get(url) as response:
                    assert response.status == 200
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)  # nothing tells


async def test_what_went_wrong(visit: Visit):
    page = await visit("bob", **OPTIONS)
    form = page.locator("#job-form")
    row = await submit(page, "broken", "#!/bin/bash\necho no such luck >&2\nexit 3\n")
    await in_state(row, "FAILED")
    await expect(row).to_contain_text(re.compile(r"The script ended with an error\. Exit code 3\. Ran for \d+ s"))
    await row.get_by_role("button", name="Output").click()
    await expect(row.get_by_label("Output of broken")).to_have_text("no such luck\n")
    await expect(form.get_by_label("Name")).to_have_value("broken-2")
    # what is beyond what is allowed is said before it is asked for; what else the launcher refuses, at its field
    await form.get_by_label("CPUs").fill("3")
    await expect(form.locator('[data-field="cpus"] .problem')).to_contain_text("less than or equal to 2")
    await form.get_by_label("CPUs").fill("1")
    await form.get_by_label("Time", exact=True).fill("11")
    await expect(form.locator('[data-field="time"] .problem')).to_have_text("10 min at most.")
    await form.get_by_label("Ports").fill("http")
    await submit(page, "options", "#!/bin/bash\n#SBATCH --nodes=4\n", Time="10", Ports="")
    await expect(form.locator('[data-field="script"] .problem')).to_contain_text("has an option of Slurm's in line 2")
    await expect(form.get_by_label("Script")).to_be_focused()
    await expect(form.get_by_role("status")).to_contain_text("what is wrong is said at the field")
    await check(page)
    await row.get_by_role("button", name="Remove").click()
    await expect(row).to_have_count(0)
    await expect(page.get_by_text("No jobs.")).to_be_visible()


async def test_one_waits_for_another(visit: Visit):
    page = await visit("ada")
    sleeps = "#!/bin/bash\nexec sleep 600\n"
    await submit(page, "first", sleeps, CPUs="2")  # all of the node's
    await expect(job(page, "first")).to_be_visible()
    await submit(page, "first", sleeps)
    await expect(page.locator("#job-form")).to_contain_text("You have a user job first already.")
    second = await submit(page, "second", sleeps, CPUs="2")
    await expect(second).to_contain_text(re.compile(r"(Waits until there is room|in the queue)[^.]*\. Waiting for "))
    await cancel(page, "first")
    await cancel(page, "second")


async def test_who_has_no_account_sees_nothing_of_it(visit: Visit):
    page = await visit("eve")
    url = page.url
    await page.goto("about:blank")
    async with page.expect_response("**/api/systems/") as asked:
        await page.goto(url)
    assert await (await asked.value).json() == []
    await page.evaluate("new Promise(requestAnimationFrame)")  # the page has seen that, too
    await expect(page.get_by_role("heading", name="Jobs")).to_be_hidden()
    await expect(page.get_by_role("link", name="Jobs")).to_be_hidden()
