"""Imports run down only: what each module of the package may know of the others."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import jhlauncher

PACKAGE = Path(jhlauncher.__file__).parent

# from the ground up: a module imports what stands on lines above its own
LINES = """
_version environment errors sse bell turnstile ports usernames queue
tables migrations migrations.env migrations.versions
migrations.versions.0001_launches migrations.versions.0002_manager migrations.versions.0003_classes
migrations.versions.0004_people migrations.versions.0005_userjobs
reflectors apiserver
models database transport
records signing failures roster
queries rules hub metrics audit register mailer
store policy progress
batches replicas starting
feed access stopping reconciler hub_users invitations
news activity
outage planning
lifecycle launcher people
classes worker
parts
handlers.streams handlers.views handlers.sessions
handlers.serving
handlers.base
handlers.callers
handlers.launches handlers.containers handlers.health handlers.metrics handlers.ended
handlers.batches handlers.users
handlers.openapi
handlers.describe handlers.pages
handlers
service
userjobs userjobs.errors
userjobs.systems
userjobs.requests userjobs.gateway
userjobs.jobs userjobs.local userjobs.ssh
userjobs.rows userjobs.commands userjobs.slurmrestd
userjobs.forwards userjobs.watching
userjobs.exposing userjobs.views
userjobs.connecting userjobs.reaching
userjobs.userjobs
userjobs.handlers userjobs.parts
userjobs.openapi
manager manager.errors manager.files
manager.rendering
manager.log_settings manager.service_secrets manager.status
manager.cluster manager.descriptions manager.homes manager.reports manager.rows manager.credentials manager.tunnels
manager.logs manager.settings
manager.watching manager.forwarded
manager.services
manager.reaper manager.requests
manager.parts
manager.handlers
client.views client.settings
client.connection
client.userjobs
client.client
client.blocking
client
cli cli.names
cli.parser cli.output
cli.common
cli.people cli.jobs
cli.classes
cli.commands
app manager.app demo
upgrade __main__
"""
# for those who run it, of both sides
OPERATIONS = """
operations operations.findings operations.probing
operations.found
operations.on_docker operations.on_kubernetes operations.on_local operations.on_systems
operations.hub_config operations.service_side
operations.hub_side operations.orphans
operations.commands
operations.volumes
"""
# what runs inside the Hub
SIDE = """
engines steps engines.disks engines.docker_events engines.fresh_volumes engines.pulling
spawner engines.pods
engines.docker engines.kubernetes engines.local
engines.swarm
passwords
authenticators
install
__init__
"""
# both know these
GROUND = LINES[: LINES.index("queries")].split()


def numbered(lines: str) -> dict[str, int]:
    return {name: number for number, line in enumerate(lines.splitlines()) for name in line.split()}


HOUSE, BESIDE, OPERATED = numbered(LINES), numbered(SIDE), numbered(OPERATIONS)


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


def test_every_module_has_its_place():
    assert modules().keys() == HOUSE.keys() | BESIDE.keys() | OPERATED.keys()


@pytest.mark.parametrize("name", HOUSE)
def test_imports_run_down(name: str):
    for imported in imports(name, modules()[name]):
        assert HOUSE.get(imported, math.inf) < HOUSE[name], f"{name} imports {imported}"


@pytest.mark.parametrize("name", BESIDE)
def test_the_hubs_side_sees_only_the_ground_and_itself(name: str):
    for imported in imports(name, modules()[name]) - set(GROUND):
        assert BESIDE.get(imported, math.inf) < BESIDE[name], f"{name} imports {imported}"


@pytest.mark.parametrize("name", OPERATED)
def test_operations_see_both_sides_and_nobody_sees_them(name: str):
    for imported in imports(name, modules()[name]) - HOUSE.keys() - BESIDE.keys():
        assert OPERATED.get(imported, math.inf) < OPERATED[name], f"{name} imports {imported}"
