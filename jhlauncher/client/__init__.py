"""A client of the launcher's HTTP API, for programs and notebooks.

In a program::

    async with LauncherClient() as client:
        async for event in client.launch(username="ada", image="quay.io/jupyter/base-notebook"):
            print(event.progress, event.message)
        print(event.launch.url)

In a notebook, where nothing is awaited, `BlockingClient` has the same methods::

    with BlockingClient() as client:
        for event in client.launch(username="ada", image="quay.io/jupyter/base-notebook"):
            print(event.progress, event.message)

What the service refuses, and a launch that fails, is raised as the service's own error (`jhlauncher.errors`).
"""

from __future__ import annotations

from ..errors import (
    CallerError,
    Forbidden,
    InvalidRequest,
    LauncherError,
    LaunchFailed,
    LimitReached,
    NotFound,
    PolicyDenied,
    ServerConflict,
    Temporary,
    Unauthenticated,
)
from .blocking import BlockingClient
from .client import LauncherClient
from .settings import SettingsMissing
from .views import Event, Launch, SlurmJob, Unreachable, UserJob

__all__ = [
    "BlockingClient",
    "CallerError",
    "Event",
    "Forbidden",
    "InvalidRequest",
    "Launch",
    "LaunchFailed",
    "LauncherClient",
    "LauncherError",
    "LimitReached",
    "NotFound",
    "PolicyDenied",
    "ServerConflict",
    "SettingsMissing",
    "SlurmJob",
    "Temporary",
    "Unauthenticated",
    "Unreachable",
    "UserJob",
]
