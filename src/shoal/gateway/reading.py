"""What is learnt from a response while it passes: tokens used and tokens so far. Pure."""

from __future__ import annotations

from shoal.gateway.http1 import ResponseHead
from shoal.gateway.usage import MAX_WHOLE, TAIL, SseReader, Tokens, UsageStripper, usage_of_json, usage_of_tail


class Reader:
    """Looks at a body as it comes. `events` is the reader of an event stream, None for another body."""

    __slots__ = ("_kept", "_long", "events")

    def __init__(self, events: SseReader | None) -> None:
        self.events = events
        self._kept: bytes | bytearray = b""
        self._long = False

    def feed(self, content: bytes) -> bytes:
        """Look at a part; returns what goes on to the client."""
        if self.events is not None:
            return self.events.feed(content)
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


def reader_for(response: ResponseHead, strip: bool) -> Reader | None:
    """What reads a response's body, or None where nothing can be learnt. `strip`: usage was asked for by the relay
    alone, and is taken out of the stream again."""
    fields = response.fields
    if response.status >= 300 or fields.get(b"content-encoding", b"identity").lower() != b"identity":
        return None
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == b"text/event-stream":
        return Reader(UsageStripper() if strip else SseReader())
    return Reader(None) if kind == b"application/json" else None
