"""Which web pages may call the inference paths from a browser (Fetch standard, CORS protocol). Pure."""

from __future__ import annotations

from typing import Any

from shoal.errors import error_body

_EXPOSED = "x-request-id, request-id, x-shoal-queue-ms, x-shoal-wake-ms, x-shoal-overhead-us, retry-after"
_DAY = "86400"


class Cors:
    """The rule for origins; none are allowed unless named, `*` names all."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.encode("latin-1", "replace") for origin in origins)

    def headers(self, origin: bytes) -> dict[str, str]:
        """What an answer to a page of `origin` needs so that the page may read it."""
        if not self._all and origin not in self._origins:
            return {}
        allowed = "*" if self._all else origin.decode("latin-1")
        return {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}

    def preflight(self, origin: bytes) -> tuple[int, dict[str, Any] | None, dict[str, str]]:
        """Status, body and headers that answer the question whether a page of `origin` may send a request."""
        headers = self.headers(origin)
        if not headers:
            message = (
                "Web pages of this origin may not call this Shoal; whoever runs it can allow it with `cors_origins`."
            )
            return 403, error_body(message, status=403, code="origin_not_allowed"), {}
        return (
            204,
            None,
            {
                **headers,
                "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
                "Access-Control-Allow-Headers": "*, authorization",
                "Access-Control-Max-Age": _DAY,
            },
        )
