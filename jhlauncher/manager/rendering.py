"""From a description's text to the objects that it stands for: pure functions.

The text is parsed first, and keywords are replaced in each scalar of what was parsed. So no value can become more than
the scalar that it stands in, whatever characters it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from .errors import BadDescription

Json = dict[str, Any]
Replace = tuple["re.Pattern[str]", Mapping[str, "Value"]]

_WITH_TEMPLATE = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "ReplicationController")
_MAIN = ("Deployment", "StatefulSet")
"""Kinds that the main object of a description may have."""


class Value(NamedTuple):
    """What a keyword stands for."""

    text: str
    typed: bool = False
    """In a plain scalar of its own, ``2`` is a number and ``true`` a boolean: as if the text had been there."""


class Ref(NamedTuple):
    """Which object: what is kept to find it again."""

    api_version: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Rendered(NamedTuple):
    """The objects of one service."""

    objects: list[Json]
    """Of ``service.yaml``, in the order of the file."""
    update: list[Json]
    """Of ``update.yaml``."""
    main: Ref
    """The object whose pod is the service."""


def replacement(values: Mapping[str, Value], indicators: tuple[str, str]) -> Replace:
    """What `load` replaces; a keyword that is not among the ``values`` stays as it is."""
    before, after = map(re.escape, indicators)
    keywords = "|".join(re.escape(keyword) for keyword in sorted(values, key=len, reverse=True))
    return re.compile(f"{before}({keywords}){after}"), values


def load(text: str, replace: Replace, where: str) -> list[Json]:
    """The documents of a YAML text, with keywords replaced.

    Raises:
        BadDescription: it is not YAML, or a document is not an object of Kubernetes'.

    """
    loader = _Loader(text, replace)
    documents: list[Any] = []
    try:
        while loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadDescription(f"{where} is not valid YAML: {_problem(error)}") from error
    finally:
        loader.dispose()
    return [item for document in documents if document is not None for item in _unfolded(document, where)]


def _problem(error: Exception) -> str:
    """What is wrong, and where."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}"


class _Loader(yaml.SafeLoader):
    """Replaces keywords in scalars, keys among them."""

    def __init__(self, text: str, replace: Replace) -> None:
        super().__init__(text)
        self._pattern, self._values = replace

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        found = [self._values[keyword] for keyword in self._pattern.findall(node.value)]
        if found:
            node.value = self._pattern.sub(lambda match: self._values[match[1]].text, node.value)
            if node.style is None and all(value.typed for value in found):
                node.tag = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        return node


def _unfolded(document: Any, where: str) -> Iterator[Json]:
    """The object, or those that a ``List`` has."""
    if not isinstance(document, dict):
        raise BadDescription(f"{where}: a document is not a mapping")
    if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _unfolded(item, where)
        return
    metadata = document.get("metadata")
    for holder, key in ((document, "apiVersion"), (document, "kind"), (metadata, "name")):
        if not isinstance(holder, dict) or not isinstance(holder.get(key), str) or not holder[key]:
            raise BadDescription(f"{where}: an object has no {key}")
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        what = ref_of(document)
        raise BadDescription(f"{where}: {what} has a value that JSON does not know, perhaps a date: {error}") from error
    yield document


def ref_of(item: Json) -> Ref:
    """Which object it is."""
    return Ref(item["apiVersion"], item["kind"], item["metadata"]["name"])


def check(objects: list[Json], update: list[Json], *, namespace: str, main_name: str, container: str) -> Rendered:
    """The objects of a service, if they can be one.

    Args:
        objects: of ``service.yaml``.
        update: of ``update.yaml``.
        namespace: where they are to be.
        main_name: of the object whose pod is the service.
        container: the name of the container that is looked at.

    Raises:
        BadDescription: they can't.

    """
    for item in [*objects, *update]:
        elsewhere = item["metadata"].get("namespace") or namespace
        if elsewhere != namespace:
            raise BadDescription(f"{ref_of(item)} is to be in the namespace {elsewhere}; here, it must be {namespace}")
    refs = [ref_of(item) for item in objects]
    for ref in refs:
        if refs.count(ref) > 1:
            raise BadDescription(f"{ref} is there twice")
    main = [item for item in objects if item["kind"] in _MAIN and item["metadata"]["name"] == main_name]
    if not main:
        there = ", ".join(map(str, refs)) or "nothing"
        raise BadDescription(f"there is no {' or '.join(_MAIN)} with the name {main_name}; there is: {there}")
    if container not in _containers(main[0]):
        there = ", ".join(map(str, _containers(main[0]))) or "none"
        raise BadDescription(f"{ref_of(main[0])} has no container with the name {container}; there is: {there}")
    return Rendered(objects, update, ref_of(main[0]))


def _containers(item: Json) -> list[Any]:
    try:
        return [container["name"] for container in item["spec"]["template"]["spec"]["containers"]]
    except (TypeError, LookupError):
        return []


def labelled(item: Json, labels: Mapping[str, str], pod_labels: Mapping[str, str] | None = None) -> Json:
    """The object with labels, on it and on the pods that it makes; what it selects stays as it was written.

    Args:
        item: the object, which is not changed.
        labels: for it and its pods.
        pod_labels: for its pods only.

    """
    marked = _with_labels(item, labels)
    spec = item.get("spec")
    if item["kind"] in _WITH_TEMPLATE and isinstance(spec, dict) and isinstance(spec.get("template"), dict):
        marked["spec"] = {**spec, "template": _with_labels(spec["template"], {**labels, **(pod_labels or {})})}
    return marked


def _with_labels(item: Json, labels: Mapping[str, str]) -> Json:
    metadata = item.get("metadata") or {}
    return {**item, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), **labels}}}


def refs_of(rendered: Rendered, secrets: Iterable[Json]) -> list[Ref]:
    """Which objects a service has, in the order in which they are removed: its secrets last."""
    return list(dict.fromkeys(ref_of(item) for item in [*rendered.objects, *rendered.update, *secrets]))
