"""Reading what the relay has to know of a request: which model it names, and how it is to be treated. Pure.

The body is looked at once and never changed. Only `model` has to be of the right type: whatever else is odd is for the
engine to refuse, in its own words, and counts here as not given. Of a field that a JSON object has twice the last
one counts, as in every JSON parser that engines use. A name may hold any character, NUL too; one that is not known
is answered 404. Nesting beyond some 1,000 levels is refused, as JSON parsers in Python do, and so is half a character
(a lone surrogate). A body that names no model may leave that to the query (`?model=`) or to the `x-shoal-model` header.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, NamedTuple
from urllib.parse import parse_qs

import msgspec

from shoal.errors import ShoalError
from shoal.gateway.bodies import ABSENT, refusal, without_bom
from shoal.gateway.forms import MAX_USER, FormReader, is_form
from shoal.gateway.usage import asks_usage, counts_usage
from shoal.messages import Priority

MODEL_HEADER = "x-shoal-model"
BYTES_A_TOKEN = 4
"""For estimates: about what English has in common vocabularies."""
TOKENS_UNSAID = 256
"""For estimates: what an answer has whose length the request does not limit."""
MAX_TOKENS = 10_000_000
"""More tokens than this are a mistake or a trick, and count as unsaid."""
MAX_CHOICES = 128
MAX_SPAN = 32
"""Bytes of a `keep_alive`; a longer one is none."""

_READING = frozenset(
    {"classify", "count_tokens", "detokenize", "embed", "embeddings", "pooling", "rerank", "score", "tokenize"}
)
"""Last words of the paths that generate nothing."""
_PRIORITIES: dict[bytes, Priority] = {b'"high"': "high", b'"normal"': "normal", b'"low"': "low"}


class Named(msgspec.Struct, frozen=True, gc=False):
    """What a request says of itself. None: not said, or not in a way that means anything here.

    `priority` is Shoal's class; a number is the engine's own and none of ours. `cost`: estimated tokens, of the prompt
    and the answer. `streams_usage`: the answer is a stream that tells its usage only if asked (see
    `usage.with_usage`); `include_usage`: the client asked.
    """

    model: str
    stream: bool = False
    priority: Priority | None = None
    user: str | None = None
    keep_alive: str | int | float | None = None
    cost: float = 0.0
    include_usage: bool = False
    streams_usage: bool = False
    options: bool = False


class _Body(msgspec.Struct, gc=False):
    """What is read of a JSON body; the rest is checked for syntax and skipped, without building its tree."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    priority: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    keep_alive: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT


class _Usual(msgspec.Struct, gc=False):
    """The same of a body in which all of it is as it should be, as in nearly all: read without a second look."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    stream: bool = False
    priority: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    keep_alive: msgspec.Raw = ABSENT
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] = 1
    stream_options: msgspec.Raw = ABSENT


FIELDS = _Body.__struct_fields__
"""The fields of a JSON body that are read."""
_USUAL = msgspec.json.Decoder(_Usual)
_BODY = msgspec.json.Decoder(_Body)
_TEXT = msgspec.json.Decoder(str)
_SPAN = msgspec.json.Decoder(str | int | float)


def read_request(
    target: str,
    body: bytes | bytearray,
    *,
    content_type: str = "",
    content_encoding: str = "",
    model_header: str | None = None,
    size: int | None = None,
) -> Named:
    """What a request says, in its body (JSON or multipart form), else its query, else `x-shoal-model`.

    `target` is the request's path and query. `size`: bytes of the body of which `body` has nothing but the fields
    that are read. Raises ShoalError 400: `invalid_json`, `invalid_body`,
    `invalid_model`, `invalid_query` or `model_required`. A compressed body is not read.
    """
    if content_encoding and content_encoding.strip().lower() not in ("", "identity"):
        return _unread(target, model_header, len(body), compressed=True)
    if not body:
        return _unread(target, model_header, 0)
    if content_type and is_form(content_type):
        reader = FormReader(content_type)
        reader.feed(body)
        reader.end()
        return read_form(target, reader, model_header=model_header)
    said: _Usual | _Body
    try:
        said = usual = _USUAL.decode(body)
    except (ValueError, RecursionError):
        said = odd = _read(body)
        model = odd.model or _elsewhere(target, model_header)
        stream = odd.stream is not ABSENT and bytes(odd.stream) == b"true"
        answer = _answer(target, odd)
    else:
        model, stream = usual.model, usual.stream
        answer = 0.0 if _kind_of(target).reads else _usual_answer(usual)
    return Named(
        model,
        stream,
        None if said.priority is ABSENT else _PRIORITIES.get(bytes(said.priority)),
        None if said.user is ABSENT else _user(said.user),
        None if said.keep_alive is ABSENT else _keep_alive(said.keep_alive),
        (size or len(body)) / BYTES_A_TOKEN + answer,
        said.stream_options is not ABSENT and asks_usage(said.stream_options),
        stream and _kind_of(target).counts,
        said.stream_options is not ABSENT,
    )


def read_form(target: str, reader: FormReader, *, model_header: str | None = None) -> Named:
    """The same for a form of which `reader` has seen enough: its `model`, or the end.

    A file's size says little about the work in it, so it costs no more than any answer. Raises ShoalError 400
    `model_required` or `invalid_query`.
    """
    return Named(
        reader.model or _elsewhere(target, model_header),
        reader.stream,
        reader.priority,
        reader.user,
        reader.keep_alive,
        _answer(target, None),
    )


def model_of(
    target: str,
    body: bytes | bytearray,
    *,
    content_type: str = "",
    content_encoding: str = "",
    model_header: str | None = None,
) -> str:
    """The model that a request names; see `read_request`."""
    return read_request(
        target, body, content_type=content_type, content_encoding=content_encoding, model_header=model_header
    ).model


def _read(body: bytes | bytearray) -> _Body:
    try:
        return _BODY.decode(without_bom(body))
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise ShoalError("`model` has to be a string.", code="invalid_model", param="model") from None
        raise refusal(error) from None
    except (ValueError, RecursionError) as error:  # DecodeError, and UnicodeDecodeError for a name that is not UTF-8
        raise refusal(error) from None


def _unread(target: str, model_header: str | None, size: int, *, compressed: bool = False) -> Named:
    cost = size / BYTES_A_TOKEN + _answer(target, None)
    return Named(_elsewhere(target, model_header, compressed=compressed), cost=cost)


def _elsewhere(target: str, model_header: str | None, *, compressed: bool = False) -> str:
    """The model that is named outside the body."""
    model = _of_query(target) or model_header
    if model:
        return model
    how = (
        f"the body is compressed and not read here; name the model in the header `{MODEL_HEADER}`"
        if compressed
        else 'name one of those that GET /v1/models lists, as in {"model": "…"}'
    )
    raise ShoalError(f"The request names no model: {how}.", code="model_required", param="model")


def _of_query(target: str) -> str | None:
    query = target.partition("?")[2]
    if "model" not in query:
        return None
    try:
        return parse_qs(query, max_num_fields=1000).get("model", [None])[-1]
    except ValueError:
        raise ShoalError("The query has too many fields.", code="invalid_query") from None


class _Kind(NamedTuple):
    """`reads`: requests to a target generate nothing. `counts`: see `usage.counts_usage`."""

    reads: bool
    counts: bool


@lru_cache(256)
def _kind_of(target: str) -> _Kind:
    path = target.partition("?")[0]
    return _Kind(path.rpartition("/")[2] in _READING, counts_usage(path))


def _usual_answer(said: _Usual) -> float:
    """`_answer` where all is as it should be, of what generates."""
    for tokens in (said.max_completion_tokens, said.max_tokens, said.max_output_tokens):
        if tokens is not None:
            return tokens * said.n
    return TOKENS_UNSAID * said.n


def _answer(target: str, said: _Body | None) -> float:
    """Estimated tokens of the answer."""
    if _kind_of(target).reads:
        return 0.0
    if said is None:
        return TOKENS_UNSAID
    for limit in (said.max_completion_tokens, said.max_tokens, said.max_output_tokens):
        if limit is not ABSENT and (tokens := _number(limit, MAX_TOKENS)) is not None:
            break
    else:
        tokens = TOKENS_UNSAID
    choices = None if said.n is ABSENT else _number(said.n, MAX_CHOICES)
    return tokens * (choices or 1)


def _number(raw: msgspec.Raw, most: float) -> float | None:
    """A number from 0 to `most`, or None."""
    try:
        value = float(bytes(raw)) if len(raw) <= 32 else math.nan
    except ValueError:
        return None
    return value if 0 <= value <= most else None


def _user(raw: msgspec.Raw) -> str | None:
    try:
        user = _TEXT.decode(raw)
    except ValueError:
        return None
    return user if len(user) <= MAX_USER else None


def _keep_alive(raw: msgspec.Raw) -> str | int | float | None:
    try:
        return _SPAN.decode(raw) if len(raw) <= MAX_SPAN else None
    except ValueError:
        return None
