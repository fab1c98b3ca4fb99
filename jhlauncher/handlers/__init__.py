"""HTTP: each module has the handlers of one resource; their addresses stand here."""

from __future__ import annotations

from tornado.web import RequestHandler

from .batches import BatchesHandler, BatchEventsHandler, OneBatchHandler
from .containers import ContainersHandler
from .describe import OpenApiHandler, OptionsHandler, TemplatesHandler
from .ended import EndedHandler
from .health import HealthHandler, ReadyHandler
from .launches import AllEventsHandler, LaunchesHandler, LaunchEventsHandler, OneLaunchHandler
from .metrics import MetricsHandler
from .pages import FileHandler, IndexHandler, LinkHandler, LoginHandler
from .users import UsersHandler

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"", IndexHandler),
    (r"batches/?", BatchesHandler),
    (r"batches/([\w-]{1,64})", OneBatchHandler),
    (r"batches/([\w-]{1,64})/events", BatchEventsHandler),
    (r"containers/?", ContainersHandler),
    (r"launches/?", LaunchesHandler),
    (r"launches/events", AllEventsHandler),
    (r"launches/([\w-]{1,64})", OneLaunchHandler),
    (r"launches/([\w-]{1,64})/events", LaunchEventsHandler),
    (r"ended", EndedHandler),
    (r"health", HealthHandler),
    (r"launch", LinkHandler),
    (r"metrics", MetricsHandler),
    (r"oauth_callback", LoginHandler),
    (r"openapi\.json", OpenApiHandler),
    (r"options", OptionsHandler),
    (r"ready", ReadyHandler),
    (r"static/(.*)", FileHandler),
    (r"templates", TemplatesHandler),
    (r"users/?", UsersHandler),
]
"""Patterns below the service's prefix."""
