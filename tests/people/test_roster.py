"""Rosters, as spreadsheets write them, and as those who mean harm do."""

from __future__ import annotations

import csv
import io
import random
import unicodedata

import pytest

from jhlauncher.errors import InvalidRequest
from jhlauncher.roster import MAX_ROWS, TEMPLATE, Roster, from_csv, from_json
from jhlauncher.usernames import LONGEST, derived


def read(text: str, encoding: str = "utf-8", **columns: str) -> Roster:
    roster = from_csv(text.encode(encoding), columns)
    roster.assign({}, ())
    return roster


def problem(text: str) -> str:
    with pytest.raises(InvalidRequest) as refused:
        from_csv(text.encode() if isinstance(text, str) else text)
    assert refused.value.reason == "bad_roster"
    return refused.value.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_spreadsheets_write(encoding: str, delimiter: str, ending: str):
    """Quotes, doubled quotes, delimiters within them, and several addresses in one cell."""
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, lineterminator=ending)
    writer.writerow(["Name", "E-Mail", "Groups"])
    writer.writerow(["Müller, Jörg", "joerg@example.org;jm@example.com", "course-1"])
    writer.writerow(['Zoë "Zo" Łuk'.replace("Ł", "L"), "zoe@example.org", "course-1;tutors"])
    roster = read(written.getvalue(), encoding)
    assert not roster.bad
    assert [row.number for row in roster.rows] == [2, 3]
    first, second = (row.person for row in roster.rows)
    assert first
    assert second
    assert (first.name, first.emails) == ("Müller, Jörg", ["joerg@example.org", "jm@example.com"])
    assert (second.name, second.groups) == ('Zoë "Zo" Luk', ["course-1", "tutors"])
    assert [row.username for row in roster.rows] == ["muller-jorg", "zoe-zo-luk"]
    assert roster.delimiter == delimiter
    assert roster.encoding == encoding


def test_the_template_can_be_imported():
    roster = read(TEMPLATE)
    assert not roster.bad
    assert [(row.username, row.person.admin) for row in roster.rows if row.person] == [
        ("ada-lovelace", False),
        ("alan", True),
    ]


def test_the_seeds_heading_and_columns_by_name():
    roster = read("studente,mail\nAnna Rossi,anna@example.org;genitori@example.org\n")
    assert roster.rows[0].username == "anna-rossi"
    roster = read("Nachname;Vorname;Matrikel;Kurs\nRossi;Anna;42;c1\n", groups="Kurs")
    assert (roster.rows[0].username, roster.rows[0].person.groups, roster.ignored) == (
        "anna-rossi",
        ["c1"],
        ["Matrikel"],
    )


def test_excels_separator_line():
    roster = read("sep=;\r\nname;email\r\nAda;ada@example.org\r\n")
    assert (roster.rows[0].username, roster.rows[0].number, roster.delimiter) == ("ada", 3, ";")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "first line must name the columns"),
        ("Ada,ada@example.org\n", "first line must name the columns"),
        ('name,email\n"Ada,ada@example.org\n', "it is not CSV"),
        ("name,name\nAda,Ada\n", "several columns for name"),
        ("name\n" + "Ada\n" * (MAX_ROWS + 1), f"more than {MAX_ROWS} rows"),
        ("name\nA\0da\n", "NUL"),
    ],
)
def test_files_that_are_no_rosters(text: str, what: str):
    assert what in problem(text)


def test_a_spreadsheet_that_is_not_csv():
    with pytest.raises(InvalidRequest, match="can't be used"):
        from_csv(b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00[Content_Types].xml")


@pytest.mark.parametrize("what", ["names", "name"])
def test_columns_that_are_not_there(what: str):
    with pytest.raises(InvalidRequest, match="can't be used"):
        from_csv(b"name\nAda\n", {what: "Studente"})


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"name": '=HYPERLINK("http://evil.example")'}, "name: begins as a formula"),
        ({"name": "@SUM(1+9)*cmd|' /C calc'!A0"}, "name: begins as a formula"),
        ({"name": "+1"}, "name: begins as a formula"),
        ({"name": "Ada\nBcc: all@example.org"}, "name: has line breaks"),
        ({"name": "Ada\u202egnp.exe"}, "name: has line breaks, or control or invisible"),
        ({"name": "Ada\u2066"}, "name: has line breaks, or control or invisible"),
        ({"name": "a" * 201}, "name: has more than 200"),
        ({"name": "!!!"}, "name: no user name can be made of it"),
        ({"username": "$(reboot)"}, "username: must be of letters"),
        ({"username": "ada; rm -rf /"}, "username: must be of letters"),
        ({"username": "-u0"}, "username: must be of letters"),
        ({"username": "../root"}, "username: must be of letters"),
        ({"username": "\u0430"}, "username: must be of letters"),  # Cyrillic, and looks like an a
        ({"username": "ada\r\n"}, None),
        ({"email": "ada"}, "emails: is not an e-mail address"),
        ({"email": "ada@example.org\nBcc: all@example.org"}, "emails: is not an e-mail address"),
        ({"email": "<ada@example.org>"}, "emails: is not an e-mail address"),
        ({"email": "ada@example.org", "groups": "../x"}, "groups: is not a group's name"),
        ({"email": "ada@example.org", "groups": "=1+1"}, "groups: begins as a formula"),
        ({"email": "ada@example.org", "admin": "maybe"}, "admin: must be yes or no"),
        ({"groups": "course-1"}, "says nobody's name"),
    ],
)
def test_bad_cells_are_named(cells: dict[str, str], what: str | None):
    written = io.StringIO()
    writer = csv.DictWriter(written, ["name", "username", "email", "groups", "admin"])
    writer.writeheader()
    writer.writerow({"name": "Grace Hopper"})
    writer.writerow(cells)
    roster = read(written.getvalue())
    if what is None:
        assert not roster.bad
        return
    [bad] = roster.bad
    assert bad.number == 3
    assert any(each.startswith(what) for each in bad.problems), bad.problems
    assert not any(unicodedata.category(char)[0] == "C" for char in bad.said)
    assert not bad.said.startswith(("=", "+", "-", "@"))


def test_names_in_any_script():
    names = ["Жанна д'Арк", "王小明", "محمد علي", "नरेन्द्र", "Ñandú  Žižek", "e\u0301lodie", "علی\u200cرضا"]  # noqa: RUF001
    roster = from_json([{"name": name} for name in names])
    roster.assign({}, ())
    assert not roster.bad
    assert [row.username for row in roster.rows][:2] == ["zhanna-d-ark", "wangxiaoming"]
    for row in roster.rows:
        assert row.username.isascii()
        assert row.username.replace("-", "").isalnum()
    assert roster.rows[5].username == "elodie"


def test_two_people_of_one_name_and_one_person_twice():
    roster = from_json(
        [
            {"name": "Anna Rossi", "emails": "anna@example.org"},
            {"name": "Anna Rossi", "emails": "rossi@example.org"},
            {"name": "A. Rossi", "emails": "ANNA@example.org"},
            {"name": "Ada"},
            {"name": "ADA"},
        ]
    )
    roster.assign({}, {"anna-rossi"})
    assert [row.username for row in roster.rows[:2]] == ["anna-rossi-2", "anna-rossi-3"]
    assert [(row.number, row.problems) for row in roster.bad] == [
        (3, ["is the same person as row 1: it has the same e-mail address"]),
        (5, ["is the same person as row 4: it has the same name"]),
    ]


def test_a_name_that_somebody_asks_for_is_nobody_elses():
    roster = from_json([{"name": "Ada"}, {"name": "Ada Lovelace", "username": "ada"}])
    roster.assign({}, ())
    assert [row.username for row in roster.rows] == ["ada-2", "ada"]


def test_people_who_are_known_keep_their_names():
    first = from_json(
        [{"name": "Anna Rossi", "emails": "a@example.org"}, {"name": "Anna Rossi", "emails": "b@example.org"}]
    )
    first.assign({}, ())
    known = {row.person.identity: row.username for row in first.rows if row.person}
    again = from_json(
        [{"name": "Anna Rossi", "emails": "b@example.org"}, {"name": "Anna Bianchi", "emails": "a@example.org"}]
    )
    again.assign(known, known.values())
    assert [row.username for row in again.rows] == ["anna-rossi-2", "anna-rossi"]
    assert all(row.known for row in again.rows)


def test_long_names_stay_unique():
    taken: set[str] = set()
    for _ in range(120):
        name = derived("Maximiliane Theodora von und zu Hohenfels", taken)
        assert len(name) <= LONGEST
        assert not name.endswith("-")
        assert name not in taken
        taken.add(name)


def test_ten_thousand_rows():
    chance = random.Random(7)
    words = ["Anna", "Łukasz", "Жанна", "Müller", "O'Neil", "de la Cruz", "王"]
    lines = [f"{chance.choice(words)} {chance.choice(words)},p{number}@example.org" for number in range(10_000)]
    roster = read("name,email\n" + "\n".join(lines))
    assert not roster.bad
    assert len({row.username for row in roster.rows}) == 10_000
