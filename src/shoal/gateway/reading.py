"""What is learnt from a response while it passes: tokens used and tokens so far. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from shoal.gateway.http1 import ResponseHead
from shoal.gateway.usage import MAX_WHOLE, TAIL, SseReader, Tokens, UsageStripper, usage_of_json, usage_of_tail


class Reader:
    """Looks at a body as it comes. `events` is the reader of an event stream, None for another body. `feed` looks at
    a part, and returns what goes on to the client."""

    __slots__ = ("_kept", "_long", "events", "feed")

    def __init__(self, events: SseReader | None) -> None:
        self.events = events
        self.feed: Callable[[bytes], bytes] = self._keep if events is None else events.feed
        self._kept: bytes | bytearray = b""
        self._long = False

    def _keep(self, content: bytes) -> bytes:
        if not self._kept:
            self._kept = content
        elif isinstance(self._kept, bytearray):
            self._kept += content
        else:
            self._kept = bytearray(self._kept) + content
        if len(self._kept) > MAX_WHOLE:
            self._long = True
            self._kept = bytearray(self._kept[-TAIL:])
        return content

    def end(self) -> bytes:
        """The body is over; returns what was held back."""
        return b"" if self.events is None else self.events.end()

    @property
    def tokens(self) -> Tokens | None:
        """What the engine says was used."""
        if self.events is not None:
            return self.events.tokens
        return usage_of_tail(self._kept) if self._long else usage_of_json(self._kept)


def kind_of(response: ResponseHead) -> Literal["json", "events", "other"]:
    """What a response's body is, as far as anything can be learnt of it. Worked out once for each kind of head."""
    shared = response.shared
    if shared.manner is None:
        fields = response.fields
        shared.manner = "other"
        if response.status < 300 and fields.get(b"content-encoding", b"identity").lower() == b"identity":
            media = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
            shared.manner = {b"text/event-stream": "events", b"application/json": "json"}.get(media, "other")
    kind: Literal["json", "events", "other"] = shared.manner
    return kind


def reader_for(response: ResponseHead, strip: bool) -> Reader | None:
    """What reads a response's body, or None where nothing can be learnt. `strip`: usage was asked for by the relay
    alone, and is taken out of the stream again."""
    kind = kind_of(response)
    if kind == "events":
        return Reader(UsageStripper() if strip else SseReader())
    return Reader(None) if kind == "json" else None


def tokens_in(response: ResponseHead, content: bytes) -> Tokens | None:
    """The tokens that a whole answer says were used."""
    kind = response.shared.manner or kind_of(response)
    if kind == "json":
        return usage_of_json(content)
    if kind == "events":
        events = SseReader()
        events.feed(content)
        events.end()
        return events.tokens
    return None
