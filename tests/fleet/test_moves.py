"""The steps of a move: whatever happens, one copy serves, and the move ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConflictError
from shoal.fleet.moves import (
    Answered,
    Begin,
    Cancel,
    Created,
    Do,
    Event,
    Leg,
    Move,
    Refused,
    See,
    Sight,
    Step,
    apart,
    asks,
    step,
    touching,
    turns,
)

SERVES, COMES = Sight("serves"), Sight("comes", "it is starting")
FAILED, LEFT = Sight("failed", "out of memory", runs=False), Sight("left", "was unloaded")
GONE = Sight("left", "was unloaded", runs=False)


def a_move(id: str = "move-1", legs: int = 1, **fields: Any) -> Move:
    there = tuple(Leg(f"old-{n}", ("cuda:0",), ("cuda:1",)) for n in range(legs))
    return Move(**{"id": id, "model": "m", "created_at": 1.0, "legs": there, **fields})


def after(move: Move, *events: Event) -> tuple[Move, tuple[Do, ...]]:
    """The move after all of these, and what the last one has done."""
    todo: tuple[Do, ...] = ()
    for event in events:
        move, todo = step(move, event, 2.0)
    return move, todo


LOADING = (Begin(), Answered("old-0", "text: Paris"), Created("new-0"))
CHECKING = (*LOADING, See(SERVES, SERVES))
DRAINING = (*CHECKING, Answered("new-0", "text: Paris"))


def test_one_instance_takes_the_place_of_another() -> None:
    move, todo = after(a_move(), Begin())
    assert (move.state, move.leg.step, asks(move), todo) == ("running", Step.ASKING, "old-0", ())
    move, todo = after(move, Answered("old-0", "text: Paris"))
    assert (move.leg.step, todo) == (Step.LOADING, (Do("load"),))
    move, todo = after(move, Created("new-0"), See(SERVES, COMES))
    assert (move.leg.target, move.leg.step, todo) == ("new-0", Step.LOADING, ())
    assert apart([move]) == {"new-0": "old-0"}
    assert touching([move]) == {"old-0", "new-0"}
    move, todo = after(move, See(SERVES, SERVES))
    assert (move.leg.step, asks(move), todo) == (Step.CHECKING, "new-0", ())
    assert apart([move]) == {"new-0": "old-0"}
    move, todo = after(move, Answered("new-0", "text: Paris"))
    assert (move.leg.step, todo) == (Step.DRAINING, (Do("switch", "old-0"),))
    assert not apart([move])
    move, todo = after(move, See(LEFT, SERVES))
    assert move.leg.step is Step.DRAINING
    move, todo = after(move, See(GONE, SERVES))
    assert (move.state, move.leg.step, move.message) == ("done", Step.DONE, "m was moved to cuda:1")
    assert not touching([move])
    assert after(move, Begin(), See(GONE, GONE), Answered("new-0", None)) == (move, ())


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ((See(SERVES, FAILED),), "the new one failed: out of memory"),
        ((See(SERVES, LEFT),), "the new one was unloaded meanwhile"),
        ((See(LEFT, COMES),), "old-0, which is to be replaced, was unloaded meanwhile"),
        ((See(SERVES, SERVES), Answered("new-0", "text: London")), "'text: London', not with 'text: Paris'"),
        ((See(SERVES, SERVES), Answered("new-0", "")), "answers the canary with ''"),
        ((See(SERVES, SERVES), Answered("new-0", None)), "did not answer the canary"),
        ((See(SERVES, SERVES), See(SERVES, COMES)), "broke before it was checked"),
        ((See(SERVES, SERVES), See(SERVES, FAILED)), "the new one failed"),
        ((See(SERVES, SERVES), See(LEFT, SERVES)), "was unloaded meanwhile"),
        ((Cancel(),), "cancelled"),
        ((See(SERVES, SERVES), Cancel()), "cancelled"),
    ],
)
def test_whatever_fails_the_new_one_ends_and_the_old_one_serves(events: tuple[Event, ...], cause: str) -> None:
    move, todo = after(a_move(), *LOADING, *events)
    assert (move.leg.step, todo) == (Step.UNDOING, (Do("drop", "new-0"),))
    assert apart([move]), "no request goes to it while it ends"
    assert not move.ended
    again, todo = after(move, Cancel())
    assert (again, todo) == (move, ()), "it is being undone already"
    move, _ = after(move, See(SERVES, GONE))
    wanted = "cancelled" if cause == "cancelled" else "failed"
    assert move.state == wanted
    assert cause in move.message


def test_without_an_answer_of_the_old_one_nothing_is_begun() -> None:
    for event, cause in (
        (Answered("old-0", None), "did not answer"),
        (See(COMES), "does not serve (it is starting)"),
        (See(LEFT), "does not serve (was unloaded)"),
    ):
        move, todo = after(a_move(), Begin(), event)
        assert (move.state, move.leg.target, todo) == ("failed", None, ())
        assert cause in move.message


def test_an_old_one_that_breaks_is_replaced_all_the_sooner() -> None:
    broken = Sight("failed", "it crashed five times", runs=False)
    move, todo = after(a_move(), *LOADING, See(broken, COMES), See(COMES, SERVES), Answered("new-0", "text: Paris"))
    assert (move.leg.step, todo) == (Step.DRAINING, (Do("switch", "old-0"),))


def test_engines_without_text_and_settings_that_change_answers_are_not_compared() -> None:
    move, _ = after(a_move(), Begin(), Answered("old-0", ""), Created("new-0"), See(SERVES, SERVES))
    move, todo = after(move, Answered("new-0", ""))
    assert todo == (Do("switch", "old-0"),)
    assert "completes no text" in move.leg.note
    other = a_move(legs=1, changes={"dtype": "float16"})
    other = dataclasses.replace(other, legs=(dataclasses.replace(other.legs[0], compare=False),))
    move, todo = after(other, *CHECKING, Answered("new-0", "text: London"))
    assert todo == (Do("keep"), Do("switch", "old-0")), "the settings are kept with the last switch"
    assert "only that the new one answers" in move.leg.note
    move, todo = after(other, *CHECKING, Answered("new-0", None))
    assert todo == (Do("drop", "new-0"),)


def test_after_the_switch_it_is_too_late_to_cancel() -> None:
    move, _ = after(a_move(), *DRAINING)
    with pytest.raises(ConflictError, match="move it back") as caught:
        step(move, Cancel(), 2.0)
    assert caught.value.code == "move_switched"
    move, _ = after(move, See(GONE, SERVES))
    with pytest.raises(ConflictError, match="has ended") as caught:
        step(move, Cancel(), 2.0)
    assert caught.value.code == "move_ended"
    assert after(a_move(), Cancel())[0].state == "cancelled", "one that waits"


def test_several_instances_go_one_after_the_other_and_a_cancelled_rest_is_said() -> None:
    move, _ = after(a_move(legs=2, changes={"dtype": "float16"}), *DRAINING)
    move, todo = after(move, Cancel(), See(GONE, SERVES))
    assert (move.state, todo) == ("cancelled", ())
    assert [leg.step for leg in move.legs] == [Step.DONE, Step.CANCELLED]
    assert "1 of 2 instances were replaced" in move.message
    move, _ = after(a_move(legs=2), *DRAINING, See(GONE, SERVES))
    assert (move.at, asks(move)) == (1, "old-1")
    move, _ = after(move, Answered("old-1", None))
    assert move.state == "failed"
    assert "1 of 2 instances were moved" in move.message


def test_what_cannot_be_made_ends_it() -> None:
    move, todo = after(a_move(), Begin(), Answered("old-0", "text: Paris"), Refused("m was removed meanwhile"))
    assert (move.state, todo) == ("failed", ())
    assert "removed" in move.message


STOPPING = (Begin(), Answered("old-0", "text: Paris"))


def test_stopped_first_the_old_one_ends_when_the_new_one_is_asked_for() -> None:
    move, todo = after(a_move(stop_first=True), *STOPPING)
    assert todo == (Do("load"), Do("drop", "old-0")), "in one breath: one is on its way, and requests are held"
    move, todo = after(move, Created("new-0"), See(LEFT, COMES), See(GONE, SERVES), Answered("new-0", "text: Paris"))
    assert todo == (Do("switch", "old-0"),)
    assert after(move, See(GONE, SERVES))[0].state == "done"


@pytest.mark.parametrize(
    ("former", "state", "words"),
    [
        (SERVES, "failed", "m was not moved: the new one failed: out of memory"),
        (FAILED, "failed", "and the old one could not be loaded again: out of memory"),
    ],
)
def test_stopped_first_what_fails_is_undone_by_loading_the_old_one(former: Sight, state: str, words: str) -> None:
    move, todo = after(a_move(stop_first=True), *STOPPING, Created("new-0"), See(GONE, FAILED))
    assert (move.leg.step, todo) == (Step.RESTORING, (Do("drop", "new-0"), Do("restore")))
    move, _ = after(move, Created("again-0"), See(GONE, GONE, COMES))
    assert not move.ended
    assert touching([move]) == {"old-0", "new-0", "again-0"}
    move, _ = after(move, See(GONE, GONE, former))
    assert move.state == state
    assert words in move.message
    move, todo = after(a_move(stop_first=True), *STOPPING, Created("new-0"), Cancel())
    assert todo == (Do("drop", "new-0"), Do("restore"))
    move, _ = after(move, Created("again-0"), See(GONE, GONE, SERVES))
    assert move.state == "cancelled"


def test_stopped_first_and_unloaded_by_somebody_nothing_is_loaded_again() -> None:
    move, todo = after(a_move(stop_first=True), *STOPPING, Created("new-0"), See(GONE, LEFT))
    assert (move.state, todo) == ("failed", ())


def test_moves_that_touch_a_common_device_go_one_after_the_other() -> None:
    one = a_move("a")
    apart_ = dataclasses.replace(a_move("b"), legs=(Leg("x", ("cuda:2",), ("cuda:3",)),), created_at=2.0)
    both = dataclasses.replace(a_move("c"), legs=(Leg("y", ("cuda:1",), ("cuda:4",)),), created_at=3.0)
    behind = dataclasses.replace(a_move("d"), legs=(Leg("z", ("cuda:4",), ("cuda:5",)),), created_at=4.0)
    anywhere = dataclasses.replace(a_move("e"), legs=(Leg("w", ("cuda:9",), ()),), created_at=5.0)
    moves = [anywhere, behind, both, apart_, one]
    begin, waits = turns(moves)
    assert begin == ["a", "b"]
    assert "waits for the move a of m" in waits["c"]
    assert "move c" in waits["d"], "in the order in which they were asked for"
    assert set(waits) == {"c", "d", "e"}
    ended = [dataclasses.replace(m, state="done") if m.id in "ab" else m for m in moves]
    assert turns(ended)[0] == ["c"]


class World:
    """Instances that obey, and what of them requests go to. Only the new ones may fail by themselves."""

    def __init__(self, legs: int, stop_first: bool) -> None:
        self.move = a_move(legs=legs, stop_first=stop_first)
        self.seen = {leg.source: SERVES for leg in self.move.legs}
        self.served = {leg.source for leg in self.move.legs}
        self.want = legs

    def sight(self, id: str | None) -> Sight | None:
        return None if id is None else self.seen.get(id, GONE)

    def look(self) -> See:
        leg = self.move.leg
        return See(self.seen[leg.source], self.sight(leg.target), self.sight(leg.former))

    def take(self, event: Event) -> None:
        try:
            self.move, todo = step(self.move, event, 2.0)
        except ConflictError:
            assert isinstance(event, Cancel)
            return
        at = self.move.at
        for do in todo:
            if do.action in ("load", "restore"):
                new = f"{do.action}-{at}"
                assert new not in self.seen, "made twice"
                self.seen[new] = COMES
                self.move, more = step(self.move, Created(new), 2.0)
                assert not more
                if do.action == "restore":
                    self.served.add(new)
            elif do.action == "switch":
                assert self.move.leg.target is not None
                self.served.add(self.move.leg.target)
                self._drop(do.instance)
            elif do.action == "drop":
                self._drop(do.instance)
        self.check()

    def _drop(self, id: str) -> None:
        self.served.discard(id)
        if self.seen[id].runs:
            self.seen[id] = LEFT

    def check(self) -> None:
        assert len(self.served) <= self.want
        if not self.move.stop_first:
            assert len(self.served) == self.want
            assert all(self.seen[id] == SERVES for id in self.served)
        assert not self.served & set(apart([self.move]))

    def goes_on(self, answers: str | None, new: Sight) -> None:
        """Everything that is on its way arrives."""
        for id, seen in self.seen.items():
            if seen == LEFT:
                self.seen[id] = GONE
            elif seen == COMES:
                self.seen[id] = new if id.startswith("load") else SERVES
        self.take(Begin())
        self.take(self.look())
        if (asked := asks(self.move)) is not None:
            self.take(Answered(asked, "text: Paris" if asked.startswith("old") else answers))


events = st.lists(
    st.tuples(
        st.sampled_from(["look", "answer", "cancel", "stray", "arrive"]),
        st.sampled_from(["text: Paris", "text: London", "", None]),
        st.sampled_from([SERVES, SERVES, FAILED]),
    ),
    max_size=30,
)


@given(
    st.integers(1, 3), st.booleans(), events, st.sampled_from(["text: Paris", None]), st.sampled_from([SERVES, FAILED])
)
def test_one_copy_serves_at_every_point_and_every_move_ends(
    legs: int, stop_first: bool, happens: list[tuple[str, str | None, Sight]], answers: str | None, new: Sight
) -> None:
    world = World(legs, stop_first)
    for what, answer, sight in happens:
        match what:
            case "look":
                world.take(Begin())
                world.take(world.look())
            case "answer" if (asked := asks(world.move)) is not None:
                world.take(Answered(asked, answer))
            case "cancel":
                world.take(Cancel())
            case "stray":
                world.take(Answered("somebody", answer))
            case _:
                world.goes_on(answer, sight)
    for _ in range(6 * legs):
        world.goes_on(answers, new)
    assert world.move.ended
    assert world.move.message
    assert all(leg.step.ended for leg in world.move.legs)
    running = {id for id, seen in world.seen.items() if seen.runs and seen != LEFT}
    assert running == world.served, "nothing is left behind"
    assert len(world.served) == legs or stop_first
