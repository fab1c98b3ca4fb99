"""The swarm engine."""

from __future__ import annotations

import pytest

from tests.engines.conformance import Conformance, EngineTests, Failures

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


class Swarm(EngineTests):
    engine = "swarm"
    refused = frozenset({"subpath"})  # by Docker Engine before 26


class TestConformance(Swarm, Conformance):
    pass


class TestFailures(Swarm, Failures):
    pass
