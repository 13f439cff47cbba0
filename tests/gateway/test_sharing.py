"""Limits of keys that several relays count together: whatever the order, as if there were one relay; and its faults."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.errors import ShoalError
from shoal.gateway import sharing
from shoal.gateway.keyring import Keyring
from shoal.gateway.limits import Bucket
from shoal.gateway.relay import RelayConfig
from shoal.gateway.sharing import Records, create, forget, joined
from shoal.messages import Key

WORKERS = 3


def a_key(id: str, **limits: Any) -> Key:
    return Key(id=id, name=id, digest=id, **limits)


def refusal(ring: Keyring, key: Key, cost: float, now: float) -> tuple[Any, ...] | None:
    """What a request is told; None: it began."""
    try:
        ring.begin(key, cost, now)
    except ShoalError as error:
        return error.status, error.code, error.param, error.headers, error.message
    return None


@pytest.fixture
def memory() -> Iterator[int]:
    fd = create()
    yield fd
    os.close(fd)


def rings(fd: int, *keys: Key, workers: int = WORKERS) -> list[Keyring]:
    made = [Keyring(Records(fd, worker, workers)) for worker in range(workers)]
    for ring in made:
        ring.replace(keys, True)
    return made


HOLDS = """
import fcntl, signal, sys
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 1, int(sys.argv[2]))
print(flush=True)
signal.pause()
"""
"""A relay that stands still just while it has a lock."""
FLOODS = """
import sys
import msgspec
from shoal.errors import ShoalError
from shoal.gateway import sharing
from shoal.gateway.keyring import Keyring
from shoal.messages import Key
fd, worker, workers, tries = map(int, sys.argv[1:5])
key = msgspec.json.decode(sys.argv[5], type=Key)
sharing.PATIENCE = 30.0  # a machine under load may keep a process that has the lock waiting
ring = Keyring(sharing.Records(fd, worker, workers))
ring.replace((key,), True)
print(flush=True)
sys.stdin.readline()
begun = 0
for _ in range(tries):
    try:
        ring.begin(key, 2.0, 1.0)
    except ShoalError:
        continue
    begun += 1
    ring.end(key, 2.0, 1, 1.0)
print(begun)
"""
"""A relay with many requests at one moment; they use half of what they were thought to."""


@contextmanager
def process(code: str, fd: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """One that has said that it is there."""
    command = [sys.executable, "-c", code, str(fd), *map(str, arguments)]
    with subprocess.Popen(command, pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "\n"
            yield running
        finally:
            running.kill()


# -- what users see ----------------------------------------------------------------------------------------------------


def test_a_limit_holds_for_all_relays_together(memory: int) -> None:
    key = a_key("a", requests_per_minute=10, concurrent=4)
    one, two, three = rings(memory, key)
    for ring in (one, two, three, one):
        ring.begin(key, 1, 5.0)
    for ring in (one, two, three):
        told = refusal(ring, key, 1, 5.0)
        assert told is not None
        assert told[:3] == (429, "rate_limited", "concurrent")
    three.end(key, 1, None, 5.0)
    two.begin(key, 1, 5.0)
    for ring in (one, one, two, two):
        ring.end(key, 1, None, 5.0)
    for _ in range(5):
        three.begin(key, 1, 5.0)
        three.end(key, 1, None, 5.0)
    told = refusal(one, key, 1, 5.0)
    assert told is not None
    assert told[2:4] == ("requests_per_minute", {"Retry-After": "6"})
    one.begin(key, 1, 11.0)


def test_tokens_that_one_relay_gives_back_or_owes_count_in_the_others(memory: int) -> None:
    key = a_key("a", tokens_per_minute=600)
    one, two, _ = rings(memory, key)
    one.begin(key, 500, 0.0)
    told = refusal(two, key, 200, 0.0)
    assert told is not None
    assert told[2:4] == ("tokens_per_minute", {"Retry-After": "10"})
    one.end(key, 500, 100, 0.0)
    two.begin(key, 500, 0.0)
    two.end(key, 500, 1100, 0.0)
    told = refusal(one, key, 60, 0.0)
    assert told is not None
    assert told[3] == {"Retry-After": "66"}
    one.begin(key, 60, 66.0)


def test_putting_tokens_back_waits_for_nobody_and_outlives_the_relay(memory: int) -> None:
    key = a_key("a", tokens_per_minute=600)
    one, two, _ = rings(memory, key)
    record = one._accounts["a"].record
    assert isinstance(record, sharing.Shared)
    one.begin(key, 600, 0.0)
    with process(HOLDS, memory, record._place):
        one.end(key, 600, 100, 0.0)
    assert not one._records.stuck  # type: ignore[union-attr]
    forget(memory, 0, WORKERS)
    two.begin(key, 500, 0.0)
    assert refusal(two, key, 1, 0.0) is not None


def test_a_clock_that_was_read_before_anothers_takes_nothing_back(memory: int) -> None:
    key = a_key("a", requests_per_minute=60)
    one, two, _ = rings(memory, key)
    for _ in range(60):
        one.begin(key, 1, 10.0)
    assert refusal(two, key, 1, 9.5) is not None
    two.begin(key, 1, 11.0)
    assert refusal(one, key, 1, 10.5) is not None
    one.begin(key, 1, 12.0)


def test_what_a_relay_had_under_way_goes_with_it_and_what_it_used_stays(memory: int) -> None:
    key = a_key("a", requests_per_minute=5, concurrent=2)
    one, two, three = rings(memory, key)
    one.begin(key, 1, 0.0)
    one.begin(key, 1, 0.0)
    assert refusal(two, key, 1, 0.0) is not None
    forget(memory, 0, WORKERS)
    two.begin(key, 1, 0.0)
    three.begin(key, 1, 0.0)
    again = Keyring(Records(memory, 0, WORKERS))
    again.replace((key,), True)
    told = refusal(again, key, 1, 0.0)
    assert told is not None
    assert told[2] == "concurrent"
    two.end(key, 1, None, 0.0)
    again.begin(key, 1, 0.0)
    again.end(key, 1, None, 0.0)
    told = refusal(again, key, 1, 0.0)
    assert told is not None
    assert told[2] == "requests_per_minute"


def test_relays_that_learn_of_a_changed_limit_one_after_the_other_count_on(memory: int) -> None:
    key, more = a_key("a", requests_per_minute=10), a_key("a", requests_per_minute=12)
    one, two, _ = rings(memory, key)
    for _ in range(10):
        one.begin(key, 1, 0.0)
    two.replace((more,), True)
    two.begin(more, 1, 0.0)
    assert refusal(one, key, 1, 0.0) is not None
    two.begin(more, 1, 0.0)
    assert refusal(two, more, 1, 0.0) is not None
    one.replace((more,), True)
    assert refusal(one, more, 1, 0.0) is not None
    one.begin(more, 1, 5.0)


def test_a_key_without_limits_has_no_record_and_gets_one_with_its_first_limit(memory: int) -> None:
    free, limited = a_key("a"), a_key("a", concurrent=2)
    one, two, _ = rings(memory, free)
    one.begin(free, 1, 0.0)
    assert set(os.pread(memory, 10_000, 0)) == {0}
    for ring in (one, two):
        ring.replace((limited,), True)
    two.begin(limited, 1, 0.0)
    assert refusal(two, limited, 1, 0.0) is not None, "the request that began before there was a limit"
    for ring in (one, two):
        ring.replace((free,), True)
    two.begin(free, 1, 0.0)


def test_a_revoked_keys_requests_count_until_they_end(memory: int) -> None:
    key = a_key("a", concurrent=2)
    one, two, _ = rings(memory, key)
    one.begin(key, 1, 0.0)
    one.begin(key, 1, 0.0)
    for ring in (one, two):
        ring.replace((), True)
    told = refusal(two, key, 1, 0.0)
    assert told is not None
    assert told[:2] == (401, "invalid_key")
    two.replace((key,), True)  # a former table, of a database that was restored
    told = refusal(two, key, 1, 0.0)
    assert told is not None
    assert told[2] == "concurrent"
    one.end(key, 1, None, 0.0)
    one.end(key, 1, None, 0.0)
    two.begin(key, 1, 0.0)


# -- room --------------------------------------------------------------------------------------------------------------


def test_more_keys_than_there_are_records_make_room(memory: int) -> None:
    keys = [a_key(f"k{n}", requests_per_minute=2) for n in range(1000)]
    one, two, _ = rings(memory, *keys[:3])
    for key in keys[:3]:
        one.begin(key, 1, 0.0)
    one.replace(tuple(keys), True)  # it grows
    for key in keys[3:]:
        one.begin(key, 1, 0.0)
    for key in keys[:3]:  # in a relay that has not seen it yet
        two.begin(key, 1, 0.0)
        assert refusal(two, key, 1, 0.0) is not None
    two.replace(tuple(keys), True)
    for key in keys:
        assert (refusal(two, key, 1, 0.0) is None) == (key not in keys[:3])
        assert refusal(one, key, 1, 0.0) is not None


def test_as_many_relays_as_there_may_be(memory: int) -> None:
    keys = [a_key(f"k{n}", tokens_per_minute=60, concurrent=64) for n in range(20)]
    made = rings(memory, *keys, workers=64)
    for key in keys:
        for ring in made[:60]:
            ring.begin(key, 1, 0.0)
        told = refusal(made[63], key, 1, 0.0)
        assert told is not None
        assert told[2] == "tokens_per_minute"


def test_records_of_keys_that_nobody_knows_are_used_again(memory: int) -> None:
    made = rings(memory)
    size = os.fstat(memory).st_size
    for n in range(300):
        key = a_key(f"k{n}", concurrent=1, requests_per_minute=1)
        for ring in made:
            ring.replace((key,), True)
        made[n % WORKERS].begin(key, 1, 0.0)
        assert refusal(made[(n + 1) % WORKERS], key, 1, 0.0) is not None
        made[n % WORKERS].end(key, 1, None, 0.0)
    assert os.fstat(memory).st_size == size


def test_a_record_stays_while_one_relay_knows_its_key(memory: int) -> None:
    key = a_key("kept", requests_per_minute=1)
    one, two, _ = rings(memory, key)
    one.begin(key, 1, 0.0)
    for n in range(5):
        two.replace(tuple(a_key(f"k{n}-{m}", concurrent=1) for m in range(50)), True)
    two.replace((key,), True)
    assert refusal(two, key, 1, 0.0) is not None


def test_keys_that_find_no_room_are_counted_by_each_relay(
    memory: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    keys = tuple(a_key(f"k{n}", requests_per_minute=1) for n in range(200))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        one, two, _ = rings(memory, *keys)
        both = sum(refusal(one, key, 1, 0.0) is None and refusal(two, key, 1, 0.0) is None for key in keys)
    records = Records(memory, 0, WORKERS).capacity
    assert both == len(keys) - records
    assert f"no memory to share the limits of {len(keys) - records} keys" in caplog.text
    for ring in (one, two):  # any change of keys tries again
        ring.replace((*keys, a_key("another")), True)
    for key in keys[records:]:
        one.begin(key, 1, 60.0)
        assert refusal(two, key, 1, 60.0) is not None


def test_a_relay_alone_shares_nothing(tmp_path: Path, memory: int) -> None:
    config = RelayConfig(tmp_path / "c", tmp_path / "r", tmp_path / "t")
    assert joined(config) is None
    assert joined(RelayConfig(tmp_path / "c", tmp_path / "r", tmp_path / "t", limits_fd=memory)) is not None


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_relay_that_there_is_not_is_refused(memory: int, worker: int) -> None:
    with pytest.raises(ValueError, match=f"no relay {worker} of 2"):
        Records(memory, worker, 2)


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_relay_that_stands_still_keeps_nobody(memory: int, caplog: pytest.LogCaptureFixture) -> None:
    key, other = a_key("a", requests_per_minute=2), a_key("b", requests_per_minute=1)
    one, two, _ = rings(memory, key, other)
    account = one._accounts["a"]
    assert isinstance(account.record, sharing.Shared)
    with process(HOLDS, memory, account.record._place):
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
        assert refusal(one, key, 1, 0.0) is not None
        one.begin(other, 1, 0.0)
    assert caplog.text.count("Another relay stands still") == 2, "each says so once"
    one.begin(key, 1, 60.0)
    assert not one._records.stuck  # type: ignore[union-attr]


def test_a_new_key_is_counted_alone_while_a_relay_stands_still_over_another(memory: int) -> None:
    key = a_key("a", requests_per_minute=1)
    with process(HOLDS, memory, 0):
        one, two, _ = rings(memory, key)
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
    for ring in (one, two):
        ring.replace((key, a_key("b")), True)
    one.begin(key, 1, 60.0)
    assert refusal(two, key, 1, 60.0) is not None


def test_the_lock_of_a_relay_that_is_killed_is_free(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PATIENCE", 30.0)
    key = a_key("a", requests_per_minute=2)
    one, two, _ = rings(memory, key)
    record = one._accounts["a"].record
    assert isinstance(record, sharing.Shared)
    with process(HOLDS, memory, record._place) as holder:
        holder.kill()
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
    assert not one._records.stuck  # type: ignore[union-attr]
    assert refusal(one, key, 1, 0.0) is not None


@pytest.mark.parametrize(
    ("limits", "expected"), [({"requests_per_minute": 700}, 700), ({"tokens_per_minute": 701}, 700)]
)
def test_processes_that_ask_at_once_get_exactly_the_limit(memory: int, limits: dict[str, int], expected: int) -> None:
    workers, key = 4, msgspec.json.encode(a_key("a", **limits)).decode()
    with ExitStack() as stack:
        floods = [stack.enter_context(process(FLOODS, memory, worker, workers, 500, key)) for worker in range(workers)]
        for flood in floods:
            assert flood.stdin is not None
            flood.stdin.write("\n")
            flood.stdin.flush()
        assert sum(int(flood.communicate()[0]) for flood in floods) == expected


# -- whatever happens --------------------------------------------------------------------------------------------------


class Together(RuleBasedStateMachine):
    """Relays that share, against one relay that gets the same requests in the same order. Every answer is the same,
    to the letter, whoever gives it; also when a relay is killed, which for the one means that its requests ended.
    Rates and times are such that sums are exact, in whatever steps."""

    @initialize()
    def start(self) -> None:
        self.fd = create()
        self.alone = Keyring()
        self.rings = [Keyring(Records(self.fd, worker, WORKERS)) for worker in range(WORKERS)]
        self.keys: dict[str, Key] = {}
        self.running: list[tuple[int, Key, int]] = []
        self.now = 0.0

    def teardown(self) -> None:
        for ring in self.rings:
            assert isinstance(ring._records, Records)
            ring._records.close()
        os.close(self.fd)

    @rule(
        ids=st.sets(st.sampled_from("abc")),
        requests=st.none() | st.sampled_from((15, 30)),
        tokens=st.none() | st.sampled_from((15, 60, 240)),
        concurrent=st.integers(1, 12),
    )
    def table(self, ids: set[str], requests: int | None, tokens: int | None, concurrent: int) -> None:
        """Keys never go, and keep their limits a minute: at which rate the time before a change counts depends on who
        has looked since, and a refusal is no look for others. The tests above have such changes."""
        for id in ids:
            was = self.keys.get(id, a_key(id, requests_per_minute=requests, tokens_per_minute=tokens))
            self.keys[id] = msgspec.structs.replace(was, concurrent=concurrent)
        for ring in (self.alone, *self.rings):
            ring.replace(tuple(self.keys.values()), True)

    @rule(quarters=st.integers(0, 80))
    def passes(self, quarters: int) -> None:
        self.now += quarters / 4

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), times=st.integers(1, 12), cost=st.integers(0, 80))
    def begin(self, data: st.DataObject, times: int, cost: int) -> None:
        key = self.keys[data.draw(st.sampled_from(sorted(self.keys)))]
        first = data.draw(st.integers(0, WORKERS - 1))
        for worker in range(first, first + times):
            worker %= WORKERS
            expected = refusal(self.alone, key, cost, self.now)
            assert refusal(self.rings[worker], key, cost, self.now) == expected
            if expected is None:
                self.running.append((worker, key, cost))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.none() | st.integers(0, 200))
    def end(self, data: st.DataObject, tokens: int | None) -> None:
        worker, key, cost = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        for ring in (self.alone, self.rings[worker]):
            ring.end(key, cost, tokens, self.now)

    @rule(worker=st.integers(0, WORKERS - 1))
    def killed(self, worker: int) -> None:
        for _, key, cost in [request for request in self.running if request[0] == worker]:
            self.alone.end(key, cost, None, self.now)
        self.running = [request for request in self.running if request[0] != worker]
        records = self.rings[worker]._records
        assert isinstance(records, Records)
        records.close()
        forget(self.fd, worker, WORKERS)
        self.rings[worker] = Keyring(Records(self.fd, worker, WORKERS))
        self.rings[worker].replace(tuple(self.keys.values()), True)

    @invariant()
    def what_is_under_way_is_known_everywhere(self) -> None:
        for id, key in self.keys.items():
            under_way = sum(other.id == id for _, other, _ in self.running)
            for worker, ring in enumerate(self.rings):
                account = ring._accounts[id]
                assert account.record is not None
                here = sum(other.id == id and at == worker for at, other, _ in self.running)
                requests = None if key.requests_per_minute is None else Bucket(key.requests_per_minute)
                assert (account.running, account.record.fetch(requests, None)) == (here, under_way - here)
                account.record.release()
                assert requests is None or 0 <= requests.used < math.inf


TestTogether = Together.TestCase
TestTogether.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
