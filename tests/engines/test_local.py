"""The local engine."""

from __future__ import annotations

import pytest

from tests.engines.conformance import Conformance, EngineTests, Failures
from tests.engines.hubs import EngineHub

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


class Local(EngineTests):
    engine = "local"
    refused = frozenset({"cpu", "memory", "gpu", "read_only"})

    def inside_home(self, hub: EngineHub) -> str:
        return "__import__('os').environ['HOME']"


class TestConformance(Local, Conformance):
    pass


class TestFailures(Local, Failures):
    async def test_missing_volume(self, hub: EngineHub, saw: object):
        pytest.skip("a folder that does not exist is made, unless create_volumes is off")
