"""How much KV cache an instance of vLLM gets: whether it can be elastic, and the sizes either way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.engines.vllm.elastic import UnsupportedVersionError, check_version
from shoal.engines.vllm.sources import Source
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

GIB = 2**30
MIB = 2**20

CPU_OVERHEAD = 1900 * MIB
"""Resident bytes of vLLM's three CPU processes beyond weights and KV cache: 1.8 GB with a 135M model in 0.32."""

CUDA_OVERHEAD = 2 * GIB
"""About what a CUDA context, activations and graphs take on a device; models with long batches take more."""

KV_DEFAULT = 512 * MIB
KV_DEFAULT_MOST = 4 * GIB

HOST_SHARE = 0.75
"""Of what the host will have free beside weights and processes: vLLM's CPU worker refuses a KV cache larger than what
is free once the weights are loaded, and others may take some until then."""

FIXED_BY = {
    "--kv-cache-memory-bytes": "gives the KV cache a size",
    "--num-gpu-blocks-override": "gives the KV cache a size",
    "--gpu-memory-utilization": "gives the KV cache a size",
    "--worker-cls": "replaces the worker, which elastic memory needs",
    "--scheduler-cls": "replaces the scheduler, which elastic memory needs",
    "--kv-transfer-config": "has a connector read the KV cache, which must not meet memory that was given back",
    "--kv-offloading-size": "has a connector read the KV cache, which must not meet memory that was given back",
    "--data-parallel-size": "starts engines of one name, and elastic memory needs one for each",
    "--pipeline-parallel-size": "splits the layers, and elastic memory knows tensor parallel engines only",
    "--distributed-executor-backend": "may start ranks on other machines, which have other memory",
}
"""Arguments of a model that leave no room for elastic memory, and why."""
_SHORT = {"-dp": "--data-parallel-size", "-pp": "--pipeline-parallel-size"}
_VARIABLES = {"VLLM_KV_CACHE_LAYOUT": "chooses a layout of the KV cache"}


def why_fixed(spec: ModelSpec) -> str:
    """Why an instance of `spec` has a KV cache of fixed size, whatever version runs it; empty if it need not have."""
    if spec.elastic == "off":
        return "elastic is off"
    if spec.kv_cache_memory is not None:
        return "kv_cache_memory gives the KV cache a size"
    for arg in spec.args:
        found = _argument(arg)
        if found is not None:
            return f"the argument {found} {FIXED_BY[found]}"
    for name, what in _VARIABLES.items():
        if name in spec.env:
            return f"the variable {name} {what}"
    return ""


def why_fixed_with(spec: ModelSpec, version: str) -> str:
    """The same for an instance that vLLM `version` runs."""
    try:
        check_version(version)
    except UnsupportedVersionError as error:
        return why_fixed(spec) or str(error)
    return why_fixed(spec)


def _argument(arg: str) -> str | None:
    name = arg.partition("=")[0].replace("_", "-")
    if name in _SHORT:
        return _SHORT[name]
    if not name.startswith("--") or len(name) < 4:
        return None
    # argparse takes any clear beginning of a name.
    return next((known for known in FIXED_BY if known.startswith(name)), None)


def fixed_kv(spec: ModelSpec, source: Source | None) -> int:
    """KV cache of one device. By default one whole context, within limits: the CPU build would take 92 % of RAM."""
    if spec.kv_cache_memory is not None:
        return spec.kv_cache_memory
    per_token = source.kv_bytes_per_token() if source is not None else None
    tokens = spec.context_length or (source.text_config.get("max_position_embeddings") if source is not None else None)
    if per_token is None or not isinstance(tokens, int):
        return GIB
    # vLLM takes whole blocks of up to 128 tokens and keeps one for itself.
    whole = per_token * (tokens + 256) // spec.tensor_parallel
    return min(KV_DEFAULT_MOST, max(KV_DEFAULT, whole))


def virtual_kv(spec: ModelSpec, source: Source | None, devices: Sequence[Device], beside: int) -> int:
    """Address space for the KV cache of an elastic instance on each of `devices`: how far it can ever grow.

    `beside` is what the instance takes otherwise. Never less than one context, without which vLLM does not start.
    """
    least = fixed_kv(spec, source)
    if not devices:
        return least
    if all(device.kind == "cuda" for device in devices):
        return max(least, min(device.memory_total for device in devices))
    room = int(HOST_SHARE * max(0, min(device.memory_free for device in devices) - beside)) // MIB * MIB
    return max(least, room if spec.ceiling is None else min(room, spec.ceiling))


def python_path(folder: str, env: Mapping[str, str]) -> str:
    """`PYTHONPATH` with Shoal's folder before what the model's own variables name."""
    return f"{folder}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else folder
