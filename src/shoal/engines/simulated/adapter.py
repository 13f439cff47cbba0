"""The simulated engine seen from outside: no environment to install, no weights to find."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import shoal
from shoal.engines.arguments import read_count
from shoal.engines.base import Capabilities, EngineMetrics, Environment, Launch, Milestone
from shoal.engines.copies import CopiesByCall
from shoal.engines.readings import read_vllm_metrics
from shoal.engines.simulated.options import MAX_NUM_SEQS, PROGRAM, Options, parse
from shoal.engines.vllm.failures import explain
from shoal.engines.vllm.milestones import MILESTONES, WEIGHTS_LINE
from shoal.errors import ShoalError
from shoal.fleet.needs import KvCost, KvLayers, Needs
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure
from shoal.memory.elastic import ElasticTerms
from shoal.net import UnixAddress, parse_address

_BAD_ARGUMENT = re.compile(rf"^{re.escape(PROGRAM)}: error: (.{{1,300}}?)(?:; --help lists what there is)?$")


class SimulatedEngine(CopiesByCall):
    """Runs `shoal.engines.simulated` under Shoal's own interpreter. Implements `shoal.engines.base.Engine`."""

    kind: str = "simulated"
    device_kinds: tuple[str, ...] = ("simulated", "host", "cuda")
    milestones: Sequence[Milestone] = MILESTONES
    weights_line: re.Pattern[str] = WEIGHTS_LINE

    def capabilities(self, spec: ModelSpec) -> Capabilities:
        """Sleep and LoRA, if the model's arguments or variables ask for them."""
        return Capabilities(sleep=not _why_sleepless(spec), lora="--enable-lora" in spec.args)

    def environment(self, spec: ModelSpec, devices: Sequence[Device]) -> Environment:  # noqa: ARG002
        """Shoal's own interpreter, whatever the model asks for."""
        variant = "cuda" if any(device.kind == "cuda" for device in devices) else "cpu"
        return Environment("simulated", self.kind, variant, Path(sys.executable), shoal.__version__, managed=False)

    def check(self, spec: ModelSpec) -> None:
        """Any word is a source; a path has to exist. Raises ShoalError (`source_not_found`)."""
        if spec.source[0] in "/.~" and not Path(spec.source).expanduser().exists():
            raise ShoalError(
                f"{spec.source} does not exist; give a path that does, or any word for the simulated engine",
                code="source_not_found",
                param="source",
            )

    def estimate(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> Needs:
        """What its arguments say; weights are unknown if they cannot be read."""
        options = _options(spec)
        kv = spec.kv_cache_memory or 0
        if options is None:
            return Needs(None, 0, kv, notes=("its arguments cannot be read",))
        # A block is one layer here: the simulated cache has no others.
        cost = KvCost((KvLayers(1, -(-options.simulated_block_bytes // options.block_size)),))
        return Needs(
            weights=max(options.device_memory, options.memory),
            overhead=0,
            kv=kv,
            elastic=spec.may_be_elastic,
            cost=cost,
            longest=spec.context_length or options.max_model_len,
            concurrency=self.capacity(spec, devices),
            notes=("the simulated engine takes what its arguments say",),
        )

    def needs(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> int | None:  # noqa: ARG002
        """Bytes of `--device-memory` or of `--memory`, the larger, and the model's `kv_cache_memory` on top.

        None if the arguments cannot be read: the process will say what is wrong with them.
        """
        options = _options(spec)
        if options is None:
            return None
        return max(options.device_memory, options.memory) + (spec.kv_cache_memory or 0)

    def weights(self, spec: ModelSpec) -> int | None:
        """Bytes of `--device-memory` or of `--memory`, the larger; None if the arguments cannot be read."""
        options = _options(spec)
        return None if options is None else max(options.device_memory, options.memory)

    def sleep_frees(self, spec: ModelSpec) -> int | None:
        """All that its arguments have it take."""
        return self.weights(spec)

    def capacity(self, spec: ModelSpec, devices: Sequence[Device]) -> int | None:  # noqa: ARG002
        """`--max-num-seqs`, else the 256 that it defaults to; None if that cannot be read."""
        return read_count(spec.args, "--max-num-seqs", MAX_NUM_SEQS)

    def lora_names(self, spec: ModelSpec) -> tuple[str, ...]:  # noqa: ARG002
        """None: it takes adapters while it runs, and has none at its start."""
        return ()

    def launch(
        self,
        spec: ModelSpec,
        *,
        instance: str,  # noqa: ARG002 - part of the interface; what needs a name has it from `memory`
        address: str,
        devices: Sequence[Device],
        environment: Environment,
        memory: ElasticTerms | None = None,
    ) -> Launch:
        """The model's arguments word for word, then Shoal's own, which win."""
        place = parse_address(address)
        if isinstance(place, UnixAddress):
            listen = [f"--uds={place.path}"]
        else:
            listen = [f"--host={place.host}", f"--port={place.port}"]
        own = [f"--model={spec.source}", f"--served-model-name={spec.name}", *listen]
        if spec.context_length is not None:
            own.append(f"--max-model-len={spec.context_length}")
        env = {"PYTHONPATH": str(Path(shoal.__file__).parents[1]), **spec.env}
        fixed = ""
        if spec.kv_cache_memory is not None:
            own.append(f"--kv-cache-memory-bytes={spec.kv_cache_memory}")
            fixed = "kv_cache_memory gives the KV cache a size"
        elif spec.elastic == "off":
            fixed = "elastic is off"
        if memory is not None:
            env |= memory.environment()
            for device in devices[:1]:
                own += [f"--simulated-device={device.key}", f"--simulated-device-size={device.memory_total}"]
        # Safe path: a folder called shoal where the engine happens to start must not be imported.
        argv = (str(environment.python), "-P", "-m", "shoal.engines.simulated", *spec.args, *own)
        sleepless = _why_sleepless(spec)
        return Launch(argv, env, memory is not None, fixed, can_sleep=not sleepless, sleepless_because=sleepless)

    def read_metrics(self, text: str) -> EngineMetrics:
        """The readings under vLLM's names."""
        return read_vllm_metrics(text)

    def explain(self, spec: ModelSpec, log: Sequence[str], exit: Exit) -> Failure:
        """A bad argument, or what a vLLM with that log would have failed of: it logs the same lines."""
        for line in reversed(log):
            if match := _BAD_ARGUMENT.search(line):
                hint = f"Correct `args` of the model; `{PROGRAM} --help` lists what there is."
                return Failure("bad_argument", f"The simulated engine refused an argument: {match[1]}.", hint)
        return explain(spec, log, exit)


def _why_sleepless(spec: ModelSpec) -> str:
    if spec.sleep == "off":
        return "sleep is off"
    asked = "--enable-sleep-mode" in spec.args or spec.env.get("VLLM_SERVER_DEV_MODE") == "1"
    return "" if asked else "its arguments lack --enable-sleep-mode"


def _options(spec: ModelSpec) -> Options | None:
    try:
        return parse(spec.args)
    except ValueError:
        return None
