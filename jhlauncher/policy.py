"""What a caller may ask for. Whether the caller may act on a server at all is decided before, by JupyterHub's scopes.

The first rule that matches decides, and what it does not allow is refused; with no matching rule, everything is.
`jhlauncher.rules` says what a rule looks like.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from traitlets import Dict, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from . import environment
from .errors import InvalidRequest, PolicyDenied
from .models import Caller, LaunchRequest, LaunchSpec
from .records import Limit, Needs, needs_of
from .rules import Rule, Template, any_match


@dataclass(frozen=True)
class Decision:
    """What was allowed, and what comes with it."""

    spec: LaunchSpec
    """What is launched."""
    rule: str
    """By which rule."""
    lifetime: float | None
    """Seconds; None: until somebody stops it."""
    share: str
    """Whose turn it takes in the queue."""
    weight: float
    limits: list[Limit]
    keys: list[str]
    """What it counts for in the limits."""


class Policy(LoggingConfigurable):
    """Decides what a caller may launch."""

    images = List(
        Unicode(),
        help="""Images that ordinary users may launch under the default rules; shell patterns.

        With none, only services may launch. Has no effect once `rules` is set.
        Default: $JHLAUNCHER_IMAGES, a JSON list, which install_launcher(images=...) sets.
        """,
    ).tag(config=True)
    rules = List(
        Dict(),
        help="""Who may ask for what: a list of dicts, the first that matches decides (see docs/policy.md).

        Default: services (which hold their scopes because an administrator gave them) may ask for anything, and
        users for the `images`, with no volumes, env or resources of their own choosing.
        """,
    ).tag(config=True)

    templates = Dict(
        help="""Named specs to start from: name -> dict with image, vols, cpu, memory, gpu, env, lifetime, description.

        {username} in the names of volumes, subpaths and values of env is the user's name. A rule's "templates" says
        who may use which. See docs/policy.md.
        """,
    ).tag(config=True)

    @default("images")
    def _default_images(self) -> list[str]:
        try:
            return list(json.loads(environment.text("JHLAUNCHER_IMAGES", "[]")))
        except (ValueError, TypeError):
            raise TraitError("$JHLAUNCHER_IMAGES must be a JSON list of images") from None

    @default("rules")
    def _default_rules(self) -> list[dict[str, Any]]:
        everything = {
            "images": ["*"],
            "volumes": ["*"],
            "env": ["*"],
            "cpu": None,
            "memory": None,
            "gpu": None,
        }
        return [
            {"name": "services", "callers": ["service:*"], "templates": ["*"], **everything},
            {"name": "users", "images": self.images, "templates": ["*"]},
        ]

    @validate("rules")
    def _valid_rules(self, proposal: Any) -> list[dict[str, Any]]:
        for index, rule in enumerate(proposal.value):
            _check(Rule, rule, f"rules[{index}", f"rule {rule.get('name')!r}")
        return list(proposal.value)

    @validate("templates")
    def _valid_templates(self, proposal: Any) -> dict[str, Any]:
        for name, template in proposal.value.items():
            _check(Template, template, f"templates[{name}", f"template {name!r}")
        return dict(proposal.value)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rules = [Rule.model_validate(rule) for rule in self.rules]
        self._templates = {name: Template.model_validate(template) for name, template in self.templates.items()}

    @property
    def needs_groups(self) -> bool:
        """Whether any rule looks at the user's groups."""
        return any(rule.groups is not None for rule in self._rules)

    def rule_for(self, caller: Caller, user: str, groups: frozenset[str]) -> Rule:
        """The rule that decides for this caller and this user's servers.

        Raises:
            PolicyDenied: there is none.

        """
        rule = next((rule for rule in self._rules if rule.matches(caller, user, groups)), None)
        if rule is None:
            raise PolicyDenied("No rule of the launcher's policy is for you. Ask an administrator for one.")
        return rule

    def templates_for(self, rule: Rule) -> dict[str, Template]:
        """What those may start from for whom this rule decides."""
        return {name: template for name, template in self._templates.items() if any_match(rule.templates, name)}

    def authorise(self, caller: Caller, user: str, groups: frozenset[str], request: LaunchRequest) -> Decision:
        """Allow a request for this user's server.

        Raises:
            PolicyDenied: with the rule and each objection in ``details``.
            InvalidRequest: the template does not exist, or does not go together with the request.

        """
        rule = self.rule_for(caller, user, groups)
        _refuse(rule, rule.objections(user, request))
        asked = self._with_template(request.model_copy(update={"username": user}))
        spec = rule.completed(asked.spec())
        _refuse(rule, rule.unstated(spec))
        limits = rule.limits_for(user, groups)
        _refuse(rule, _never(needs_of(spec), limits))
        return Decision(
            spec=spec,
            rule=rule.name,
            lifetime=asked.lifetime or rule.lifetime,
            share=rule.share_of(caller, groups),
            weight=rule.weight,
            limits=limits,
            keys=["all", f"user:{user}", *sorted(f"group:{group}" for group in groups)],
        )

    def check_lifetime(self, caller: Caller, user: str, groups: frozenset[str], seconds: float | None) -> None:
        """Allow this user's server to go on for so many seconds, or (None) until somebody stops it.

        Raises:
            PolicyDenied: the rule allows less.

        """
        rule = self.rule_for(caller, user, groups)
        objection = rule.objection_to_lifetime(seconds)
        _refuse(rule, {"lifetime": objection} if objection else {})

    def _with_template(self, request: LaunchRequest) -> LaunchRequest:
        if request.template is None:
            return request
        template = self._templates.get(request.template)
        if template is None:
            problem = "there is no such template"
            raise InvalidRequest(
                f"The request is not valid. template: {problem}",
                details={"fields": [{"field": "template", "problem": problem}]},
            )
        return template.applied(request)


def _never(needs: Needs, limits: list[Limit]) -> dict[str, str]:
    """What a launch would wait for in vain."""
    return {
        limit.resource: f"{needs[limit.resource]:g} is more than the limit of {limit.most:g} ({limit.key})"
        for limit in limits
        if needs[limit.resource] > limit.most
    }


def _refuse(rule: Rule, problems: dict[str, str]) -> None:
    """Refuse a request with these problems, if there are any."""
    if problems:
        text = "; ".join(f"{field}: {why}" for field, why in problems.items())
        raise PolicyDenied(
            f"The policy (rule {rule.name!r}) does not allow this. {text}",
            details={"rule": rule.name, "fields": [{"field": f, "problem": p} for f, p in problems.items()]},
        )


def _check(model: type[Rule] | type[Template], value: Any, where: str, what: str) -> None:
    """Say where a setting is wrong.

    Raises:
        TraitError: it is.

    """
    try:
        model.model_validate(value)
    except InvalidRequest as error:
        raise TraitError(f"Policy.{where}] ({what}): {error.message}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *problem["loc"]))
        known = f"unknown key; there are: {', '.join(model.model_fields)}"
        text = known if problem["type"] == "extra_forbidden" else problem["msg"]
        raise TraitError(f"Policy.{place}] ({what}): {text}") from None
