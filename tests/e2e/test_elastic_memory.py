"""Elastic memory with the real engine: two of them, one budget. What moves is the kernel's count of resident memory.

The engines are started once for all tests, and the last test kills one of them.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.engines.base import Environment
from shoal.memory.elastic import ElasticTerms
from tests.e2e.elastic import MIB, Answer, Engine, Machine, finish
from tests.system.harness import until

BUDGET = 128 * MIB
TOKENS = 128
"""Tokens of a block."""
LAYERS = 30
BLOCK = TOKENS * LAYERS * 2 * 3 * 64 * 4
"""Bytes of a block: in each layer 3 heads of 64 keys and 64 values, 4 bytes each."""
MOST = BUDGET // BLOCK
"""Blocks that all engines can have together."""
READY = 24 * MIB // BLOCK + 1
"""Blocks that an idle engine keeps while nobody needs them."""
NOISE = 16 * MIB
"""What the engine's other memory may come and go meanwhile."""
HEAP = 40 * MIB
"""The same of one that computes meanwhile: 50 MiB more were seen after a burst, and 20 less. Below 8 blocks."""

STORY = (
    "The harbour of the old town was quiet that morning. A fisherman mended his net, two children counted the gulls, "
    "and the keeper of the lighthouse wrote the number of every ship into a book that nobody had ever asked to read. "
)
QUESTIONS = (
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "Once upon a time, a shoal of herring",
    STORY + "The first ship was called",
    STORY + "The first ship was called",
    STORY + STORY + STORY + "The book was",
    "1, 2, 4, 8, 16,",
    "The three states of matter are",
    "To be, or not to be,",
    "Dear Sir or Madam,\n",
    "\n".join(f"{n}. {STORY}" for n in range(14)) + "\nIn short,",
)


@dataclass(frozen=True)
class Pair:
    """The two engines."""

    machine: Machine
    one: Engine
    other: Engine

    def backed(self, engine: Engine) -> int:
        """Blocks that an engine has, as it says."""
        return self.machine.member(engine.name).backed // BLOCK

    def at_rest(self) -> None:
        """Wait until both engines have nothing to do, and the books say what the kernel says."""

        def agree() -> bool:
            members = self.machine.books()[1]
            return all(
                member.used == BLOCK and member.backed == engine.cache_resident <= member.lease
                for engine in (self.one, self.other)
                for member in [members[engine.name]]
            )

        try:
            until(agree, "books that say what the workers hold")
        except AssertionError as error:
            held = {engine.name: engine.cache_resident for engine in (self.one, self.other)}
            raise AssertionError(f"{error}: they hold {held}; {self.machine.books()}") from None


def words(tag: object, tokens: int) -> list[int]:
    """A prompt that no other tag has. The model need not make sense of it."""
    return random.Random(str(tag)).choices(range(2000, 42000), k=tokens)


@pytest.fixture(scope="module")
def expected(environment: Environment, source: Path) -> list[list[Answer]]:
    """What vLLM answers as it is: all questions at once, and one after the other when it has their prefixes."""
    with Machine(environment, source, BUDGET) as machine:
        return both_ways(machine.stock("stock").wait_ready())


def both_ways(engine: Engine) -> list[list[Answer]]:
    return [engine.ask_all(QUESTIONS, 24), [engine.ask(question, 24) for question in QUESTIONS]]


def test_pages_that_hold_several_blocks(environment: Environment, source: Path, expected: list[list[Answer]]) -> None:
    """As a shard's small blocks lie in a GPU's pages: the same tokens, and memory goes a page at a time."""
    page = 512 << 10  # of each layer, which has 192 KiB of a block
    with Machine(environment, source, BUDGET) as machine:
        terms = ElasticTerms(machine.socket, "", patience=300, page=page)
        engine = machine.elastic("wide", terms).wait_ready()
        for with_it, without in zip(both_ways(engine), expected, strict=True):
            assert [answer.ids for answer in with_it] == [answer.ids for answer in without]
        fill(engine, "wide", MOST // 2)

        def backed() -> int:
            member = machine.member("wide")
            assert member.backed % page == 0
            return member.backed if member.backed == engine.cache_resident <= member.lease else -1

        until(lambda: backed() >= 3 * LAYERS * page, "prefixes that stay")
        with machine.tool() as tool:
            tool.set_terms("wide", ceiling=2 * LAYERS * page)
        until(lambda: 0 <= backed() <= 2 * LAYERS * page, "pages that are given back")


@pytest.fixture(scope="module")
def pair(environment: Environment, source: Path, expected: object) -> Iterator[Pair]:
    del expected  # its engine has ended before these begin
    with Machine(environment, source, BUDGET) as machine:
        patient = ElasticTerms(machine.socket, "", patience=300)
        engines = machine.elastic("one", patient), machine.elastic("other", patient)
        yield Pair(machine, *(engine.wait_ready() for engine in engines))


@pytest.fixture
def rested(pair: Pair) -> Iterator[Pair]:
    """The two engines at rest, with no terms of their own; and again afterwards."""
    pair.at_rest()
    yield pair
    with pair.machine.tool() as tool:
        for engine in (pair.one, pair.other):
            tool.set_terms(engine.name, floor=0, unlimited=True, priority=100)
    pair.at_rest()


def fill(engine: Engine, tag: object, blocks: int) -> None:
    """Leave about so many blocks of prefixes in its cache, of prompts of two blocks."""
    answers = engine.ask_all([words((tag, n), 2 * TOKENS) for n in range(blocks // 2)], 1)
    assert [answer.status for answer in answers] == [200] * len(answers)


def burst(engine: Engine, tag: object, count: int, prompt: int, output: int) -> list[Future[Answer]]:
    return [engine.begin(words((tag, n), prompt), output) for n in range(count)]


def all_answered(requests: list[Future[Answer]], output: int) -> None:
    for answer in finish(requests):
        assert answer.status == 200, answer.body
        assert answer.tokens == output


def test_the_same_tokens_as_without_elasticity(expected: list[list[Answer]], pair: Pair) -> None:
    for again, (with_it, without) in enumerate(zip(both_ways(pair.one), expected, strict=True)):
        for question, answer, stock in zip(QUESTIONS, with_it, without, strict=True):
            assert answer.status == stock.status == 200
            assert answer.ids == stock.ids, (again, question[:60])
        if again:
            assert [answer.cached for answer in with_it] == [answer.cached for answer in without]
            assert with_it[-1].cached >= 4 * TOKENS
    pair.at_rest()


def test_memory_moves_from_the_idle_engine_to_the_busy_one_and_back(rested: Pair) -> None:
    for idle, busy in ((rested.one, rested.other), (rested.other, rested.one)):
        fill(idle, idle.name, MOST)
        rested.at_rest()
        full, cache = idle.resident, idle.cache_resident
        had, had_cache = busy.resident, busy.cache_resident
        assert cache >= (MOST - READY - 3) * BLOCK, "an engine keeps its prefixes while nobody needs the memory"
        all_answered(burst(busy, busy.name, 8, 2 * TOKENS + 10, 4), 4)
        rested.at_rest()
        gave, got = cache - idle.cache_resident, busy.cache_resident - had_cache
        assert gave >= 8 * BLOCK
        assert got >= 8 * BLOCK
        assert idle.resident <= full - gave + NOISE, "what it gave back is the system's again"
        assert busy.resident >= had + got - HEAP
        assert idle.cache_resident + busy.cache_resident <= BUDGET


def test_both_busy_beyond_the_budget(rested: Pair) -> None:
    """What 32 requests need at once is four times what there is."""
    output = TOKENS // 4
    requests = {
        engine.name: burst(engine, ("crowd", engine.name), 16, 2 * TOKENS - 10, output)
        for engine in (rested.one, rested.other)
    }
    shares: dict[str, int] = dict.fromkeys(requests, 0)

    def seen() -> bool:
        left = [sum(not request.done() for request in both) for both in requests.values()]
        if all(left):
            for name, member in rested.machine.books()[1].items():
                shares[name] = max(shares[name], member.used // BLOCK)
        return not any(left)

    until(seen, "all answers", 600)
    for both in requests.values():
        all_answered(both, output)
    for share in shares.values():
        assert share >= MOST // 3, f"one starved: {shares} of {MOST} blocks"


def test_the_broker_killed_under_load_costs_no_request(rested: Pair) -> None:
    machine, output = rested.machine, 24
    requests = [r for e in (rested.one, rested.other) for r in burst(e, ("before", e.name), 6, TOKENS - 10, output)]
    until(lambda: all(member.used >= 4 * BLOCK for member in machine.books()[1].values()), "load on both")
    assert not all(request.done() for request in requests)
    machine.kill_broker()
    try:
        # What comes now has to do with the memory that is there.
        requests += [
            request
            for engine in (rested.one, rested.other)
            for request in burst(engine, ("without", engine.name), 4, TOKENS - 10, output)
        ]
        all_answered(requests, output)
    finally:
        machine.start_broker()
    until(lambda: len(machine.books()[1]) == 2, "the engines at the new broker")
    leases = {name: member.lease for name, member in machine.books()[1].items()}
    # Read after the books: an engine at rest gives back what it did not need lately, with or without a broker.
    held = {engine.name: engine.cache_resident for engine in (rested.one, rested.other)}
    assert min(held.values()) > 0
    assert all(leases[name] >= held[name] for name in held), (leases, held)
    assert sum(leases.values()) <= BUDGET
    rested.at_rest()
    device, members = machine.books()
    assert device.leased == sum(member.lease for member in members.values())
    # And it does its work: the first can have more than it had.
    fill(rested.one, "after", MOST)
    until(lambda: rested.backed(rested.one) >= MOST - READY - 3, "memory from the new broker")


def test_a_request_that_can_never_fit_ends_with_an_error(rested: Pair) -> None:
    engine = rested.one
    with rested.machine.tool() as tool:
        tool.set_terms(engine.name, ceiling=8 * BLOCK)
    until(lambda: rested.backed(engine) <= 8, "the ceiling")
    refused = engine.ask(words("too long", 1500), 4)
    assert refused.status == 500, refused.body
    assert "error" in refused.body
    until(lambda: re.search("needs 12 blocks .* the ceiling is 7", engine.logged()), "the reason")
    assert engine.ask("The capital of France is", 4).status == 200


def test_a_request_that_outgrows_the_ceiling_ends_with_an_error_in_its_stream(rested: Pair) -> None:
    """It would otherwise preempt itself for ever."""
    engine = rested.one
    with rested.machine.tool() as tool:
        tool.set_terms(engine.name, ceiling=4 * BLOCK)
    until(lambda: rested.backed(engine) <= 4, "the ceiling")
    events = engine.stream(words("grows", 3 * TOKENS - 8), 40)
    assert len(events) > 2, "it had room for a few tokens"
    assert any("error" in json.loads(event) for event in events if event != "[DONE]"), events[-2:]
    assert engine.ask("The capital of France is", 4).status == 200


def test_a_request_waits_for_what_the_other_engine_uses(rested: Pair) -> None:
    output = 40
    busy = burst(rested.other, "holds", 7, 2 * TOKENS - 20, output)
    until(lambda: rested.machine.member("other").used >= (MOST - 9) * BLOCK, "the other engine to use the memory")
    waiting = rested.one.begin(words("waits", 12 * TOKENS), 4)
    until(lambda: rested.machine.member("one").waiting == 1, "the request that waits")
    assert not all(request.done() for request in busy)
    all_answered([waiting], 4)
    all_answered(busy, output)


def test_a_ceiling_below_what_is_in_use(rested: Pair) -> None:
    engine, output = rested.other, 48
    requests = burst(engine, "under", 6, 2 * TOKENS - 20, output)
    until(lambda: rested.machine.member(engine.name).used >= 10 * BLOCK, "the load")
    with rested.machine.tool() as tool:
        tool.set_terms(engine.name, ceiling=6 * BLOCK)
    all_answered(requests, output)
    until(lambda: rested.machine.member(engine.name).lease <= 6 * BLOCK, "the ceiling to be reached")
    rested.at_rest()
    assert engine.cache_resident <= 6 * BLOCK


def test_trim(rested: Pair) -> None:
    engine = rested.one
    fill(engine, "trimmed", MOST)
    rested.at_rest()
    assert engine.cache_resident >= MOST // 2 * BLOCK
    with rested.machine.tool() as tool:
        tool.trim(engine.name)
    until(lambda: rested.backed(engine) <= READY, "the end of its prefixes")
    rested.at_rest()
    assert engine.cache_resident <= READY * BLOCK
    assert engine.ask("The capital of France is", 4).status == 200


def test_a_floor_is_not_taken(rested: Pair) -> None:
    floor = 10 * BLOCK
    with rested.machine.tool() as tool:
        tool.set_terms("one", floor=floor)
    fill(rested.one, "kept", MOST)
    until(lambda: rested.backed(rested.one) >= 10, "its prefixes")
    requests = burst(rested.other, "presses", 12, 2 * TOKENS + 10, 4)
    least, most = rested.machine.member("one").lease, 0

    def seen() -> bool:
        nonlocal least, most
        members = rested.machine.books()[1]
        least, most = min(least, members["one"].lease), max(most, members["other"].lease)
        return all(request.done() for request in requests)

    until(seen, "all answers", 600)
    all_answered(requests, 4)
    assert least >= floor
    assert most <= BUDGET - floor
    assert rested.one.ask(words(("kept", MOST // 2 - 1), 2 * TOKENS), 1).cached == TOKENS


def test_a_sleeping_engine_holds_nothing(rested: Pair) -> None:
    engine = rested.one
    question = STORY + "The first ship was called"
    before = engine.ask(question, 12)
    fill(engine, "slept", MOST)
    rested.at_rest()
    full, cache = engine.resident, engine.cache_resident
    assert cache >= MOST // 2 * BLOCK
    engine.post("/sleep?level=1")
    try:
        until(lambda: engine.name not in rested.machine.books()[1], "the end of its lease")
        assert engine.cache_resident == 0
        assert engine.resident <= full - cache + NOISE
        fill(rested.other, "meanwhile", MOST + 4)
        until(lambda: rested.backed(rested.other) >= MOST - 2, "its memory at the other engine")
    finally:
        engine.post("/wake_up")
    assert engine.ask(question, 12).ids == before.ids


def test_an_engine_killed_at_once_leaves_its_memory_to_the_other(pair: Pair) -> None:
    """The last test: it ends one of the engines."""
    one, other = pair.one, pair.other
    pair.at_rest()
    fill(one, "lost", MOST)
    until(lambda: pair.backed(one) >= MOST - READY - 3, "its prefixes")
    busy = burst(one, "killed", 4, TOKENS, 200)
    until(lambda: pair.machine.member(one.name).used >= 5 * BLOCK, "the load")
    began = time.monotonic()
    one.kill()
    until(lambda: one.name not in pair.machine.books()[1], "the end of its lease")
    assert time.monotonic() - began < 1
    one.wait_gone()
    assert all(request.exception() is not None for request in busy)
    fill(other, "heir", MOST + 4)
    until(lambda: pair.backed(other) >= MOST - 2, "its memory at the other engine")
    assert other.cache_resident >= (MOST - 2) * BLOCK
