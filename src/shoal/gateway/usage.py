"""Tokens as engines count them: read from answers, asked for in requests, and taken out again. Pure.

Reading never fails: an answer without numbers that make sense has no usage. OpenAI's chat and completions streams tell
their usage only if the request asks, in one more chunk at the end; `with_usage` asks for clients that do not, and
`UsageStripper` keeps that chunk from them.
"""

from __future__ import annotations

import json
import re
from typing import Annotated

import msgspec

from shoal.errors import ShoalError
from shoal.gateway.bodies import ABSENT, fields_of, without_bom

MAX_WHOLE = 256 * 1024
"""Bytes of an answer that is parsed whole; of a longer one only the end is read."""
TAIL = 16 * 1024
MAX_EVENT = 1024 * 1024
"""Bytes of an event that is held back until it is whole; a longer one passes as it comes."""
_MAX_TRIES = 16
_USAGE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_KEY = b'"usage"'
_OBJECT = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
_EVENT_END = re.compile(rb"\n\r?\n")
_EVENT_ENDS = (b"\n\n", b"\n\r\n")
_ASK = b',"stream_options":{"include_usage":true}}'
_TRUE = msgspec.Raw(b"true")
_NO_CHOICES = ([b"[]"], [b"[", b"]"])
_SCAN = json.JSONDecoder()


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a request and of its answer."""

    prompt: int
    completion: int


class _Usage(msgspec.Struct, gc=False):
    """The names that OpenAI and Anthropic have for them."""

    prompt_tokens: msgspec.Raw = ABSENT
    completion_tokens: msgspec.Raw = ABSENT
    input_tokens: msgspec.Raw = ABSENT
    output_tokens: msgspec.Raw = ABSENT
    total_tokens: msgspec.Raw = ABSENT


class _Answer(msgspec.Struct, gc=False):
    """An answer or a chunk of one; Anthropic's first event has it in `message`, OpenAI's last one of the Responses API
    in `response`."""

    usage: msgspec.Raw = ABSENT
    choices: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT


_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**15)]


class _UsualUsage(msgspec.Struct, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count


class _Usual(msgspec.Struct, gc=False):
    """An answer of OpenAI's kind in which all is as it should be, as in nearly all: read without a second look."""

    usage: _UsualUsage


class _Request(msgspec.Struct, gc=False):
    stream: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT


class _Options(msgspec.Struct, gc=False):
    include_usage: msgspec.Raw = ABSENT


_USUAL = msgspec.json.Decoder(_Usual)
_USAGE = msgspec.json.Decoder(_Usage)
_ANSWER = msgspec.json.Decoder(_Answer)
_REQUEST = msgspec.json.Decoder(_Request)
_OPTIONS = msgspec.json.Decoder(_Options)
_Pair = tuple[int | None, int | None]


# -- whole answers -----------------------------------------------------------------------------------------------------


def usage_of_json(body: bytes | bytearray) -> Tokens | None:
    """The usage in an answer that is JSON, of any length."""
    if len(body) > MAX_WHOLE:
        return usage_of_tail(body[-TAIL:])
    try:
        counts = _USUAL.decode(body).usage
    except (ValueError, RecursionError):
        pass
    else:
        return Tokens(counts.prompt_tokens, counts.completion_tokens)
    try:
        usage = _ANSWER.decode(body).usage
    except (ValueError, RecursionError):
        return None
    return _tokens(_pair(usage))


def usage_of_tail(tail: bytes | bytearray) -> Tokens | None:
    r"""The usage in an answer of which `tail` is the end; None if it is not in there.

    The bytes `"usage"` can only be a string of their own, never part of a longer one: inside a string every quote is
    escaped, so that a text about usage has `\"usage\"` in it, where a backslash stands between `usage` and the quote.
    So the last `"usage"` that a colon and an object with counts follow is the answer's, though the tail begins
    anywhere. (Its own `"usage"` comes after the tools and metadata that an answer may repeat from the request.)
    """
    return _tokens(_pair_of_tail(tail))


def _pair_of_tail(tail: bytes | bytearray) -> _Pair | None:
    for match in list(_OBJECT.finditer(tail))[: -_MAX_TRIES - 1 : -1]:
        try:
            found, _ = _SCAN.raw_decode(tail[match.end() :].decode("utf-8", "replace"))
            pair = _pair(msgspec.json.encode(found))
        except (ValueError, RecursionError, OverflowError):
            continue
        if pair is not None:
            return pair
    return None


def _pair(usage: msgspec.Raw | bytes) -> _Pair | None:
    """Tokens of prompt and completion, as far as they are given; None if neither is."""
    try:
        said = _USAGE.decode(usage)
    except (ValueError, RecursionError):
        return None
    prompt, completion = _count(said.prompt_tokens), _count(said.completion_tokens)
    if prompt is None:
        prompt = _count(said.input_tokens)
    if completion is None:
        completion = _count(said.output_tokens)
    if prompt is None and completion is None:
        prompt = _count(said.total_tokens)  # of rerankers, which complete nothing
        if prompt is None:
            return None
    return prompt, completion


def _count(raw: msgspec.Raw) -> int | None:
    text = bytes(raw) if len(raw) <= 15 else b""
    return int(text) if text.isdigit() else None


def _tokens(pair: _Pair | None) -> Tokens | None:
    return None if pair is None else Tokens(pair[0] or 0, pair[1] or 0)


def tells_usage(part: bytes) -> bool:
    """Whether there may be usage in a part of an answer. Some engines have `"usage":null` everywhere."""
    return part.find(_KEY) >= 0 and _OBJECT.search(part) is not None  # `in` is slower: it first tries an int


# -- streams -----------------------------------------------------------------------------------------------------------


class SseReader:
    """Reads the usage in a stream of server-sent events that comes in pieces of any size.

    Where it is cut makes no difference. Events end with an empty line, LF or CRLF. A piece that ends with an event and
    has no usage in it, as nearly all do, costs a search for that word.
    """

    strips = False
    """Whether chunks that only tell usage are taken out."""

    def __init__(self) -> None:
        self.tokens: Tokens | None = None
        """The last counts that the stream gave."""
        self.events = 0
        """`data:` lines of the events that are whole: about as many as tokens have come."""
        self._held = bytearray()
        """The event that is not whole yet; of one that is too long, its end."""
        self._passing = False
        """Whether the event that is not whole yet is too long to be held back."""

    @property
    def between(self) -> bool:
        """Whether all events so far are whole, and have been passed on."""
        return not (self._held or self._passing)

    def feed(self, payload: bytes) -> bytes:
        """Read on; returns what goes on to the client: all of `payload`, unless it `strips`."""
        if (
            not self._held and payload.endswith(_EVENT_ENDS) and len(payload) <= MAX_EVENT and not tells_usage(payload)
        ):  # whole events without usage, as nearly all are: they are counted, and need no further look
            self.events += payload.count(b"\ndata:") + payload.startswith(b"data:")
            return payload
        left = self._read(payload)
        return left if self.strips else payload

    def end(self) -> bytes:
        """The stream is over; returns what was held back of an event that did not end, if it `strips`."""
        held, self._held = bytes(self._held), bytearray()
        if self._passing:
            self._passing = False
            self._read_long(held)
            return b""
        left = self._left(held)
        return left if self.strips else b""

    def _read(self, payload: bytes) -> bytes:
        """Read on, and return what is left if chunks that only tell usage are taken out and part of an event is held
        back."""
        held, out = self._held, []
        seen = len(held)
        held += payload
        start = 0
        search = max(0, seen - 2)  # all but the last byte of an event's end may have come before
        while (match := _EVENT_END.search(held, search)) is not None:
            end = search = match.end()
            if self._passing:
                out.append(bytes(held[seen:end]))
                self._read_long(bytes(held[max(0, end - TAIL) : end]))
                self._passing = False
            else:
                out.append(self._left(bytes(held[start:end])))
            start = end
        del held[:start]
        if self._passing:
            out.append(payload)
        elif len(held) > MAX_EVENT:
            self._passing = True
            out.append(bytes(held))
        if self._passing:
            del held[:-TAIL]
        return b"".join(out)

    def _left(self, event: bytes) -> bytes:
        """Read an event, and return it, or if it only tells usage the empty lines before it."""
        if len(event) > MAX_EVENT:
            self._read_long(event[-TAIL:])
            return event
        self.events += event.count(b"\ndata:") + event.startswith(b"data:")
        if _KEY in event and self._read_usage(event):
            return event[: len(event) - len(event.lstrip(b"\r\n"))]
        return event

    def _read_usage(self, event: bytes) -> bool:
        """Take the counts of an event; says whether it is one of OpenAI's chunks that have nothing else."""
        data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
        try:
            chunk = _ANSWER.decode(data)
            for holder in (chunk.message, chunk.response):
                if bytes(holder)[:1] == b"{":
                    self._take(_pair(_ANSWER.decode(holder).usage))
        except (ValueError, RecursionError):
            return False
        pair = None if chunk.usage is ABSENT else _pair(chunk.usage)
        self._take(pair)
        return pair is not None and len(chunk.choices) <= 16 and bytes(chunk.choices).split() in _NO_CHOICES

    def _read_long(self, tail: bytes) -> None:
        self.events += 1
        self._take(_pair_of_tail(tail))

    def _take(self, pair: _Pair | None) -> None:
        """The last counts are the right ones; Anthropic gives the prompt's at the start, and 0 or nothing later."""
        if pair is None:
            return
        prompt, completion = pair
        before = self.tokens or Tokens(0, 0)
        self.tokens = Tokens(prompt or before.prompt, before.completion if completion is None else completion)


class UsageStripper(SseReader):
    """An `SseReader` for a stream whose usage the relay asked for and the client did not.

    Everything goes on byte for byte, but a chunk with usage and without choices. An event that is not whole is held
    back, up to `MAX_EVENT` bytes; a longer one passes as it comes.
    """

    strips = True


# -- requests ----------------------------------------------------------------------------------------------------------


def counts_usage(path: str) -> bool:
    """Whether streams of a path tell their usage only if asked with `stream_options`."""
    return path in _USAGE_PATHS


def asks_usage(options: msgspec.Raw | bytes) -> bool:
    """Whether `stream_options` ask for usage, or for something there that only the engine can judge."""
    try:
        asked = bytes(_OPTIONS.decode(options).include_usage)
    except (ValueError, RecursionError):
        return False
    return asked not in (b"", b"null", b"false")


def ask_for_usage(body: bytes | bytearray) -> bytes | bytearray:
    """A request that is known to stream, and to have no `stream_options`, so that it asks for usage. A `bytearray`, as
    large ones are, is changed in place."""
    if isinstance(body, bytes):
        return body.rstrip()[:-1] + _ASK
    end = len(body)
    while body[end - 1] in b" \t\r\n":
        end -= 1
    del body[end - 1 :]
    body += _ASK
    return body


def with_usage(body: bytes | bytearray) -> bytes | bytearray:
    """A request for a path of `counts_usage` that asks for usage; the very same object if nothing is to be added.

    It is the same if it does not stream, if it asks already, or if it cannot be read: counting never refuses a
    request. All bytes stay but for a closing brace, where the request has no `stream_options`; else only those of
    the fields' values do.
    """
    plain = without_bom(body)
    try:
        request = _REQUEST.decode(plain)
        if request.stream is ABSENT or bytes(request.stream) != b"true":
            return body
        if request.stream_options is ABSENT:
            return bytes(plain.rstrip()[:-1]) + _ASK
        if asks_usage(request.stream_options):
            return body
        options = options_with_usage(bytes(request.stream_options))
        fields = fields_of(plain)
    except (ValueError, RecursionError, ShoalError):
        return body
    fields["stream_options"] = msgspec.Raw(options)
    return msgspec.json.encode(fields)


def options_with_usage(options: bytes) -> bytes:
    """`stream_options` that ask for usage, and for what these ask besides. Raises ShoalError if they are no object."""
    fields = {} if options == b"null" else fields_of(options)
    # Without effect so far; with usage on, it would put counts into every chunk.
    fields.pop("continuous_usage_stats", None)
    fields["include_usage"] = _TRUE
    return msgspec.json.encode(fields)
