"""From a request to the launch that it would be: for whom, by which rule, with what; and what a caller may ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .access import START, Access
from .errors import InvalidRequest, PolicyDenied
from .feed import Feed
from .models import Caller, LaunchRequest
from .policy import Decision, Policy
from .records import LaunchRecord, Limit
from .rules import Rule, Template
from .signing import Signer
from .store import Store


@dataclass(frozen=True)
class Options:
    """What a caller may ask for."""

    rule: Rule
    """The one that decides."""
    templates: dict[str, Template]
    limits: list[dict[str, Any]]
    """With what is used of each."""


class Planner:
    """What is to be launched."""

    def __init__(self, access: Access, policy: Policy, store: Store, feed: Feed, signer: Signer) -> None:
        self._access = access
        self._policy = policy
        self._store = store
        self._feed = feed
        self._signer = signer

    async def prepared(self, caller: Caller, request: LaunchRequest) -> LaunchRecord:
        """The launch as it will be kept; the user exists then, if the caller may create users.

        Raises:
            Forbidden, PolicyDenied, InvalidRequest: it may not be.
            HubUnavailable: try again.

        """
        user, decision = await self._decide(caller, request, create_user=True)
        return self._record(caller, request, user, decision)

    async def plan(self, caller: Caller, request: LaunchRequest) -> dict[str, Any]:
        """What would become of a request, as of now; nothing is started, kept or created.

        Raises:
            Forbidden: the caller's scopes do not reach the server.

        """
        try:
            user, decision = await self._decide(caller, request, create_user=False)
        except (PolicyDenied, InvalidRequest) as error:
            rule = error.details.get("rule")
            return {"decision": "refuse", "rule": rule, "spec": None, "error": error.as_dict()}
        record = self._record(caller, request, user, decision)
        place, held, obstacle = await self._store.would_be(record)
        plan: dict[str, Any] = {
            "decision": "refuse" if obstacle else "queue" if held or place > 1 else "start",
            "username": user,
            "rule": decision.rule,
            "spec": record.spec,
            "env": sorted(decision.spec.env),
            "lifetime": decision.lifetime,
            "limits": await self._limits(decision.limits),
        }
        if obstacle:
            return {**plan, "error": obstacle.as_dict()}
        return {**plan, "position": place, "estimate": self._feed.estimate(place)}

    async def check_lifetime(self, caller: Caller, record: LaunchRecord, seconds: float | None) -> None:
        """Allow a launch's server to go on for so many seconds, or (None) until somebody stops it.

        Raises:
            Forbidden: the caller's scopes do not reach the server.
            PolicyDenied: the rule allows less.

        """
        target = await self._access.target(
            caller, record.username, record.server_name, START, self._policy.needs_groups
        )
        self._policy.check_lifetime(caller, target.user, target.groups, seconds)

    async def options(self, caller: Caller, user: str, server: str) -> Options:
        """What a caller may ask for this server.

        Raises:
            Forbidden: the caller's scopes do not reach the server.
            PolicyDenied: no rule is for the caller.

        """
        target = await self._access.target(caller, user, server, START, self._policy.needs_groups)
        rule = self._policy.rule_for(caller, target.user, target.groups)
        limits = await self._limits(rule.limits_for(target.user, target.groups))
        return Options(rule, self._policy.templates_for(rule), limits)

    async def _limits(self, limits: list[Limit]) -> list[dict[str, Any]]:
        """Limits, with what is used of each."""
        used = await self._store.used(limits)
        return [
            {
                "key": limit.key,
                "resource": limit.resource,
                "most": limit.most,
                "used": amount,
                "when_full": "queue" if limit.wait else "refuse",
            }
            for limit, amount in zip(limits, used, strict=True)
        ]

    def _record(self, caller: Caller, request: LaunchRequest, user: str, decision: Decision) -> LaunchRecord:
        return LaunchRecord(
            caller=caller.label,
            username=user,
            server_name=request.server_name,
            spec=decision.spec.model_copy(update={"env": {}}),
            env=self._signer.seal(decision.spec.env, "env") if decision.spec.env else None,
            rule=decision.rule,
            share=decision.share,
            weight=decision.weight,
            limits=decision.limits,
            keys=decision.keys,
            lifetime=decision.lifetime,
            template=request.template,
            request=self._signer.fingerprint(request.model_dump(mode="json")),
        )

    async def _decide(self, caller: Caller, request: LaunchRequest, *, create_user: bool) -> tuple[str, Decision]:
        """The user's name and what the policy says."""
        server = request.server_name
        target = await self._access.target(caller, request.username, server, START, self._policy.needs_groups)
        decision = self._policy.authorise(caller, target.user, target.groups, request)
        user = await self._access.ensure_user(caller, target, request) if create_user else target.user
        if user != target.user:
            decision = self._policy.authorise(caller, user, frozenset(), request)
        return user, decision
