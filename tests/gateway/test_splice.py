"""Large bodies that a virtual model changes: the same comes of them as of small ones, and they are not read again."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway import asking
from shoal.gateway.inspect import FIELDS
from shoal.gateway.skim import Skimmer
from shoal.gateway.splice import LISTED, rewrite_large, splice
from shoal.gateway.virtual import rewrite
from shoal.messages import VirtualModel
from tests.gateway.harness import post
from tests.gateway.native import NativeWorld, serves
from tests.gateway.test_large_bodies import chunked

NAMES = st.sampled_from(["model", "n", "a", "é", 'q"', "messages2", "stream", "top_p", "x" * 300])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('ab"\\{}[]:,é\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"])},
    optional={"content": VALUES, "z": VALUES},
)
TURNS = st.lists(TURN, max_size=4)
PATHS = st.sampled_from(
    ["/v1/chat/completions", "/tokenize", "/v1/messages", "/v1/responses", "/v1/completions", "/v1/embeddings"]
)
SPACES = st.sampled_from(["", " ", "\n\t", "  \r\n"])
VIRTUAL = st.builds(
    VirtualModel,
    st.just("v"),
    st.just("m"),
    set=st.dictionaries(NAMES, VALUES, max_size=2),
    strip=st.lists(NAMES, max_size=2).map(tuple),
    defaults=st.dictionaries(NAMES, VALUES, max_size=2),
    system=st.none() | st.text('ab"é\n', max_size=5),
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects, spaced in any way, of which names may come twice."""
    members: list[tuple[str, Any]] = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    if draw(st.booleans()):
        members.append(("messages", draw(TURNS)))
    if draw(st.booleans()):
        members.append(("input", draw(TURNS | st.text("ab", max_size=3))))
    members += [(name, draw(VALUES)) for name in ("system", "instructions") if draw(st.booleans())]
    blank = draw(SPACES)
    spaced = draw(st.booleans())
    written = [
        f"{blank}{json.dumps(name, ensure_ascii=draw(st.booleans()))}{blank}:{blank}"
        f"{json.dumps(value, indent=1 if spaced else None)}{blank}"
        for name, value in draw(st.permutations(members))
    ]
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + ("{" + ",".join(written or [blank]) + "}" + blank).encode()


def seen(body: bytes, at: list[int] | None = None) -> Skimmer:
    """What a skimmer has seen of it, in pieces."""
    skimmer = Skimmer(FIELDS, LISTED)
    places = sorted({0, len(body), *(place % (len(body) + 1) for place in at or ())})
    for start, end in itertools.pairwise(places):
        skimmer.feed(body[start:end])
    skimmer.end()
    assert not skimmer.gave_up
    return skimmer


@settings(max_examples=500, deadline=None)
@given(bodies(), st.none() | VIRTUAL, PATHS, st.lists(st.integers(0, 2000), max_size=6))
def test_the_same_comes_of_it(body: bytes, virtual: VirtualModel | None, path: str, at: list[int]) -> None:
    found = rewrite_large(body, seen(body, at), virtual, "org/m é", path)
    if found is None:
        assert virtual is not None
        named = {*virtual.set, *virtual.defaults, *virtual.strip}
        assert virtual.system is not None or any(len(name) > 200 for name in named)
        return
    expected = rewrite(body, virtual, "org/m é", path=path)
    assert json.loads(found) == json.loads(expected)


@pytest.mark.parametrize(
    ("body", "changed", "expected"),
    [
        (b'{ "a" : 1.50 , "b":2,  "c": [ 1 ] }', {"b": b"7"}, b'{"a" : 1.50,"c": [ 1 ],"b":7}'),
        (b'{"a":1, "b" :2}', {}, b'{"a":1, "b" :2}'),
        (b'{"a":1,"b":2}', {"a": None}, b'{"b":2}'),
        (b'{"a":1,"a":2}', {"a": None}, b"{}"),
        (b"{}", {"n\n": b'"x"'}, b'{"n\\n":"x"}'),
        (b'{"\\u0061":1,"b":{"a":2}}', {"a": b"3"}, b'{"b":{"a":2},"a":3}'),
    ],
)
def test_what_stays_keeps_its_bytes(body: bytes, changed: dict[str, bytes | None], expected: bytes) -> None:
    assert splice(body, seen(body), changed) == expected


@pytest.mark.parametrize(
    "turns",
    [
        b'[{"content":"x","role":"system"}]',
        b'[{"role":"user"},{}]',
        b'[{"r\\u006fle":"system"}]',
        b'[{"role":"user","content":"x","role":"system"}]',
        b'[{"role":"system","content":"x","role":"user"}]',
        b'[{"role":"user","content":"x","r\\u006Fle":"system"}]',
        b'[{"role":"user","content":"x","\\u0072ole":"system"}]',
        b'[{"role":"user","content":"role"}]',
    ],
)
def test_roles_that_are_not_seen_at_once_are_looked_for_otherwise(turns: bytes) -> None:
    body = b'{"model":"v","messages":%b}' % turns
    virtual = VirtualModel("v", "m", system="Be kind.")
    assert rewrite_large(body, seen(body), virtual, "m", "/v1/chat/completions") is None
    assert rewrite_large(body, seen(body), VirtualModel("v", "m"), "m", "/v1/chat/completions") is not None


ROLES = st.sampled_from(['"role"', '"r\\u006fle"', '"\\u0072ole"', '"ro\\u006Ce"', '"rol\\u0065"', '"content"'])
SAID = st.tuples(ROLES, st.sampled_from(['"user"', '"system"', '"s\\u0079stem"', '{"role":"system"}', '"role"', "1"]))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(SAID, max_size=4), max_size=3),
    st.sampled_from([("messages", "/v1/chat/completions"), ("input", "/v1/responses")]),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_who_speaks_is_the_same_however_often_it_is_said(
    turns: list[list[tuple[str, str]]], of: tuple[str, str], at: list[int]
) -> None:
    written = ("{" + ", ".join(f"{name}: {value}" for name, value in turn) + "}" for turn in turns)
    body = f'{{"{of[0]}": [{",".join(written)}], "model": "v"}}'.encode()
    virtual = VirtualModel("v", "m", system="Be kind.")
    found = rewrite_large(body, seen(body, at), virtual, "m", of[1])
    assert found is None or json.loads(found) == json.loads(rewrite(body, virtual, "m", path=of[1]))


@pytest.mark.parametrize("make", [lambda body: post(body=body), chunked], ids=["length", "chunked"])
async def test_a_large_body_is_not_read_in_one_go(
    native_world: NativeWorld, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    def never(*_: object, **__: object) -> bytes:
        raise AssertionError("it was read as a whole")

    monkeypatch.setattr(asking, "rewrite", never)
    engine = await native_world.engine()
    virtual = VirtualModel("v", "m", set={"top_p": 0.5}, defaults={"n": 1}, strip=("user",), system="Be kind.")
    await native_world.begin(serves("m", engine), virtual=(virtual,))
    image = random.Random(1).randbytes(1_500_000).hex()
    turns = [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}, {"role": "assistant"}]
    body = msgspec.json.encode({"model": "v", "user": "x", "messages": turns, "top_p": 1, "max_tokens": 5})
    assert (await native_world.ask(make(body))).status == 200
    (message,) = engine.received
    assert msgspec.json.decode(message.body) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, *turns],
        "top_p": 0.5,
        "n": 1,
        "max_tokens": 5,
    }
