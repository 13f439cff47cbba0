"""How an inference request is to be treated, as its head says; worked out once for each kind of head. Pure."""

from __future__ import annotations

import re

import msgspec

from shoal.gateway.forms import is_form
from shoal.gateway.http1 import RequestHead
from shoal.gateway.inspect import MODEL_HEADER
from shoal.gateway.keyring import token_of
from shoal.messages import PRIORITIES, Priority

KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})
ANTHROPICS_ID_HEADER = frozenset({b"request-id"})
"""What clients of Anthropic's API know the id by, in answers."""
REQUEST_ID_HEADER = frozenset({b"x-request-id"})
_EXPECT = frozenset({b"expect"})
DROPPED = (
    (_EXPECT, _EXPECT | REQUEST_ID_HEADER),
    (_EXPECT | KEY_HEADERS, _EXPECT | KEY_HEADERS | REQUEST_ID_HEADER),
)
"""Request headers that do not travel on, by whether a key is among them and whether another id stands in."""
_MODEL_HEADER = MODEL_HEADER.encode()
_SECRET = b"sk-shoal-"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_CLASSES: dict[bytes, Priority] = {priority.encode(): priority for priority in PRIORITIES}


class Manner(msgspec.Struct, frozen=True):
    """`priority`: the class that the header asks for. `patient`: it may be held. `id`: the client's own, if it can be
    used; `has_id`: it gave one. `secret`: one of Shoal's keys is in it, needed or not. `json`: the body is JSON, or
    nothing says otherwise. `form`: it is a form that can be read while it comes. `comments`:
    while it is held, it is to be told so. `token`: the API key that it presents. `readable`: its body is not
    compressed."""

    content_type: str
    content_encoding: str
    model: str | None
    priority: Priority | None
    patient: bool
    id: str | None
    has_id: bool
    secret: bool
    websocket: bool
    origin: bytes | None
    form: bool
    comments: bool
    token: bytes | None
    readable: bool


def manner_of(head: RequestHead) -> Manner:
    """The manner of a request with this head."""
    manner = head.shared.manner
    if manner is None:
        fields = head.fields
        model = fields.get(_MODEL_HEADER)
        id = fields.get(b"x-request-id")
        content_type = fields.get(b"content-type", b"").decode("latin-1")
        content_encoding = fields.get(b"content-encoding", b"").decode("latin-1")
        readable = content_encoding.strip().lower() in ("", "identity")
        manner = head.shared.manner = Manner(
            content_type=content_type,
            content_encoding=content_encoding,
            model=None if model is None else model.decode("utf-8", "replace"),
            priority=_CLASSES.get(fields.get(b"x-shoal-priority", b"").lower()),
            patient=fields.get(b"x-shoal-hold", b"").lower() != b"off",
            id=id.decode("ascii") if id is not None and _REQUEST_ID.fullmatch(id) else None,
            has_id=id is not None,
            secret=any(_SECRET in fields.get(name, b"") for name in KEY_HEADERS),
            # Other protocols are ignored, as a server may (RFC 9110, section 7.8).
            websocket=head.upgrade and fields.get(b"upgrade", b"").lower() == b"websocket",
            origin=fields.get(b"origin"),
            comments=head.method == b"POST" and fields.get(b"x-shoal-hold", b"").lower() == b"comments",
            form=is_form(content_type) and readable,
            readable=readable,
            token=token_of(fields.get(b"authorization"), fields.get(b"x-api-key")),
        )
    assert isinstance(manner, Manner)
    return manner
