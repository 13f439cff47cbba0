"""Where bodies end: the same wherever they are cut, and never a guess."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.framing import MAX_CHUNK_LINE, MAX_TRAILERS, Chunked, Fixed, Framing, FramingError, UntilClose, chunk

EXAMPLES = int(os.environ.get("SHOAL_TEST_EXAMPLES", "200"))
_thorough = settings(max_examples=EXAMPLES, deadline=None)

NAMES = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte != 127))
EXTENSIONS = st.one_of(st.just(b""), VALUES.map(lambda value: b";" + value), st.just(b" \t;a=b"))


@st.composite
def sizes(draw: st.DrawFn, size: int) -> bytes:
    """A chunk's size as anybody may write it."""
    text = b"%x" % size
    text = text.upper() if draw(st.booleans()) else text
    return b"0" * draw(st.integers(0, 15 - len(text))) + text


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes, list[bytes]]:
    """A chunked body on the wire, its content, and its trailers."""
    contents = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    trailers = draw(st.lists(st.tuples(NAMES, VALUES).map(lambda field: field[0] + b":" + field[1]), max_size=3))
    raw = b"".join(draw(sizes(len(content))) + draw(EXTENSIONS) + b"\r\n" + content + b"\r\n" for content in contents)
    last = b"0" * draw(st.integers(1, 15)) + draw(EXTENSIONS) + b"\r\n"
    return raw + last + b"".join(line + b"\r\n" for line in trailers) + b"\r\n", b"".join(contents), trailers


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(place, len(raw)) for place in at} | {0, len(raw)})
    return [raw[start:end] for start, end in itertools.pairwise(places)]


def read(framing: Framing, pieces: list[bytes]) -> tuple[bytes, int]:
    """The content of a body, and how many bytes of all pieces belong to it."""
    content, used = b"", 0
    for piece in pieces:
        end = framing.feed(piece)
        content += framing.content
        used += end
        assert 0 <= end <= len(piece)
        assert framing.done or end == len(piece)
        if framing.done:
            break
    return content, used


@_thorough
@given(chunked_bodies(), st.binary(max_size=20), st.lists(st.integers(0, 600), max_size=12))
def test_chunks_cut_anywhere(body: tuple[bytes, bytes, list[bytes]], rest: bytes, at: list[int]) -> None:
    raw, content, trailers = body
    framing = Chunked()
    assert read(framing, cut(raw + rest, at)) == (content, len(raw))
    assert framing.done
    assert framing.trailers == trailers


def test_chunks_cut_at_every_two_positions() -> None:
    raw = b'4\r\nabcd\r\n0A ;x="y"\r\n0123456789\r\n1\r\n\r\r\n00\r\nX: 1\r\nY:\r\n\r\nrest'
    whole = read(Chunked(), [raw])
    assert whole == (b"abcd0123456789\r", len(raw) - 4)
    for first, second in itertools.combinations(range(len(raw) + 1), 2):
        framing = Chunked()
        assert read(framing, cut(raw, [first, second])) == whole
        assert framing.trailers == [b"X: 1", b"Y:"]
    assert read(Chunked(), cut(raw, list(range(len(raw))))) == whole


@_thorough
@given(chunked_bodies(), st.lists(st.integers(0, 600), max_size=12))
def test_what_is_there_up_to_a_boundary_is_whole_chunks(body: tuple[bytes, bytes, list[bytes]], at: list[int]) -> None:
    """Up to `boundary` another framing reads whole chunks, and what is after it begins a new one."""
    raw, _, _ = body
    framing, held = Chunked(), b""
    for piece in cut(raw, at):
        framing.feed(piece)
        held += piece
        if framing.boundary:
            whole = held[: len(held) - len(piece) + framing.boundary]
            other = Chunked()
            assert other.feed(whole) == len(whole)
            assert other.done or other.clean
            assert other.boundary == len(whole)
    assert framing.done
    assert framing.boundary == len(piece)


@_thorough
@given(st.binary(max_size=50), st.integers(0, 40), st.lists(st.integers(0, 60), max_size=6))
def test_a_length_cut_anywhere(raw: bytes, length: int, at: list[int]) -> None:
    framing = Fixed(length)
    content, used = read(framing, cut(raw, at)) if length else (b"", 0)
    assert content == raw[:length]
    assert used == len(content)
    assert framing.done == (len(raw) >= length)


@_thorough
@given(st.lists(st.binary(max_size=20), max_size=6))
def test_until_the_connection_closes(pieces: list[bytes]) -> None:
    framing = UntilClose()
    assert read(framing, pieces) == (b"".join(pieces), sum(map(len, pieces)))
    assert (framing.done, framing.whole, Chunked().whole, Fixed(1).whole) == (False, True, False, False)


PARTS = st.sampled_from(
    [b"\r\n", b"\r", b"\n", b"0", b"0\r\n\r\n", b"5\r\nabcde\r\n", b";", b" ", b"f" * 15, b"X: y\r\n", b"\0"]
)


@_thorough
@given(st.lists(st.one_of(PARTS, st.binary(max_size=8)), max_size=20).map(b"".join), st.lists(st.integers(0, 100)))
def test_nonsense_is_a_framing_error_wherever_it_is_cut(raw: bytes, at: list[int]) -> None:
    """Nothing else is ever raised, and no cut turns an error into a body or a body into an error."""

    def outcome(pieces: list[bytes]) -> tuple[bytes, int, list[bytes]] | str:
        framing = Chunked()
        try:
            content, used = read(framing, pieces)
        except FramingError:
            return "error"
        return (content, used, framing.trailers) if framing.done else "more"

    whole, pieces = outcome([raw]), cut(raw, at)
    assert outcome(pieces) == whole


@_thorough
@given(chunked_bodies(), st.data())
def test_one_changed_byte_never_hangs_or_raises_anything_else(
    body: tuple[bytes, bytes, list[bytes]], data: st.DataObject
) -> None:
    raw = bytearray(body[0])
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    framing = Chunked()
    try:
        _, used = read(framing, [bytes(raw)])
    except FramingError:
        return
    assert used <= len(raw)


@_thorough
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6))
def test_what_is_written_is_read(contents: list[bytes]) -> None:
    raw = b"".join(map(chunk, contents)) + b"0\r\n\r\n"
    assert read(Chunked(), [raw]) == (b"".join(contents), len(raw))


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        (b"1;", MAX_CHUNK_LINE - 2, b"\r\nx\r\n0\r\n\r\n"),
        (b"1\r\nx\r\n0;", MAX_CHUNK_LINE - 2, b"\r\n\r\n"),
        (b"0\r\nX:", MAX_TRAILERS - 4, b"\r\n\r\n"),
    ],
)
def test_limits_are_exact_however_it_is_cut(before: bytes, limit: int, after: bytes, size: int) -> None:
    raw = before + b"a" * limit + after
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    framing = Chunked()
    assert read(framing, pieces)[1] == len(raw)
    assert framing.done
    raw = before + b"a" * (limit + 1) + after
    with pytest.raises(FramingError, match="too long"):
        read(Chunked(), [raw[at : at + size] for at in range(0, len(raw), size)])


@pytest.mark.parametrize("begin", [b"", b"0\r\n", b"0\r\nX: "])
def test_a_line_without_an_end_is_refused_at_its_limit(begin: bytes) -> None:
    framing, fed = Chunked(), 0
    framing.feed(begin)
    with pytest.raises(FramingError, match="too long"):
        while fed < 10 * MAX_TRAILERS:
            framing.feed(b"1")
            fed += 1
    assert fed <= MAX_TRAILERS + 1


@pytest.mark.parametrize("raw", [b"5\n", b"5\r\nabcde\n", b"0\r\nX: 1\n", b"0\r\n\n", b"5\rx", b"0\r\nX\rx"])
def test_a_bare_line_end_is_refused_at_once(raw: bytes) -> None:
    """Not only once a proper line end has come, which may be never."""
    for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        with pytest.raises(FramingError):
            read(Chunked(), pieces)


def test_a_huge_size_is_no_memory() -> None:
    framing = Chunked()
    assert framing.feed(b"f" * 15 + b"\r\nabc") == 20
    assert framing.content == b"abc"
    assert not framing.done
    assert not framing.clean
