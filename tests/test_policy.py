"""Who may ask for what."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets import TraitError

from jhlauncher.errors import PolicyDenied
from jhlauncher.models import Caller, LaunchSpec
from jhlauncher.policy import Policy

NOBODY: frozenset[str] = frozenset()
SERVICE = Caller("platform", "service", NOBODY, NOBODY)
ALICE = Caller("alice", "user", NOBODY, NOBODY)
EVERYTHING: dict[str, Any] = {
    "image": "any:1",
    "volumes": [{"name": "data", "mount": "/data"}],
    "cpu": {"limit": 64},
    "memory": {"limit": "1T"},
    "gpu": {"limit": 8},
    "env": {"A": "1"},
}


def decide(policy: Policy, caller: Caller = ALICE, user: str = "alice", groups: Any = (), **spec: Any) -> str:
    return policy.authorise(caller, user, frozenset(groups), LaunchSpec(**{"image": "any:1", **spec})).rule


def refused(policy: Policy, **what: Any) -> list[str]:
    with pytest.raises(PolicyDenied) as error:
        decide(policy, **what)
    return [field["field"] for field in error.value.details.get("fields", [])]


def test_default_is_open_for_services_and_closed_for_users():
    assert decide(Policy(), SERVICE, **EVERYTHING) == "services"
    assert refused(Policy(), **EVERYTHING) == ["image", "vols.0", "env.A", "cpu", "memory", "gpu"]
    assert refused(Policy()) == ["image"]
    assert decide(Policy(images=["any:*"])) == "users"


def test_images_from_install_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JHLAUNCHER_IMAGES", '["any:1"]')
    assert decide(Policy()) == "users"
    monkeypatch.setenv("JHLAUNCHER_IMAGES", "any:1")
    with pytest.raises(TraitError, match="JHLAUNCHER_IMAGES"):
        Policy()


def test_first_matching_rule_decides():
    policy = Policy(
        rules=[
            {"name": "bob by anyone", "users": ["bob"], "images": ["*"]},
            {"name": "course", "groups": ["course-*"], "images": ["course:*"]},
            {"name": "alice herself", "callers": ["user:alice"], "users": ["alice"], "images": ["any:*"]},
        ]
    )
    assert policy.needs_groups
    assert decide(policy, SERVICE, "bob") == "bob by anyone"
    assert decide(policy, groups=["course-1"], image="course:1") == "course"
    assert refused(policy, groups=["course-1"], image="any:1") == ["image"]
    assert decide(policy) == "alice herself"
    with pytest.raises(PolicyDenied, match="No rule"):
        decide(policy, SERVICE)


def test_volumes():
    rule = {"name": "r", "images": ["*"], "volumes": ["home-{username}", "shared:ro"]}
    policy = Policy(rules=[rule])
    mount = {"mount": "/m"}
    assert decide(policy, volumes=[{"name": "home-alice", **mount}])
    assert decide(policy, volumes=[{"name": "shared", "read_only": True, **mount}])
    assert refused(policy, volumes=[{"name": "home-bob", **mount}]) == ["vols.0"]
    assert refused(policy, volumes=[{"name": "shared", **mount}]) == ["vols.0"]
    # a name is no pattern: a user called * does not get every home
    with pytest.raises(PolicyDenied):
        policy.authorise(ALICE, "*", NOBODY, LaunchSpec(image="i", volumes=[{"name": "home-bob", **mount}]))


def test_maxima():
    policy = Policy(rules=[{"name": "r", "images": ["*"], "cpu": 2, "memory": "4G", "gpu": 1}])
    assert decide(policy, cpu={"request": 1, "limit": 2}, memory={"limit": 4 * 1024**3}, gpu={"limit": 1})
    assert refused(policy, cpu={"limit": 2.5}) == ["cpu"]
    assert refused(policy, cpu={"request": 3}) == ["cpu"]
    assert refused(policy, memory={"limit": "4097M"}) == ["memory"]
    with pytest.raises(PolicyDenied, match="more than the 4G that are allowed"):
        decide(policy, memory={"request": "5Gi"})
    assert refused(policy, gpu={"limit": 2}) == ["gpu"]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "name"),
        ({"name": "r", "image": ["*"]}, "image"),
        ({"name": "r", "images": "*"}, "images"),
        ({"name": "r", "cpu": "2"}, "cpu"),
        ({"name": "r", "cpu": -1}, "cpu"),
        ({"name": "r", "memory": "much"}, "memory"),
        ({"name": "r", "gpu": 0.5}, "gpu"),
        ({"name": "r", "callers": ["platform"]}, "callers.0"),
    ],
)
def test_wrong_rules_are_named(rule: dict[str, Any], problem: str):
    with pytest.raises(TraitError, match=rf"Policy.rules\[0\.{problem}\]"):
        Policy(rules=[rule])
