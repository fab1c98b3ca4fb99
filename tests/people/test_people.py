"""People from a roster to their accounts, at a real Hub and with a real mail server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from jhlauncher.signing import Signer
from tests.people.browser import Browser
from tests.people.mail import MailServer, settings
from tests.real_hub import SIGNING_KEY, RealHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub, pytest.mark.usefixtures("well_behaved")]

LOGIN = 'c.JupyterHub.authenticator_class = "jhlauncher-password"\nc.JupyterHub.load_roles += ROLES\n'
ROLES = """
ROLES = [
    {"name": "teacher", "users": ["teacher"],
     "scopes": ["self", "access:services!service=launcher", "admin:users", "groups!group=course-1"]},
]
"""
CSV = "name,email,groups\nAnna Rossi,anna@example.org,\nBert Blum,bert@example.org;b@example.org,\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, mail: MailServer) -> Iterator[RealHub]:
    service = settings(mail) + 'c.Invitations.login = "link"\n'
    hub = RealHub(tmp_path_factory.mktemp("hub"), before=ROLES, after=LOGIN, service=service)
    with hub.running():
        yield hub


async def users(
    hub: RealHub, method: str, token: str | None = None, csv: str | bytes | None = None, query: str = "", **body: Any
) -> tuple[int, Any]:
    """A request to ``users``, as the Hub's administrator unless said otherwise."""
    headers = {"Authorization": f"token {token or hub.admin_token}"}
    sent: dict[str, Any] = {"json": body} if csv is None else {"data": csv, "headers": {"Content-Type": "text/csv"}}
    if csv is None and method == "GET":
        sent = {}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.request(method, f"{hub.launcher_url}users{query}", **sent) as response,
    ):
        return response.status, await response.json()


async def enrol(hub: RealHub, csv: str, **query: str) -> dict[str, Any]:
    text = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    status, answer = await users(hub, "POST", csv=csv, query=f"?{text}")
    assert status == 200, answer
    return {result["said"]: result for result in answer["users"]}


async def test_from_a_csv_file_to_a_login(hub: RealHub, mail: MailServer):
    done = await enrol(hub, CSV)
    anna, bert = done["Anna Rossi"], done["Bert Blum"]
    assert (anna["username"], anna["status"], anna["mail"]) == ("anna-rossi", "created", "sent")
    assert bert["mail"] == "sent"
    assert [str(mail["To"]) for mail in mail.mails] == ["anna@example.org", "bert@example.org, b@example.org"]
    [message] = mail.to("anna@example.org")
    assert "anna-rossi" in message["Subject"]
    html = message.get_body(("html",))
    assert html
    assert "Set your password" in html.get_content()
    link = mail.link_to("anna@example.org")
    assert link.startswith(f"{hub.url}hub/set-password?token=")
    async with Browser() as browser:
        assert not await browser.log_in(hub.url, "anna-rossi", "")
        status, page, _ = await browser.get(link)
        assert status == 200
        assert "anna-rossi" in page
        assert (await browser.set_password(link, "short"))[0] == 400
        assert (await browser.set_password(link, "a long enough password", "another long password"))[0] == 400
        status, page = await browser.set_password(link, "a long enough password")
        assert status == 200, page
        assert "Your password is set" in page
        assert not await browser.log_in(hub.url, "anna-rossi", "a wrong password")
        assert await browser.log_in(hub.url, "Anna-Rossi", "a long enough password")
    async with Browser() as somebody:
        status, page = await somebody.set_password(link, "the attacker's password")
        assert status == 403
        assert "has been used" in page
        assert not await somebody.log_in(hub.url, "anna-rossi", "the attacker's password")


async def test_nothing_is_kept_in_clear(hub: RealHub, mail: MailServer):
    await enrol(hub, "name,email\nClear Clara,clara@example.org\n")
    link = mail.link_to("clara@example.org")
    async with Browser() as browser:
        assert (await browser.set_password(link, "correct horse battery"))[0] == 200
    token = link.partition("token=")[2]
    for file in hub.folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"correct horse battery" not in content, file
            assert token.encode()[:60] not in content, file


async def test_again_is_the_same(hub: RealHub, mail: MailServer):
    roster = "name,email,groups\nCarl Cox,carl@example.org,course-1\nCarl Cox,cc@example.org,course-1;new group\n"
    first = await users(hub, "POST", csv=roster)
    mail.mails.clear()
    status, again = await users(hub, "POST", csv=roster)
    assert status == 200
    assert [result["username"] for result in again["users"]] == [result["username"] for result in first[1]["users"]]
    assert again["counts"] == {"exists": 2, "mail_earlier": 2}
    assert not mail.mails
    _, group = await hub.api("GET", "/groups/new%20group")
    assert group["users"] == ["carl-cox-2"]
    # the same person, with another person before
    _, later = await users(hub, "POST", csv="name,email\nCarl Cox,third@example.org\nCarl Cox,cc@example.org\n")
    assert [result["username"] for result in later["users"]] == ["carl-cox-3", "carl-cox-2"]
    # a mail may be asked for again, and then the older link is worth nothing once the newer was used
    older = mail.link_to("third@example.org")
    await users(hub, "POST", csv="name,email\nCarl Cox,third@example.org\n", query="?mail=again")
    async with Browser() as browser:
        assert (await browser.set_password(mail.link_to("third@example.org"), "the newer password"))[0] == 200
        assert (await browser.set_password(older, "the older password"))[0] == 403


async def test_all_or_some(hub: RealHub, mail: MailServer):
    roster = 'name,email\nDora Day,dora@example.org\n"=cmd()",evil@example.org\nDora Two,not an address\n'
    status, error = await users(hub, "POST", csv=roster)
    assert (status, error["reason"]) == (400, "bad_roster")
    assert [row["row"] for row in error["details"]["rows"]] == [3, 4]
    assert not mail.mails
    assert (await hub.api("GET", "/users/dora-day"))[0] == 404
    status, answer = await users(hub, "POST", csv=roster, query="?mode=some")
    assert answer["counts"] == {"created": 1, "refused": 2, "mail_sent": 1}
    assert [result["status"] for result in answer["users"]] == ["created", "refused", "refused"]


async def test_a_dry_run_touches_nothing(hub: RealHub, mail: MailServer):
    status, answer = await users(hub, "POST", csv="name,email\nDry Run,dry@example.org\n", query="?dry_run=true")
    assert (status, answer["counts"], answer["users"][0]["username"]) == (200, {"created": 1}, "dry-run")
    assert not mail.mails
    assert (await hub.api("GET", "/users/dry-run"))[0] == 404


async def test_links_instead_of_mail(hub: RealHub, mail: MailServer):
    _, answer = await users(hub, "POST", users=[{"name": "Link Lisa"}], links=True)
    [result] = answer["users"]
    async with Browser() as browser:
        assert (await browser.set_password(result["link"], "a password of hers"))[0] == 200
        assert await browser.log_in(hub.url, "link-lisa", "a password of hers")
    assert not mail.mails


async def test_list_and_remove(hub: RealHub, mail: MailServer):
    await enrol(hub, "name,email,groups\nRemo Vable,remo@example.org,course-1\n")
    status, page = await users(hub, "GET", query="?name=remo-&limit=1")
    [view] = page["items"]
    assert (view["name"], view["emails"], view["groups"], view["mail"]) == (
        "Remo Vable", ["remo@example.org"], ["course-1"], "sent",
    )  # fmt: skip
    assert (await hub.launcher("POST", username="remo-vable", image="plain"))[0] == 200
    status, answer = await users(hub, "DELETE", usernames=["remo-vable", "nobody-there"])
    assert [result["status"] for result in answer["users"]] == ["removed", "absent"]
    assert (await hub.api("GET", "/users/remo-vable"))[0] == 404
    # whoever gets the name next is somebody else
    await hub.api("POST", "/users/remo-vable")
    said = {"user": "remo-vable", "issued": time.time() - 300, "expires": time.time() + 300, "admin": True}
    link = f"{hub.url}hub/set-password?token={Signer(SIGNING_KEY).seal(said, 'password')}"
    async with Browser() as browser:
        status, text = await browser.set_password(link, "a password for another")
        assert status == 403, text
        assert "no such account any more" in text


async def test_pages(hub: RealHub):
    seen: list[str] = []
    cursor = ""
    while True:
        _, page = await users(hub, "GET", query=f"?limit=2{cursor}")
        seen += [item["username"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    _, everybody = await hub.api("GET", "/users")
    assert seen == [user["name"] for user in everybody]


class TestWhoMay:
    async def test_a_student_may_nothing(self, hub: RealHub):
        token = await hub.user_token("student")
        status, error = await users(hub, "POST", token, users=[{"name": "X Y"}])
        assert (status, error["reason"], error["details"]["needs"]) == (403, "missing_scope", "admin:users")
        assert (await users(hub, "DELETE", token, usernames=["anna-rossi"]))[0] == 403
        assert (await users(hub, "GET", token))[0] == 403

    async def test_a_teacher_manages_their_own_groups_and_no_administrators(self, hub: RealHub, mail: MailServer):
        token = await hub.user_token("teacher")
        person = {"name": "Tea Cher", "emails": ["tea@example.org"]}
        status, error = await users(hub, "POST", token, users=[{**person, "groups": ["course-2"]}])
        assert (status, error["details"]["needs"]) == (403, "groups!group=course-2")
        status, error = await users(hub, "POST", token, users=[{**person, "admin": True}])
        assert status == 403
        assert "administrator" in error["error"]
        await hub.api("POST", "/users/boss", json={"admin": True})
        takeover = {"username": "boss", "emails": ["evil@example.org"]}
        for how in ({"mail": "again"}, {"links": True}):
            status, error = await users(hub, "POST", token, users=[takeover], **how)
            assert status == 403, error
        assert not mail.mails
        status, answer = await users(hub, "POST", token, users=[{**person, "groups": ["course-1"]}])
        assert (status, answer["counts"]) == (200, {"created": 1, "mail_sent": 1})

    async def test_an_administrator_makes_administrators(self, hub: RealHub):
        await users(hub, "POST", users=[{"name": "Ad Min"}])
        status, _ = await users(
            hub, "POST", users=[{"name": "Ad Min", "admin": True}, {"name": "Ad Two", "admin": "yes"}]
        )
        assert status == 200
        assert [(await hub.api("GET", f"/users/{name}"))[1]["admin"] for name in ("ad-min", "ad-two")] == [True, True]


class TestWhoseAccount:
    """A mail may not hand over an account that is somebody's already."""

    async def test_a_row_that_names_somebody_elses(self, hub: RealHub, mail: MailServer):
        await hub.api("POST", "/users/dean")
        row = {"name": "Mallory", "username": "dean", "emails": ["evil@example.org"]}
        for how in ({}, {"mail": "again"}, {"links": True}):
            _, answer = await users(hub, "POST", users=[row], **how)
            [result] = answer["users"]
            assert (result["status"], result["mail"], result["link"]) == ("exists", "none", None)
            assert "was not made with these addresses" in result["problems"][0]
        await enrol(hub, "name,email\nVic Tim,victim@example.org\n")
        mail.mails.clear()
        added = "name,email\nVic Tim,victim@example.org;evil@example.org\n"
        as_before = "name,email\nVic Tim,victim@example.org\n"
        assert (await enrol(hub, added, mail="again"))["Vic Tim"]["mail"] == "none"
        assert (await enrol(hub, as_before, mail="again"))["Vic Tim"]["mail"] == "sent"
        assert not mail.to("evil@example.org")
        assert (await enrol(hub, added, mail="again", adopt="true"))["Vic Tim"]["mail"] == "sent"
        assert len(mail.to("evil@example.org")) == 1

    async def test_a_link_of_a_teachers_for_who_has_become_an_administrator(self, hub: RealHub, mail: MailServer):
        token = await hub.user_token("teacher")
        _, answer = await users(hub, "POST", token, users=[{"name": "Carol Climbs"}], links=True)
        await hub.api("PATCH", "/users/carol-climbs", json={"admin": True})
        async with Browser() as browser:
            status, page = await browser.set_password(answer["users"][0]["link"], "the teacher's password")
            assert status == 403
            assert "only an administrator" in page

    async def test_sessions_end_with_a_new_password(self, hub: RealHub, mail: MailServer):
        await enrol(hub, "name,email\nOld Sess,old@example.org\n")
        async with Browser() as thief, Browser() as owner:
            await thief.set_password(mail.link_to("old@example.org"), "the thief's password")
            assert await thief.log_in(hub.url, "old-sess", "the thief's password")
            await enrol(hub, "name,email\nOld Sess,old@example.org\n", mail="again")
            assert (await owner.set_password(mail.link_to("old@example.org"), "the owner's password"))[0] == 200
            assert "/hub/login" in (await thief.get(f"{hub.url}hub/home"))[2]

    async def test_who_may_not_is_told_before_the_roster_is_read(self, hub: RealHub):
        assert (await users(hub, "POST", await hub.user_token("student"), csv="no roster"))[0] == 403


class TestMailThatFails:
    async def test_one_address_is_refused(self, hub: RealHub, mail: MailServer):
        mail.refused = {"full@example.org": "452 mailbox full", "gone@example.org": "550 no such user"}
        roster = "name,email\nEva Full,full@example.org\nEva Part,part@example.org;gone@example.org\n"
        done = await enrol(hub, roster + "Eva Fine,fine@example.org\n")
        assert [result["mail"] for result in done.values()] == ["failed", "sent", "sent"]
        assert "mailbox full" in done["Eva Full"]["problems"][0]
        assert "gone@example.org" in done["Eva Part"]["problems"][0]
        mail.refused.clear()
        again = await enrol(hub, "name,email\nEva Full,full@example.org\nEva Fine,fine@example.org\n")
        assert (again["Eva Full"]["mail"], again["Eva Fine"]["mail"]) == ("sent", "earlier")
        assert len(mail.to("full@example.org")) == 1

    async def test_the_server_has_had_enough_of_a_connection(self, hub: RealHub, mail: MailServer):
        said: list[str] = []

        def once(address: str) -> str | None:
            said.append(address)
            return "421 too many mails in one connection" if len(said) == 2 else None

        mail.on_data = once
        done = await enrol(hub, "name,email\nFay A,fa@example.org\nFay B,fb@example.org\nFay C,fc@example.org\n")
        assert [result["mail"] for result in done.values()] == ["sent", "sent", "sent"]
        assert len(mail.mails) == 3

    async def test_two_imports_at_once(self, hub: RealHub, mail: MailServer):
        roster = "name,email\n" + "".join(f"Twin {n},twin{n}@example.org\n" for n in range(8))
        answers = await asyncio.gather(*(users(hub, "POST", csv=roster) for _ in range(3)))
        assert {status for status, _ in answers} <= {200, 409}, answers
        assert 200 in {status for status, _ in answers}
        for number in range(8):
            assert len(mail.to(f"twin{number}@example.org")) == 1


class TestLinks:
    @pytest.mark.parametrize("token", ["", "x", "gAAAAABm" + "A" * 100, "%00", "a" * 5000])
    async def test_made_up(self, hub: RealHub, token: str):
        async with Browser() as browser:
            status, page, _ = await browser.get(f"{hub.url}hub/set-password?token={token}")
            assert status == 403
            assert "link" in page
            status, _, _ = await browser.fill(
                f"{hub.url}hub/set-password?token={token}", token=token, password="x" * 20
            )
            assert status == 403

    async def test_a_page_elsewhere_can_not_send_the_form(self, hub: RealHub, mail: MailServer):
        await enrol(hub, "name,email\nXs Rf,xsrf@example.org\n")
        link = mail.link_to("xsrf@example.org")
        async with aiohttp.ClientSession() as client:
            fields = {"token": link.partition("token=")[2], "password": "a long enough password"}
            async with client.post(f"{hub.url}hub/set-password", data=fields) as response:
                assert response.status == 403

    async def test_two_at_once(self, hub: RealHub, mail: MailServer):
        await enrol(hub, "name,email\nRa Ce,race@example.org\n")
        link = mail.link_to("race@example.org")

        async def one(password: str) -> int:
            async with Browser() as browser:
                return (await browser.set_password(link, password))[0]

        answers = await asyncio.gather(*(one(f"password number {n}") for n in range(4)))
        assert sorted(answers) == [200, 403, 403, 403]


async def test_events_as_they_happen(hub: RealHub):
    headers = {
        "Authorization": f"token {hub.admin_token}", "Content-Type": "text/csv", "Accept": "text/event-stream",
    }  # fmt: skip
    roster = "name,email\nSse A,ssea@example.org\nSse B,sseb@example.org\n"
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{hub.launcher_url}users", data=roster) as response,
    ):
        text = await response.text()
    events = [
        dict(line.split(": ", 1) for line in part.splitlines()) for part in text.split("\n\n") if "event:" in part
    ]
    assert [event["event"] for event in events] == ["user", "user", "done"]
    first = json.loads(events[0]["data"])
    assert (first["done"], first["total"], first["username"]) == (1, 2, "sse-a")
    assert json.loads(events[2]["data"])["counts"] == {"created": 2, "mail_sent": 2}
