"""Tests on a real GPU. They need an interpreter that has vLLM's CUDA build (`SHOAL_TEST_VLLM_PYTHON`, or an installed
environment) and a model's folder (`SHOAL_TEST_MODEL`, a config.json and a tokenizer; weights are not read)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.config import load_settings
from shoal.engines.environments import Environments
from shoal.engines.vllm.smollm2 import demo_model_dir
from shoal.fleet.devices import Devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here, and skip it where there is no GPU."""
    devices = Devices()
    skip = None if devices.problem is None else pytest.mark.skip(reason=f"no GPU: {devices.problem}")
    devices.close()
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(900))
            if skip is not None:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def interpreter() -> str:
    """A Python that has vLLM for GPUs."""
    if named := os.environ.get("SHOAL_TEST_VLLM_PYTHON"):
        return named
    found = Environments(load_settings().engines_dir).find("vllm", "cuda")
    if found is None:
        pytest.skip("no vLLM for GPUs: run `shoal engines install vllm`, or set SHOAL_TEST_VLLM_PYTHON")
    return str(found.python)


@pytest.fixture(scope="session")
def model() -> Path:
    """A model's folder; its weights are made up."""
    folder = Path(os.environ.get("SHOAL_TEST_MODEL", demo_model_dir()))
    if not (folder / "config.json").exists():
        pytest.skip(f"no model: set SHOAL_TEST_MODEL, or make {folder} with `shoal demo`")
    return folder
