"""Imports run down only: what each module of the package may know of the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jhlauncher

PACKAGE = Path(jhlauncher.__file__).parent

# module -> its floor; a module may import those below it, and of its own floor only what MAY says
FLOORS = {
    "_version": 0,
    "environment": 0,
    "errors": 0,
    "sse": 0,
    "models": 0,
    "signing": 0,
    "bell": 0,
    "failures": 0,
    "ports": 0,
    "records": 0,
    "tables": 0,
    "migrations": 0,
    "migrations.env": 1,
    "migrations.versions": 0,
    "migrations.versions.0001_launches": 0,
    "database": 1,
    "queries": 1,
    "store": 1,
    "audit": 1,
    "metrics": 1,
    "transport": 1,
    "hub": 1,
    "rules": 1,
    "policy": 2,
    "progress": 2,
    "queue": 2,
    "feed": 3,
    "starting": 3,
    "stopping": 3,
    "worker": 3,
    "launcher": 3,
    "handlers.base": 4,
    "handlers.batches": 4,
    "handlers.containers": 4,
    "handlers.describe": 4,
    "handlers.openapi": 4,
    "handlers.ended": 4,
    "handlers.health": 4,
    "handlers.launches": 4,
    "handlers.metrics": 4,
    "handlers.streams": 4,
    "handlers.views": 4,
    "handlers": 4,
    "app": 5,
    "demo": 5,
    "upgrade": 6,
    "__main__": 6,
    "__init__": 6,
    # the side: runs inside the Hub
    "engines": 0,
    "steps": 1,
    "spawner": 1,
    "engines.local": 2,
    "engines.docker": 2,
    "engines.docker_events": 1,
    "engines.fresh_volumes": 1,
    "engines.pulling": 1,
    "engines.swarm": 3,
    "engines.kubernetes": 2,
    "engines.pods": 1,
    "engines.reflectors": 1,
    "install": 4,
}
MAY = {
    ("models", "errors"),
    ("signing", "models"),
    ("failures", "models"),
    ("hub", "transport"),
    ("records", "models"),
    ("store", "database"),
    ("store", "queries"),
    ("spawner", "steps"),
    ("launcher", "feed"),
    ("launcher", "starting"),
    ("launcher", "stopping"),
    ("launcher", "worker"),
    ("stopping", "starting"),
    ("worker", "feed"),
    ("worker", "starting"),
    ("worker", "stopping"),
    ("handlers.containers", "handlers.base"),
    ("handlers.health", "handlers.base"),
    ("handlers.base", "handlers.streams"),
    ("handlers.batches", "handlers.launches"),
    ("handlers.batches", "handlers.streams"),
    ("handlers.batches", "handlers.views"),
    ("handlers", "handlers.batches"),
    ("handlers.describe", "handlers.base"),
    ("handlers.describe", "handlers.openapi"),
    ("handlers.describe", "handlers.views"),
    ("handlers.openapi", "handlers.launches"),
    ("handlers.openapi", "handlers.views"),
    ("handlers", "handlers.describe"),
    ("handlers.ended", "handlers.base"),
    ("handlers.metrics", "handlers.base"),
    ("handlers", "handlers.metrics"),
    ("handlers", "handlers.ended"),
    ("handlers.containers", "handlers.streams"),
    ("handlers.launches", "handlers.base"),
    ("handlers.launches", "handlers.streams"),
    ("handlers.launches", "handlers.views"),
    ("handlers", "handlers.launches"),
    ("handlers", "handlers.containers"),
    ("handlers", "handlers.health"),
}


def modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        names[name.removesuffix(".__init__") if name != "__init__" else name] = path
    return names


def imports(name: str, path: Path) -> set[str]:
    """The modules of this package that a module imports, wherever in it."""
    package = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        module = ".".join([*base, *(node.module.split(".") if node.module else [])])
        found |= {module} if node.module else {".".join([*base, alias.name]) for alias in node.names}
    return found


def test_every_module_has_a_floor():
    assert modules().keys() == FLOORS.keys()


@pytest.mark.parametrize("name", FLOORS)
def test_imports_run_down(name: str):
    for imported in imports(name, modules()[name]):
        assert FLOORS[imported] < FLOORS[name] or (name, imported) in MAY, f"{name} imports {imported}"


def test_the_hubs_side_sees_only_the_floor_and_itself():
    side = {"spawner", "steps", "install"} | {name for name in FLOORS if name.partition(".")[0] == "engines"}
    for name in side:
        assert all(FLOORS[imported] == 0 or imported in side for imported in imports(name, modules()[name]))
