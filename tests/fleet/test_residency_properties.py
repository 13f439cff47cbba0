"""What every plan keeps, whatever the state that it is made from."""

from __future__ import annotations

import dataclasses
from math import inf
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.residency import Kind, Residency, Snapshot
from shoal.fleet.residency_books import Books
from shoal.fleet.residency_plan import decide
from shoal.fleet.residency_sites import Sites
from tests.fleet.residency import NOW, RULES, carried_out, overdrawn, snapshots

LEAVING = (Kind.SLEEP, Kind.UNLOAD)


@given(snapshots())
def test_no_budget_is_exceeded_at_any_moment_and_every_action_is_possible(state: Snapshot) -> None:
    assert not overdrawn(state)
    for then in carried_out(state, decide(state, RULES).actions):
        assert not overdrawn(then)


@given(snapshots())
def test_a_pinned_model_never_gives_way(state: Snapshot) -> None:
    pinned = {one.name for one in state.residents if one.pinned and one.place is not Residency.DISK}
    for action in decide(state, RULES).actions:
        moves_elsewhere = action.kind is Kind.UNLOAD and "loads elsewhere" in action.reason
        if action.name in pinned:
            assert moves_elsewhere or (action.kind not in (*LEAVING, Kind.FORGET) and not action.gives_way_to)


@given(snapshots())
def test_who_gives_way_has_stayed_long_enough_and_is_idle_or_was_waited_for(state: Snapshot) -> None:
    by_name = {one.name: one for one in state.residents}
    limited = {
        device.id for device in state.devices
        if sum(at > NOW - RULES.switch_window for at in device.gave_way) >= RULES.switches
    }  # fmt: skip
    for action in decide(state, RULES).actions:
        one = by_name[action.name]
        if not action.gives_way_to or action.kind is Kind.FLOOR:
            continue
        if one.place is Residency.GPU:
            assert RULES.stays(one) <= NOW
        if one.busy or (one.place is Residency.GPU and RULES.in_use(one, NOW)):
            since = by_name[action.gives_way_to].waiting_since
            assert since is not None and NOW - since >= RULES.patience
        assert not limited & set(one.on)


@given(snapshots())
def test_nobody_leaves_for_being_idle_who_is_not(state: Snapshot) -> None:
    by_name = {one.name: one for one in state.residents}
    for action in decide(state, RULES).actions:
        one = by_name[action.name]
        if action.kind in LEAVING and "idle" in action.reason and not action.gives_way_to:
            limits = [limit for limit in (one.leaves_after, one.unload_after) if limit is not None]
            assert not one.busy and not one.pinned
            assert one.keep_alive is None or one.keep_alive >= 0
            assert NOW - max(one.last_use, one.awake_since) >= min(limits)


@given(snapshots())
def test_every_claim_is_answered(state: Snapshot) -> None:
    plan = decide(state, RULES)
    if plan.next_look == NOW:
        assert any(not action.after for action in plan.actions)
        return
    told = {one.name for one in (*plan.refusals, *plan.waits)} | {action.name for action in plan.actions}
    for one in state.residents:
        if one.waiting and one.place is not Residency.GPU and one.motion is None:
            assert one.name in told
    for refusal in (*plan.refusals, *plan.waits):
        assert refusal.reason
    names = [action.name for action in plan.actions]
    assert len(names) == len(set(names))


@given(snapshots(), st.randoms(use_true_random=False))
def test_equal_states_give_equal_plans_in_whatever_order_they_are_told(state: Snapshot, random: Random) -> None:
    plan = decide(state, RULES)
    assert plan == decide(state, RULES)
    mixed = list(state.residents)
    random.shuffle(mixed)
    turned = dataclasses.replace(state, residents=tuple(mixed))
    other = decide(turned, RULES)
    assert {(a.kind, a.name, a.devices) for a in plan.actions} == {(a.kind, a.name, a.devices) for a in other.actions}


@given(snapshots(), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_nothing_changes_before_the_next_look(state: Snapshot, part: float) -> None:
    plan = decide(state, RULES)
    if plan.actions:
        return
    assert plan.next_look is None or plan.next_look > NOW
    end = NOW + 1000 if plan.next_look is None else plan.next_look
    then = min(NOW + part * (end - NOW), end - 1e-6 if end < inf else end)
    later = decide(dataclasses.replace(state, now=then), RULES)
    assert later.actions == ()
    assert {one.name: one for one in later.refusals} == {one.name: one for one in plan.refusals}, "in whatever order"


@given(snapshots(), st.randoms(use_true_random=False))
def test_what_could_be_had_is_the_same_whether_it_is_kept_up_to_date_or_worked_out_anew(
    state: Snapshot, random: Random
) -> None:
    books = Books(state)
    kept, anew = Sites(state, RULES, books, ()), Sites(state, RULES, books, ())
    devices = [device.id for device in state.devices]
    first = kept.could_have(devices, busy=True)
    for one in random.sample(state.residents, len(state.residents) // 2):
        kept.goes(one)
        kept.goes(one)
        anew.gone.add(one.name)
    for busy in (False, True):
        found = kept.could_have(devices, busy=busy)
        assert found == anew.could_have(devices, busy=busy)
        assert all(now <= then for now, then in zip(found, first, strict=True))
    assert kept.next_change == anew.next_change
