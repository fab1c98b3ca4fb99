"""Who may ask for what."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets import TraitError

from jhlauncher.errors import InvalidRequest, PolicyDenied
from jhlauncher.models import Caller, LaunchRequest
from jhlauncher.policy import Decision, Policy

NOBODY: frozenset[str] = frozenset()
SERVICE = Caller("platform", "service", NOBODY, NOBODY)
ALICE = Caller("alice", "user", NOBODY, NOBODY)
EVERYTHING: dict[str, Any] = {
    "image": "any:1",
    "vols": [{"pvc": "data", "mount": "/data"}],
    "cpu": {"limit": 64},
    "memory": {"limit": "1T"},
    "gpu": {"limit": 8},
    "env": {"A": "1"},
}


def decide(policy: Policy, caller: Caller = ALICE, user: str = "alice", groups: Any = (), **spec: Any) -> str:
    return ask(policy, caller, user, groups, **spec).rule


def ask(policy: Policy, caller: Caller = ALICE, user: str = "alice", groups: Any = (), **asked: Any) -> Decision:
    request = LaunchRequest(**{"username": user, "image": "any:1", **asked})
    return policy.authorise(caller, user, frozenset(groups), request)


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
    assert decide(policy, vols=[{"pvc": "home-alice", **mount}])
    assert decide(policy, vols=[{"pvc": "shared", "read_only": True, **mount}])
    assert refused(policy, vols=[{"pvc": "home-bob", **mount}]) == ["vols.0"]
    assert refused(policy, vols=[{"pvc": "shared", **mount}]) == ["vols.0"]
    # a name is no pattern: a user called * does not get every home
    with pytest.raises(PolicyDenied):
        policy.authorise(
            ALICE, "*", NOBODY, LaunchRequest(username="*", image="i", vols=[{"pvc": "home-bob", **mount}])
        )


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


def test_template_gives_what_the_request_does_not():
    template = {
        "image": "course:1",
        "vols": [{"pvc": "home-{username}", "mount": "/home/jovyan"}],
        "env": {"COURSE": "1", "WHO": "{username}"},
        "cpu": {"limit": 1},
        "lifetime": 60,
    }
    rules = [{"name": "r", "templates": ["course"], "cpu": 2, "env": ["MINE"], "images": ["other:1"]}]
    policy = Policy(templates={"course": template}, rules=rules)
    decision = ask(policy, image=None, template="course")
    assert decision.spec.image == "course:1"
    assert decision.spec.volumes[0].name == "home-alice"
    assert decision.spec.env == {"COURSE": "1", "WHO": "alice"}
    assert decision.lifetime == 60
    decision = ask(policy, image="other:1", template="course", cpu={"limit": 2}, env={"MINE": "x"}, lifetime=30)
    assert (decision.spec.image, decision.spec.cpu.limit, decision.lifetime) == ("other:1", 2, 30)
    assert decision.spec.env == {"COURSE": "1", "WHO": "alice", "MINE": "x"}
    assert refused(policy, template="course", image="mine:1") == ["image"]
    assert refused(policy, template="course", image=None, env={"COURSE": "2"}) == ["env.COURSE"]
    assert refused(policy, template="staff", image=None) == ["template"]


def test_template_that_does_not_exist_or_has_no_image():
    policy = Policy(templates={"small": {"cpu": {"limit": 1}}})
    with pytest.raises(InvalidRequest, match="template: there is no such template"):
        ask(policy, SERVICE, template="big")
    with pytest.raises(InvalidRequest, match="image: required field is missing"):
        ask(policy, SERVICE, template="small", image=None)


@pytest.mark.parametrize(
    ("template", "problem"), [({"images": "x"}, r"templates\[t.images\]"), ({"vols": [{"pvc": "a"}]}, "mount")]
)
def test_wrong_templates_are_named(template: dict[str, Any], problem: str):
    with pytest.raises(TraitError, match=problem):
        Policy(templates={"t": template})


def test_lifetime():
    policy = Policy(rules=[{"name": "r", "images": ["*"], "lifetime": 3600}])
    assert ask(policy).lifetime == 3600
    assert ask(policy, lifetime=60).lifetime == 60
    assert refused(policy, lifetime=3601) == ["lifetime"]
    assert ask(Policy(), SERVICE).lifetime is None


def test_limits_hold_for_whom_they_are_written():
    limits = {"user": {"servers": 2}, "group": {"memory": "10G"}, "all": {"gpu": 4}}
    rule = {"name": "r", "groups": ["course-*"], "images": ["*"], "memory": None, "limits": limits, "weight": 3}
    decision = ask(Policy(rules=[rule]), groups=["course-2", "course-1", "staff"], memory={"limit": "1G"})
    assert decision.limits == [
        ("user:alice", "servers", 2, True),
        ("group:course-1", "memory", 10 * 1024**3, True),
        ("group:course-2", "memory", 10 * 1024**3, True),
        ("all", "gpu", 4, True),
    ]
    assert decision.keys == ["all", "user:alice", "group:course-1", "group:course-2", "group:staff"]
    assert (decision.share, decision.weight) == ("group:course-1", 3)
    assert refused(Policy(rules=[rule]), groups=["course-1"]) == ["memory"], "what is limited must be stated"
    refusing = {"name": "r", "images": ["*"], "limits": {"all": {"servers": 1}}, "when_full": "refuse"}
    assert ask(Policy(rules=[refusing])).limits == [("all", "servers", 1, False)]
    assert ask(Policy(rules=[refusing])).share == "user:alice"


def test_limits_of_a_group_need_groups():
    with pytest.raises(TraitError, match="need groups"):
        Policy(rules=[{"name": "r", "limits": {"group": {"servers": 1}}}])
