from __future__ import annotations

import itertools
import random
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.fair import DEBTORS, FairQueue


@dataclass(eq=False)
class Piece:
    tenant: str
    cost: float = 1.0
    weight: float = 1.0


def names(pieces: list[Piece]) -> str:
    return "".join(piece.tenant for piece in pieces)


def drain(queue: FairQueue[Piece]) -> list[Piece]:
    return [queue.pop() for _ in range(len(queue))]


def fill(queue: FairQueue[Piece], *pieces: Piece) -> None:
    for piece in pieces:
        queue.push(piece)


def is_empty(queue: FairQueue[Piece]) -> bool:
    return not (len(queue) or queue._lines or queue._heap or queue._busy or queue._round)


def test_one_tenant_is_served_first_come_first_served() -> None:
    queue = FairQueue[Piece]()
    pieces = [Piece("a", cost) for cost in (5, 1, 9, 2)]
    fill(queue, *pieces)
    assert drain(queue) == pieces
    assert is_empty(queue)


def test_equals_take_turns() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece(tenant) for tenant in "aaaabbcc"))
    assert names(drain(queue)) == "abcabcaa"


def test_what_a_job_costs_counts() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece("a", 300) for _ in range(3)), *(Piece("b", 100) for _ in range(9)))
    assert names(drain(queue)) == "abbbabbbabbb"


def test_weights_are_shares() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece("a", weight=3) for _ in range(30)), *(Piece("b") for _ in range(30)))
    served = names([queue.pop() for _ in range(40)])
    assert (served.count("a"), served.count("b")) == (30, 10)


def test_a_newcomer_goes_before_those_that_were_served() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece(tenant) for tenant in "ab" * 50))
    for _ in range(11):
        queue.pop()
    fill(queue, Piece("c", 1000), Piece("c", 1000))
    assert names([queue.pop() for _ in range(3)]) == "bca", "b was not served in this round, a was"
    assert names([queue.pop() for _ in range(20)]) == "ba" * 10, "c has to wait until the others have had as much"


def test_who_comes_back_still_owes() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece("a") for _ in range(20)))
    queue.pop()
    queue.push(Piece("b", 5))
    assert queue.pop().tenant == "b"
    queue.push(Piece("b", 5))
    assert names([queue.pop() for _ in range(5)]) == "aaaab"


def test_a_start_elsewhere_is_charged() -> None:
    queue = FairQueue[Piece]()
    queue.charge(Piece("a"))
    fill(queue, Piece("a"), Piece("a"), Piece("b"))
    assert names(drain(queue)) == "baa"
    assert is_empty(queue)


def test_nobody_waits() -> None:
    queue = FairQueue[Piece]()
    with pytest.raises(IndexError, match="nobody waits"):
        queue.pop()
    queue.charge(Piece("a"))
    with pytest.raises(IndexError, match="nobody waits"):
        queue.pop()
    with pytest.raises(KeyError):
        queue.remove(Piece("b"))
    assert queue.first("b") is None
    assert queue.last("a") is None


def test_risen_jobs_go_before_their_tenants_others_in_order() -> None:
    queue = FairQueue[Piece]()
    own, other, first, second = Piece("a"), Piece("b"), Piece("a"), Piece("a")
    fill(queue, own, other)
    queue.push(first, risen=True)
    queue.push(second, risen=True)
    assert queue.first("a") is own
    assert queue.last("a") is own
    assert drain(queue) == [first, other, second, own]


def test_the_last_is_the_newest_and_a_risen_one_if_there_is_no_other() -> None:
    queue = FairQueue[Piece]()
    risen, old, new = Piece("a"), Piece("a"), Piece("a")
    queue.push(risen, risen=True)
    assert queue.last("a") is risen
    fill(queue, old, new)
    assert queue.last("a") is new
    queue.remove(new)
    assert queue.last("a") is old
    queue.remove(risen)
    assert queue.first("a") is queue.last("a") is old


def test_who_leaves_is_not_charged() -> None:
    queue = FairQueue[Piece]()
    left = Piece("b", 1000)
    fill(queue, Piece("a"), left, Piece("a"), Piece("a"))
    queue.remove(left)
    queue.push(Piece("b"))
    assert names(drain(queue)) == "abaa"


def test_ever_new_tenants_neither_pile_up_nor_keep_others_waiting() -> None:
    queue = FairQueue[Piece]()
    fill(queue, *(Piece("flood") for _ in range(1000)))
    numbers = itertools.count()
    gap = served = 0
    for _ in range(20_000):
        queue.push(Piece(f"new{next(numbers)}"))
        if queue.pop().tenant == "flood":
            gap = 0
            served += 1
        else:
            gap += 1
        assert len(queue._lines) == len(queue._heap) <= 2 * queue._busy + DEBTORS + 1
        assert gap <= 2 * queue._busy + DEBTORS, "the flood is not starved by ever new tenants either"
    assert served > 100
    drain(queue)
    assert is_empty(queue)


def test_tenants_that_come_and_leave_do_not_pile_up() -> None:
    queue = FairQueue[Piece]()
    stays = Piece("stays")
    queue.push(stays)
    for number in range(10_000):
        piece = Piece(f"t{number}")
        queue.push(piece)
        queue.remove(piece)
        assert len(queue._heap) == len(queue._lines) <= DEBTORS + 3
    assert drain(queue) == [stays]
    assert is_empty(queue)


costs = st.floats(1, 1000)
weights = st.sampled_from([0.1, 0.5, 1.0, 1.0, 3.0, 10.0])


@given(st.lists(st.tuples(weights, st.lists(costs, min_size=1, max_size=20)), min_size=2, max_size=6))
def test_those_that_wait_together_never_differ_by_more_than_one_job(
    tenants: list[tuple[float, list[float]]],
) -> None:
    queue = FairQueue[Piece]()
    left = {}
    for name, (weight, sizes) in enumerate(tenants):
        fill(queue, *(Piece(str(name), cost, weight) for cost in sizes))
        left[str(name)] = len(sizes)
    bound = max(cost / weight for weight, sizes in tenants for cost in sizes)
    given_ = defaultdict[str, float](float)
    while all(left.values()):
        piece = queue.pop()
        left[piece.tenant] -= 1
        given_[piece.tenant] += piece.cost / piece.weight
        got = [given_[name] for name in left]
        assert max(got) - min(got) <= bound * (1 + 1e-9)


@settings(deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_over_any_time_two_that_wait_differ_by_at_most_two_jobs(data: st.DataObject, seed: int) -> None:
    """Tenants come, go and leave at random, most of them with more jobs than are served."""
    rng = random.Random(seed)
    queue = FairQueue[Piece]()
    waiting = defaultdict[str, list[Piece]](list)
    count = data.draw(st.integers(2, 40))
    weight = {f"t{n}": rng.choice([0.5, 1.0, 2.0]) for n in range(count)}
    paid = dict.fromkeys(weight, 0.0)
    together: dict[tuple[str, str], tuple[float, float]] = {}  # least and most of what two differed by since both wait
    bound = 10 / 0.5
    for _ in range(300):
        what = rng.random()
        if what < 0.5:
            tenant = f"t{int(count * rng.random() ** 2)}"
            for _ in range(rng.choice([1, 1, 1, 10])):
                piece = Piece(tenant, rng.uniform(0.5, 10), weight[tenant])
                queue.push(piece)
                waiting[tenant].append(piece)
        elif what < 0.6 and (some := [t for t, pieces in waiting.items() if pieces]):
            tenant = rng.choice(some)
            piece = rng.choice(waiting[tenant])
            queue.remove(piece)
            waiting[tenant].remove(piece)
        elif len(queue):
            expected = next(queue.order())
            piece = queue.pop()
            assert piece is expected
            assert waiting[piece.tenant].pop(0) is piece
            paid[piece.tenant] += piece.cost / piece.weight
        for a, b in itertools.combinations(weight, 2):
            if not waiting[a] or not waiting[b]:
                together.pop((a, b), None)
                continue
            difference = paid[a] - paid[b]
            least, most = together.get((a, b), (difference, difference))
            together[a, b] = least, most = min(least, difference), max(most, difference)
            assert most - least <= 2 * bound * (1 + 1e-9)


@given(st.lists(st.tuples(st.sampled_from("abcd"), costs, weights, st.booleans()), max_size=30), st.integers(0, 30))
def test_the_order_that_is_told_is_the_order_that_comes(
    jobs: list[tuple[str, float, float, bool]], served: int
) -> None:
    queue = FairQueue[Piece]()
    for tenant, cost, weight, risen in jobs:
        queue.push(Piece(tenant, cost, weight), risen=risen)
    for _ in range(min(served, len(queue))):
        queue.pop()
    expected = list(queue.order())
    assert drain(queue) == expected
    assert is_empty(queue)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(1, 100), st.booleans()), min_size=1, max_size=40),
    st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=40),
)
def test_of_some_tenants_the_first_in_order_is_taken(
    pieces: list[tuple[str, float, bool]], allowed: list[set[str]]
) -> None:
    queue = FairQueue[Piece]()
    for tenant, cost, risen in pieces:
        queue.push(Piece(tenant, cost), risen=risen)
    for tenants in allowed:
        expected = next((piece for piece in queue.order() if piece.tenant in tenants), None)
        size = len(queue)
        assert queue.next(tenants.__contains__) is expected
        assert queue.pop_of(tenants.__contains__) is expected
        assert len(queue) == size - (expected is not None)
    assert len(drain(queue)) == size - (expected is not None)
    assert is_empty(queue)


def test_who_is_passed_over_does_not_go_behind_who_comes_anew() -> None:
    queue = FairQueue[Piece]()
    fill(queue, Piece("a"), Piece("b"), Piece("b"))
    assert queue.pop_of("b".__contains__).tenant == "b"  # type: ignore[union-attr]
    queue.push(Piece("c"))
    assert names(drain(queue)) == "acb"
