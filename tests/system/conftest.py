"""Fixtures: a running Shoal with the simulated engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.harness import Shoal, a_shoal


@pytest.fixture
def shoal() -> Iterator[Shoal]:
    """A running Shoal of the test's own."""
    with a_shoal() as shoal:
        yield shoal.start()
