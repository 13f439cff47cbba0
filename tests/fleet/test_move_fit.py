"""What new instances of a move ask for, and whether they fit beside what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.fleet.move_fit import Asked, asked_by, room_after
from shoal.fleet.moves import Leg, Move
from shoal.fleet.room import Wants
from shoal.fleet.state import Device
from tests.fleet.fakes import GIB, spec

DEVICES = tuple(Device(f"simulated:{n}", "simulated", "pretended", 80 * GIB, 0) for n in range(3))
HERE, THERE = "simulated:0", "simulated:1"


def move(*legs: tuple[str, str]) -> Move:
    """A move from one device to another, for each of some instances."""
    made = tuple(Leg(f"m-{n}", (was,), (to,) if to else ()) for n, (was, to) in enumerate(legs))
    return Move("move-1", "m", 0.0, made)


def test_what_new_ones_ask_for_is_known_by_where_they_go() -> None:
    wanted = spec("m", args=["--device-memory", "10GiB"])
    found = asked_by(move((HERE, THERE), (THERE, "")), wanted, SimulatedEngine(), DEVICES, {})
    assert found[(THERE,)] == Wants((THERE,), 1, 10 * GIB)
    assert found[()] == Wants(tuple(d.id for d in DEVICES), 1, 10 * GIB)
    gone = asked_by(move((HERE, "simulated:9")), wanted, SimulatedEngine(), DEVICES, {})
    assert gone == {}, "what is wrong with it the move itself will say"
    small = spec("m", tensor_parallel=4)
    assert asked_by(move((HERE, "")), small, SimulatedEngine(), DEVICES, {}) == {}


def test_moves_one_after_the_other_fit_only_where_each_finds_room() -> None:
    asked: Asked = {(THERE,): Wants((THERE,), 1, 30)}
    room = {HERE: 10, THERE: 50}
    assert room_after(move((HERE, THERE)), asked, room, {"m-0": 30}) == {HERE: 10, THERE: 20}
    assert room_after(move((HERE, THERE), (HERE, THERE)), asked, room, {}) is None
    assert room_after(move((HERE, THERE)), {}, room, {}) is None
    # In its own place it takes for good only what it is larger by.
    assert room_after(move((THERE, THERE), (THERE, THERE)), asked, room, {"m-0": 30, "m-1": 20}) == {
        HERE: 10,
        THERE: 40,
    }
    assert room_after(move((THERE, THERE)), asked, {HERE: 90, THERE: 29}, {"m-0": 30}) is None
    anywhere: Asked = {(): Wants((HERE, THERE), 1, 30)}
    assert room_after(move((HERE, ""), (HERE, "")), anywhere, {HERE: 30, THERE: 40}, {}) == {HERE: 0, THERE: 10}


@given(
    st.lists(st.tuples(st.sampled_from([HERE, THERE]), st.sampled_from([HERE, THERE, ""])), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from([HERE, THERE]), st.integers(0, 100), min_size=2),
    st.integers(0, 60),
    st.lists(st.none() | st.integers(0, 60), min_size=5, max_size=5),
)
def test_nothing_is_given_out_twice_or_counted_as_come_back_that_was_not_there(
    legs: Sequence[tuple[str, str]], room: dict[str, int], needs: int, held: list[int | None]
) -> None:
    one = move(*legs)
    asked = {leg.devices: Wants(leg.devices or (HERE, THERE), 1, needs) for leg in one.legs}
    left = room_after(one, asked, room, {f"m-{n}": size for n, size in enumerate(held)})
    if left is None:
        return
    assert all(0 <= left[device] <= room[device] for device in room)
    nobody = room_after(one, asked, room, {})
    assert nobody is None or sum(nobody.values()) == sum(room.values()) - needs * len(one.legs)
    again = room_after(dataclasses.replace(one, legs=one.legs[:1]), asked, room, {})
    assert again is not None, "what fits in a row fits at its beginning"
