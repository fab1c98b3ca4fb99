"""Log handlers: what may be configured, and what really arrives, live and after a restart."""

from __future__ import annotations

import json
import os
import queue
import socketserver
import stat
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from jhlauncher.ports import SERVICES, free_port
from tests.manager.receivers import silent_mail_server, syslog
from tests.manager.support import Manager

pytestmark = pytest.mark.real_hub

LEVELS = ["Trace", "Debug", "Info", "Warn", "Error", "Critical"]
NOT_FOUND = (404, {"detail": "Not found."})


@pytest.fixture(autouse=True)
def _no_handlers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "manager" in request.fixturenames:
        manager = request.getfixturevalue("manager")
        for model in manager.request("GET", "logs/handler/")[1]:
            manager.request("DELETE", f"logs/handler/{model['handler']}/")


def create(manager: Manager, handler: str, **configuration: Any) -> tuple[int, Any]:
    return manager.request("POST", "logs/handler/", body={"handler": handler, "configuration": configuration})


def change(manager: Manager, handler: str, method: str = "PATCH", **configuration: Any) -> tuple[int, Any]:
    return manager.request(method, f"logs/handler/{handler}/", body={"configuration": configuration})


def logged(manager: Manager, path: Path, word: str = "Critical") -> list[str]:
    """The lines of a file in which the log test has arrived."""
    assert manager.request("GET", "logs/logtest/") == (200, None)
    manager.until(lambda: path.exists() and word in path.read_text())
    return path.read_text().splitlines()


def said(lines: list[str]) -> list[str]:
    """Which of the test's records are there."""
    return [level for level in LEVELS if any(f" : {level}" in line for line in lines)]


def test_a_handlers_life(manager: Manager, tmp_path: Path):
    assert manager.request("GET", "logs/handler/") == (200, [])
    assert manager.request("GET", "logs/handler/file/") == NOT_FOUND
    file = str(tmp_path / "log")
    model = {
        "handler": "file",
        "configuration": {"formatter": "simple", "level": 10, "filename": file, "when": "midnight", "backupCount": 7},
    }
    assert create(manager, "file", filename=file) == (201, model)
    assert create(manager, "file") == (400, {"handler": ["handler model with this handler already exists."]})
    assert manager.request("GET", "logs/handler/file") == (200, model)
    assert manager.request("GET", "logs/handler/") == (200, [model])
    for method in ("PATCH", "PUT"):
        model["configuration"]["level"] = "ERROR" if method == "PUT" else 30
        assert change(manager, "file", method, level=model["configuration"]["level"]) == (200, model)
    assert manager.request("DELETE", "logs/handler/file/") == (204, None)
    assert manager.request("DELETE", "logs/handler/file/") == NOT_FOUND
    assert change(manager, "file", level=10) == NOT_FOUND


def test_bug_a_change_needed_the_name_in_the_body(manager: Manager):
    create(manager, "stream")
    assert manager.request("PATCH", "logs/handler/stream/", body={})[0] == 200
    assert manager.request("PATCH", "logs/handler/stream/", body={"handler": "stream"})[0] == 200
    assert manager.request("PATCH", "logs/handler/stream/", body={"handler": "file"})[0] == 400


def test_bug_unknown_keys_broke_later_requests(manager: Manager):
    create(manager, "stream")
    before = manager.request("GET", "logs/handler/stream/")
    status, answer = change(manager, "stream", unknown=1)
    assert (status, answer) == (400, ["Unsupported key: unknown. Supported keys: ['formatter', 'level', 'stream']"])
    assert manager.request("GET", "logs/handler/stream/") == before
    assert manager.request("GET", "logs/logtest/") == (200, None)


@pytest.mark.parametrize(
    ("handler", "configuration", "answer"),
    [
        ("stream", {"formatter": "xml"}, "Unsupported formatter: xml. Supported formatters: ['simple', 'json']"),
        ("stream", [], "Configuration must be of type dict not <class 'list'>"),
        ("stream", {"level": 7}, "Unsupported level: 7."),
        ("stream", {"level": "LOUD"}, "Unsupported level: LOUD."),
        ("stream", {"level": True}, "Unsupported level: True."),
        ("stream", {"stream": "ext://os.system"}, "Unsupported stream: ext://os.system."),
        ("file", {"when": "w7"}, "Unsupported when: w7."),
        ("file", {"backupCount": "7"}, "backupCount must be a number from 0 to 10000"),
        ("file", {"filename": "/etc/passwd"}, "The handler file can't be made: /etc/passwd is not below"),
        ("file", {"filename": "/tmp/../etc/x"}, "is not below"),
        ("file", {"filename": "/tmp/no/such/folder/x"}, "No such file or directory"),
        ("file", {"filename": "/tmp"}, "The handler file can't be made"),
        ("smtp", {}, "mailhost and toaddrs are needed"),
        ("smtp", {"mailhost": ["127.0.0.1", 1], "toaddrs": ["a@b"]}, "Connection refused"),
        ("smtp", {"mailhost": "no-such-host.invalid", "toaddrs": ["a@b"]}, "The handler smtp can't be made"),
        ("smtp", {"mailhost": "x", "toaddrs": ["a@b\nBcc: c@d"]}, "toaddrs must be a text of one line"),
        ("smtp", {"toaddrs": "a@b"}, "toaddrs must be a list"),
        ("smtp", {"mailhost": ["x"]}, "mailhost must be a host, or a host and a port"),
        ("syslog", {"address": ["127.0.0.1", 1]}, "Connection refused"),
        ("syslog", {"address": ["no-such-host.invalid", 514], "socktype": "ext://socket.SOCK_DGRAM"}, "can't be made"),
        ("syslog", {"address": "/no/such/socket"}, "can't be made"),
        ("syslog", {"socktype": "x"}, "Unsupported socktype: x."),
    ],
)
def test_handlers_that_can_not_be(manager: Manager, handler: str, configuration: Any, answer: str):
    body = {"handler": handler, "configuration": configuration}
    status, said = manager.request("POST", "logs/handler/", body=body)
    assert status == 400
    assert answer in said[0]
    assert manager.request("GET", "logs/handler/") == (200, [])


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({}, {"handler": ["This field is required."]}),
        ({"handler": "pigeon"}, {"handler": ['"pigeon" is not a valid choice.']}),
        ({"handler": []}, {"handler": ['"[]" is not a valid choice.']}),
        ({"handler": "stream", "x": 1}, {"x": ["Unknown field."]}),
        ([], ["Input data must be an object"]),
    ],
)
def test_odd_bodies(manager: Manager, body: Any, answer: Any):
    assert manager.request("POST", "logs/handler/", body=body) == (400, answer)


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0, LEVELS), (5, LEVELS), ("trace", LEVELS), (10, LEVELS[1:]), ("30", LEVELS[3:]), ("WARN", LEVELS[3:]),
     (50, LEVELS[5:])],
)  # fmt: skip
def test_levels(manager: Manager, tmp_path: Path, level: object, expected: list[str]):
    file = tmp_path / "log"
    assert create(manager, "file", filename=str(file), level=level)[0] == 201
    assert said(logged(manager, file)) == expected


def test_a_handler_that_wants_nothing(manager: Manager, tmp_path: Path):
    file = tmp_path / "log"
    create(manager, "file", filename=str(file))
    change(manager, "file", level="DEACTIVATE")
    manager.request("GET", "logs/logtest/")
    change(manager, "file", level=50)
    assert said(logged(manager, file)) == ["Critical"]
    assert file.read_text().count("Critical") == 1


def test_what_a_handler_wants_does_not_change_the_process_own_log(stopped: Manager, tmp_path: Path):
    stopped.begin()
    create(stopped, "file", filename=str(tmp_path / "file.log"), level=5)
    logged(stopped, tmp_path / "file.log")
    assert said([line.replace("]", "] :") for line in stopped.log().splitlines()]) == LEVELS[2:]


def test_the_simple_form_has_extras(manager: Manager, tmp_path: Path):
    file = tmp_path / "log"
    create(manager, "file", filename=str(file), level=50)
    line = logged(manager, file)[-1]
    assert " levelno=50 levelname=CRITICAL file=" in line
    assert line.endswith(" : Critical --- Extra1=message1")


def test_the_json_form(manager: Manager, tmp_path: Path):
    file = tmp_path / "log"
    create(manager, "file", filename=str(file), level=50, formatter="json")
    record = json.loads(logged(manager, file)[-1])
    assert record.keys() == {
        "asctime", "levelno", "levelname", "logger", "file", "line", "function", "Message", "Extra1",
    }  # fmt: skip
    assert (record["Message"], record["levelno"], record["Extra1"]) == ("Critical", 50, "message1")


def test_a_file_that_rotates(manager: Manager, tmp_path: Path):
    file = tmp_path / "log"
    create(manager, "file", filename=str(file), level=50, when="s", backupCount=2)

    def rotated() -> list[Path]:
        manager.request("GET", "logs/logtest/")
        return [path for path in tmp_path.glob("log.*") if "Critical" in path.read_text()][1:]

    manager.until(rotated)
    manager.until(lambda: rotated() and len(list(tmp_path.glob("log.*"))) == 2)


def test_streams(stopped: Manager):
    stopped.begin()
    create(stopped, "stream", level=50, stream="ext://sys.stderr")
    stopped.request("GET", "logs/logtest/")
    stopped.until(lambda: " : Critical --- Extra1=message1" in stopped.log())


class Mailbox:
    """Takes mail."""

    def __init__(self) -> None:
        self.mails: queue.Queue[Any] = queue.Queue()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.put(envelope)
        return "250 OK"


def test_mail(manager: Manager):
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port(SERVICES))
    controller.start()
    try:
        port = controller.server.sockets[0].getsockname()[1]
        status, answer = create(
            manager, "smtp", level=50, mailhost=["127.0.0.1", port], fromaddr="hub@example.org",
            toaddrs=["a@example.org", "b@example.org"], subject="The manager",
        )  # fmt: skip
        assert status == 201, answer
        manager.request("GET", "logs/logtest/")
        mail = mailbox.mails.get(timeout=20)
        assert mail.mail_from == "hub@example.org"
        assert mail.rcpt_tos == ["a@example.org", "b@example.org"]
        assert b"Subject: The manager" in mail.content
        content = message_from_bytes(mail.content).get_payload(decode=True)
        assert b" : Critical --- Extra1=message1" in content
    finally:
        controller.stop()


def test_a_mail_server_that_is_silent_holds_nobody_up(manager: Manager, tmp_path: Path):
    with silent_mail_server() as port:
        settings = {"mailhost": ["127.0.0.1", port], "toaddrs": ["a@example.org"], "level": 50}
        assert create(manager, "smtp", **settings)[0] == 201
        create(manager, "file", filename=str(tmp_path / "log"), level=50)
        for _ in range(3):
            assert manager.request("GET", "logs/logtest/") == (200, None)
        manager.until(lambda: (tmp_path / "log").read_text().count("Critical") == 3, timeout=4)
        assert manager.request("DELETE", "logs/handler/smtp/") == (204, None)


@pytest.mark.parametrize(
    "place",
    [
        "descriptions/hub/x",
        "base/x",
        "homes/x",
        "config.json",
        "jhlauncher.sqlite",
        "jhlauncher_manager_config.py",
        "jhlauncher_manager_config.json",
    ],
)
def test_what_is_the_managers_own_is_no_log(manager: Manager, place: str):
    status, answer = create(manager, "file", filename=str(manager.folder / place))
    assert status == 400
    assert "a place of the manager's own" in answer[0]


@pytest.mark.parametrize(
    ("kind", "socktype"),
    [
        (socketserver.ThreadingTCPServer, "ext://socket.SOCK_STREAM"),
        (socketserver.ThreadingUDPServer, "ext://socket.SOCK_DGRAM"),
    ],
)
@pytest.mark.parametrize("formatter", ["simple", "json"])
def test_syslog(manager: Manager, kind: Any, socktype: str, formatter: str):
    with syslog(kind) as (port, messages):
        settings = {"address": ["127.0.0.1", port], "socktype": socktype, "level": 40, "formatter": formatter}
        status, answer = create(manager, "syslog", **settings)
        assert status == 201, answer
        manager.request("GET", "logs/logtest/")
        error, critical = messages.get(timeout=20), messages.get(timeout=20)
        assert error.startswith("<11>"), "facility user, severity err (RFC 5424)"
        assert critical.startswith("<10>")
        if formatter == "json":
            assert json.loads(critical.removeprefix("<10>").rstrip("\n\0"))["Message"] == "Critical"
        manager.request("DELETE", "logs/handler/syslog/")


def test_handlers_are_there_after_a_restart(stopped: Manager, tmp_path: Path):
    stopped.begin()
    folder = tmp_path / "logs"
    folder.mkdir()
    create(stopped, "file", filename=str(folder / "log"), level=50)
    create(stopped, "stream", level=99)
    stopped.end()
    stopped.begin()
    assert [model["handler"] for model in stopped.request("GET", "logs/handler/")[1]] == ["file", "stream"]
    assert said(logged(stopped, folder / "log")) == ["Critical"]
    stopped.end()
    (folder / "log").unlink()
    folder.rmdir()
    stopped.begin()
    assert "The log handler file can't be made" in stopped.log()
    assert stopped.request("GET", "logs/handler/file/")[0] == 200


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is permitted to root")
def test_a_file_without_permission(manager: Manager, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR)
    status, answer = create(manager, "file", filename=str(folder / "log"))
    assert status == 400
    assert "Permission denied" in answer[0]
