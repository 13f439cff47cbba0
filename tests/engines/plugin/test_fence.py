"""Which blocks may lose their memory, whatever is scheduled, processed and taken away in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.fence import Fence

STEPS = st.lists(st.sampled_from(["schedule", "process", "leave", "pass", "idle"]), max_size=80)


def test_what_left_goes_once_all_steps_before_it_are_over() -> None:
    fence = Fence()
    fence.scheduled()
    fence.left([1, 2])
    fence.scheduled()
    fence.left([3])
    assert fence.passed() == []
    assert fence.processed(), "the first step is over, and it was the only one before 1 and 2 left"
    assert fence.passed() == [1, 2]
    assert fence.passed() == [], "3 left after the second step had been scheduled"
    assert fence.blocks == 3
    fence.unbacked(2)
    assert fence.processed()
    assert fence.passed() == [3]


def test_nothing_left_is_nothing_to_wait_for() -> None:
    fence = Fence()
    fence.left([])
    fence.scheduled()
    assert not fence.processed()
    assert (fence.blocks, fence.passed()) == (0, [])


@given(STEPS)
def test_no_block_goes_while_a_step_from_before_is_under_way_and_none_stays_for_longer(steps: list[str]) -> None:
    fence, number = Fence(), 0
    under_way: list[int] = []
    scheduled = 0
    waiting: list[tuple[int, set[int]]] = []  # each block with the steps that were under way when it left
    for step in steps:
        if step == "schedule":
            fence.scheduled()
            under_way.append(scheduled)
            scheduled += 1
        elif step == "process" and under_way:
            under_way.pop(0)
            some = fence.processed()
            assert some == any(not before & set(under_way) for _, before in waiting)
        elif step == "idle":
            fence.all_processed()
            under_way.clear()
        elif step == "leave":
            fence.left([number])
            waiting.append((number, set(under_way)))
            number += 1
        elif step == "pass":
            free = [block for block, before in waiting if not before & set(under_way)]
            passed = [block for _ in free for block in fence.passed()]
            assert passed == free
            assert fence.passed() == []
            fence.unbacked(len(passed))
            waiting = [one for one in waiting if one[0] not in passed]
        assert fence.blocks == len(waiting)
