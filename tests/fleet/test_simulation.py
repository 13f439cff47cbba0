"""Whole runs of the policy: what is promised holds at every step of them, and every request ends."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.fleet.residency import Kind, Plan, Residency, Snapshot
from shoal.fleet.simulation import Simulation, simulate
from shoal.fleet.simulation_models import Setup, parse_devices
from shoal.fleet.simulation_report import ModelReport, Report
from shoal.fleet.simulation_trace import Request, generate
from shoal.units import parse_seconds
from tests.fleet.residency import overdrawn

GIB = 2**30


def setup(rules: dict[str, Any] | None = None, **models: dict[str, Any]) -> Setup:
    """Models of 16 GiB that load in 40 s, unless told otherwise."""
    base = {"weights": 16 * GIB, "overhead": 0, "floor": 0, "asleep": 0, "load": 40.0, "wake": 1.0, "sleep": 0.5}
    return Setup.model_validate({"models": {n: base | m for n, m in models.items()}, "rules": rules or {}})


def run(made: Setup, devices: str, requests: Iterable[Request], host: int = 10**15) -> Report:
    return simulate(made, parse_devices(devices), requests, host_budget=host)


def of(report: Report, name: str) -> ModelReport:
    return next(model for model in report.models if model.name == name)


class Watch:
    """Checks every step of a run."""

    def __init__(self, made: Setup) -> None:
        self.rules = made.rules.rules()
        self.gave_way: dict[str, list[float]] = defaultdict(list)
        self.awake: dict[str, list[float]] = defaultdict(list)

    def __call__(self, state: Snapshot, plan: Plan) -> None:
        assert not overdrawn(state)
        by_name = {one.name: one for one in state.residents}
        for action in plan.actions:
            one = by_name[action.name]
            leaves = action.kind in (Kind.SLEEP, Kind.UNLOAD)
            assert not (leaves and one.pinned and one.place is Residency.GPU)
            if leaves and action.gives_way_to and not action.after and one.place is Residency.GPU:
                assert state.now >= self.rules.stays(one)
                for device in action.devices:
                    self.gave_way[device].append(state.now)

    def check(self, most_at_once: int) -> None:
        """No device had more give way in a window than its bound, and those that one claim made give way at once."""
        for times in self.gave_way.values():
            for first, last in zip(
                times, itertools.islice(times, self.rules.switches + most_at_once, None), strict=False
            ):
                assert last - first >= self.rules.switch_window


def test_a_request_for_a_model_that_sleeps_waits_for_its_wake_alone() -> None:
    made = setup(a={"sleep_after": 60.0, "decode_rate": 10.0})
    report = run(made, "1x20GiB", [Request(0, "a", 0, 10), Request(10, "a"), Request(200, "a"), Request(201, "a")])
    a = of(report, "a")
    assert (a.served, a.loads, a.wakes, a.sleeps) == (4, 1, 1, 1)
    assert a.wait_max == pytest.approx(40)
    assert report.seconds == 201


def test_requests_beyond_the_concurrency_wait_for_their_turn_by_priority() -> None:
    made = setup(a={"load_on_start": True, "max_concurrency": 1, "decode_rate": 1.0})
    low, high = Request(0.1, "a", 0, 10, priority="low"), Request(0.2, "a", 0, 10, priority="high")
    report = run(made, "1x20GiB", [Request(0, "a", 0, 10), low, high])
    a = of(report, "a")
    assert a.wait_p50 == pytest.approx(9.8) and a.wait_max == pytest.approx(19.9)


def test_who_is_busy_without_end_gives_way_in_time() -> None:
    """One model is asked for all the time; the other gets its turn within patience, the drain and its own load."""
    made = setup(hot={"load_on_start": True, "decode_rate": 10.0}, cold={})
    hot = [Request(n / 2, "hot", 0, 20) for n in range(600)]
    report = run(made, "1x20GiB", sorted([*hot, Request(50.25, "cold")], key=lambda request: request.at))
    assert of(report, "cold").served == 1 and of(report, "hot").served == 600
    assert of(report, "cold").wait_max == pytest.approx(10 + 2 + 0.5 + 40, abs=0.3)
    assert of(report, "hot").gave_way == 1


def test_keep_alive_of_a_request_is_kept() -> None:
    made = setup(a={"sleep_after": 10.0})
    kept = run(made, "1x20GiB", [Request(0, "a", keep_alive=-1), Request(1000, "a", keep_alive=-1)])
    assert of(kept, "a").sleeps == 0
    gone = run(made, "1x20GiB", [Request(0, "a", keep_alive=0), Request(1000, "a")])
    assert of(gone, "a").sleeps == 1


def test_a_full_host_unloads_instead_of_swapping() -> None:
    made = setup(a={}, b={}, c={})
    names = ["a", "b", "c"] * 5
    report = run(made, "1x16GiB", [Request(300.0 * n, name) for n, name in enumerate(names)], host=17 * GIB)
    assert report.served == 15
    assert sum(model.unloads for model in report.models) > 3
    assert sum(model.sleeps for model in report.models) >= 3


def test_a_model_that_fits_nowhere_is_refused_and_the_others_are_served() -> None:
    made = setup(a={}, giant={"weights": 99 * GIB})
    report = run(made, "2x20GiB", [Request(0, "giant"), Request(1, "a"), Request(2, "giant")])
    assert (report.served, report.refused) == (1, 2)
    assert "giant needs 99.0 GiB" in of(report, "giant").refusal


def test_utilisation_is_over_the_time_that_was_simulated() -> None:
    made = setup(a={"load_on_start": True, "decode_rate": 1.0}, b={"devices": ["cuda:1"]})
    report = run(made, "2x16GiB", [Request(50, "a", 0, 50)])
    assert [device.busy for device in report.devices] == [pytest.approx(0.5), 0]
    assert [device.memory for device in report.devices] == [pytest.approx(1), 0]


def test_an_unknown_model_is_an_error_with_its_line() -> None:
    with pytest.raises(ShoalError, match="line 7: there is no model b"):
        run(setup(a={}), "1x20GiB", [Request(0, "b", line=7)])


def test_generated_traffic_is_ordered_skewed_and_as_long_as_told() -> None:
    made = list(generate([f"m{n}" for n in range(20)], 20_000, 86_400, zipf=1.0, burst=5, seed=3))
    assert made == list(generate([f"m{n}" for n in range(20)], 20_000, 86_400, zipf=1.0, burst=5, seed=3))
    assert len(made) == 20_000
    assert all(a.at <= b.at for a, b in itertools.pairwise(made))
    assert made[-1].at == pytest.approx(86_400, rel=0.1)
    counts = [sum(request.model == f"m{n}" for request in made) for n in range(20)]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.5)


def test_durations() -> None:
    assert [parse_seconds(text) for text in ("5m", "90", "1.5h", "-1s", 7, "250ms", "7d")] == [
        300,
        90,
        5400,
        -1,
        7,
        0.25,
        604800,
    ]
    for text in ("soon", "5 min", "", float("inf")):
        with pytest.raises(ValueError):
            parse_seconds(text)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Setup, str, int]:
    """A few models that may each fit, on few devices that hold some of them."""
    models = {}
    for number in range(draw(st.integers(1, 8))):
        models[f"m{number}"] = {
            "weights": draw(st.sampled_from([4, 8, 16, 30])) * GIB,
            "asleep": draw(st.sampled_from([0, GIB])),
            "tensor_parallel": draw(st.sampled_from([1, 1, 1, 2])),
            "sleep_level": draw(st.sampled_from([0, 1, 1, 2])),
            "load": draw(st.sampled_from([1.0, 30.0])),
            "priority": draw(st.sampled_from([10, 100])),
            "pinned": draw(st.integers(0, 9)) == 0,
            "sleep_after": draw(st.sampled_from([None, 0.0, 60.0])),
            "unload_after": draw(st.sampled_from([None, 0.0, 600.0])),
            "max_concurrency": draw(st.sampled_from([1, 64])),
        }
    rules = {"switches": draw(st.sampled_from([2, 30])), "patience": draw(st.sampled_from([0.0, 10.0]))}
    return setup(rules, **models), f"{draw(st.integers(1, 3))}x32GiB", draw(st.sampled_from([0, 20, 500])) * GIB


@settings(max_examples=60, deadline=None)
@given(fleets(), st.integers(0, 99), st.sampled_from([60.0, 3600.0, 40_000.0]), st.sampled_from([1, 2, 8]))
def test_every_request_ends_and_nothing_is_overdrawn(
    fleet: tuple[Setup, str, int], seed: int, duration: float, at_once: int
) -> None:
    made, devices, host = fleet
    watch = Watch(made)
    rules = dataclasses.replace(made.rules.rules(), claims_at_once=at_once)
    traffic = generate(list(made.models), 150, duration, seed=seed)
    report = Simulation(made, parse_devices(devices), host, watch, rules).run(traffic)
    assert report.served + report.refused == report.requests == 150
    for model in report.models:
        assert model.refused == 0 or model.refusal
    watch.check(most_at_once=len(made.models))


def test_the_same_traffic_gives_the_same_report() -> None:
    made = setup(**{f"m{n}": {} for n in range(6)})
    traffic = list(generate(list(made.models), 300, 7200, seed=1))
    assert run(made, "2x32GiB", traffic) == run(made, "2x32GiB", traffic)
    assert dataclasses.asdict(run(made, "2x32GiB", traffic))["requests"] == 300


def test_nobody_is_kept_waiting_beyond_reason() -> None:
    """Twenty models, of which four fit, all asked for: none waits longer than a few turns of the others."""
    made = setup(**{f"m{n}": {"load": 5.0} for n in range(20)})
    report = run(made, "2x32GiB", generate(list(made.models), 3000, 7200, zipf=1.0, seed=5))
    assert report.served == 3000
    assert max(model.wait_max or 0 for model in report.models) < 20 / 4 * (10 + 5 + 15 + 6) * 2
