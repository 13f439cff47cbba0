"""What running requests take in their next step, against a scheduler in small that does as vLLM's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.vllm.plugin.needs import Needs


@dataclass(eq=False)
class Request:
    """One that still has `output` tokens to give once its `tokens` are computed."""

    tokens: int
    output: int
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0

    @property
    def num_tokens_with_spec(self) -> int:
        return self.tokens


class Scheduler:
    """Running requests first, then new ones while there is a place; one is put out of the batch now and then."""

    def __init__(self, chance: random.Random, sizes: Sequence[int], step_tokens: int, *, ahead: int) -> None:
        self.chance, self.sizes, self.step_tokens, self.ahead = chance, sizes, step_tokens, ahead
        self.asynchronous = chance.random() < 0.5
        self.needs = Needs(sizes, step_tokens, drafts=False)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.under_way: list[list[Request]] = []

    def blocks(self, tokens: int) -> int:
        return sum(-(-tokens // size) for size in self.sizes)

    def step(self, places: int) -> None:
        needs, running, before = self.needs, self.running, len(self.running)
        foretold = needs.required(running, self.ahead)
        assert foretold <= needs.at_most(before, self.ahead)
        left, taken, scheduled = self.step_tokens, 0, {}
        gone = running.pop() if running and self.chance.random() < 0.1 else None
        for request in [*running]:
            tokens = min(self.pending(request), left)
            if tokens > 0:
                taken += self.blocks(request.num_computed_tokens + tokens + self.ahead)
                taken -= self.blocks(request.num_computed_tokens)
                scheduled[request] = tokens
                left -= tokens
        assert taken <= foretold, "more is taken than was foretold"
        while gone is None and self.waiting and left and len(running) < places:
            request = self.waiting.pop(0)
            running.append(request)
            scheduled[request] = min(self.pending(request), left)
            left -= scheduled[request]
        if gone is not None:
            gone.num_computed_tokens = gone.num_output_placeholders = 0
            self.waiting.insert(0, gone)
        sampled = []
        for request, tokens in scheduled.items():
            request.num_computed_tokens += tokens
            if self.pending(request) == 0:
                sampled.append(request)
                request.num_output_placeholders += self.asynchronous
        needs.stepped(running, before, len(scheduled), sum(scheduled.values()))
        self.under_way.append(sampled)
        if not self.asynchronous or len(self.under_way) > 1:
            self.process()

    def process(self) -> None:
        for request in self.under_way.pop(0):
            if request not in self.running or (self.asynchronous and not request.num_output_placeholders):
                continue
            request.num_output_placeholders -= self.asynchronous
            request.tokens += 1
            request.output -= 1
            if request.output == 0:
                self.running.remove(request)

    @staticmethod
    def pending(request: Request) -> int:
        return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens


@given(
    st.integers(0, 2**32),
    st.sampled_from([[16], [4], [16, 16], [8, 32]]),
    st.integers(1, 60),
    st.sampled_from([0, 0, 3, 7]),
)
def test_no_step_takes_more_than_was_foretold(seed: int, sizes: list[int], step_tokens: int, ahead: int) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(chance, sizes, step_tokens, ahead=ahead)
    for _ in range(120):
        if chance.random() < 0.15:
            scheduler.waiting += [
                Request(chance.randint(1, 90), chance.randint(1, 40)) for _ in range(chance.randint(1, 4))
            ]
        scheduler.step(places=chance.choice([3, 8]))


def test_once_all_are_past_their_prompts_a_block_each_is_enough() -> None:
    needs = Needs([16], 1600, drafts=False)
    running = [Request(40, 10, num_computed_tokens=done) for done in (39, 32, 31)]
    assert needs.at_most(3, 0) == 103
    needs.stepped(running, 3, 3, 60)
    assert needs.at_most(3, 0) == 103, "two of them lack more than a token"
    for request, done in zip(running, (40, 48, 47), strict=True):
        request.tokens, request.num_computed_tokens = done + 1, done
    needs.stepped(running, 3, 3, 20)
    assert needs.at_most(3, 0) == 3
    assert needs.required(running, 0) == 1, "only the one whose last block is full"
    assert needs.required(running, 1) == 2
    running.append(Request(100, 1))
    needs.stepped(running, 3, 3, 3)
    assert needs.at_most(4, 0) == 104, "another came whose prompt is to be computed"


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 33])
def test_blocks_are_counted_over_all_groups(tokens: int) -> None:
    assert Needs([16], 64, drafts=False).blocks(tokens) == -(-tokens // 16)
    assert Needs([16, 4], 64, drafts=False).blocks(tokens) == -(-tokens // 16) + -(-tokens // 4)


def test_where_tokens_are_drafted_nobody_is_taken_to_take_one() -> None:
    needs = Needs([16], 160, drafts=True)
    needs.stepped([Request(10, 1, num_computed_tokens=9)], 1, 1, 1)
    assert needs.at_most(1, 4) == 11
