"""The errors of the store."""

from __future__ import annotations

from shoal.errors import ShoalError


class StoreError(ShoalError):
    """The database cannot be used as it is; the message says what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="store_unavailable")
