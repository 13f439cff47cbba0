"""Where instances go, and whose turn it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.placement import Waiting, next_starts, place
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, HOST, gpu, spec

CUDA = ("cuda", "host")


def test_the_emptiest_device_is_taken() -> None:
    chosen = place(spec(), 10 * GIB, [gpu(0, 20 * GIB), gpu(1, 60 * GIB), HOST], CUDA, {})
    assert [device.id for device in chosen] == ["cuda:1"]


def test_what_was_promised_counts_as_taken() -> None:
    chosen = place(spec(), 10 * GIB, [gpu(0, 50 * GIB), gpu(1, 60 * GIB)], CUDA, {"cuda:1": 30 * GIB})
    assert [device.id for device in chosen] == ["cuda:0"]


def test_a_refusal_has_the_numbers() -> None:
    with pytest.raises(ShoalError) as caught:
        place(spec("big"), 70 * GIB, [gpu(0, 60 * GIB)], CUDA, {"cuda:0": 5 * GIB})
    assert caught.value.code == "too_little_memory"
    for part in ("big needs 70.0 GiB", "55.0 GiB free of 80.0 GiB", "5.0 GiB promised to other models"):
        assert part in caught.value.message


def test_a_gpu_engine_does_not_fall_back_to_the_host_when_the_gpu_is_full() -> None:
    with pytest.raises(ShoalError, match="cuda:0"):
        place(spec(), 10 * GIB, [gpu(0, GIB), HOST], CUDA, {})


def test_without_a_gpu_the_host_is_used() -> None:
    assert place(spec(), GIB, [HOST], CUDA, {}) == (HOST,)


def test_tensor_parallel_takes_several_in_order() -> None:
    chosen = place(spec(tensor_parallel=2), GIB, [gpu(0, 10 * GIB), gpu(1, 5 * GIB), gpu(2, 70 * GIB)], CUDA, {})
    assert [device.id for device in chosen] == ["cuda:0", "cuda:2"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"devices": ["cuda:7"]}, "no_such_device"),
        ({"devices": ["simulated:0"]}, "wrong_device"),
        ({"tensor_parallel": 4}, "no_device"),
    ],
)
def test_impossible_wishes_are_refused(settings: dict[str, Any], code: str) -> None:
    devices = [gpu(0), Device("simulated:0", "simulated", "x", GIB, 0)]
    with pytest.raises(ShoalError) as caught:
        place(spec(**settings), GIB, devices, ("cuda",), {})
    assert caught.value.code == code


def test_a_broken_gpu_is_not_chosen() -> None:
    broken = Device("cuda:0", "cuda", "GPU", 0, 0, error="fell off the bus")
    assert place(spec(), GIB, [broken, gpu(1)], CUDA, {})[0].id == "cuda:1"


@given(
    free=st.lists(st.integers(0, 80), min_size=1, max_size=8),
    needs=st.integers(0, 80),
    promised=st.dictionaries(st.integers(0, 7), st.integers(0, 80), max_size=8),
    cached=st.dictionaries(st.integers(0, 7), st.integers(0, 80), max_size=8),
    parallel=st.integers(1, 4),
)
def test_nothing_is_placed_where_it_does_not_fit_or_refused_where_it_does(
    free: list[int], needs: int, promised: dict[int, int], cached: dict[int, int], parallel: int
) -> None:
    devices = [gpu(index, size * GIB) for index, size in enumerate(free)]
    taken = {f"cuda:{index}": size * GIB for index, size in promised.items()}
    spare = {f"cuda:{index}": size * GIB for index, size in cached.items()}
    fitting = [d for d in devices if d.memory_free + spare.get(d.id, 0) - taken.get(d.id, 0) >= needs * GIB]
    try:
        chosen = place(spec(tensor_parallel=parallel), needs * GIB, devices, ("cuda",), taken, spare)
    except ShoalError:
        assert len(fitting) < parallel
    else:
        assert len({device.id for device in chosen}) == parallel
        assert set(chosen) <= set(fitting)


instances = st.builds(
    lambda number, state, devices, restart, port: Instance(
        id=f"i{number}",
        model="m",
        engine="simulated",
        state=state,
        devices=tuple(sorted(devices)),
        created_at=float(number),
        changed_at=0.0,
        restart_at=restart if state is S.QUEUED else None,
        spec=spec("m", port=port),
    ),
    st.integers(0, 1000),
    st.sampled_from(list(S)),
    st.sets(st.sampled_from(["cuda:0", "cuda:1", "cuda:2", "host"]), min_size=1, max_size=3),
    st.none() | st.floats(0, 200),
    st.none() | st.sampled_from([9001, 9002]),
)


@given(st.lists(instances, max_size=12, unique_by=lambda i: i.id))
def test_one_start_a_device_and_nobody_waits_for_nothing(all: list[Instance]) -> None:
    now = 100.0
    starts, waits = next_starts(all, now)
    by_id = {instance.id: instance for instance in all}
    busy = [d for i in all if i.state in (S.STARTING, S.STOPPING) for d in i.devices]
    started = [d for id in starts for d in by_id[id].devices]
    assert len(started) == len(set(started)), "two starts on one device"
    assert not set(started) & set(busy)
    queued = {i.id for i in all if i.state is S.QUEUED}
    assert set(starts) | {w.instance for w in waits} == queued
    assert not set(starts) & {w.instance for w in waits}
    for waiting in waits:
        instance = by_id[waiting.instance]
        backing_off = instance.restart_at is not None and instance.restart_at > now
        ahead = [
            d
            for other in all
            if other.id != instance.id
            and (
                other.state in (S.STARTING, S.WAKING, S.STOPPING)
                or (other.state is S.QUEUED and (other.created_at, other.id) < (instance.created_at, instance.id))
            )
            for d in other.devices
        ]
        port_taken = any(
            _port(o) == _port(instance) and o.id != instance.id for o in all if _port(instance) is not None
        )
        assert backing_off or port_taken or set(ahead) & set(instance.devices)
    started_at = [port for id in starts if (port := _port(by_id[id])) is not None]
    assert len(started_at) == len(set(started_at)), "two starts on one port"
    assert not set(started_at) & {_port(i) for i in all if i.state in WITH_PROCESS}
    for id in starts:
        restart_at = by_id[id].restart_at
        assert restart_at is None or restart_at <= now


def _port(instance: Instance) -> int | None:
    return instance.spec.port if instance.spec is not None else None


def _on_port(number: int, state: S, device: str, port: int | None = 9001) -> Instance:
    at = float(number)
    return Instance(f"i{number}", f"m{number}", "simulated", state, (device,), at, at, spec=spec("m", port=port))


@pytest.mark.parametrize("state", sorted(WITH_PROCESS))
def test_a_fixed_port_is_taken_as_long_as_another_has_a_process_there(state: S) -> None:
    old, new = _on_port(0, state, "cuda:0"), _on_port(1, S.QUEUED, "cuda:1")
    assert next_starts([old, new], 10.0) == ([], [Waiting("i1", "waits for i0 to leave the port 9001")])
    for ended in (S.STOPPED, S.FAILED):
        assert next_starts([dataclasses.replace(old, state=ended), new], 10.0) == (["i1"], [])


def test_who_waits_for_a_port_holds_up_nobody_on_its_device() -> None:
    old, new = _on_port(0, S.DRAINING, "cuda:0"), _on_port(1, S.QUEUED, "cuda:0")
    starts, waits = next_starts([old, new, _on_port(2, S.QUEUED, "cuda:0", port=None)], 10.0)
    assert starts == ["i2"]
    assert [w.instance for w in waits] == ["i1"]


def test_of_two_that_are_queued_for_one_port_the_first_starts() -> None:
    starts, waits = next_starts([_on_port(2, S.QUEUED, "cuda:0"), _on_port(1, S.QUEUED, "cuda:1")], 10.0)
    assert starts == ["i1"]
    assert waits == [Waiting("i2", "waits for i1 to leave the port 9001")]
