"""Warnings that are alike are one a second, and none is lost from the count."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.repeats import PERIOD, Repeats


class Log:
    """A handler on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.handler = Repeats(self.stream, clock=lambda: self.now)
        self.logger = logging.getLogger(__name__)
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO)
        self.logger.handlers = [self.handler]

    def died(self, instance: str, why: str) -> None:
        self.logger.warning("instance %s of %r broke off: %s", instance, "m", why)

    def lines(self) -> list[str]:
        """What was written since the last look."""
        written = self.stream.getvalue().splitlines()
        self.stream.seek(0)
        self.stream.truncate()
        return written


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.handler.close()


def test_an_engine_that_dies_is_a_line_and_a_count(log: Log) -> None:
    for number in range(100):
        log.died("i-1", f"reset {number}")
    log.died("i-2", "gone")
    assert log.lines() == ["instance i-1 of 'm' broke off: reset 0", "instance i-2 of 'm' broke off: gone"]
    log.now = PERIOD - 0.01
    log.handler.tell()
    assert log.lines() == []
    log.now = PERIOD
    log.handler.tell()
    assert log.lines() == ["instance i-1 of 'm' broke off: reset 99 (one of 99 more)"]
    log.died("i-2", "again")  # a second has passed since the first
    log.died("i-1", "still")  # its last line was just written
    assert log.lines() == ["instance i-2 of 'm' broke off: again"]
    log.handler.tell(all_=True)
    assert log.lines() == ["instance i-1 of 'm' broke off: still (one of 1 more)"]


def test_other_levels_and_what_names_nobody_are_written_each_time(log: Log) -> None:
    for _ in range(3):
        log.logger.info("instance %s", "i")
        log.logger.warning("for all")
        log.logger.warning("100 %")
    assert len(log.lines()) == 9


def test_who_is_silent_is_forgotten(log: Log) -> None:
    for number in range(50):
        log.died(f"i-{number}", "gone")
    log.now = PERIOD
    log.handler.tell()
    assert not log.handler._said


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.7)), max_size=60))
def test_every_warning_is_told_or_counted_and_no_second_has_two_lines(steps: list[tuple[str, float]]) -> None:
    log = Log()
    counted = 0
    at: dict[str, list[float]] = {"a": [], "b": []}

    def read() -> None:
        nonlocal counted
        for line in log.lines():
            counted += int(line.split("(one of ")[1].split()[0]) if "(one of" in line else 1
            at[line.split()[1]].append(log.now)

    for instance, pause in steps:
        log.now += pause
        log.handler.tell()
        read()
        log.died(instance, "x")
        read()
    for times in at.values():
        assert all(later - earlier >= PERIOD for earlier, later in pairwise(times))
    log.handler.tell(all_=True)
    read()
    assert counted == len(steps)
    log.handler.close()
