"""HTTP: each module has the handlers of one resource; their addresses stand here."""

from __future__ import annotations

from tornado.web import RequestHandler

from .containers import ContainersHandler
from .ended import EndedHandler
from .health import HealthHandler, IndexHandler, ReadyHandler
from .launches import LaunchesHandler, LaunchEventsHandler, OneLaunchHandler
from .metrics import MetricsHandler

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"", IndexHandler),
    (r"containers/?", ContainersHandler),
    (r"launches/?", LaunchesHandler),
    (r"launches/([0-9a-f]{16})", OneLaunchHandler),
    (r"launches/([0-9a-f]{16})/events", LaunchEventsHandler),
    (r"ended", EndedHandler),
    (r"health", HealthHandler),
    (r"metrics", MetricsHandler),
    (r"ready", ReadyHandler),
]
"""Patterns below the service's prefix."""
