"""The part of the client that finds, takes back and ends orphans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

Json = dict[str, Any]


class Asking(Protocol):
    """What this part needs of the client."""

    def _json(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, params: Mapping[str, str] | None = None
    ) -> Json: ...


class OrphanCalls:
    """A part of `Client`."""

    def orphans(self: Asking) -> list[Json]:
        """Engines that run and that no controller has, as Orphan."""
        return list(self._json("GET", "/orphans")["orphans"])

    def adopt_orphan(self: Asking, orphan: str) -> Json:
        """Take one back, by its instance's id or its pid; the instance, as InstanceView."""
        return self._json("POST", f"/orphans/{quote(orphan, safe='')}/adopt", body={})

    def end_orphan(self: Asking, orphan: str, *, force: bool = False) -> Json:
        """Have one end; as it was, as Orphan."""
        params = {"force": "true"} if force else None
        return self._json("POST", f"/orphans/{quote(orphan, safe='')}/end", body={}, params=params)
