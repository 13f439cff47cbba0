"""Relays that share limits answer as one relay would, whatever happens in whatever order."""

from __future__ import annotations

import math
import os

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.gateway.keyring import Keyring
from shoal.gateway.limits import Bucket
from shoal.gateway.sharing import Records, create, forget
from shoal.messages import Key
from tests.gateway.sharing import WORKERS, a_key, records, refusal, rings


class Together(RuleBasedStateMachine):
    """Relays that share, against one relay that gets the same requests in the same order. Every answer is the same,
    to the letter, whoever gives it; also when a relay is killed, which for the one means that its requests ended.
    Rates and times are such that sums are exact, in whatever steps."""

    @initialize()
    def start(self) -> None:
        self.fd = create()
        self.alone = Keyring()
        self.records = records(self.fd)
        self.rings = rings(self.records)
        self.keys: dict[str, Key] = {}
        self.running: list[tuple[int, Key, int]] = []
        self.now = 0.0

    def teardown(self) -> None:
        for one in self.records:
            one.close()
        os.close(self.fd)

    @rule(
        ids=st.sets(st.sampled_from("abc")),
        requests=st.none() | st.sampled_from((15, 30)),
        tokens=st.none() | st.sampled_from((15, 60, 240)),
        concurrent=st.integers(1, 12),
    )
    def table(self, ids: set[str], requests: int | None, tokens: int | None, concurrent: int) -> None:
        """Keys never go, and keep their limits a minute: at which rate the time before a change counts depends on who
        has looked since, and a refusal is no look for others. The tests of `test_sharing.py` have such changes."""
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
        self.records[worker].close()
        forget(self.fd, worker, WORKERS)
        self.records[worker] = Records(self.fd, worker, WORKERS)
        (self.rings[worker],) = rings([self.records[worker]], *self.keys.values())

    @invariant()
    def what_is_under_way_is_known_everywhere(self) -> None:
        for id, key in self.keys.items():
            for worker, shared in enumerate(self.records):
                elsewhere = sum(other.id == id and at != worker for at, other, _ in self.running)
                requests = None if key.requests_per_minute is None else Bucket(key.requests_per_minute)
                record = shared.take([id])[id]
                assert record.fetch(requests, None) == elsewhere
                record.release()
                assert requests is None or 0 <= requests.used < math.inf


TestTogether = Together.TestCase
TestTogether.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
