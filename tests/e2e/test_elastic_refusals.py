"""What becomes of a vLLM that cannot be elastic, told by the plugin inside the real engine's interpreter.

No engine is started for it: one process imports vLLM, plays each case and prints what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shoal.engines.base import Environment
from shoal.engines.pythonpath import python_path

CASES = """
import json, os, sys
from types import SimpleNamespace as Some

from shoal.engines.vllm.plugin import cpu_worker, hooks, leases, scheduler, worker
from shoal.engines.vllm.plugin.layout import Layout
from shoal.engines.vllm.plugin.rank import RankMemory
from shoal.memory.client import Rank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.pages import Geometry
from shoal.memory.vmm.host import HostVmm

found = {}

def case(name, run):
    try:
        found[name] = ["", run()]
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]

class FullAttentionSpec:
    block_size, page_size_bytes = 16, 4096

class MambaSpec(FullAttentionSpec):
    pass

def engine(specs=(FullAttentionSpec(),), draft=None, connector=None, **parallel):
    sizes = dict(data_parallel_size=1, pipeline_parallel_size=1, distributed_executor_backend="mp")
    return Some(
        rank=0,
        device="cpu",
        vllm_config=Some(
            parallel_config=Some(**{**sizes, **parallel}),
            speculative_config=draft,
            kv_transfer_config=connector,
            model_config=Some(enable_sleep_mode=False),
            cache_config=Some(cache_dtype="auto"),
        ),
        get_kv_cache_spec=lambda: dict(enumerate(specs)),
    )

def memory(mode, **changes):
    os.environ["SHOAL_MEMORY_ELASTIC"] = mode
    made = worker._Memory(engine(**changes))
    return [made.reason, made.fixed(8 << 30) if made.reason else None]

cannot = {
    "draft": {"draft": Some()},
    "pipeline": {"pipeline_parallel_size": 2},
    "state": {"specs": (FullAttentionSpec(), MambaSpec())},
    "connector": {"connector": Some(kv_connector="Some")},
}
case("can", lambda: memory("required"))
for name, changes in cannot.items():
    case(f"auto {name}", lambda: memory("auto", **changes))
    case(f"required {name}", lambda: memory("required", **changes))

case("hooks", lambda: hooks.verify(hooks.WORKER_HOOKS + hooks.SCHEDULER_HOOKS, worker.VLLM_VERSION))
sleep, worker.Worker.sleep = worker.Worker.sleep, lambda self, depth: None
case("changed hook", lambda: hooks.verify(hooks.WORKER_HOOKS, worker.VLLM_VERSION))
del worker.Worker.sleep
case("missing hook", lambda: worker._Memory(engine()))
worker.Worker.sleep = sleep

worker.BROKER_TIMEOUT = leases.CONNECT_TIMEOUT = 0.2
terms = ElasticTerms.read(os.environ)
rank = RankMemory("alone", 0, "host", 1 << 30)
rank.place(HostVmm(), Layout(Geometry.contiguous(4, 4096, 4096), 4 * 4096))
case("warm-up without broker", lambda: worker._WarmUp(rank, terms))
case("scheduler without broker", lambda: leases.Leases(terms, [Rank("alone", "host", 1 << 30)]).open())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The kind of error of each case, or nothing, and its message or its result."""
    folder = tmp_path_factory.mktemp("refusals")
    script = folder / "cases.py"
    script.write_text(CASES)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(Path.home()),
        "PYTHONPATH": str(python_path(folder / "path")),
        "PYTHONSAFEPATH": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "SHOAL_MEMORY_SOCKET": str(folder / "no-broker.sock"),
        "SHOAL_MEMORY_ENGINE": "alone",
        "SHOAL_MEMORY_FIXED": str(1 << 30),
    }
    done = subprocess.run([environment.python, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cases: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return cases


def test_what_can_be_elastic_is(found: dict[str, Any]) -> None:
    assert found["can"] == ["", ["", None]]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("draft", "speculative decoding"),
        ("pipeline", "stages of a pipeline"),
        ("state", "keeps a MambaSpec"),
        ("connector", "KV connector Some"),
    ],
)
def test_what_cannot_has_a_fixed_size_or_is_refused(found: dict[str, Any], what: str, reason: str) -> None:
    error, (why, size) = found[f"auto {what}"]
    assert not error
    assert reason in why
    assert size == 1 << 30
    error, message = found[f"required {what}"]
    assert error == "NotElasticError"
    assert "elastic memory is required, but not possible" in message
    assert reason in message


def test_a_vllm_that_is_not_as_expected_is_refused_by_the_hooks_name(found: dict[str, Any]) -> None:
    assert found["hooks"][0] == "", found["hooks"]
    for case, how in (("changed hook", "takes (self, depth), not (self, level)"), ("missing hook", "is missing")):
        error, message = found[case]
        assert error == "HookError"
        assert "Worker.sleep" in message
        assert how in message


@pytest.mark.parametrize("case", ["warm-up without broker", "scheduler without broker"])
def test_without_a_broker_no_engine_starts(found: dict[str, Any], case: str) -> None:
    error, message = found[case]
    assert error == "LeaseError"
    assert "no memory broker answers on " in message
    assert "no-broker.sock; start one with `shoal memory broker`" in message
