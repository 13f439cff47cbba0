"""When a busy engine's pager is woken, and when it is left alone."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.attention import PARTS, Attention
from shoal.engines.vllm.plugin.demand import enough_of


def never(_: int) -> int:
    pytest.fail("it is not worth counting")


def test_the_first_request_of_an_idle_engine_is_looked_at_at_once() -> None:
    attention = Attention()
    assert attention.needed(1, never)
    attention.looked(12, idle=True)
    assert attention.needed(1, never)


def test_a_few_blocks_are_not_worth_a_look_nor_a_count() -> None:
    attention = Attention()
    attention.looked(100, idle=False)
    assert not any(attention.needed(1, never) for _ in range(100 // PARTS - 1))


def test_what_comes_back_as_fast_as_it_goes_wakes_nobody() -> None:
    attention = Attention()
    attention.looked(100, idle=False)
    counted: list[int] = []

    def all_of_it(limit: int) -> int:
        counted.append(limit)
        return limit

    assert not any(attention.needed(1, all_of_it) for _ in range(100))
    assert counted == [67 + 25] * 4, "as often as a quarter was taken"


def test_a_prompt_larger_than_what_is_ready_is_looked_at_at_once() -> None:
    attention = Attention()
    attention.looked(100, idle=False)
    assert attention.needed(500, lambda limit: min(limit, 100))


@given(st.integers(1, 400), st.lists(st.integers(1, 40), max_size=200))
def test_what_is_ready_never_falls_far_without_a_look(goal: int, taken: list[int]) -> None:
    attention = Attention()
    attention.looked(goal, idle=False)
    ready = goal
    for blocks in taken:
        ready = max(0, ready - blocks)
        if attention.needed(blocks, partial(min, ready)):
            ready = goal
            attention.looked(goal, idle=False)
        else:
            assert ready >= enough_of(goal) - goal / PARTS - 1
