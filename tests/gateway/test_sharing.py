"""Limits of keys that several relays count together: as if there were one relay; and what they do about faults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from shoal.gateway import sharing
from shoal.gateway.keyring import Keyring
from shoal.gateway.relay import RelayConfig
from shoal.gateway.sharing import Records, create, forget, joined
from shoal.messages import Key
from tests.gateway.sharing import WORKERS, a_key, records, refusal, refused, rings


@pytest.fixture
def memory() -> Iterator[int]:
    fd = create()
    yield fd
    os.close(fd)


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


def lock_of(shared: Sequence[Records], key: Key) -> int:
    """The byte whose lock guards the record of a key."""
    return shared[0].take([key.id])[key.id].place


# -- what users see ----------------------------------------------------------------------------------------------------


def test_a_limit_holds_for_all_relays_together(memory: int) -> None:
    key = a_key("a", requests_per_minute=10, concurrent=4)
    one, two, three = rings(records(memory), key)
    for ring in (one, two, three, one):
        ring.begin(key, 1, 5.0)
    for ring in (one, two, three):
        assert refused(ring, key, 1, 5.0)[:3] == (429, "rate_limited", "concurrent")
    three.end(key, 1, None, 5.0)
    two.begin(key, 1, 5.0)
    for ring in (one, one, two, two):
        ring.end(key, 1, None, 5.0)
    for _ in range(5):
        three.begin(key, 1, 5.0)
        three.end(key, 1, None, 5.0)
    assert refused(one, key, 1, 5.0)[2:4] == ("requests_per_minute", {"Retry-After": "6"})
    one.begin(key, 1, 11.0)


def test_tokens_that_one_relay_gives_back_or_owes_count_in_the_others(memory: int) -> None:
    key = a_key("a", tokens_per_minute=600)
    one, two, _ = rings(records(memory), key)
    one.begin(key, 500, 0.0)
    assert refused(two, key, 200, 0.0)[2:4] == ("tokens_per_minute", {"Retry-After": "10"})
    one.end(key, 500, 100, 0.0)
    two.begin(key, 500, 0.0)
    two.end(key, 500, 1100, 0.0)
    assert refused(one, key, 60, 0.0).headers == {"Retry-After": "66"}
    one.begin(key, 60, 66.0)


def test_putting_tokens_back_waits_for_nobody_and_outlives_the_relay(memory: int) -> None:
    key, shared = a_key("a", tokens_per_minute=600), records(memory)
    one, two, _ = rings(shared, key)
    one.begin(key, 600, 0.0)
    with process(HOLDS, memory, lock_of(shared, key)):
        one.end(key, 600, 100, 0.0)
    assert not shared[0].stuck
    forget(memory, 0, WORKERS)
    two.begin(key, 500, 0.0)
    assert refusal(two, key, 1, 0.0) is not None


def test_a_clock_that_was_read_before_anothers_takes_nothing_back(memory: int) -> None:
    key = a_key("a", requests_per_minute=60)
    one, two, _ = rings(records(memory), key)
    for _ in range(60):
        one.begin(key, 1, 10.0)
    assert refusal(two, key, 1, 9.5) is not None
    two.begin(key, 1, 11.0)
    assert refusal(one, key, 1, 10.5) is not None
    one.begin(key, 1, 12.0)


def test_what_a_relay_had_under_way_goes_with_it_and_what_it_used_stays(memory: int) -> None:
    key = a_key("a", requests_per_minute=5, concurrent=2)
    one, two, three = rings(records(memory), key)
    one.begin(key, 1, 0.0)
    one.begin(key, 1, 0.0)
    assert refusal(two, key, 1, 0.0) is not None
    forget(memory, 0, WORKERS)
    two.begin(key, 1, 0.0)
    three.begin(key, 1, 0.0)
    again = Keyring(Records(memory, 0, WORKERS))
    again.replace((key,), True)
    assert refused(again, key, 1, 0.0).param == "concurrent"
    two.end(key, 1, None, 0.0)
    again.begin(key, 1, 0.0)
    again.end(key, 1, None, 0.0)
    assert refused(again, key, 1, 0.0).param == "requests_per_minute"


def test_relays_that_learn_of_a_changed_limit_one_after_the_other_count_on(memory: int) -> None:
    key, more = a_key("a", requests_per_minute=10), a_key("a", requests_per_minute=12)
    one, two, _ = rings(records(memory), key)
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
    one, two, _ = rings(records(memory), free)
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
    one, two, _ = rings(records(memory), key)
    one.begin(key, 1, 0.0)
    one.begin(key, 1, 0.0)
    for ring in (one, two):
        ring.replace((), True)
    assert refused(two, key, 1, 0.0)[:2] == (401, "invalid_key")
    two.replace((key,), True)  # a former table, of a database that was restored
    assert refused(two, key, 1, 0.0).param == "concurrent"
    one.end(key, 1, None, 0.0)
    one.end(key, 1, None, 0.0)
    two.begin(key, 1, 0.0)


# -- room --------------------------------------------------------------------------------------------------------------


def test_more_keys_than_there_are_records_make_room(memory: int) -> None:
    keys = [a_key(f"k{n}", requests_per_minute=2) for n in range(1000)]
    one, two, _ = rings(records(memory), *keys[:3])
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
    made = rings(records(memory, 64), *keys)
    for key in keys:
        for ring in made[:60]:
            ring.begin(key, 1, 0.0)
        assert refused(made[63], key, 1, 0.0).param == "tokens_per_minute"


def test_records_of_keys_that_nobody_knows_are_used_again(memory: int) -> None:
    made = rings(records(memory))
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
    one, two, _ = rings(records(memory), key)
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
        one, two, _ = rings(records(memory), *keys)
        both = sum(refusal(one, key, 1, 0.0) is None and refusal(two, key, 1, 0.0) is None for key in keys)
    room = Records(memory, 0, WORKERS).capacity
    assert both == len(keys) - room
    assert f"no memory to share the limits of {len(keys) - room} keys" in caplog.text
    for ring in (one, two):  # any change of keys tries again
        ring.replace((*keys, a_key("another")), True)
    for key in keys[room:]:
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
    shared = records(memory)
    one, two, _ = rings(shared, key, other)
    with process(HOLDS, memory, lock_of(shared, key)):
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
        assert refusal(one, key, 1, 0.0) is not None
        one.begin(other, 1, 0.0)
    assert caplog.text.count("Another relay stands still") == 2, "each says so once"
    one.begin(key, 1, 60.0)
    assert not shared[0].stuck


def test_a_new_key_is_counted_alone_while_a_relay_stands_still_over_another(memory: int) -> None:
    key = a_key("a", requests_per_minute=1)
    with process(HOLDS, memory, 0):
        one, two, _ = rings(records(memory), key)
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
    for ring in (one, two):
        ring.replace((key, a_key("b")), True)
    one.begin(key, 1, 60.0)
    assert refusal(two, key, 1, 60.0) is not None


def test_the_lock_of_a_relay_that_is_killed_is_free(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PATIENCE", 30.0)
    key, shared = a_key("a", requests_per_minute=2), records(memory)
    one, two, _ = rings(shared, key)
    with process(HOLDS, memory, lock_of(shared, key)) as holder:
        holder.kill()
        one.begin(key, 1, 0.0)
        two.begin(key, 1, 0.0)
    assert not shared[0].stuck
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
