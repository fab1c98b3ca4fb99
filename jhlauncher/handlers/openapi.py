"""The OpenAPI 3.1 document, from the models that validate requests and make answers."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .._version import __version__
from ..models import AboutQuery, BatchRequest, ExtendRequest, LaunchRequest, ServerQuery
from ..roster import EnrolRequest, RemoveRequest
from .batches import BatchesQuery
from .launches import AllEventsQuery, EventsQuery, ListQuery, SubmitQuery, WaitQuery
from .users import CSV, CsvQuery, EnrolView, RemoveView, UserList, UsersQuery
from .views import (
    BatchList,
    BatchView,
    ContainerView,
    ErrorView,
    EventList,
    ExtendedList,
    HealthView,
    LaunchList,
    LaunchView,
    OptionsView,
    PlanView,
    ReadyView,
    StatusView,
    TemplateView,
)

Json = dict[str, Any]

_ERRORS = {
    400: "the request is not valid",
    401: "no token, or one that the Hub does not know",
    403: "the caller's scopes do not reach this, or the policy does not allow it",
    404: "there is no such thing, or none that the caller may see",
    409: "the server is running, starting or stopping, or has ended",
    422: "the Idempotency-Key was sent with another request",
    429: "a limit of the policy leaves no room now",
    500: "the server could not be started or stopped, or the launcher has failed",
    503: "the Hub or the database does not answer, too many wait, or the service stops",
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"}}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "The same caller's request with the same key is done once.",
}
_LAST = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"}}
_REQUESTS: list[type[BaseModel]] = [LaunchRequest, BatchRequest, ExtendRequest, EnrolRequest, RemoveRequest]
_ANSWERS: list[type[BaseModel]] = [
    BatchList, BatchView, ContainerView, EnrolView, ErrorView, EventList, ExtendedList, HealthView, LaunchList,
    LaunchView, OptionsView, PlanView, ReadyView, RemoveView, StatusView, TemplateView, UserList,
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Extension:
    """What a part that not every launcher has adds to the document."""

    paths: Json
    requests: list[type[BaseModel]]
    answers: list[type[BaseModel]]


@functools.cache
def document(prefix: str, *extensions: Extension) -> Json:
    """The whole document; ``prefix`` is the path below which everything answers."""
    requests = [*_REQUESTS, *(model for each in extensions for model in each.requests)]
    answers = [*_ANSWERS, *(model for each in extensions for model in each.answers)]
    pairs: Any = [(model, "validation") for model in requests] + [(model, "serialization") for model in answers]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jhlauncher",
            "version": __version__,
            "description": "Ask for a container with run-time parameters; JupyterHub starts it while you watch.",
        },
        "servers": [{"url": prefix.rstrip("/") or "/"}],
        "security": [{"token": []}],
        "paths": _linked(
            {name: path for paths in (_paths(), *(each.paths for each in extensions)) for name, path in paths.items()}
        ),
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A JupyterHub token."},
            },
        },
    }


def _linked(paths: Json) -> Json:
    """The paths with names for their operations, and what to do with the ids that some answer."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            operation["operationId"] = method + re.sub(r"\{\w+\}", "one", path.replace("/", "-"))
    for name in ("launches", "batches"):
        follow = {
            f"{method}-{name}-one": {
                "operationId": f"{method}-{name}-one", "parameters": {"id": "$response.body#/id"},
            }
            for method in ("get", "patch", "delete")
        }  # fmt: skip
        paths[f"/{name}"]["post"]["responses"]["202"]["links"] = follow
    return paths


def _paths() -> Json:
    launch, plan = ref(LaunchView), ref(PlanView)
    launched = {"description": "it is ready or has ended; or the plan of a dry run", "anyOf": [launch, plan]}
    return {
        "/launches": {
            "get": operation("List launches", LaunchList, 400, query=ListQuery),
            "post": operation(
                "Ask for a server", {200: launched, 202: launch}, 400, 404, 409, 422, 429, 500,
                query=SubmitQuery, parameters=[KEY], body=LaunchRequest,
            ),
        },
        "/launches/events": {
            "get": operation(
                "The events of all launches that the caller may see", {200: "text/event-stream"}, 400, 403,
                query=AllEventsQuery, parameters=[_LAST],
            ),
        },
        "/launches/{id}": {
            "get": operation("Tell about a launch", LaunchView, 400, 404, query=WaitQuery, parameters=[_ID]),
            "patch": operation(
                "Give it another end", LaunchView, 400, 404, 409, 500, parameters=[_ID], body=ExtendRequest
            ),
            "delete": operation(
                "Cancel it, or stop its server", {202: launch, 204: None}, 400, 404, 500,
                query=WaitQuery, parameters=[_ID],
            ),
        },
        "/launches/{id}/events": {
            "get": operation(
                "Its events; as JSON, those of the past", {200: ("text/event-stream", ref(EventList)), 204: None},
                400, 404,
                query=EventsQuery, parameters=[_ID, _LAST],
            ),
        },
        "/batches": {
            "get": operation("List the caller's own batches", BatchList, 400, query=BatchesQuery),
            "post": operation(
                "Ask for many servers", {202: ref(BatchView)}, 400, 422, 500, parameters=[KEY], body=BatchRequest
            ),
        },
        "/batches/{id}": {
            "get": operation("Tell what each server of a batch is doing", BatchView, 404, parameters=[_ID]),
            "patch": operation(
                "Give all its launches another end", ExtendedList, 400, 404, 500, parameters=[_ID], body=ExtendRequest
            ),
            "delete": operation(
                "End all its launches", {202: ref(BatchView), 204: None}, 404, 500, parameters=[_ID]
            ),
        },
        "/batches/{id}/events": {
            "get": operation(
                "To which states its launches come, and which get another end", {200: "text/event-stream"}, 400, 404,
                query=EventsQuery, parameters=[_ID, _LAST],
            ),
        },
        "/containers": {
            "post": operation(
                "Launch a server and wait until it is ready", ContainerView, 400, 500, parameters=[KEY],
                body=LaunchRequest,
            ),
            "get": operation("Tell about a server", StatusView, 400, 500, query=ServerQuery),
            "delete": operation("Stop a server", {200: None}, 400, 500, query=ServerQuery),
        },
        "/options": {"get": operation("What the caller may ask for", OptionsView, 400, query=AboutQuery)},
        "/templates": {
            "get": operation(
                "Named specs to start from", {200: {"type": "object", "additionalProperties": ref(TemplateView)}},
                400, query=AboutQuery,
            ),
        },
        "/users": {
            "get": operation("List people with accounts", UserList, 400, query=UsersQuery),
            "post": operation(
                "Give people accounts, from a roster of JSON or CSV", {200: ("text/event-stream", ref(EnrolView))},
                400, 409, 500, query=CsvQuery, body=EnrolRequest, also_csv=True,
            ),
            "delete": operation(
                "Remove people's accounts", {200: ("text/event-stream", ref(RemoveView))}, 400, 500,
                body=RemoveRequest,
            ),
        },
        "/metrics": {"get": operation("For Prometheus; needs read:metrics", {200: "text/plain"})},
        "/health": {"get": operation("Whether this process is alive", HealthView, public=True)},
        "/ready": {
            "get": operation(
                "Whether launches can work", {200: ref(ReadyView), 503: ref(ReadyView)}, public=True
            ),
        },
        "/openapi.json": {"get": operation("This document", {200: {"type": "object"}}, public=True)},
    }  # fmt: skip


def operation(
    summary: str,
    answers: type[BaseModel] | dict[int, Json | str | tuple[str, Json] | None],
    *errors: int,
    query: type[BaseModel] | None = None,
    parameters: list[Json] | None = None,
    body: type[BaseModel] | None = None,
    public: bool = False,
    also_csv: bool = False,
) -> Json:
    """One operation.

    Args:
        summary: what it does.
        answers: the model of 200; or for each status a schema, a media type, both for what is to be had as either, or
            None for an empty body.
        errors: statuses of errors, besides those that any may have.
        query: the model of the query.
        parameters: further ones.
        body: the model of the body.
        public: whether it is open to all.
        also_csv: whether the body may be a CSV file, which alone has a query.

    """
    if not isinstance(answers, dict):
        answers = {200: ref(answers)}
    responses = {str(status): _response(answer) for status, answer in answers.items()}
    for status in (*errors, *(() if public else (401, 403)), *(() if 503 in answers else (503,))):
        responses[str(status)] = {"description": _ERRORS[status], **_json(ref(ErrorView))}
    operation: Json = {"summary": summary, "responses": responses}
    operation["parameters"] = [*(parameters or []), *(_query(query) if query else [])]
    if body:
        operation["requestBody"] = {"required": True, **_json(ref(body))}
    if also_csv:
        operation["requestBody"]["content"][CSV] = {"schema": {"type": "string"}}
    if public:
        operation["security"] = []
    return operation


def _response(answer: Json | str | tuple[str, Json] | None) -> Json:
    if answer is None:
        return {"description": "done"}
    if isinstance(answer, tuple):
        media, schema = answer
        return {"description": "as it happens", "content": {**_response(media)["content"], **_json(schema)["content"]}}
    if isinstance(answer, str):
        return {"description": "as it happens", "content": {answer: {"schema": {"type": "string"}}}}
    schema = dict(answer)
    return {"description": schema.pop("description", "done"), **_json(schema)}


def _json(schema: Json) -> Json:
    return {"content": {"application/json": {"schema": schema}}}


def ref(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _query(model: type[BaseModel]) -> list[Json]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
