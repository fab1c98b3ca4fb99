"""``{http-api}``: every operation of the launcher's own ``openapi.json``, as Markdown, made at each build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from jhlauncher.handlers.openapi import document
from jhlauncher.userjobs.openapi import EXTENSION

Json = dict[str, Any]
Row = tuple[str | None, ...]
_NULL = {"type": "null"}
_DEEPEST = 2  # levels of objects in objects that a table unfolds


class Reference:
    """The document, in words."""

    def __init__(self, api: Json) -> None:
        self.api = api
        self.schemas = api["components"]["schemas"]

    def lines(self) -> Iterator[str]:
        """All of it."""
        for path, operations in self.api["paths"].items():
            for method, operation in operations.items():
                yield from self.operation(
                    method.upper(), path.removeprefix("/").replace("{id}", "ID").replace("{name}", "NAME"), operation
                )

    def operation(self, method: str, path: str, operation: Json) -> Iterator[str]:
        """One heading, and what belongs to it."""
        yield from (f"## {method} {path}", "", f"{operation['summary']}.", "")
        if operation.get("security") == []:
            yield from ("Open to all.", "")
        yield from _table("parameter | in | type | default | ", map(self.parameter, operation["parameters"]))
        if body := operation.get("requestBody"):
            schema = self.resolved(body["content"]["application/json"]["schema"])
            yield from _table("field of the body | type | default | ", self.fields(schema))
            yield from ("What the fields of a launch mean stands in [http.md](http.md#post-containers).", "")
        responses = sorted(operation["responses"].items())
        answers = [(f"`{status}`", self.bodies(response), response["description"]) for status, response in responses]
        yield from _table("status | body | ", answers)

    def parameter(self, parameter: Json) -> Row:
        """Its row."""
        schema = self.resolved(parameter["schema"])
        about = parameter.get("description") or schema.get("description")
        default = _default(schema, parameter.get("required", False))
        return f"`{parameter['name']}`", parameter["in"], self.type_of(schema), default, about

    def fields(self, schema: Json, prefix: str = "", depth: int = 0) -> Iterator[Row]:
        """A row for each field of an object, and those of the objects in it."""
        for name, kept in schema.get("properties", {}).items():
            field = self.resolved(kept)
            required = name in schema.get("required", [])
            yield f"`{prefix}{name}`", self.type_of(field), _default(field, required), field.get("description")
            inner, mark = (self.resolved(field["items"]), "[]") if "items" in field else (field, "")
            if depth < _DEEPEST:
                yield from self.fields(inner, f"{prefix}{name}{mark}.", depth + 1)

    def resolved(self, schema: Json) -> Json:
        """The schema itself for a reference to it, and the one thing that may be null for "this or null"."""
        if "$ref" in schema:
            named = self.schemas[schema["$ref"].rpartition("/")[2]]
            return self.resolved({**named, **{key: value for key, value in schema.items() if key != "$ref"}})
        others = [choice for choice in schema.get("anyOf", ()) if choice != _NULL]
        if len(others) == 1:
            return {**self.resolved(others[0]), **{key: value for key, value in schema.items() if key != "anyOf"}}
        return schema

    def type_of(self, schema: Json) -> str:
        """What a value is, with its bounds."""
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if choices := schema.get("anyOf"):
            kinds = (self.type_of(self.resolved(choice)) for choice in choices if choice != _NULL)
            return " or ".join(dict.fromkeys(kinds))
        kinds = schema.get("type", "any")
        kind = " or ".join(each for each in kinds if each != "null") if isinstance(kinds, list) else str(kinds)
        if "items" in schema:
            kind = f"list of {self.type_of(self.resolved(schema['items']))}"
        bounds = (
            ("exclusiveMinimum", "more than {}"), ("minimum", "at least {}"),
            ("maximum", "at most {}"), ("maxLength", "at most {} characters"),
            ("maxItems", "at most {}"), ("maxProperties", "at most {}"),
        )  # fmt: skip
        return ", ".join([kind, *(words.format(schema[key]) for key, words in bounds if key in schema)])

    def bodies(self, response: Json) -> str:
        """The media types of an answer, and the fields of its JSON."""
        return "<br>".join(self.body(media, kept["schema"]) for media, kept in response.get("content", {}).items())

    def body(self, media: str, schema: Json) -> str:
        """One media type, and the fields."""
        if media != "application/json":
            return f"`{media}`"
        alternatives = [self.resolved(choice) for choice in schema.get("anyOf", [schema])]
        if alternatives[0].get("title") == "ErrorView":
            return "[error](#errors)"
        named = [", ".join(f"`{name}`" for name in each.get("properties", {})) or "object" for each in alternatives]
        return "<br>or ".join(named)


def _default(schema: Json, required: bool) -> str:
    if required:
        return "required"
    default = schema.get("default")
    return f"`{default!r}`" if default not in (None, "") else ""


def _table(head: str, rows: Iterable[Row]) -> Iterator[str]:
    """A table without the columns that would be empty; nothing without rows."""
    cells = [[" ".join((cell or "").replace("|", "&#124;").split()) for cell in row] for row in rows]
    columns = [
        [title, *column]
        for title, column in zip(head.split(" | "), zip(*cells, strict=True), strict=False)
        if any(column)
    ]
    for number, row in enumerate(zip(*columns, strict=True)):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"| {' | '.join('---' for _ in row)} |"
    yield ""


class HttpApi(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        """Render it."""
        text = "\n".join(Reference(document("/services/launcher/", EXTENSION)).lines())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("http-api", HttpApi)
    return {"parallel_read_safe": True}
