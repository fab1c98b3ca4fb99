"""The tests."""

import pytest

pytest.register_assert_rewrite("tests.engines.conformance", "tests.faults", "tests.real_hub")
