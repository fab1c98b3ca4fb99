"""A manager that is counted, or killed: ``python -m tests.manager.wrapped count FILE`` or ``kill STEP TIMES WHEN``.

``kill``: the process kills itself (SIGKILL) at the so-manieth call of a method, before or after it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from kubernetes_asyncio.client import ApiClient

from jhlauncher.app import main
from jhlauncher.manager.cluster import Cluster
from jhlauncher.manager.descriptions import Descriptions
from jhlauncher.manager.homes import Userhomes
from jhlauncher.manager.rows import Rows

STEPS: dict[str, tuple[type, str]] = {
    "row": (Rows, "begin"),
    "home": (Userhomes, "prepare"),
    "copy": (Userhomes, "_copy"),
    "kept": (Descriptions, "keep"),
    "object": (Cluster, "create"),
    "started": (Rows, "started"),
    "stopping": (Rows, "stopping"),
    "removed": (Cluster, "_remove"),
    "forgotten": (Descriptions, "forget"),
    "row gone": (Rows, "forget"),
}


def count(file: str) -> None:
    """Leave a line for each request to the cluster."""
    request = ApiClient.call_api

    def counted(self: Any, path: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with Path(file).open("a") as lines:
            lines.write(f"{method} {path}\n")
        return request(self, path, method, *args, **kwargs)

    ApiClient.call_api = counted


def kill(step: str, times: int, when: str) -> None:
    """Die there."""
    cls, name = STEPS[step]
    method = getattr(cls, name)
    calls = 0

    def at(moment: str) -> None:
        if calls == times and moment == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        at("before")
        result = method(self, *args, **kwargs)
        at("after")
        return result

    async def asynchronous(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        at("before")
        result = await method(self, *args, **kwargs)
        at("after")
        return result

    setattr(cls, name, plain if cls in (Descriptions, Userhomes) else asynchronous)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "count":
        count(arguments[0])
        main(arguments[1:])
    else:
        kill(arguments[0], int(arguments[1]), arguments[2])
        main(arguments[3:])
