"""Who gets in by which key, and how much: every refusal, and limits that hold whatever the order and the times."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.errors import ShoalError
from shoal.fleet.keys import digest_of
from shoal.gateway.keyring import KNOWN, MAX_TOKEN, Keyring
from shoal.gateway.limits import Bucket
from shoal.messages import Key

SECRET = "sk-shoal-id000001-" + 8 * "A1b2"  # no random one: the names of the tests hold it
HEADER = f"Bearer {SECRET}".encode()


def a_key(id: str = "id000001", secret: str = SECRET, **changes: Any) -> Key:
    return Key(**{"id": id, "name": f"key {id}", "digest": digest_of(secret), **changes})


def a_ring(*keys: Key, required: bool = True) -> Keyring:
    ring = Keyring()
    ring.replace(keys, required)
    return ring


def refused(call: Any, *args: Any) -> ShoalError:
    with pytest.raises(ShoalError) as caught:
        call(*args)
    return caught.value


# -- who it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_a_key_opens_by_either_header(scheme: str) -> None:
    ring = a_ring(a_key())
    for _ in range(2):  # found out, then remembered
        assert ring.identify(f"{scheme} {SECRET}".encode(), None, 0.0) == a_key()
        assert ring.identify(f"{scheme}   {SECRET} ".encode(), None, 0.0) == a_key()
        assert ring.identify(None, SECRET.encode(), 0.0) == a_key()
        assert ring.identify(b"Basic dXNlcjpwYXNz", SECRET.encode(), 0.0) == a_key()


@pytest.mark.parametrize(
    ("authorization", "api_key", "code"),
    [
        (None, None, "key_required"),
        (b"", None, "key_required"),
        (None, b"", "key_required"),
        (b"Basic dXNlcjpwYXNz", None, "key_required"),
        (SECRET.encode(), None, "key_required"),
        (b"Bearer", None, "key_required"),
        (b"Bearer ", None, "invalid_key"),
        (b"Bearer none", None, "invalid_key"),
        (HEADER[:-1], None, "invalid_key"),
        (HEADER + b"x", None, "invalid_key"),
        (HEADER.upper(), None, "invalid_key"),
        (b"Bearer \xff\x00\xfe", None, "invalid_key"),
        (b"Bearer " + b"x" * (MAX_TOKEN + 1), None, "invalid_key"),
        (b"Bearer none", SECRET.encode(), "invalid_key"),
        (None, digest_of(SECRET).encode(), "invalid_key"),
    ],
)
def test_what_is_no_key_is_refused_with_a_challenge(
    authorization: bytes | None, api_key: bytes | None, code: str
) -> None:
    error = refused(a_ring(a_key()).identify, authorization, api_key, 0.0)
    assert (error.status, error.code, error.headers) == (401, code, {"WWW-Authenticate": "Bearer"})
    assert SECRET not in error.message


def test_without_any_key_whatever_clients_send_is_ignored() -> None:
    ring = a_ring(required=False)
    assert ring.identify(None, None, 0.0) is None
    assert ring.identify(b"Bearer none", b"dummy", 0.0) is None


def test_where_keys_are_required_and_there_is_none_nobody_gets_in() -> None:
    ring = a_ring(required=True)
    assert refused(ring.identify, None, None, 0.0).code == "key_required"
    assert refused(ring.identify, HEADER, None, 0.0).code == "invalid_key"


def test_a_key_expires_at_its_moment_even_one_that_was_remembered() -> None:
    ring = a_ring(a_key(expires_at=100.0))
    assert ring.identify(HEADER, None, 99.9) is not None
    error = refused(ring.identify, HEADER, None, 100.0)
    assert (error.status, error.code) == (401, "key_expired")
    assert "key id000001" in error.message


def test_a_revoked_key_is_refused_at_once_and_a_changed_one_is_as_it_is_now() -> None:
    ring = a_ring(a_key())
    assert ring.identify(HEADER, None, 0.0) == a_key()
    ring.replace((a_key(weight=3.0),), True)
    assert ring.identify(HEADER, None, 0.0) == a_key(weight=3.0)
    ring.replace((), True)
    assert refused(ring.identify, HEADER, None, 0.0).code == "invalid_key"


def test_what_is_remembered_is_bounded_and_only_valid_keys_are() -> None:
    ring = a_ring(*(a_key(f"id{n:06}", f"secret {n}") for n in range(KNOWN + 10)))
    for n in range(KNOWN + 10):
        ring.identify(None, f"secret {n}".encode(), 0.0)
        with pytest.raises(ShoalError):
            ring.identify(None, f"guess {n}".encode(), 0.0)
        assert 0 < len(ring._known) <= KNOWN
    assert ring.identify(None, b"secret 0", 0.0) is not None  # forgotten, and found again
    assert len(ring._known) <= KNOWN


# -- which models ------------------------------------------------------------------------------------------------------


def test_models_are_allowed_by_name() -> None:
    key = a_key(models=("a", "org/b"))
    ring = a_ring(key)
    ring.allow(key, "org/b")
    error = refused(ring.allow, key, "c")
    assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
    assert error.message.endswith("is not for c; it is for a, org/b")
    assert [name for name in ("a", "b", "org/b", "") if ring.may_see(key)(name)] == ["a", "org/b"]
    assert len(refused(ring.allow, a_key(models=tuple(f"model {n}" for n in range(1000))), "c").message) < 400


def test_a_key_without_models_and_no_key_may_use_all() -> None:
    ring = a_ring(a_key())
    ring.allow(a_key(), "anything")
    assert ring.may_see(a_key())("anything")
    assert ring.may_see(None)("anything")


# -- how much ----------------------------------------------------------------------------------------------------------


def test_requests_a_minute() -> None:
    key = a_key(requests_per_minute=3)
    ring = a_ring(key)
    for _ in range(3):
        ring.begin(key, 10, 1000.0)
    error = refused(ring.begin, key, 10, 1000.0)
    assert (error.status, error.code, error.param) == (429, "rate_limited", "requests_per_minute")
    assert error.headers == {"Retry-After": "20"}
    assert "3 requests a minute; try again in 20 s" in error.message
    assert refused(ring.begin, key, 10, 1019.9).headers == {"Retry-After": "1"}
    ring.begin(key, 10, 1020.0)
    assert refused(ring.begin, key, 10, 1020.0).status == 429


@given(st.integers(1, 10**6), st.floats(0, 1e6))
def test_who_waits_as_told_gets_in(limit: int, start: float) -> None:
    key = a_key(tokens_per_minute=limit)
    ring = a_ring(key)
    ring.begin(key, limit, start)
    wait = int(refused(ring.begin, key, 1, start).headers["Retry-After"])
    ring.begin(key, 1, start + wait)


def test_tokens_are_estimated_then_corrected() -> None:
    key = a_key(tokens_per_minute=600)
    ring = a_ring(key)
    ring.begin(key, 500, 0.0)
    error = refused(ring.begin, key, 200, 0.0)
    assert (error.param, error.headers) == ("tokens_per_minute", {"Retry-After": "10"})
    ring.end(key, 500, 100, 0.0)  # fewer than thought: what was too much comes back
    ring.begin(key, 500, 0.0)
    ring.end(key, 500, 1100, 0.0)  # more: a debt of 600 tokens
    assert refused(ring.begin, key, 60, 0.0).headers == {"Retry-After": "66"}
    assert refused(ring.begin, key, 60, 65.0).headers == {"Retry-After": "1"}
    ring.begin(key, 60, 66.0)
    ring.end(key, 60, None, 66.0)  # nobody knows: the estimate stands
    assert refused(ring.begin, key, 1, 66.0).status == 429


def test_a_request_larger_than_a_minute_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    key = a_key(tokens_per_minute=60)
    ring = a_ring(key)
    ring.begin(key, 1, 0.0)
    assert refused(ring.begin, key, 180, 0.0).headers == {"Retry-After": "1"}
    ring.begin(key, 180, 1.0)
    assert refused(ring.begin, key, 60, 1.0).headers == {"Retry-After": "180"}


def test_concurrent_requests() -> None:
    key = a_key(concurrent=2, requests_per_minute=100)
    ring = a_ring(key)
    ring.begin(key, 1, 0.0)
    ring.begin(key, 1, 0.0)
    error = refused(ring.begin, key, 1, 0.0)
    assert (error.param, error.headers) == ("concurrent", {"Retry-After": "1"})
    ring.end(key, 1, None, 0.0)
    ring.begin(key, 1, 0.0)


def test_a_refusal_takes_nothing_of_the_other_limits() -> None:
    key = a_key(requests_per_minute=2, tokens_per_minute=100, concurrent=2)
    ring = a_ring(key)
    ring.begin(key, 90, 0.0)
    for _ in range(50):
        assert refused(ring.begin, key, 50, 0.0).param == "tokens_per_minute"
    ring.begin(key, 10, 0.0)
    error = refused(ring.begin, key, 100, 0.0)
    assert (error.param, error.headers["Retry-After"]) == ("tokens_per_minute", "60")  # the longest of the three


def test_a_new_table_is_no_new_minute() -> None:
    key = a_key(requests_per_minute=10)
    ring = a_ring(key)
    for _ in range(10):
        ring.begin(key, 1, 0.0)
    ring.replace((key, a_key("id000002", "other")), True)
    assert refused(ring.begin, key, 1, 0.0).status == 429
    more = a_key(requests_per_minute=12)
    ring.replace((more,), True)
    ring.begin(more, 1, 0.0)
    ring.begin(more, 1, 0.0)
    assert refused(ring.begin, more, 1, 0.0).status == 429
    free = a_key()
    ring.replace((free,), True)
    ring.begin(free, 1, 0.0)


def test_both_secrets_of_a_rotated_key_share_its_limits() -> None:
    new, old = a_key(requests_per_minute=1), a_key(secret="former", requests_per_minute=1, expires_at=50.0)
    ring = a_ring(new, old)
    first, second = ring.identify(HEADER, None, 0.0), ring.identify(b"Bearer former", None, 0.0)
    assert first == new
    assert second == old
    ring.begin(new, 1, 0.0)
    assert refused(ring.begin, old, 1, 0.0).status == 429
    assert refused(ring.identify, b"Bearer former", None, 50.0).code == "key_expired"


def test_a_key_that_goes_while_its_requests_run_leaves_nothing_behind() -> None:
    key = a_key(concurrent=2)
    ring = a_ring(key)
    assert ring.identify(HEADER, None, 0.0) is not None
    ring.begin(key, 1, 0.0)
    ring.begin(key, 1, 0.0)
    ring.replace((), True)
    assert refused(ring.begin, key, 1, 0.0).code == "invalid_key"
    ring.end(key, 1, None, 0.0)
    ring.replace((key,), True)  # back again: what still runs still counts
    ring.begin(key, 1, 0.0)
    assert refused(ring.begin, key, 1, 0.0).param == "concurrent"
    ring.replace((), True)
    ring.end(key, 1, 5, 0.0)
    ring.end(key, 1, 5, 0.0)
    assert not ring._accounts
    assert not ring._known
    assert not ring._by_digest
    ring.end(key, 1, 5, 0.0)  # nobody's: no harm


# -- whatever happens --------------------------------------------------------------------------------------------------

_gaps = st.floats(0, 90) | st.just(0.0) | st.floats(0, 0.5)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 30), st.lists(_gaps, max_size=80))
def test_no_window_ever_sees_more_requests_than_a_minutes_worth_and_its_own_share(
    limit: int, gaps: list[float]
) -> None:
    key = a_key(requests_per_minute=limit)
    ring = a_ring(key)
    now, granted = 0.0, []
    for gap in gaps:
        now += gap
        try:
            ring.begin(key, 1, now)
        except ShoalError:
            continue
        granted.append(now)
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            assert last - first + 1 <= limit + limit * (granted[last] - granted[first]) / 60 + 1e-3


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(_gaps, st.floats(0, 1), st.floats(0, 1), st.integers(0, 5)), max_size=60),
)
def test_tokens_never_exceed_a_minutes_worth_and_what_time_gave(
    limit: int, steps: list[tuple[float, float, float, int]]
) -> None:
    """With estimates that are never too low; used or still held, all of it since the start."""
    key = a_key(tokens_per_minute=limit)
    ring = a_ring(key)
    now, used = 0.0, 0.0
    under_way: list[tuple[float, int]] = []
    for gap, share, part, ends in steps:
        now += gap
        for cost, tokens in under_way[:ends]:
            ring.end(key, cost, tokens, now)
            used += tokens
        del under_way[:ends]
        cost = math.floor(share * limit)
        try:
            ring.begin(key, cost, now)
        except ShoalError:
            assert cost > 0
        else:
            under_way.append((cost, math.floor(part * cost)))
        assert used + sum(cost for cost, _ in under_way) <= limit + limit * now / 60 + 1e-3


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(_gaps, st.floats(0, 3), st.none() | st.floats(0, 3)), max_size=50),
)
def test_after_enough_rest_the_whole_minute_is_there_again_and_no_more(
    limit: int, steps: list[tuple[float, float, float | None]]
) -> None:
    key = a_key(tokens_per_minute=limit)
    ring = a_ring(key)
    now, taken = 0.0, 0.0
    for gap, share, really in steps:
        now += gap
        cost, tokens = share * limit, None if really is None else math.ceil(really * limit)
        try:
            ring.begin(key, cost, now)
        except ShoalError:
            continue
        ring.end(key, cost, tokens, now)
        taken += cost if tokens is None else max(cost, tokens)
    now += 61 + 60 * taken / limit
    ring.begin(key, limit, now)
    assert refused(ring.begin, key, 1, now).status == 429


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0, 1), st.floats(0, 120))
def test_a_bucket_of_another_size_gives_no_more_than_it_holds(old: int, new: int, part: float, rest: float) -> None:
    bucket = Bucket(old)
    assert bucket.wait(0, 0.0) == 0
    bucket.used = part * old
    bucket.capacity = new
    assert bucket.wait(new, 0.0) == pytest.approx(60 * part * old / new, abs=1e-3)
    bucket.wait(0, rest)
    assert 0 <= bucket.used <= part * old


class Concurrency(RuleBasedStateMachine):
    """Requests that begin and end while keys come, go and change, against a list of those that run."""

    @initialize()
    def start(self) -> None:
        self.ring = Keyring()
        self.keys: dict[str, Key] = {}
        self.running: list[Key] = []
        self.now = 0.0

    @rule(ids=st.sets(st.sampled_from("abc")), limit=st.none() | st.integers(1, 4))
    def table(self, ids: set[str], limit: int | None) -> None:
        self.keys = {id: a_key(id, id, concurrent=limit) for id in sorted(ids)}
        self.ring.replace(tuple(self.keys.values()), True)

    @rule(id=st.sampled_from("abc"))
    def begin(self, id: str) -> None:
        key = self.keys.get(id, a_key(id, id))
        runs = sum(other.id == id for other in self.running)
        try:
            self.ring.begin(key, 1.0, self.now)
        except ShoalError as error:
            if error.status == 401:
                assert id not in self.keys
            else:
                assert key.concurrent is not None
                assert runs >= key.concurrent
        else:
            assert id in self.keys
            assert key.concurrent is None or runs < key.concurrent
            self.running.append(key)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.running:
            key = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.ring.end(key, 1.0, 2, self.now)

    @invariant()
    def only_what_is_listed_or_runs_is_kept(self) -> None:
        kept = {id: account.running for id, account in self.ring._accounts.items()}
        ids = {*self.keys, *(key.id for key in self.running)}
        assert kept == {id: sum(key.id == id for key in self.running) for id in ids}


TestConcurrency = Concurrency.TestCase
TestConcurrency.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
