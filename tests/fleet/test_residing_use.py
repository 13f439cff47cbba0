"""What models are asked for, out of the relays' reports."""

from __future__ import annotations

import pytest

from shoal.fleet.residing_use import RATE_WINDOW, Uses
from shoal.messages import Demand, ModelCount, Outcome, RelayReport, Waiting

MODELS = {"a-1": "a", "a-2": "a", "b-1": "b"}.get


def report(
    ended: int = 0, *, outcome: Outcome = "ok", outstanding: dict[str, int] | None = None, held: int = 0,
    queued: int = 0, keep_alive: float | None = None, relay: str = "r", at: float = 0.0,
) -> RelayReport:  # fmt: skip
    """Of model a."""
    demand = () if keep_alive is None else (Demand("a", at, keep_alive),)
    waiting = (Waiting("a", queued=queued, held=held),) if held or queued else ()
    counts = (ModelCount("a", outcome, ended),) if ended else ()
    return RelayReport(relay, "e", 1, outstanding or {}, counts, waiting, demand=demand)


def test_requests_between_two_reports_are_a_use_and_a_rate() -> None:
    uses = Uses()
    assert uses.take({1: report(100)}, MODELS, 10.0)
    assert uses.of("a").last_use is None, "they may have ended long ago"
    assert uses.of("a").rate == 0
    uses.take({1: report(103)}, MODELS, 20.0)
    assert uses.of("a").last_use == 20
    assert uses.of("a").rate == pytest.approx(3 / RATE_WINDOW)
    uses.take({1: report(104)}, MODELS, 20.0 + RATE_WINDOW)
    assert uses.of("a").rate == pytest.approx((3 / 2.718281828 + 1) / RATE_WINDOW)
    uses.take({1: report(104), 2: report(50, relay="other")}, MODELS, 500.0)
    assert uses.of("a").last_use == 20 + RATE_WINDOW, "another relay that has just connected adds nothing"


def test_the_same_reports_are_not_read_twice() -> None:
    uses, one = Uses(), report(1, outstanding={"a-1": 1})
    assert uses.take({1: one}, MODELS, 1.0)
    assert not uses.take({1: one}, MODELS, 2.0)
    assert uses.of("a").last_use == 1


def test_what_runs_and_waits_is_summed_over_relays_and_instances() -> None:
    uses = Uses()
    uses.take(
        {1: report(outstanding={"a-1": 2, "b-1": 1}, held=3), 2: report(outstanding={"a-2": 1, "gone": 9}, queued=1)},
        MODELS, 5.0,
    )  # fmt: skip
    assert (uses.of("a").running, uses.of("a").waiting, uses.of("a").waiting_since) == (3, 4, 5)
    assert uses.of("b").running == 1
    uses.take({1: report(held=1)}, MODELS, 9.0)
    assert (uses.of("a").running, uses.of("a").waiting, uses.of("a").waiting_since) == (0, 1, 5)
    assert uses.of("b").last_use == 9, "it ran until now"
    uses.take({}, MODELS, 12.0)
    assert (uses.of("a").waiting, uses.of("a").waiting_since) == (0, None)
    uses.take({1: report(held=1)}, MODELS, 20.0)
    assert uses.of("a").waiting_since == 20


def test_the_last_request_says_how_long_its_model_stays_whichever_relay_it_came_through() -> None:
    uses = Uses()
    both = {1: report(5), 2: report(7, relay="other")}
    uses.take(both, MODELS, 1.0)
    both = {**both, 1: report(6, keep_alive=0.0, at=2.0)}
    uses.take(both, MODELS, 2.0)
    assert uses.of("a").keep_alive == 0
    both = {**both, 2: report(8, relay="other")}
    uses.take(both, MODELS, 3.0)
    assert uses.of("a").keep_alive is None, "that one said nothing"
    uses.take({**both, 1: report(6, keep_alive=0.0, at=2.0, outstanding={"a-1": 1})}, MODELS, 4.0)
    assert uses.of("a").keep_alive is None, "the same words are not said again"


def test_a_new_controller_hears_what_was_said_before_it() -> None:
    uses = Uses()
    uses.take({1: report(5, keep_alive=-1.0, at=40.0)}, MODELS, 50.0)
    assert (uses.of("a").keep_alive, uses.of("a").last_use) == (-1, 40)
    uses.take({1: report(5, keep_alive=-1.0, at=40.0), 2: report(1, keep_alive=9.0, at=30.0)}, MODELS, 51.0)
    assert uses.of("a").keep_alive == -1, "that was before"


def test_refused_requests_are_no_use_and_models_that_are_gone_are_forgotten() -> None:
    uses = Uses()
    uses.take({1: report(0)}, MODELS, 1.0)
    uses.take({1: report(5, outcome="refused")}, MODELS, 2.0)
    assert uses.of("a").last_use is None
    uses.take({1: report(5)}, MODELS, 3.0)
    assert uses.of("a").last_use == 3
    uses.forget_but(["b"])
    assert uses.of("a").last_use is None
