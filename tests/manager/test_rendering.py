"""From a description's text to objects: pure functions."""

from __future__ import annotations

import pytest
import yaml

from jhlauncher.manager.errors import BadDescription
from jhlauncher.manager.rendering import Ref, Value, check, labelled, load, replacement

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: depl-<id>}
spec:
  template:
    spec:
      containers: [{name: main}]
"""


def replaced(text: str, indicators: tuple[str, str] = ("<", ">"), **values: str | Value) -> object:
    """A value in a document, after replacement."""
    named = {key: value if isinstance(value, Value) else Value(value) for key, value in values.items()}
    document = f"apiVersion: v1\nkind: A\nmetadata: {{name: a}}\nvalue: {text}\n"
    return load(document, replacement(named, indicators), "service.yaml")[0]["value"]


HOSTILE = [
    "a: b",
    "x\ny: 1",
    '"',
    "'",
    "- a",
    "{a: b}",
    "[1]",
    "# comment",
    "&a",
    "*a",
    "!!python/object:os.system",
    "--- \n",
    "null",
    "1e5",
    "2022-12-01",
    "true",
    "\\",
    "<id>",
    "\u2028",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("scalar", ["<x>", "'<x>'", '"<x>"', ">-\n  <x>", "|-\n  <x>"])
def test_a_value_stays_in_its_scalar(scalar: str, value: str):
    assert replaced(scalar, x=value) == value
    assert replaced(f"[{scalar.partition('  ')[2] or scalar}, 2]", x=value) == [value, 2]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_in_its_key(value: str):
    assert replaced("{<x>: 1}", x=value) == {value: 1}


@pytest.mark.parametrize(
    ("scalar", "value", "expected"),
    [("<x>", "2", 2), ("<x>", "true", True), ("'<x>'", "2", "2"), ("a<x>", "2", "a2"), ("<x>.5", "1", 1.5),
     ("<x>", "a: b", "a: b"), ("<x>", "2022-12-01x", "2022-12-01x")],
)  # fmt: skip
def test_configured_values_have_types_in_plain_scalars(scalar: str, value: str, expected: object):
    assert replaced(scalar, x=Value(value, typed=True)) == expected


def test_unknown_keywords_stay():
    assert replaced("<y> <x> <>", x="1") == "<y> 1 <>"


def test_what_was_replaced_is_not_replaced_again():
    assert replaced("<x>", x="<y>", y="no") == "<y>"


def test_other_indicators():
    assert replaced("a-?!!?mYinPut!??!", ("?!!?", "!??!"), mYinPut="in") == "a-in"


def test_the_longest_keyword_counts():
    assert replaced("<user_id> <id>", id="1", user_id="2") == "2 1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "not a mapping"),
        ("kind: A\nmetadata: {name: a}", "no apiVersion"),
        ("apiVersion: v1\nkind: A", "no name"),
        ("apiVersion: v1\nkind: A\nmetadata: {name: 1}", "no name"),
        ("apiVersion: v1\nkind: A\nmetadata: {name: a}\nx: 2022-12-01", "JSON does not know"),
        ("apiVersion: v1\nkind: A\nmetadata: {name: a}\nx: .nan", "JSON does not know"),
        ("apiVersion: v1\nkind: A\nmetadata: {name: a}\nx: !!python/name:os.system", "not valid YAML"),
        ("a: &a [*a]", "no apiVersion"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_bad_descriptions(text: str, why: str):
    with pytest.raises(BadDescription, match=why):
        load(text, replacement({"id": Value("a")}, ("<", ">")), "service.yaml")


def test_empty_documents_and_lists():
    text = "---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A, metadata: {name: a}}\n"
    found = load(text, replacement({"id": Value("a")}, ("<", ">")), "service.yaml")
    assert [item["kind"] for item in found] == ["A"]


def objects(text: str = DEPLOYMENT) -> list[dict]:
    return load(text, replacement({"id": Value("a-1")}, ("<", ">")), "service.yaml")


def checked(items: list[dict], **change: str):
    return check(items, [], **{"namespace": "here", "main_name": "depl-a-1", "container": "main", **change})


def test_the_main_object():
    assert checked(objects()).main == Ref("apps/v1", "Deployment", "depl-a-1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"main_name": "depl-b"}, "no Deployment or StatefulSet with the name depl-b"),
        ({"container": "other"}, "no container with the name other"),
    ],
)
def test_descriptions_that_make_no_service(change: dict[str, str], why: str):
    with pytest.raises(BadDescription, match=why):
        checked(objects(), **change)


def test_other_namespaces_are_refused():
    items = objects(DEPLOYMENT.replace("name: depl-<id>", "name: depl-<id>, namespace: there"))
    with pytest.raises(BadDescription, match="is to be in the namespace there"):
        checked(items)
    assert checked(items, namespace="there")


def test_an_object_twice_is_refused():
    with pytest.raises(BadDescription, match="is there twice"):
        checked([*objects(), *objects()])


def test_labels_are_on_the_object_and_its_pods_and_not_in_what_it_selects():
    text = """
    kind: Deployment
    metadata: {name: a, labels: {x: "1"}}
    spec:
      selector: {matchLabels: {name: a}}
      template: {metadata: {labels: {name: a}}, spec: {containers: []}}
    """
    item = yaml.safe_load(text)
    before = yaml.safe_load(text)
    marked = labelled(item, {"owner": "me"}, {"main": "true"})
    assert item == before
    assert marked["metadata"]["labels"] == {"x": "1", "owner": "me"}
    assert marked["spec"]["template"]["metadata"]["labels"] == {"name": "a", "owner": "me", "main": "true"}
    assert marked["spec"]["selector"] == {"matchLabels": {"name": "a"}}


@pytest.mark.parametrize("spec", [None, {}, {"template": None}, []])
def test_labels_on_odd_objects(spec: object):
    item = {"kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}
    assert labelled(item, {"owner": "me"})["metadata"]["labels"] == {"owner": "me"}
