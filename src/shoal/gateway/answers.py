"""What the relay says of its own to clients: whole answers, and refusals of those that are slow or too much. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from shoal.errors import ShoalError
from shoal.gateway.http1 import RequestHead


def too_large(limit: int) -> ShoalError:
    """The refusal of a body that is larger than `limit` bytes."""
    return ShoalError(
        f"The request body is larger than {limit} bytes; send less, or, but for signing in, raise the setting "
        "`max_body`.",
        status=413,
        code="body_too_large",
    )


def answer(
    status: int,
    body: dict[str, Any] | None,
    headers: dict[str, str] | None = None,
    request: RequestHead | None = None,
    *,
    close: bool = False,
) -> bytes:
    """A whole JSON response of the relay's own to `request`, or one without a body (204)."""
    content = b"" if body is None else msgspec.json.encode(body)
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    lines = [
        f"HTTP/1.1 {status} {reason}",
        *([] if body is None else ["Content-Type: application/json; charset=utf-8", f"Content-Length: {len(content)}"]),
        "Server: shoal",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    if close:
        lines.append("Connection: close")
    elif request is not None and not request.minor:
        lines.append("Connection: keep-alive")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head if request is not None and request.method == b"HEAD" else head + content


def body_late(seconds: float) -> ShoalError:
    """The refusal of a body that stands still."""
    return ShoalError(
        f"The request body stood still for {seconds:g} s; send it without pauses.", status=408, code="body_timeout"
    )


def head_late(seconds: float) -> ShoalError:
    """The refusal of a head that does not end."""
    return ShoalError(
        f"The request's headers did not arrive within {seconds:g} s; send them at once.",
        status=408,
        code="header_timeout",
    )


def too_many() -> ShoalError:
    """The refusal of a connection too many."""
    return ShoalError(
        "The relay has as many connections as it may; try again in a moment.",
        status=503,
        code="too_many_connections",
        headers={"Retry-After": "1"},
    )
