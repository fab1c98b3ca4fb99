"""A manager that is killed at any step leaves nothing that the next one does not clean or adopt."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import jupyterhub
import pytest

from tests.engines.hubs import REPOSITORY
from tests.manager.support import Manager, Namespace, new_name

pytestmark = [
    pytest.mark.real_hub,
    pytest.mark.skipif(
        jupyterhub.version_info[0] < 6, reason="what a process leaves does not depend on the Hub's version"
    ),
]

OBJECTS = 4
"""Of a service of the type that is started here: a Secret, and three of its description."""
START = [
    ("row", 1, "before"),
    ("row", 1, "after"),
    ("copy", 1, "before"),
    ("copy", 1, "after"),
    ("home", 1, "after"),
    ("kept", 1, "after"),
    *(("object", number, "after") for number in range(1, OBJECTS + 1)),
    ("started", 1, "after"),
]
REMOVALS = OBJECTS + 1
"""What the update would have made is looked for, too."""
STOP = [
    ("stopping", 1, "before"),
    ("stopping", 1, "after"),
    *(("removed", number, "after") for number in range(1, REMOVALS + 1)),
    ("forgotten", 1, "after"),
    ("row gone", 1, "before"),
    ("row gone", 1, "after"),
]


def doomed(manager: Manager, step: tuple[str, int, str]) -> Manager:
    """The manager, to be killed there."""
    manager.program = ["-m", "tests.manager.wrapped", "kill", step[0], str(step[1]), step[2]]
    manager.environment["PYTHONPATH"] = str(REPOSITORY)
    return manager


def answer(call: Any) -> tuple[int, Any] | None:
    """What it answers; None if it died."""
    try:
        return call()  # type: ignore[no-any-return]
    except (OSError, http.client.HTTPException):
        return None


def reborn(manager: Manager) -> None:
    manager.process.wait(10)
    manager.program = ["-m", "jhlauncher"]
    manager.begin()


def remains(manager: Manager, namespace: Namespace, name: str) -> list[str]:
    """What there is of a service, but for its user's home."""
    files = [*(manager.folder / "base").glob("*"), *Path(manager.folder, "homes").glob("*/.new*")]
    return namespace.objects(name) + [str(path) for path in files]


@pytest.mark.parametrize("step", START, ids=lambda step: "-".join(map(str, step)))
def test_bug_what_was_made_before_a_crash_was_left(stopped: Manager, namespace: Namespace, step: tuple[str, int, str]):
    (stopped.folder / "skel/hub").mkdir(parents=True)
    doomed(stopped, step).begin()
    name = new_name()
    assert answer(lambda: stopped.start(name, start_id="1")) is None
    reborn(stopped)
    if step[0] == "started":
        assert stopped.status(name)["running"] is True
        assert stopped.start(name, start_id="1")[0] == 201
        assert stopped.request("DELETE", f"services/{name}/")[0] == 204
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    stopped.until(lambda: not remains(stopped, namespace, name))
    assert stopped.request("GET") == (200, [])

    assert stopped.start(name, start_id="1")[0] == 201
    assert len(namespace.objects(name)) == OBJECTS
    assert stopped.request("DELETE", f"services/{name}/")[0] == 204
    assert remains(stopped, namespace, name) == []


@pytest.mark.parametrize("step", STOP, ids=lambda step: "-".join(map(str, step)))
def test_killed_while_stopping(stopped: Manager, namespace: Namespace, step: tuple[str, int, str]):
    doomed(stopped, step).begin()
    name = new_name()
    assert stopped.start(name, start_id="1")[0] == 201
    assert answer(lambda: stopped.request("DELETE", f"services/{name}/")) is None
    reborn(stopped)
    if step == ("stopping", 1, "before"):
        assert stopped.status(name)["running"] is True
        assert stopped.request("DELETE", f"services/{name}/")[0] == 204
    stopped.until(lambda: stopped.request("GET", f"services/{name}/")[0] == 404)
    assert remains(stopped, namespace, name) == []
