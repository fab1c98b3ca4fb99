"""The docker engine."""

from __future__ import annotations

import pytest

from tests.engines.conformance import Conformance, EngineTests, Failures

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


class Docker(EngineTests):
    engine = "docker"
    refused = frozenset({"subpath"})  # by Docker Engine before 26


class TestConformance(Docker, Conformance):
    pass


class TestFailures(Docker, Failures):
    pass
