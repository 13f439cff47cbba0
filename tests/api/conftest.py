"""What tests of the admin API share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.guarded import Admin


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    made = Admin()
    yield made
    made.sign_in.close()
