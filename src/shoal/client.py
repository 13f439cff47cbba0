"""A thin client of the admin API. Answers are the API's own JSON objects, as plain dictionaries.

Every refusal is raised as `ShoalError` with the status, code and message that Shoal sent; where nothing answers,
`UnreachableError` says what to do. A client may be used from one thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError

Json = dict[str, Any]
_API = "/api/v1"
_MAX_EVENT = 64 * 2**20
"""Bytes of one event; the snapshot of a large fleet is the largest."""


class UnreachableError(ShoalError):
    """Shoal does not answer at the address in use, or something else does."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="unreachable")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: its kind, its JSON data, and the id to resume after."""

    kind: str
    data: Json
    id: str = ""
