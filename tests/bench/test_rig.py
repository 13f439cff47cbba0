"""What a benchmark tells the engines that it starts of the GPU that they run on."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from shoal.bench import devices
from shoal.bench.processes import DiedError, Processes
from shoal.bench.rig import PORTS_APART, Rig, start_ballast
from shoal.engines.vllm import elastic


def a_rig(variant: elastic.Variant, gpu: int = 0) -> Rig:
    return Rig(sys.executable, "0.26.0", variant, devices.host(), Path("/models/x"), dummy=True, path="", gpu=gpu)


def test_an_engine_sees_the_gpu_that_was_asked_for_and_no_other() -> None:
    env = a_rig("cuda", gpu=2).environment(None)
    assert (env["CUDA_DEVICE_ORDER"], env["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "2")
    assert "CUDA_VISIBLE_DEVICES" not in a_rig("cpu").environment(None)


def test_benchmarks_on_several_gpus_have_ports_of_their_own() -> None:
    ports = [a_rig("cuda", gpu=gpu).port(8131) for gpu in range(4)]
    assert ports[0] == 8131
    assert all(after - before == PORTS_APART for before, after in pairwise(ports))


def test_a_ballast_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes, pytest.raises(DiedError, match=r"ballast ended with 1"):
        start_ballast(processes, a_rig("cuda", gpu=63), 1 << 30)
