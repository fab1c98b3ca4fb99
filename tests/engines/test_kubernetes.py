"""The kubernetes engine."""

from __future__ import annotations

import pytest

from tests.engines.conformance import Conformance, EngineTests, Failures

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]


class Kubernetes(EngineTests):
    engine = "kubernetes"


class TestConformance(Kubernetes, Conformance):
    pass


class TestFailures(Kubernetes, Failures):
    pass
