"""The host copy that the simulated engine pretends to keep, on a clock of its own."""

from __future__ import annotations

import pytest

from shoal.engines.simulated.copies import REFUSED, HostCopy
from tests.engines.simulated_process import Process


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_grows_while_it_is_taken_and_then_stays(clock: Clock) -> None:
    copy = HostCopy(1000, 4.0, clock=clock)
    assert copy.look() == {"size": 1000, "held": 0, "reserved": 0, "taking": False, "reason": ""}
    assert copy.take() == {"size": 1000, "held": 0, "reserved": 1000, "taking": True, "reason": ""}
    clock.now += 1
    copy.take()
    assert copy.look()["held"] == 250, "asked twice, it goes on"
    clock.now += 3
    assert copy.look() == {"size": 1000, "held": 1000, "reserved": 1000, "taking": False, "reason": ""}
    assert copy.complete() == 0
    copy.woke()
    assert copy.complete() == 0


def test_a_sleep_waits_for_what_is_missing_and_keeps_it(clock: Clock) -> None:
    copy = HostCopy(1000, 4.0, clock=clock)
    copy.take()
    clock.now += 1
    assert copy.complete() == pytest.approx(3)
    assert "these are its weights" in str(copy.forget()["reason"])
    assert copy.look()["held"] == 1000
    copy.woke()
    assert copy.forget() == {"size": 1000, "held": 0, "reserved": 0, "taking": False, "reason": ""}
    assert copy.complete() == pytest.approx(4)


def test_without_seconds_it_is_there_at_once(clock: Clock) -> None:
    copy = HostCopy(1000, 0.0, clock=clock)
    assert copy.complete() == 0
    copy.woke()
    copy.forget()
    assert copy.take()["held"] == 1000


def test_one_that_cannot_be_says_why_and_every_sleep_copies_anew(clock: Clock) -> None:
    copy = HostCopy(1000, 4.0, fails=True, clock=clock)
    assert copy.take() == {"size": 1000, "held": 0, "reserved": 0, "taking": False, "reason": REFUSED}
    for _ in range(2):
        assert copy.complete() == 4
        copy.woke()


async def test_the_worker_is_called_as_in_vllm() -> None:
    with Process(("--enable-sleep-mode", "--device-memory", "1MiB", "--fail", "copy-fails")) as engine:
        await engine.ready()
        told = await engine.post("/collective_rpc", {"method": "shoal_copies", "args": ["take"]})
        assert told.json["results"][0]["reason"] == REFUSED
        look = await engine.post("/collective_rpc", {"method": "shoal_copies"})
        assert look.json["results"][0]["size"] == 1 << 20
        for wrong in ({"method": "shoal_copies", "args": ["keep"]}, {"method": "other"}, {}):
            answer = await engine.post("/collective_rpc", wrong)
            assert answer.status == 400
            assert "reload_weights and shoal_copies" in answer.text
