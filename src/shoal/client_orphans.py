"""The part of the client that finds, takes back and ends orphans."""

from __future__ import annotations

from shoal.client_http import HttpClient, Json, quoted


class OrphanCalls(HttpClient):
    """A part of `Client`."""

    def orphans(self) -> list[Json]:
        """Engines that run and that no controller has, as Orphan."""
        return list(self._json("GET", "/orphans")["orphans"])

    def adopt_orphan(self, orphan: str) -> Json:
        """Take one back, by its instance's id or its pid; the instance, as InstanceView."""
        return self._json("POST", f"/orphans/{quoted(orphan)}/adopt", body={})

    def end_orphan(self, orphan: str, *, force: bool = False) -> Json:
        """Have one end; as it was, as Orphan."""
        params = {"force": "true"} if force else None
        return self._json("POST", f"/orphans/{quoted(orphan)}/end", body={}, params=params)
