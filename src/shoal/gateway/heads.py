"""Message heads: what a relay must take out of them (RFC 9110, section 7.6.1), and targets. Pure.

Everything else stays as it came: names' case, order, duplicates, and bytes that are not UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from shoal.errors import ShoalError

RawHeaders = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_KEPT = frozenset({b"host", b"content-length", b"content-type", b"content-encoding", b"date"})
"""Headers that a peer cannot have removed by naming them in Connection: they are about the message itself."""

PEER_HEADER = b"x-shoal-peer"
"""Tells the controller whose request it is: an address, of the relay's own knowledge alone. What clients send under
this name does not travel on."""

SESSION_PATH = "/api/v1/session"
"""Where one signs in. Everybody may ask there, and so what is sent is small."""
MAX_SESSION_BODY = 16 * 1024

INFERENCE_PATHS = frozenset(
    {
        "/classify",
        "/detokenize",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/v2/embed",
        "/v2/rerank",
    }
)


def is_inference(path: str) -> bool:
    """Whether a path (without its query) belongs to the engines, and not to the controller."""
    return path.startswith("/v1/") or path in INFERENCE_PATHS


def body_limit(path: str, most: int) -> int:
    """Bytes that a request's body to the controller may have; `most`: elsewhere."""
    return min(most, MAX_SESSION_BODY) if path == SESSION_PATH else most


def origin_form(target: str) -> str:
    """Path and query of a request target, byte for byte; `http://host/path` becomes `/path`.

    Raises ShoalError 400 `invalid_target` for `*`, an authority, or bytes that cannot be passed on unchanged.
    """
    if target[:7].lower() == "http://" or target[:8].lower() == "https://":
        rest = target.partition("://")[2]
        cut = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        target = rest[cut:]
        if not target.startswith("/"):
            target = "/" + target
    if not target.startswith("/"):
        raise ShoalError("The request target has to be a path that begins with `/`.", code="invalid_target")
    try:
        target.encode()
    except UnicodeEncodeError:
        raise ShoalError(
            "The request target has bytes that are not UTF-8; percent-encode them.", code="invalid_target"
        ) from None
    return target


def path_of(target: str) -> str:
    """The path of a target, not decoded."""
    return target.partition("?")[0]


def model_in_path(path: str) -> str | None:
    """The model that `/v1/models/{id}` names, decoded, or None for another path."""
    prefix = "/v1/models/"
    return unquote(path[len(prefix) :]) if path.startswith(prefix) and len(path) > len(prefix) else None


def end_to_end(headers: RawHeaders, drop: Iterable[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The headers that travel on: without the hop-by-hop ones, those named in Connection, and `drop` (lower case)."""
    headers = list(headers)
    dropped = HOP_BY_HOP | set(drop)
    named = {
        word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")
    }
    dropped |= named - _KEPT
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def request_headers(headers: RawHeaders, body_length: int | None) -> list[tuple[str, str]]:
    """The headers of a forwarded request. `body_length` is None for a request without a body.

    A body that came chunked leaves with a Content-Length, because it was read whole. `Expect` has been answered.
    Raises ShoalError 400 `invalid_header` for a value that is not UTF-8: it could not be passed on unchanged.
    """
    kept = end_to_end(headers, drop=(b"expect",))
    if body_length is not None and not any(name.lower() == b"content-length" for name, _ in kept):
        kept.append((b"Content-Length", str(body_length).encode()))
    if not any(name.lower() == b"host" for name, _ in kept):
        kept.insert(0, (b"Host", b"localhost"))  # HTTP/1.0 clients may send none, HTTP/1.1 servers want one
    try:
        return [(name.decode("ascii"), value.decode()) for name, value in kept]
    except UnicodeDecodeError:
        raise ShoalError("A request header has bytes that are not UTF-8.", code="invalid_header") from None


def header(headers: RawHeaders, name: bytes) -> bytes | None:
    """The last value of the header `name` (lower case), or None."""
    found = None
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def head_bytes(status: int, reason: str, headers: RawHeaders) -> bytes:
    """A response head as it goes over the wire."""
    line = f"HTTP/1.1 {status} {reason}".encode("utf-8", "surrogateescape")
    return b"\r\n".join((line, *(name + b": " + value for name, value in headers), b"", b""))
