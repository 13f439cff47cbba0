"""One error type and one JSON shape for everything that Shoal refuses.

The shape is OpenAI's, ``{"error": {"message", "type", "code", "param"}}``: inference clients already know how to
show it. Only on the paths of Anthropic's Messages API it is Anthropic's, which its clients know. The message says what
is wrong and what to do next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ShoalError(Exception):
    """Something that was asked for cannot be done, and why.

    ``status`` is the HTTP status that fits, ``code`` a stable word for programs, ``param`` the field at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body that tells a client about this error."""
        return error_body(self.message, status=self.status, code=self.code, param=self.param)


def error_body(message: str, *, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape; ``type`` follows from the status as OpenAI's own service does it."""
    return {"error": {"message": message, "type": error_type(status), "code": code, "param": param}}


def error_type(status: int) -> str:
    """OpenAI's coarse error type for an HTTP status."""
    return {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        429: "rate_limit_error",
    }.get(status, "invalid_request_error" if status < 500 else "server_error")


def anthropic_body(message: str, *, status: int, code: str) -> dict[str, Any]:
    """Anthropic's error shape; Shoal's code is where its clients look for one."""
    kind = {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}.get(status) or error_type(status)
    kind = "api_error" if kind == "server_error" else kind
    return {"type": "error", "error": {"type": kind, "message": message, "details": {"error_code": code}}}


def told_on(path: str, error: ShoalError) -> dict[str, Any]:
    """The JSON body that tells clients of `path` about an error, in the shape that they know."""
    if is_anthropics(path):
        return anthropic_body(error.message, status=error.status, code=error.code)
    return error.body()


def told_in_stream(path: str, error: ShoalError) -> bytes:
    """The server-sent event that ends a stream of `path` with an error."""
    data = json.dumps(told_on(path, error), ensure_ascii=False, separators=(",", ":"))
    return error_event(path, data.encode("utf-8", "replace"))


def error_event(path: str, data: bytes) -> bytes:
    """A server-sent event of an error body, which is one line.

    Anthropic's clients pass over events without a name; OpenAI's look at the data alone.
    """
    return b"%bdata: %b\n\n" % (b"event: error\n" if is_anthropics(path) else b"", data)


def is_anthropics(path: str) -> bool:
    """Whether a path (without its query) is one of Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


class NotFoundError(ShoalError):
    """There is no such model, instance, device or path."""

    def __init__(self, message: str, *, code: str = "not_found", param: str | None = None) -> None:
        super().__init__(message, status=404, code=code, param=param)


class ConflictError(ShoalError):
    """The present state forbids it."""

    def __init__(self, message: str, *, code: str = "conflict", param: str | None = None) -> None:
        super().__init__(message, status=409, code=code, param=param)
