"""User jobs in the OpenAPI document of a launcher that has systems."""

from __future__ import annotations

from ..handlers.openapi import KEY, Extension, Json, operation, ref
from ..handlers.views import ErrorView
from .handlers import ListQuery, OneQuery, RemoveQuery
from .requests import NAME, UserJobRequest
from .views import OneUserJobView, SystemView, UserJobView

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
}

_FOLLOW = {
    f"{method}-api-userjobs-one": {
        "operationId": f"{method}-api-userjobs-one", "parameters": {"name": "$response.body#/service"},
    }
    for method in ("get", "delete")
}  # fmt: skip
_REFUSED = {
    "description": "the request is not valid; a missing key is named in a list, as the K8s Manager did",
    "anyOf": [ref(ErrorView), {"type": "array", "items": {"type": "string"}}],
}


def _list(model: type[SystemView | UserJobView]) -> Json:
    return {"type": "array", "items": ref(model)}


EXTENSION = Extension(
    paths={
        "/api/systems": {
            "get": operation(
                "The systems where the caller has an account", {200: _list(SystemView)}, 400, query=ListQuery
            ),
        },
        "/api/userjobs": {
            "get": operation(
                "List the caller's user jobs", {200: ("text/event-stream", _list(UserJobView))}, 400, query=ListQuery
            ),
            "post": operation(
                "Submit a job, or forward to a node",
                {200: ref(UserJobView), 201: ref(UserJobView), 400: _REFUSED}, 409, 429,
                parameters=[KEY], body=UserJobRequest,
            ),
        },
        "/api/userjobs/{name}": {
            "get": operation(
                "Tell about a user job", {200: ("text/event-stream", ref(OneUserJobView))}, 400, 404,
                query=OneQuery, parameters=[_NAME],
            ),
            "delete": operation(
                "Cancel its job, end its forwards, and forget it", {204: None}, 400, 404, 409,
                query=RemoveQuery, parameters=[_NAME],
            ),
        },
    },
    requests=[UserJobRequest],
    answers=[OneUserJobView, SystemView, UserJobView],
)  # fmt: skip
EXTENSION.paths["/api/userjobs"]["post"]["responses"]["201"]["links"] = _FOLLOW
