from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.routes import NAMES_SHOWN, UNKNOWN, Routes
from shoal.messages import ModelCount, Outcome, Route, RoutingTable, Target


def a_route(model: str, instances: int) -> Route:
    return Route(model, "ready", 0, tuple(Target(f"{model}.{i}", "unix:/x") for i in range(instances)))


def a_table(*routes: Route, epoch: str = "a", version: int = 1) -> RoutingTable:
    return RoutingTable(epoch=epoch, version=version, routes=routes)


@given(instances=st.integers(1, 6), steps=st.lists(st.integers(-3, 20), max_size=60))
def test_pick_takes_the_least_and_counters_are_exact(instances: int, steps: list[int]) -> None:
    """A step ≥ 0 starts a request, a negative one ends the oldest that runs."""
    routes = Routes()
    routes.replace(a_table(a_route("m", instances)))
    running: list[tuple[str, ExitStack]] = []
    for step in steps:
        if step < 0 and running:
            running.pop(0)[1].close()
        elif step >= 0:
            before = routes.outstanding
            instance = routes.pick("m").instance
            assert before.get(instance, 0) == min(before.get(f"m.{i}", 0) for i in range(instances))
            stack = ExitStack()
            stack.enter_context(routes.carrying(instance))
            running.append((instance, stack))
        assert routes.outstanding == dict(Counter(name for name, _ in running))


@given(instances=st.integers(1, 6), rounds=st.integers(1, 5))
def test_equals_take_turns(instances: int, rounds: int) -> None:
    routes = Routes()
    routes.replace(a_table(a_route("m", instances)))
    picked = Counter(routes.pick("m").instance for _ in range(instances * rounds))
    assert set(picked.values()) == {rounds}
    assert len(picked) == instances


@given(tables=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=20))
def test_only_newer_tables_replace(tables: list[tuple[str, int]]) -> None:
    routes = Routes()
    epoch, version = "", 0
    for new_epoch, new_version in tables:
        newer = new_epoch != epoch or new_version > version
        assert routes.replace(a_table(epoch=new_epoch, version=new_version)) is newer
        if newer:
            epoch, version = new_epoch, new_version
        assert (routes.table.epoch, routes.table.version) == (epoch, version)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["m", "n", "made up", "another"]),
            st.sampled_from(["ok", "client_error", "engine_error", "unavailable", "cancelled"]),
        )
    )
)
def test_counts_know_only_known_models(ended: list[tuple[str, Outcome]]) -> None:
    routes = Routes()
    routes.replace(a_table(a_route("m", 1), a_route("n", 0)))
    for model, outcome in ended:
        routes.count(model, outcome)
    expected = Counter((model if model in "mn" else UNKNOWN, outcome) for model, outcome in ended)
    assert {(c.model, c.outcome): c.requests for c in routes.counts} == expected


def test_requests_survive_a_table_without_their_instance() -> None:
    routes = Routes()
    routes.replace(a_table(a_route("m", 1)))
    with routes.carrying("m.0"):
        routes.count("m", "ok")
        routes.replace(a_table(version=2))
        assert routes.outstanding == {"m.0": 1}
        assert routes.counts == ()  # a model that is gone is forgotten
    assert routes.outstanding == {}
    routes.count("m", "ok")
    assert list(routes.counts) == [ModelCount(UNKNOWN, "ok", 1)]


def test_pick_without_some() -> None:
    routes = Routes()
    routes.replace(a_table(a_route("m", 2)))
    assert routes.pick("m", without=["m.0"]).instance == "m.1"
    with pytest.raises(ShoalError) as caught:
        routes.pick("m", without=["m.0", "m.1"])
    assert caught.value.status == 503


def test_every_change_is_told() -> None:
    told: list[None] = []
    routes = Routes(changed=lambda: told.append(None))
    routes.replace(a_table(a_route("m", 1)))
    with routes.carrying("m.0"):
        assert told
        told.clear()
    assert told
    told.clear()
    routes.count("m", "ok")
    assert len(told) == 1


def test_the_first_and_the_last_request_are_told_at_once_and_those_between_when_it_is_settled() -> None:
    told: list[None] = []
    routes = Routes(changed=lambda: told.append(None))
    routes.begin("m.0")
    assert len(told) == 1
    routes.settle()
    told.clear()
    routes.begin("m.0")
    assert not told
    routes.settle()
    assert len(told) == 1
    routes.end("m.0")
    assert len(told) == 1
    routes.end("m.0")
    assert len(told) == 2
    routes.settle()
    told.clear()
    routes.settle()
    assert not told


def test_errors_say_what_there_is() -> None:
    routes = Routes()
    with pytest.raises(ShoalError, match="No model exists yet"):
        routes.route("m")
    routes.replace(a_table(*(a_route(f"m{i:03}", 0) for i in range(300))))
    with pytest.raises(ShoalError) as caught:
        routes.pick("x" * 10_000)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert len(caught.value.message) < 1000
    assert f"and {300 - NAMES_SHOWN} more" in caught.value.message
    with pytest.raises(ShoalError) as caught:
        routes.pick("m001")
    assert (caught.value.status, caught.value.code, caught.value.headers) == (503, "model_not_ready", {})
    assert not routes.has_targets
