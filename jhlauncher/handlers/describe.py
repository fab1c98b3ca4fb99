"""What the service says of itself: ``options`` and ``templates`` to a caller, ``openapi.json`` to all."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from ..errors import InvalidRequest
from ..models import AboutQuery, LaunchRequest, ServerQuery
from ..planning import Options
from ..rules import Rule, Template, any_match
from .callers import HubHandler
from .openapi import document
from .views import LimitView, OptionsView, TemplateView


class _AboutCaller(HubHandler):
    members: list[str] | None = None
    """Of the group that was asked for."""

    async def _options(self) -> tuple[ServerQuery, Options]:
        """For the server in the query; for a user without one, their own default server."""
        asked = self.query(AboutQuery)
        username = asked.username
        if asked.group is not None and username is None:
            self.members = await self.services.parts.access.people(self.caller, asked.group)
            username = self.members[0]
        elif username is None and self.caller.kind == "user" and not self.request.query:
            username = self.caller.name
        if username is None:
            problem = "required field is missing"
            fields = [{"field": "username", "problem": problem}]
            raise InvalidRequest(f"The request is not valid. username: {problem}", details={"fields": fields})
        query = ServerQuery(username=username, server_name=asked.server_name)
        return query, await self.services.parts.planner.options(self.caller, query.username, query.server_name)


class OptionsHandler(_AboutCaller):
    """What a caller may ask for."""

    async def get(self) -> None:
        """Tell it as a JSON Schema of the request."""
        query, options = await self._options()
        view = OptionsView(
            username=query.username,
            server_name=query.server_name,
            members=self.members,
            rule=options.rule.name,
            request=request_schema(options.rule, query.username, sorted(options.templates)),
            templates={name: template_view(template) for name, template in options.templates.items()},
            start_links=[name for name in options.templates if any_match(options.rule.start_links, name)],
            limits=[LimitView(**limit) for limit in options.limits],
        )
        self.answer(view.model_dump(mode="json"))


class TemplatesHandler(_AboutCaller):
    """The templates that a caller may start from."""

    async def get(self) -> None:
        """List them by name."""
        _, options = await self._options()
        self.answer({name: template_view(each).model_dump(mode="json") for name, each in options.templates.items()})


class OpenApiHandler(HubHandler):
    """The service's description."""

    needs_caller = False

    async def get(self) -> None:
        """Answer with an OpenAPI 3.1 document."""
        self.answer(document(self.services.prefix, *self.settings["extensions"]))


def template_view(template: Template) -> TemplateView:
    """A template without the values of its variables, which may be secrets."""
    return TemplateView(**template.model_dump(exclude={"env"}), env=sorted(template.env))


def request_schema(rule: Rule, user: str, templates: list[str]) -> dict[str, Any]:
    """The JSON Schema of a launch request, with what the rule leaves of it."""
    schema = LaunchRequest.model_json_schema()
    fields = schema["properties"]
    for field, names in (("image", rule.images), ("template", templates)):
        fields[field] = _choice(names)
    volumes = [(entry.partition(":")[0].replace("{username}", user), entry.endswith(":ro")) for entry in rule.volumes]
    fields["vols"]["description"] = "Allowed: " + (
        ", ".join(f"{name}{' (read-only)' if ro else ''}" for name, ro in volumes) or "none"
    )
    fields["vols"]["maxItems"] = 100 if volumes else 0
    fields["env"] = {"type": "object", "additionalProperties": {"type": "string"}, "propertyNames": _choice(rule.env)}
    for field, most in (("cpu", rule.cpu), ("memory", rule.memory), ("gpu", rule.gpu)):
        fields[field]["x-maximum"] = most
    if rule.lifetime is not None:
        fields["lifetime"] = {"type": "number", "exclusiveMinimum": 0, "maximum": rule.lifetime}
    return schema


def _choice(patterns: list[str]) -> dict[str, Any]:
    """Any string that one of these patterns (as in a shell) matches."""
    if all(not set("*?[") & set(pattern) for pattern in patterns):
        return {"type": "string", "enum": patterns} if patterns else {"not": {}}
    return {"type": "string", "pattern": f"^({'|'.join(map(_expression, patterns))})$", "examples": patterns}


def _expression(pattern: str) -> str:
    """A shell's pattern as a regular expression of ECMA-262, which is JSON Schema's and knows no atomic groups."""
    whole = re.fullmatch(r"\(\?s:(.*)\)\\[Zz]", fnmatch.translate(pattern), re.DOTALL)
    assert whole  # noqa: S101  (its form in Python 3.11 to 3.14)
    return whole[1].replace("(?>", "(?:")
