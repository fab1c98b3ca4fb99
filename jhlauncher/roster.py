"""A roster: the people of a course, as a teacher's spreadsheet or a program has them. Pure; nothing is asked or done.

`from_csv` reads what spreadsheets write: commas, semicolons or tabs, quotes, with or without a byte order mark, in
UTF-8, UTF-16 or Windows-1252. `from_json` takes rows that are objects. Either gives the same rows, and each that can't
be used says why; values are only ever compared and copied, never run.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from .errors import InvalidRequest
from .models import Model, UserName
from .usernames import derived, folded

MAX_ROWS = 20_000

COLUMNS: dict[str, tuple[str, ...]] = {
    "name": ("name", "full name", "student", "studente", "display name"),
    "first_name": ("first name", "firstname", "given name", "vorname", "nome", "prénom"),
    "last_name": ("last name", "lastname", "surname", "family name", "nachname", "cognome", "nom"),
    "username": ("username", "user name", "user", "login"),
    "emails": ("email", "emails", "e-mail", "e-mails", "mail", "email address", "e-mail address"),
    "groups": ("groups", "group", "course", "courses"),
    "admin": ("admin",),
}
"""What a column is, and how it may be headed; capitals, ``_`` and spaces around do not matter."""

TEMPLATE = """\
name,username,emails,groups,admin
Ada Lovelace,,ada@example.org,course-1,
"Turing, Alan",alan,alan@example.org;a.turing@example.com,course-1;tutors,yes
"""

_DELIMITERS = (",", ";", "\t", "|")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,254}")
_GROUP = re.compile(r"[^\W_][\w.@+ -]{0,254}")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula
(https://owasp.org/www-community/attacks/CSV_Injection)."""
_JOINERS = "\u200c\u200d"
"""Which Persian and Indic names are written with; all other invisible characters can only mislead."""
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_YES, _NO = {"1", "true", "yes", "y", "x", "admin"}, {"", "0", "false", "no", "n"}


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _text(value: str) -> str:
    """One line of visible text, in the form in which equal texts are equal (NFC)."""
    value = " ".join(unicodedata.normalize("NFC", value).split(" ")).strip()
    hidden = [char for char in value if unicodedata.category(char) in _HIDDEN and char not in _JOINERS]
    _check(not hidden, "has line breaks, or control or invisible characters")
    _check(not value.startswith(FORMULA), "begins as a formula of a spreadsheet does")
    return value


def _name(value: str) -> str:
    value = _text(value)
    _check(len(value) <= 200, "has more than 200 characters")
    _check("://" not in value, "has an address of the web in it")
    return value


def _username(value: str) -> str:
    value = value.strip().lower()
    _check(
        bool(_USERNAME.fullmatch(value)),
        "must be of letters and digits of ASCII and . _ @ + -, and begin with a letter or digit",
    )
    return value


def _email(value: str) -> str:
    try:
        return validate_email(value.strip(), check_deliverability=False, allow_smtputf8=False).ascii_email or ""
    except EmailNotValidError as error:
        raise ValueError(f"is not an e-mail address: {error}") from None


def _group(value: str) -> str:
    value = _text(value)
    _check(bool(_GROUP.fullmatch(value)), "is not a group's name: letters, digits, spaces and . _ @ + -")
    return value


def _yes_or_no(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    _check(value.strip().lower() in _YES | _NO, "must be yes or no")
    return value.strip().lower() in _YES


def _parts(value: Any) -> Any:
    """Those of a cell that holds several, with ``;`` or ``,`` between."""
    return [part.strip() for part in re.split(r"[;,]", value) if part.strip()] if isinstance(value, str) else value


class Person(Model):
    """Someone who is to have an account."""

    name: Annotated[str, AfterValidator(_name)] = ""
    """As a person writes it."""
    username: Annotated[str, AfterValidator(_username)] | None = None
    """At the Hub; None: derived from the name, or else from the first e-mail address."""
    emails: Annotated[list[Annotated[str, AfterValidator(_email)]], BeforeValidator(_parts)] = Field([], max_length=10)
    groups: Annotated[list[Annotated[str, AfterValidator(_group)]], BeforeValidator(_parts)] = Field([], max_length=50)
    admin: Annotated[bool, BeforeValidator(_yes_or_no)] = False

    @property
    def identity(self) -> str:
        """What makes them the same person in another roster: user name, first e-mail address, or name."""
        if self.username:
            return f"username {self.username}"
        return f"email {self.emails[0].casefold()}" if self.emails else f"name {self.name.casefold()}"

    def derive(self, taken: set[str], numbers: dict[str, int]) -> str:
        """A user name that nobody has yet; see `usernames.derived`.

        Raises:
            ValueError: none can be made of name and e-mail address.

        """
        local = self.emails[0].partition("@")[0] if self.emails else ""
        return derived(self.name if folded(self.name) else local, taken, numbers)


@dataclass
class Row:
    """A row of a roster."""

    number: int
    """As a spreadsheet counts, the header being 1; of a list of objects, the first being 1."""
    said: str
    """The person, as the row has them, for those who have to find it."""
    person: Person | None = None
    problems: list[str] = field(default_factory=list)
    """Why it can't be used."""
    username: str = ""
    known: bool = False
    """Whether the user name is of an earlier time."""


@dataclass
class Roster:
    """All rows, and how they were read."""

    rows: list[Row]
    encoding: str = ""
    delimiter: str = ""
    ignored: list[str] = field(default_factory=list)
    """Headings of columns that say nothing here."""

    @property
    def bad(self) -> list[Row]:
        """The rows that can't be used."""
        return [row for row in self.rows if row.problems]

    def assign(self, known: Mapping[str, str], taken: Iterable[str]) -> None:
        """Give everybody a user name: the one that they had, that they ask for, or a new one.

        Args:
            known: user names by `Person.identity`, of earlier rosters.
            taken: user names that are somebody's.

        """
        good = [row for row in self.rows if row.person and not row.problems]
        used = {*taken, *known.values(), *(row.person.username for row in good if row.person and row.person.username)}
        first: dict[str, int] = {}
        numbers: dict[str, int] = {}
        for row in good:
            assert row.person  # noqa: S101  (for mypy)
            identity = row.person.identity
            if identity in first:
                what = identity.partition(" ")[0].replace("email", "e-mail address")
                row.problems.append(f"is the same person as row {first[identity]}: it has the same {what}")
                continue
            first[identity] = row.number
            row.known = identity in known
            try:
                row.username = known.get(identity) or row.person.username or row.person.derive(used, numbers)
            except ValueError as error:
                row.problems.append(f"name: {error}")
            used.add(row.username)


def from_json(items: Sequence[Mapping[str, Any]]) -> Roster:
    """The roster of a list of objects, each as `Person` has its fields."""
    return Roster([_row(number, item) for number, item in enumerate(items, 1)])


def from_csv(data: bytes, columns: Mapping[str, str] | None = None) -> Roster:
    """The roster of a CSV file.

    Args:
        data: the file.
        columns: the headings of columns that are not headed as in `COLUMNS`: what -> heading.

    Raises:
        InvalidRequest: it is no CSV file, has no such columns, or is too long.

    """
    text, encoding = _decoded(data)
    text = text.removeprefix("\ufeff")
    delimiter = _delimiter(text, columns or {})
    if text[:4].lower() == "sep=":  # Excel's own way to say it
        text = text.partition("\n")[2]
        first = 2
    else:
        first = 1
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _unusable(f"it is not CSV: {error}; see that every quote has an end") from None
    if len(lines) > MAX_ROWS + 1:
        raise _unusable(f"it has more than {MAX_ROWS} rows")
    heading = lines[0] if lines else []
    places = _places(heading, columns or {})
    rows = [_csv_row(number, line, places, len(heading)) for number, line in enumerate(lines[1:], first + 1)]
    used = set(places.values())
    ignored = [title.strip() for index, title in enumerate(heading) if index not in used and title.strip()]
    return Roster([row for row in rows if row], encoding, delimiter, ignored)


def _decoded(data: bytes) -> tuple[str, str]:
    """The text, and its encoding: as its mark says, else UTF-8, and else Excel's for Western Europe."""
    mark = next((encoding for bom, encoding in _MARKS.items() if data.startswith(bom)), None)
    for encoding in [mark] if mark else ["utf-8", "cp1252"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            raise _unusable("it has NUL characters: it is no text; save it as CSV")
        return text, encoding
    raise _unusable("its encoding is not known; save it as CSV in UTF-8")


def _delimiter(text: str, columns: Mapping[str, str]) -> str:
    """Whatever makes most columns of the heading known."""
    if text[:4].lower() == "sep=":
        return text[4:5] if text[4:5] in _DELIMITERS else ","
    heading = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def found(delimiter: str) -> int:
        try:
            return len(_places(next(csv.reader([heading], delimiter=delimiter), []), columns))
        except (InvalidRequest, csv.Error):
            return 0

    return max(_DELIMITERS, key=found)


def _places(heading: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Where each column is.

    Raises:
        InvalidRequest: nothing of a person is there, or something twice.

    """
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise _unusable(f"{min(unknown)} is not what a column can be: {', '.join(COLUMNS)}")
    titles = [_plain(title) for title in heading]
    named = {what: (_plain(columns[what]),) if what in columns else titles_of for what, titles_of in COLUMNS.items()}
    missing = [columns[what] for what in columns if _plain(columns[what]) not in titles]
    if missing:
        raise _unusable(f"it has no column {missing[0]!r}")
    places = {}
    for what, titles_of in named.items():
        at = [index for index, title in enumerate(titles) if title in titles_of]
        if len(at) > 1:
            raise _unusable(f"it has several columns for {what}: {', '.join(heading[index].strip() for index in at)}")
        if at:
            places[what] = at[0]
    if places.keys().isdisjoint({"name", "first_name", "last_name", "username", "emails"}):
        raise _unusable(
            "its first line must name the columns, at least one of: name, first name, last name, username, email"
        )
    return places


def _plain(title: str) -> str:
    return " ".join(title.replace("_", " ").lower().split())


def _csv_row(number: int, line: Sequence[str], places: Mapping[str, int], width: int) -> Row | None:
    """A line as a row; None if it is empty."""
    if not any(cell.strip() for cell in line):
        return None
    cells = {what: line[index] for what, index in places.items() if index < len(line)}
    names = [cells.pop(part, "").strip() for part in ("first_name", "last_name")]
    if any(names) and not cells.get("name", "").strip():
        cells["name"] = " ".join(filter(None, names))
    row = _row(number, {what: cell for what, cell in cells.items() if cell.strip()})
    if len(line) > width and any(cell.strip() for cell in line[width:]):
        row.problems.append("has more cells than there are columns")
    return row


def _row(number: int, item: Mapping[str, Any]) -> Row:
    said = next((str(item[what]) for what in ("name", "username", "emails") if item.get(what)), "")
    row = Row(number, said=_shown(said))
    try:
        row.person = Person.model_validate(item)
    except ValidationError as error:
        row.problems = list(dict.fromkeys(_problem(each) for each in error.errors(include_url=False)))
    else:
        if not (row.person.name or row.person.username or row.person.emails):
            row.problems = ["says nobody's name, user name or e-mail address"]
    return row


def _problem(error: Mapping[str, Any]) -> str:
    what = ".".join(str(part) for part in error["loc"][:1])
    return f"{what}: {error['msg'].removeprefix('Value error, ')}"


def _shown(text: str) -> str:
    """Text of somebody's as a report shows it: one line, nothing invisible, and no formula."""
    visible = "".join(char if unicodedata.category(char)[0] not in "CZ" else " " for char in text)
    return visible.strip().lstrip("".join(FORMULA)).strip()[:80]


def _unusable(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The roster can't be used: {problem}.", reason="bad_roster")


MailResult = Literal["sent", "earlier", "failed", "unknown", "none"]
"""``earlier``: sent before, and not again. ``unknown``: it is being sent, or was when the launcher ended or the mail
server's answer was lost."""


class EnrolRequest(Model):
    """The body of ``POST users``; of CSV, the query has all but the people."""

    users: list[dict[str, Any]] = Field([], max_length=MAX_ROWS)
    """`Person` each."""
    mode: Literal["all", "some"] = "all"
    """``all``: nothing is done if one row can't be used. ``some``: what can be used is."""
    mail: Literal["once", "again", "no"] = "once"
    """``once``: to those who have not had one. ``again``: to all of them, also where it is not known whether an earlier
    one was sent."""
    dry_run: bool = False
    """Only say what would be done."""
    adopt: bool = False
    """Whether accounts that are there already may be invited at addresses that they were not made with."""
    links: bool = False
    """Answer with the links that set passwords, instead of mailing them."""


class UserResult(Model):
    """What became of one row."""

    row: int
    said: str
    """The person, as the row has them."""
    username: str | None
    status: Literal["created", "exists", "refused", "failed"]
    """``refused``: the row can't be used; ``failed``: the Hub did not make the account, try again. In a dry run,
    ``created`` and ``exists`` are what would be."""
    mail: MailResult = "none"
    problems: list[str] = []
    link: str | None = None
    """To set the password with, if links were asked for."""


class RemoveRequest(Model):
    """The body of ``DELETE users``."""

    usernames: list[UserName] = Field(min_length=1, max_length=1000)


class RemoveResult(Model):
    """What became of one user."""

    username: str
    status: Literal["removed", "absent", "failed"]
    problem: str | None = None
