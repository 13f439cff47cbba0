from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.forms import MAX_FIELD, MAX_HEAD, MAX_PARTS, MAX_USER, FormReader, renamed

FORM = "multipart/form-data; boundary=XyZ"
END = b"--XyZ--\r\n"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def read(*pieces: bytes, content_type: str = FORM) -> FormReader:
    reader = FormReader(content_type)
    for piece in pieces:
        reader.feed(piece)
    return reader


def refusal(*pieces: bytes, content_type: str = FORM) -> str:
    with pytest.raises(ShoalError) as caught:
        read(*pieces, content_type=content_type).end()
    assert caught.value.status == 400
    return caught.value.code


def outcome(*pieces: bytes) -> Any:
    """All that a reader says in the end, or its refusal."""
    reader = FormReader(FORM)
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.end()
    except ShoalError as error:
        return error.code, error.message
    return {name: value for name, value in vars(reader).items() if not name.startswith("_")}


FILE = part("file", b"RIFF\x00\xff\r\n--Xy\r\n--\r\n\r\n", '; filename="model"\r\nContent-Type: audio/wav')
SAMPLE = (
    b"preamble\r\n"
    + part("stream", b"true")
    + FILE
    + part("model", "münchen".encode())
    + part("user", b"ann")
    + part("priority", b"low")
    + part("keep_alive", b"5m")
    + part("prompt", b"a line does not begin here: --XyZ" * 9)
    + END
    + b"epilogue\r\n--XyZ\r\n"
)

# Bytes that a reader may stumble over, so that chance finds them.
PIECES = st.sampled_from(
    [
        *(b"\r\n", b"\r", b"\n", b"-", b"--", b"--XyZ", b"--XyZ--", b"XyZ", b" ", b"\t", b"x", b":", b"model", b"\xff"),
        *(b"--XyZ\r\n", b'Content-Disposition: form-data; name="model"\r\n\r\n', b"\r\n\r\n", b"\r\n--XyZ", b'"'),
    ]
)


def test_the_sample() -> None:
    reader = read(SAMPLE)
    reader.end()
    assert (reader.model, reader.stream, reader.user, reader.priority) == ("münchen", True, "ann", "low")
    assert (reader.keep_alive, reader.parts_seen, reader.complete) == ("5m", 7, True)
    assert [SAMPLE[start:end] for start, end in reader.model_spans] == ["münchen".encode()]


def test_cut_anywhere_it_says_the_same() -> None:
    expected = outcome(SAMPLE)
    assert outcome(*(bytes([byte]) for byte in SAMPLE)) == expected
    for at in range(len(SAMPLE) + 1):
        assert outcome(SAMPLE[:at], SAMPLE[at:]) == expected


@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 300), max_size=6))
@example(b'--XyZ\r\nContent-Disposition: form-data; name="model"\r\n\r\n--XyZ--', [70])
@example(b"--XyZ \t\r\n\r\n\r\n--XyZ--", [6])
def test_cut_anywhere_whatever_comes(body: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    pieces = [body[a:b] for a, b in pairwise(bounds)]
    assert outcome(*pieces) == outcome(body) == outcome(*(bytes([byte]) for byte in body))


@given(st.lists(st.tuples(st.sampled_from(["model", "prompt"]), st.binary(max_size=30)), max_size=6))
def test_any_fields(fields: list[tuple[str, bytes]]) -> None:
    fields = [(name, value.replace(b"--XyZ", b"")) for name, value in fields]
    fields = [(name, value.hex().encode() if name == "model" else value) for name, value in fields]
    body = b"".join(part(name, value) for name, value in fields) + END
    models = [value.decode() for name, value in fields if name == "model"]
    if len(set(models)) > 1:
        assert refusal(body) == "invalid_model"
    else:
        reader = read(body)
        assert (reader.parts_seen, reader.complete) == (len(fields), True)
        assert reader.model == (models[0] if models else None)
        assert [body[a:b].decode() for a, b in reader.model_spans] == models


def test_the_model_is_known_as_soon_as_its_field_is_whole() -> None:
    reader = FormReader(FORM)
    field = part("model", b"m")
    reader.feed(field + b"--Xy")
    before = reader.model
    reader.feed(b"Z")
    assert (before, reader.model, reader.complete) == (None, "m", False)
    for piece in (FILE[5:-2], b"\x00" * 100_000, b"\r\n" + END):
        reader.feed(piece)
    assert (reader.model, reader.complete) == ("m", True)


def test_a_second_model_has_to_be_the_same() -> None:
    assert read(part("model", b"m"), part("model", b"m"), END).model == "m"
    assert refusal(part("model", b"a"), part("model", b"b"), END) == "invalid_model"
    assert refusal(part("model", b""), part("model", b"b"), END) == "invalid_model"


def test_memory_stays_small_whatever_comes() -> None:
    reader = FormReader(FORM)
    reader.feed(b"x" * 100_000)
    assert len(reader._held) < 10
    reader.feed(b"\r\n" + part("file", b"", '; filename="f"')[:-2])
    for filling in (b"\r", b"\r\n--Xy", b"\r\n", bytes(range(256))):
        for _ in range(20):
            reader.feed(filling * 3000)
            assert len(reader._held) + len(reader._value) < 20
    assert refusal(b"--XyZ\r\nx: ", *[b"y" * 1000] * 17) == "invalid_body"
    assert refusal(b"--XyZ", *[b" " * 100] * 11) == "invalid_body"


def test_bounds() -> None:
    assert len(read(part("model", b"m" * MAX_FIELD), END).model or "") == MAX_FIELD
    assert refusal(part("model", b"m" * (MAX_FIELD + 1)), END) == "invalid_body"
    assert read(part("prompt", b"m" * (MAX_FIELD + 1)), END).complete
    head = "\r\nx: "
    room = MAX_HEAD - len(part("model", b"", head)) + len("--XyZ\r\n" + "\r\n\r\n" + "\r\n")
    assert read(part("model", b"m", head + "y" * room), END).model == "m"
    assert refusal(part("model", b"m", head + "y" * (room + 1)), END) == "invalid_body"
    assert read(*[part("x", b"")] * MAX_PARTS, END).parts_seen == MAX_PARTS
    assert refusal(*[part("x", b"")] * (MAX_PARTS + 1), END) == "invalid_body"
    assert read(part("user", b"u" * MAX_USER), END).user == "u" * MAX_USER
    assert read(part("user", b"u" * (MAX_USER + 1)), END).user is None


def test_values_that_mean_nothing_are_left_to_the_engine() -> None:
    reader = read(part("stream", b"perhaps"), part("user", b"\xff"), part("priority", b"7"), END)
    assert (reader.stream, reader.user, reader.priority) == (False, None, None)
    assert [read(part("stream", v), END).stream for v in (b"True", b"1", b"on", b"false", b"")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition:form-data;name="model"',
        b'Content-Disposition: form-data; Name = "model"; x=""; y; ;'.replace(b" y;", b""),
        b"Content-Disposition: form-data; name=model",
        b'X-Other: 1\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain; charset=utf-8',
        b"Content-Disposition: form-data; filename*=utf-8''x; name=model",
    ],
)
def test_heads_that_name_the_model(head: bytes) -> None:
    assert read(b"--XyZ\r\n" + head + b"\r\n\r\nm\r\n" + END).model == "m"


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="model"; filename=""',
        b'Content-Disposition: form-data; name="model"; filename="C:\\x\\\\\\"; name=\\"y"',
        b'Content-Disposition: form-data; name=" model"',
        b'Content-Disposition: form-data; name="Model"',
        b"Content-Disposition: form-data",
        b'Content-Type: text/plain; name="model"',
    ],
)
def test_heads_that_do_not(head: bytes) -> None:
    reader = read(b"--XyZ\r\n" + head + b"\r\n\r\nm\r\n" + END)
    assert reader.complete
    assert reader.model is None


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="x"; name="model"',
        b'Content-Disposition: form-data; name="x"; NAME="model"',
        b'Content-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"',
        b"Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
        b'Content-Disposition: form-data; name="mod\\el"',
        b'Content-Disposition: form-data; name="model',
        b'Content-Disposition: form-data; name="x"y; z="model"',
        b'Content-Disposition: form-data;\r\n name="model"',
        b'Content-Disposition : form-data; name="model"',
        b'Content-Disposition: form-data; x=1\nContent-Disposition: form-data; name="model"',
        b"no header",
        b": nothing",
    ],
)
def test_heads_that_parsers_read_differently(head: bytes) -> None:
    assert refusal(b"--XyZ\r\n" + head + b"\r\n\r\nm\r\n" + END) == "invalid_body"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing of the kind",
        b"x--XyZ\r\n\r\n\r\n--XyZ\r\n",
        b"--XyZ",
        b"--XyZ-",
        b"--XyZ\n\n\n--XyZ--\n",
        b"--XyZabc\r\n\r\n\r\n--XyZ--",
        b"--XyZ\r\n\r\nm\r\n--XyZabc\r\n--XyZ--",
        b"--XyZ\r\n\r\n--XyZ--",
        b"--XyZ\r\nx: y\r\n\r\n--XyZ\r\n\r\n\r\n--XyZ--",
        part("model", b"m"),
        part("model", b"m") + b"--XyZ\r\n",
    ],
)
def test_broken_bodies(body: bytes) -> None:
    assert refusal(body) == "invalid_body"


def test_a_model_that_is_not_utf8() -> None:
    assert refusal(part("model", b"\xff"), END) == "invalid_model"


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "; boundary=",
        '; boundary=""',
        "; boundary=a; boundary=b",
        "; boundary=" + "x" * 201,
        '; boundary="a\r\nb"',
        "; boundary=ü",
        "; boundary=a b",
        "; boundary=a; charset=utf-7",
        '; boundary="a',
    ],
)
def test_content_types_without_a_usable_boundary(parameters: str) -> None:
    with pytest.raises(ShoalError) as caught:
        FormReader("multipart/form-data" + parameters)
    assert (caught.value.status, caught.value.code) == (400, "invalid_body")


@pytest.mark.parametrize(
    "parameters", ['; charset=UTF-8; Boundary="XyZ"', ";boundary=XyZ;", ' ; x="a;b" ; boundary=XyZ']
)
def test_content_types_with_one(parameters: str) -> None:
    assert read(SAMPLE, content_type="Multipart/Form-Data" + parameters).model == "münchen"


def test_a_boundary_like_that_of_mail() -> None:
    body = SAMPLE.replace(b"XyZ", b"===12==")
    assert read(body, content_type="multipart/form-data; boundary====12==").model == "münchen"


def test_renamed() -> None:
    body = b"preamble\r\n" + part("model", b"alias") + FILE + part("model", b"alias") + END
    new = renamed(body, read(body), "org/réal")
    assert new == body.replace(b"\r\n\r\nalias", "\r\n\r\norg/réal".encode())
    assert read(new).model == "org/réal"
    begun = body[: body.index(b"alias") + 14]
    reader = read(begun)
    assert renamed(begun, reader, "m") == begun.replace(b"alias", b"m")
    assert renamed(FILE + END, read(FILE + END), "m") == FILE + END
