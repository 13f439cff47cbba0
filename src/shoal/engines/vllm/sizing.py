"""What an instance of vLLM needs, and how much KV cache it gets: whether that can be elastic, and the sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.engines.arguments import values_of
from shoal.engines.vllm.elastic import UnsupportedVersionError, check_version
from shoal.engines.vllm.overhead import GIB, MIB, overhead
from shoal.engines.vllm.shapes import KV_BYTES, longest_context, read_widths
from shoal.engines.vllm.sources import Source
from shoal.fleet.needs import KvCost, Needs
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

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
    cost = kv_cost(spec, source)
    tokens = spec.context_length or (longest_context(source.text_config) if source is not None else None)
    if cost is None or tokens is None:
        return GIB
    # vLLM takes whole blocks of up to 128 tokens and keeps one for itself.
    return min(KV_DEFAULT_MOST, max(KV_DEFAULT, cost.per_token * (tokens + 256)))


def kv_cost(spec: ModelSpec, source: Source | None) -> KvCost | None:
    """What requests take of the KV cache on each device; None if shape or `--kv-cache-dtype` are not known."""
    if source is None:
        return None
    named = (values_of(spec.args, "--kv-cache-dtype") or ["auto"])[-1]
    element = KV_BYTES.get(named)
    if named == "auto" and source.computes_in(spec.dtype) == "float32":
        element = 4
    return None if element is None else source.kv(element=element, tensor_parallel=spec.tensor_parallel)


def estimate(
    spec: ModelSpec, source: Source | None, variant: str, devices: Sequence[Device], *, elastic: bool
) -> Needs:
    """What one of `devices` needs for its share of a model that has never been loaded. `variant`: `cpu` or `cuda`.

    Raises ShoalError (`weights_unreadable`, `bad_config`) for files that no engine could load.
    """
    notes: list[str] = []
    weights = widths = cost = longest = None
    if source is None or source.folder is None:
        notes.append(f"{spec.source} is not on this machine: weights and shape are not known before it is fetched")
    else:
        stored = source.weights()
        widths, cost = read_widths(source.text_config), kv_cost(spec, source)
        longest = longest_context(source.text_config)
        if stored is None:
            about = source.weights_by_shape(spec.dtype)
            weights = None if about is None else -(-about // spec.tensor_parallel)
            told = "their size is not known" if about is None else "their size is estimated from the model's shape"
            notes.append(f"{source.folder} holds no weights, so {told}")
        else:
            whole = source.weight_bytes(spec.dtype) or 0
            weights = -(-whole // spec.tensor_parallel)
            split = f", split over {spec.tensor_parallel} devices" if spec.tensor_parallel > 1 else ""
            notes.append(f"weights are {stored.words()}{split}")
        if cost is None:
            notes.append("what a token takes of its KV cache is not known from its configuration")
        elif cost.note:
            notes.append(cost.note)
    notes.append(
        "overhead is estimated from its shape" if widths is not None else "overhead is a guess: its shape is not known"
    )
    return Needs(
        weights=weights,
        overhead=overhead(spec, widths, variant, devices),
        kv=spec.first_kv if elastic else fixed_kv(spec, source),
        elastic=elastic,
        cost=cost,
        longest=spec.context_length or longest,
        notes=tuple(notes),
    )


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
