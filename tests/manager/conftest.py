"""Fixtures of the manager's tests on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.hubs import missing
from tests.manager.support import Manager, Namespace


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A namespace of the module's own."""
    if missing("kubernetes"):
        pytest.skip(missing("kubernetes"))
    with Namespace(tmp_path_factory.mktemp("namespace")).there() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def manager(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager that runs."""
    manager = Manager(tmp_path_factory.mktemp("manager"), namespace, services={"env": {"CONFIGURED": "yes"}})
    with manager.running():
        yield manager


@pytest.fixture
def stopped(namespace: Namespace, tmp_path: Path) -> Iterator[Manager]:
    """A manager of the test's own that is yet to be started; it is ended."""
    manager = Manager(tmp_path, namespace)
    yield manager
    if hasattr(manager, "process") and manager.process.poll() is None:
        manager.end()
