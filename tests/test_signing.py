"""What the spawner accepts from the launcher, and from nobody else."""

from __future__ import annotations

import copy
import json
import time

import pytest

from jhlauncher.models import LaunchSpec, Volume
from jhlauncher.signing import BadSignature, Signer, derive_key

KEY = "k" * 32
SPEC = LaunchSpec(
    image="image:1",
    volumes=[Volume(name="data", mount="/data")],
    cpu={"request": 0.5, "limit": 1},
    memory={"limit": "1G"},
    env={"SECRET": "hidden", "BRACES": '{"a": 1}'},
)


def sent(options: dict) -> dict:
    """As it comes out of the Hub's database."""
    return json.loads(json.dumps(options))


def test_round_trip():
    options = sent(Signer(KEY).sign("id", "alice", "p1", SPEC))
    assert Signer(KEY).verify("alice", "p1", options) == SPEC


def test_values_of_env_can_not_be_read():
    text = json.dumps(Signer(KEY).sign("id", "alice", "", SPEC))
    assert "hidden" not in text
    assert "SECRET" not in text


@pytest.mark.parametrize(("user", "server"), [("bob", "p1"), ("alice", ""), ("alice", "p2"), ("alice/p1", "")])
def test_not_for_another_server(user: str, server: str):
    with pytest.raises(BadSignature):
        Signer(KEY).verify(user, server, Signer(KEY).sign("id", "alice", "p1", SPEC))


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o["spec"].update(image="evil"),
        lambda o: o["spec"]["volumes"][0].update(read_only=True),
        lambda o: o["spec"].update(gpu={"limit": 8}),
        lambda o: o.update(id="other"),
        lambda o: o.update(issued=o["issued"] + 1),
        lambda o: o.update(env=None),
        lambda o: o.update(signature=""),
        lambda o: o.update(signature="é"),
        lambda o: o.update(signature=1),
        lambda o: o.pop("signature"),
        lambda o: o.pop("spec"),
        lambda o: o.clear(),
    ],
)
def test_nothing_may_be_changed(change):
    options = copy.deepcopy(Signer(KEY).sign("id", "alice", "", SPEC))
    change(options)
    with pytest.raises(BadSignature, match="not signed"):
        Signer(KEY).verify("alice", "", options)


@pytest.mark.parametrize("nonsense", [None, "text", 1, [], {}, {"signature": {}}, float("nan")])
def test_nonsense_is_refused(nonsense):
    with pytest.raises(BadSignature):
        Signer(KEY).verify("alice", "", nonsense)


@pytest.mark.parametrize("shift", [-301, 301])
def test_not_for_long(monkeypatch: pytest.MonkeyPatch, shift: float):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    options = Signer(KEY).sign("id", "alice", "", SPEC)
    monkeypatch.setattr(time, "time", lambda: now + shift)
    with pytest.raises(BadSignature, match="too long ago"):
        Signer(KEY).verify("alice", "", options)


def test_another_key():
    with pytest.raises(BadSignature):
        Signer("x" * 32).verify("alice", "", Signer(KEY).sign("id", "alice", "", SPEC))


def test_short_keys_are_refused():
    with pytest.raises(ValueError, match="32"):
        Signer("short")
    assert len(derive_key("any token")) == 64
    assert derive_key("any token") != derive_key("other token")
