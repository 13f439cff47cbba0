"""Usage on its way to the controller: whatever is lost on the way, everything counts, and once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.gateway import outbox
from shoal.gateway.outbox import Outbox
from shoal.messages import UsageReport

KEYS = st.sampled_from(["", "k1", "k2"])
MODELS = st.sampled_from(["m", "n"])
DAYS = st.sampled_from(["2026-01-31", "2026-02-01"])


class Books(RuleBasedStateMachine):
    """A relay that adds and sends, and a controller that stores each number once; confirmations may get lost."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox("r")
        self.used: Counter[tuple[str, str, str]] = Counter()
        self.stored: dict[int, UsageReport] = {}

    @rule(key=KEYS, model=MODELS, day=DAYS, tokens=st.integers(0, 9))
    def use(self, key: str, model: str, day: str, tokens: int) -> None:
        self.outbox.add((key, model, day), tokens, 2 * tokens, 1.0)
        self.used[key, model, day] += tokens

    @rule(arrives=st.booleans(), confirmed=st.booleans())
    def send(self, arrives: bool, confirmed: bool) -> None:
        report = self.outbox.report()
        if report is None:
            assert self.outbox.empty
            return
        assert self.stored.setdefault(report.seq, report) == report if arrives else True
        if arrives and confirmed:
            assert self.outbox.stored(report.seq)

    @rule(number=st.integers(0, 50))
    def an_old_confirmation_comes(self, number: int) -> None:
        report = self.outbox.report()
        if report is None or number != report.seq:
            assert not self.outbox.stored(number)

    @invariant()
    def each_number_is_one_report(self) -> None:
        assert sorted(self.stored) == list(range(1, len(self.stored) + 1)), "none is left out"

    def teardown(self) -> None:
        while (report := self.outbox.report()) is not None:
            assert self.stored.setdefault(report.seq, report) == report
            assert self.outbox.stored(report.seq)
        found: Counter[tuple[str, str, str]] = Counter()
        for report in self.stored.values():
            for item in report.items:
                found[item.key, item.model, item.day] += item.prompt_tokens
                assert item.completion_tokens == 2 * item.prompt_tokens
        assert +found == +self.used
        assert self.outbox.empty


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_report_has_a_bounded_size_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "REPORT_ITEMS", 2)
    box = Outbox("r")
    for number in range(5):
        box.add(("k", f"m{number}", "2026-01-31"), 0, 0, 1.0)
    seen = []
    while (report := box.report()) is not None:
        seen.append([item.model for item in report.items])
        box.stored(report.seq)
    assert seen == [["m0", "m1"], ["m2", "m3"], ["m4"]]


def test_memory_is_bounded_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_ITEMS", 2)
    box = Outbox("r")
    for number in (0, 1, 2, 3, 0):
        box.add(("k", f"m{number}", "2026-01-31"), 0, 0, 1.0)
    assert box.lost == 2
    report = box.report()
    assert report is not None
    assert [(item.model, item.requests) for item in report.items] == [("m0", 2), ("m1", 1)]
