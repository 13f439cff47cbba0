"""Virtual models: what they may be, and that none leads over another."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import ConfigError, parse_virtual
from shoal.errors import ConflictError, ShoalError
from shoal.fleet.virtual import MAX_BYTES, VirtualBook, VirtualSpec
from shoal.gateway.virtual import Names
from shoal.messages import Route, RoutingTable


def spec(name: str = "v", model: str = "m", **changes: Any) -> VirtualSpec:
    return VirtualSpec(name=name, model=model, **changes)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/m"}, "model: a name cannot be a path"),
        ({"name": " v"}, "name: a name has 1 to 200 characters"),
        ({"model": "v"}, "v cannot stand for itself"),
        ({"fallback": ["v"]}, "v cannot stand for itself"),
        ({"fallback": ["m"]}, "model and fallback name a model twice"),
        ({"fallback": ["a", "a"]}, "model and fallback name a model twice"),
        ({"fallback": list("abcdefghi")}, "fallback"),
        ({"set": {"model": "x"}}, "set: `model` cannot be changed by a virtual model"),
        ({"defaults": {"stream": True}}, "defaults: `stream` cannot be changed"),
        ({"strip": ["stream"]}, "strip: `stream` cannot be changed"),
        ({"set": {"seed": 1}, "defaults": {"seed": 2}}, "`seed` stands in set and in defaults"),
        ({"defaults": {"seed": 1}, "strip": ["seed"]}, "`seed` stands in defaults and in strip"),
        ({"strip": ["seed", "seed"]}, "`seed` stands in strip and in strip"),
        ({"set": {"": 1}}, "set"),
        ({"set": {"seed": float("nan")}}, "finite number"),
        ({"set": {"seed": [float("inf")]}}, "finite number"),
        ({"set": {"x": nested(40)}}, "nested 32 deep at most"),
        ({"set": {"x": "\ud800"}}, "half a character"),
        ({"system": "x" * MAX_BYTES}, f"may have {MAX_BYTES} bytes as JSON at most"),
        ({"system": ""}, "system"),
        ({"sytem": "x"}, "did you mean system?"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_virtual({"name": "v", "model": "m", **changes})
    assert message in caught.value.message


def test_what_relays_are_told() -> None:
    book = VirtualBook()
    wanted = spec(set={"a": [1]}, defaults={"b": None}, strip=("c",), system="Be brief.", fallback=("n",))
    record, new = book.put(wanted, {"m"}, 7.9)
    message = record.message()
    assert new
    assert (message.name, message.model, message.created) == ("v", "m", 7)
    assert (message.set, message.defaults, message.strip) == ({"a": [1]}, {"b": None}, ("c",))
    assert (message.system, message.fallback) == ("Be brief.", ("n",))
    record, new = book.put(spec(), {"m"}, 9.0)
    assert not new
    assert record.created_at == 7.9


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (spec("m", "x"), "model_exists", "there is a model m"),
        (spec("w", "v"), "virtual_chain", "w names v, which is virtual too"),
        (spec("w", "x", fallback=("v",)), "virtual_chain", "w names v, which is virtual too"),
        (spec("target"), "virtual_chain", "the virtual model v names target"),
        (spec("spare"), "virtual_chain", "the virtual model v names spare"),
        (spec("f"), "declared_in_file", "change it there, then `shoal reload`"),
    ],
)
def test_what_is_refused_changes_nothing(wanted: VirtualSpec, code: str, message: str) -> None:
    book = VirtualBook()
    book.declare({"f": spec("f")}, 1.0)
    book.put(spec("v", "target", fallback=("spare",)), (), 1.0)
    before = dict(book.records)
    with pytest.raises(ShoalError) as caught:
        book.put(wanted, {"m"}, 2.0)
    assert (caught.value.status, caught.value.code) == (409, code)
    assert message in caught.value.message
    with pytest.raises(ShoalError) as caught:
        book.remove("f")
    assert caught.value.code == "declared_in_file"
    with pytest.raises(ShoalError) as caught:
        book.remove("nobody")
    assert caught.value.status == 404
    assert book.records == before


def test_the_file_has_its_own_and_takes_over_others() -> None:
    book = VirtualBook()
    book.put(spec("mine"), (), 1.0)
    book.put(spec("both"), (), 1.0)
    first = {"both": spec("both", "n"), "f": spec("f"), "g": spec("g")}
    assert book.declare(first, 2.0) == {"added": ["f", "g"], "changed": ["both"], "removed": []}
    assert book.records["both"].created_at == 1.0
    assert book.declare(first, 3.0) == {"added": [], "changed": [], "removed": []}
    again = {"f": spec("f", "other")}
    assert book.declare(again, 4.0) == {"added": [], "changed": ["f"], "removed": ["both", "g"]}
    assert {name: one.origin for name, one in book.records.items()} == {"mine": "api", "f": "file"}


def test_what_the_file_has_put_in_the_way_is_not_served_and_said() -> None:
    book = VirtualBook()
    book.put(spec("v", "n"), (), 1.0)
    book.put(spec("w", "m"), (), 1.0)
    book.put(spec("x", "m"), (), 1.0)
    book.declare({"n": spec("n", "m")}, 2.0)
    assert [one.name for one in book.served()] == ["n", "w", "x"]  # relays hide x themselves while there is a model x
    assert book.faults({"m", "x"}) == [
        "the virtual model v is left out: v names n, which is virtual too; name the model that this one stands for",
        "the virtual model x is hidden by the model of that name; rename one of them",
    ]
    assert len(book.faults({"m"})) == 1  # and once it is gone, x is what it was


_names = st.sampled_from("abcdef")


@settings(deadline=None)
@given(st.lists(st.tuples(_names, _names, st.lists(_names, max_size=2), st.booleans()), max_size=12), st.sets(_names))
def test_what_is_served_never_leads_over_another_and_no_model_is_hidden(
    steps: list[tuple[str, str, list[str], bool]], models: set[str]
) -> None:
    book = VirtualBook()
    declared: dict[str, VirtualSpec] = {}
    for name, model, fallback, from_file in steps:
        try:
            one = VirtualSpec(name=name, model=model, fallback=tuple(fallback))
        except ValueError:
            continue
        if from_file:
            declared[name] = one
            book.declare(declared, 1.0)
            continue
        with contextlib.suppress(ConflictError):
            book.put(one, models, 1.0)
    told = book.served()
    names = {one.name for one in told}
    assert len(names - models) + len(book.faults(models)) == len(book.records)
    known = Names(RoutingTable("e", 1, tuple(Route(model, "ready", 1) for model in sorted(models)), virtual=told))
    assert all(known.resolve(model).virtual is None for model in models)
    assert not any({one.model, *one.fallback} & names for one in told)
