"""The bodies of the manager's requests: checked in the order, and refused in the words, that its clients know."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from .errors import BadInput, NotJson, WrongMediaType
from .rendering import Json
from .service_secrets import CERTIFICATES
from .services import StartRequest

REQUIRED: dict[str, list[str]] = {
    "env": ["JUPYTERHUB_STATUS_URL", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_USER_ID"],
    "user_options": ["service"],
    "start_id": [],
}
_LONGEST = 200
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
"""A servername or start_id: they become parts of names in Kubernetes (RFC 1123)."""
_INTEGER = re.compile(r"-?\d{1,18}")


def parse_json(body: bytes, content_type: str) -> Any:
    """The body of a request.

    Raises:
        WrongMediaType: it says of itself that it is no JSON.
        NotJson: it is none.

    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):
        raise WrongMediaType(f'Unsupported media type "{content_type}" in request.')
    try:
        content = json.loads(body, parse_constant=_refuse)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise NotJson(f"JSON parse error - {error}") from None
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def start_request(body: Any, credential: str, servername: str | None, variables: Mapping[str, str]) -> StartRequest:
    """What a Hub asks for.

    Args:
        body: of the request.
        credential: whose it is.
        servername: the request's header ``uuidcode``; None: a name is made up.
        variables: what services get of the request's headers.

    Raises:
        BadInput: it is not what it must be.

    """
    content = _object(body, "Input data")
    for key, within in REQUIRED.items():
        if key not in content:
            raise BadInput([f"Missing key in input data: {key}"])
        for name in within:
            if name not in _object(content[key], key):
                raise BadInput([f"Missing key in input data: {key}.{name}"])
    if not isinstance(content["user_options"]["service"], str):
        raise BadInput(["user_options.service must be a text"])
    if any(part == ".." for part in content["user_options"]["service"].split("/")):
        raise BadInput(["user_options.service must not lead out of the descriptions"])
    return StartRequest(
        credential=credential,
        servername=_name("servername", uuid.uuid4().hex if servername is None else servername, blank=False),
        start_id=_name("start_id", content["start_id"], blank=True),
        user_options=content["user_options"],
        jhub_user_id=_integer("jhub_user_id", content["env"]["JUPYTERHUB_USER_ID"]),
        env=_env(content["env"]),
        variables=variables,
        certs=_certs(content.get("certs")),
    )


def _object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise BadInput([f"{what} must be an object"])
    return value


def _name(field: str, value: Any, blank: bool) -> str:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if text is None:
        raise BadInput({field: ["Not a valid string."]})
    if not text:
        if blank:
            return text
        raise BadInput({field: ["This field may not be blank."]})
    if len(text) > _LONGEST:
        raise BadInput({field: [f"Ensure this field has no more than {_LONGEST} characters."]})
    if not _NAME.fullmatch(text):
        raise BadInput(
            {field: ["Must be small letters, digits, '.' and '-', beginning and ending with the first two."]}
        )
    return text


def _integer(field: str, value: Any) -> int:
    if isinstance(value, bool) or not _INTEGER.fullmatch(str(value).strip()):
        raise BadInput({field: ["A valid integer is required."]})
    return int(value)


def _env(env: Json) -> Json:
    for name, value in env.items():
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", name):
            raise BadInput([f"env.{name[:253]} can't be the name of a variable"])
        if isinstance(value, dict | list):
            raise BadInput([f"env.{name} must be a text"])
    return env


def _certs(certs: Any) -> dict[str, str] | None:
    if not certs:
        return None
    for name in CERTIFICATES:
        if name not in _object(certs, "certs"):
            raise BadInput([f"Missing key in input data: certs.{name}"])
        if not isinstance(certs[name], str):
            raise BadInput([f"certs.{name} must be a text"])
    return {name: certs[name] for name in CERTIFICATES}
