"""``jhlauncher users``, as a teacher uses it."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jhlauncher.roster import TEMPLATE
from tests.cli.terminal import terminal
from tests.people.mail import MailServer, settings
from tests.real_hub import RealHub

pytestmark = [pytest.mark.real_hub, pytest.mark.usefixtures("well_behaved")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, mail: MailServer) -> Iterator[RealHub]:
    hub = RealHub(tmp_path_factory.mktemp("hub"), service=settings(mail))
    with hub.running():
        yield hub


def environment(hub: RealHub) -> dict[str, str]:
    return {**os.environ, "JHLAUNCHER_URL": hub.launcher_url, "JHLAUNCHER_TOKEN": hub.admin_token}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jhlauncher", "users", *arguments]


def run(hub: RealHub, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(hub), input=given, capture_output=True, text=True, timeout=120, check=False
    )


def reported(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def test_template_to_account(hub: RealHub, tmp_path: Path):
    template = run(hub, "template")
    assert (template.returncode, template.stdout) == (0, TEMPLATE)
    roster = tmp_path / "roster.csv"
    roster.write_text(template.stdout)
    done = run(hub, "import", str(roster), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Would be: 2 created" in done.stdout
    assert "ada-lovelace" in done.stdout
    done = run(hub, "import", str(roster))
    assert (done.returncode, done.stdout) == (0, "2 created, 2 mailed now\n"), done.stderr
    done = run(hub, "import", str(roster), "--json")
    assert json.loads(done.stdout)["counts"] == {"exists": 2, "mail_earlier": 2}
    done = run(hub, "list", "lovelace")
    assert "Ada Lovelace" in done.stdout
    done = run(hub, "remove", "--roster", str(roster))
    assert done.returncode == 2
    assert "add --yes" in done.stderr
    done = run(hub, "remove", "--roster", str(roster), "nobody", "--yes")
    assert (done.returncode, done.stdout) == (0, "2 removed, 0 not, 1 were not there\n"), done.stderr


def test_bad_rows_are_named_and_a_report_harms_nobody(hub: RealHub, mail: MailServer, tmp_path: Path):
    roster, report = tmp_path / "roster.csv", tmp_path / "report.csv"
    roster.write_text(
        "name,email\nBad Row,nowhere\nGood Row,good@example.org\nFull Row,full@example.org\n=1+1,x@y.zz\n"
    )
    mail.refused = {"full@example.org": "552 =cmd|' /C calc'!A0"}
    done = run(hub, "import", str(roster))
    assert done.returncode == 3
    assert "row 2 Bad Row: emails: is not an e-mail address" in done.stderr
    assert not mail.mails
    done = run(hub, "import", str(roster), "--partial", "--report", str(report))
    assert done.returncode == 1
    assert "2 refused, 2 created" in done.stdout
    assert "1 mailed in vain" in done.stdout
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    rows = {row["row"]: row for row in reported(report)}
    assert {number: row["status"] for number, row in rows.items()} == {
        "2": "refused", "3": "created", "4": "created", "5": "refused",
    }  # fmt: skip
    for row in rows.values():
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())


def test_columns_of_ones_own_from_a_pipe(hub: RealHub):
    given = "Nom complet;Courriel\nAmélie Poulain;amelie@example.org\n"
    done = run(hub, "import", "-", "--column", "name=Nom complet", "--column", "emails=Courriel", given=given)
    assert (done.returncode, done.stdout) == (0, "1 created, 1 mailed now\n"), done.stderr
    assert "amelie-poulain" in run(hub, "list").stdout


@pytest.mark.asyncio
async def test_a_bar_in_a_terminal(hub: RealHub, mail: MailServer, tmp_path: Path):
    roster = tmp_path / "roster.csv"
    roster.write_text("name,email\n" + "".join(f"Bar {n},bar{n}@example.org\n" for n in range(20)))
    where: Any = SimpleNamespace(url=hub.launcher_url)
    async with terminal(where, "users", "import", str(roster), token=hub.admin_token) as screen:
        await screen.shows("/20")
        await screen.shows("20 created, 20 mailed now")
        assert await screen.status() == 0


def test_killed_half_way_and_repeated(hub: RealHub, mail: MailServer, tmp_path: Path):
    roster, report = tmp_path / "roster.csv", tmp_path / "report.csv"
    roster.write_text("name,email\n" + "".join(f"Kill {n},kill{n}@example.org\n" for n in range(10)))
    process = subprocess.Popen(command("import", str(roster), "--report", str(report)), env=environment(hub))

    def kill_at_the_fifth(address: str) -> None:
        if len(mail.mails) == 4:
            process.send_signal(signal.SIGKILL)

    mail.on_data = kill_at_the_fifth
    assert process.wait(60) == -signal.SIGKILL
    assert 1 <= len(reported(report)) <= 5
    done = run(hub, "import", str(roster), "--json")
    counts = json.loads(done.stdout)["counts"]
    assert counts.get("exists", 0) + counts.get("created", 0) == 10
    for number in range(10):
        assert len(mail.to(f"kill{number}@example.org")) == 1


def test_a_class_from_the_roster(hub: RealHub, tmp_path: Path):
    roster = tmp_path / "roster.csv"
    roster.write_text("name,email\nClass One,one@example.org\nClass Two,two@example.org\n")
    assert run(hub, "import", str(roster)).returncode == 0
    roster.write_text(roster.read_text() + "No Account,none@example.org\n")
    started = subprocess.run(
        [*command()[:-1], "batch", "start", "--roster", str(roster), "--image", "plain", "--json"],
        env=environment(hub), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    batch = json.loads(started.stdout)
    assert sorted(item["launch"]["username"] for item in batch["items"]) == ["class-one", "class-two"]
    assert batch["counts"] == {"ready": 2, "refused": 0}
    assert run(hub, "remove", "--roster", str(roster), "--yes").stdout == "2 removed, 0 not, 0 were not there\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "nowhere.csv"], "can't be read"),
        (["import", "-", "--column", "nme=x"], "is not WHAT=HEADING"),
        (["import", "-", "--report", "/nowhere/report.csv"], "can't be written"),
        (["remove"], "Say whom"),
    ],
)
def test_usage(hub: RealHub, arguments: list[str], says: str):
    done = run(hub, *arguments, given="name\nAda\n")
    assert done.returncode == 2
    assert says in done.stderr
