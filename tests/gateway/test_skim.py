"""Large bodies are read while they come, and say the same wherever they are cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.skim import MAX_KEY, MAX_VALUE, SkimError, Skimmer

WANTED = ("model", "stream", "n", "stream_options")

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(WANTED) | st.text(max_size=8), json_values, max_size=6)


def skim(body: bytes, *cuts: int) -> dict[str, Any]:
    skimmer = Skimmer(WANTED)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for start, end in itertools.pairwise(places):
        skimmer.feed(body[start:end])
    skimmer.end()
    return {name: json.loads(value) for name, value in skimmer.fields.items()}


@given(objects, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(0, 400), max_size=8))
def test_the_fields_looked_for_are_those_that_a_parser_finds(
    value: dict[str, Any], ascii_only: bool, indent: int | None, cuts: list[int]
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert skim(body, *cuts) == {name: value[name] for name in WANTED if name in value}


def test_wherever_it_is_cut() -> None:
    body = (
        b'\xef\xbb\xbf {"\\u006dodel" : "a\\"\\\\","x":[{"y":"]\\\\\\"}"}, [], "\\\\"], "n":12 ,"stream":true,'
        b'"stream_options":{"include_usage":[true]},"z":-1.5e3}\r\n '
    )
    expected = {"model": 'a"\\', "n": 12, "stream": True, "stream_options": {"include_usage": [True]}}
    assert skim(body) == expected
    for cut in range(len(body)):
        assert skim(body, cut) == expected
    assert skim(body, *range(len(body))) == expected


def test_of_a_field_that_comes_twice_the_last_one_counts() -> None:
    assert skim(b'{"model":"a","model":"b"}') == {"model": "b"}


BROKEN = (
    b"",
    b" ",
    b"\xef\xbb\xbf",
    b"[]",
    b"1",
    b'"a"',
    b"{",
    b"{,}",
    b'{"a"}',
    b'{"a":}',
    b'{"a":1',
    b'{"a":"b',
    b"{'a':1}",
    b'{"a":1,}',
    b'{"a":1}}',
    b'{"a":1} x',
    b'{"a":[1}',
    b"{a:1}",
    b'{"a" 1}',
    b'{"a":1 2}',
    b'{"\\x":1}',
    b"\x00",
)


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_no_object_is_refused_wherever_it_is_cut(body: bytes) -> None:
    for cut in range(len(body) + 1):
        with pytest.raises(SkimError):
            skim(body, cut)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_any_bytes_are_read_or_refused(body: bytes, cuts: list[int]) -> None:
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except ValueError:
        value = None
    try:
        skimmer = Skimmer(WANTED)
        places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
        for start, end in itertools.pairwise(places):
            skimmer.feed(body[start:end])
        skimmer.end()
    except SkimError:
        assert not isinstance(value, dict)


def test_what_is_kept_is_bounded() -> None:
    long = "x" * MAX_VALUE
    assert skim(json.dumps({"model": long, "n": 1}).encode(), 100, 40_000) == {"n": 1}
    assert skim(json.dumps({"model": "a", "n": [long]}).encode(), 30) == {"model": "a"}
    assert skim(json.dumps({"k" * MAX_KEY: 1, "n": 2}).encode(), 100) == {"n": 2}
    skimmer = Skimmer(WANTED)
    skimmer.feed(b'{"model":"')
    for _ in range(100):
        skimmer.feed(b"y" * 10_000)
        assert len(skimmer._kept or b"") <= MAX_VALUE
    skimmer.feed(b'"}')
    skimmer.end()
    assert skimmer.fields == {}


def test_nesting_costs_no_stack_and_escapes_no_time() -> None:
    assert skim(b'{"a":' + b"[" * 4000 + b"]" * 4000 + b',"n":3}', 3000, 7000) == {"n": 3}
    escapes = b'{"a":"' + b"\\n" * 500_000 + b'","n":3}'
    assert skim(escapes) == skim(escapes, 300_001, 300_004, 700_000) == {"n": 3}


@pytest.mark.parametrize("dense", [b'"x":1,', b'"a":[1],', b'"a":{},'])
def test_of_what_would_take_long_it_lets_go(dense: bytes) -> None:
    skimmer = Skimmer(WANTED)
    body = b'{"model":"m",' + dense * 300_000 + b'"n":3}'
    for at in range(0, len(body), 250_000):
        skimmer.feed(body[at : at + 250_000])
    skimmer.end()
    assert skimmer.gave_up
    assert skimmer.fields == {}
    # but not of as many in a body that is as large for other reasons
    body = b'{"model":"m","image":"' + b"A" * 2_000_000 + b'",' + dense * 2_000 + b'"n":3}'
    assert skim(body, *range(0, len(body), 250_000)) == {"model": "m", "n": 3}


def test_texts_and_numbers_are_passed_over_however_many() -> None:
    body = b'{"a":[' + b'"text \\"quoted\\" and [more]",' * 100_000 + b'"",' + b"12, " * 200_000 + b'0],"n":3}'
    assert skim(body, *range(0, len(body), 250_000)) == {"n": 3}


def test_the_word_role_is_counted_in_the_objects_of_a_list_wherever_pieces_end() -> None:
    body = (
        b'{"role":"role","l":[{"role":"role","x":"role\\" role"},{"\\u0072\\u006F\\u006c\\u0065":{"role":["role"]}},'
        b'"role",["role"],{"roles":"Role","arole":"\\\\role"}],"m":["role"]}'
    )
    for first, second in itertools.combinations(range(0, len(body) + 1, 3), 2):
        skimmer = Skimmer((), ("l",))
        for piece in (body[:first], body[first:second], body[second:]):
            skimmer.feed(piece)
        skimmer.end()
        assert skimmer.roles == {"l": 4}
        assert len(skimmer.objects["l"]) == 3


def test_a_field_is_either_wanted_or_listed() -> None:
    with pytest.raises(ValueError, match="either wanted or listed"):
        Skimmer(("a", "b"), ("b",))
