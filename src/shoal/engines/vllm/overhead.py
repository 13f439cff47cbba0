"""What vLLM takes on a device beside weights and KV cache: its CUDA context, activations and CUDA graphs. Pure.

An estimate for the time before a model's first load, which measures it. Where the parts come from:

- **Activations.** vLLM runs its longest batch once at the start, and PyTorch keeps what that took. The widest moment of
  a layer holds, for each token, the hidden state and the residual, both results of the gated projection and their
  product: 2 · hidden + 3 · inner / ranks elements of 16 bits (`LlamaMLP.forward`).
- **Sampler.** The same run samples for every sequence that may run: logits in 32 bits and, sorted, their 64-bit places
  (`SAMPLER_BYTES` for each sequence and word). It comes after the layers, so that the larger of both counts.
- **CUDA graphs.** Each captured batch size keeps the launches of every layer: so they grow with layers and sizes.
  `GRAPHS_A_LAYER` is 1.0 GiB over 32 layers, as measured with vLLM 0.26 and all default sizes (Llama-3.1-8B, H200).
- **Context.** CUDA, NCCL and the libraries' workspaces.

For that model the sum is 3.0 GiB; measured were 2.8 (17.8 GiB in use while idle, of which 15.0 are weights).
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.engines.arguments import read_count, values_of
from shoal.engines.vllm.shapes import Widths
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device

GIB = 2**30
MIB = 2**20

CPU_OVERHEAD = 1900 * MIB
"""Resident bytes of vLLM's three CPU processes beyond weights and KV cache: 1.8 GB with a 135M model in 0.32."""
CPU_ACTIVATIONS = 256 * MIB
"""Activations that `CPU_OVERHEAD` has in it."""
CUDA_OVERHEAD = 2 * GIB
"""For models whose configuration does not give their shape."""
CUDA_CONTEXT = 512 * MIB
GRAPHS_A_LAYER = 32 * MIB
MOST_GRAPH_TOKENS = 512
"""The largest batch that vLLM captures a graph of, by default."""
SAMPLER_BYTES = 12

LARGE_GPU = 70 * GIB
"""From here on vLLM counts a GPU as large, and from `LARGEST_GPU` on as larger still."""
LARGEST_GPU = 160 * GIB
_SLOW = ("a100", "gb10")


def default_sequences(spec: ModelSpec, devices: Sequence[Device]) -> int:
    """Sequences that `vllm serve` runs at once by default (`EngineArgs.get_batch_defaults`, 0.24 to 0.33)."""
    if any(device.kind == "host" for device in devices):
        return 128 * spec.tensor_parallel
    return 1024 if _large(devices) else 256


def default_batch(spec: ModelSpec, devices: Sequence[Device]) -> int:
    """Tokens that `vllm serve` computes in one step unless told otherwise (as `default_sequences`)."""
    if any(device.kind == "host" for device in devices):
        return 2048 * spec.tensor_parallel
    if not _large(devices):
        return 2048
    return 16384 if all(device.memory_total >= LARGEST_GPU for device in devices) else 8192


def _large(devices: Sequence[Device]) -> bool:
    large = bool(devices) and all(device.memory_total >= LARGE_GPU for device in devices)
    return large and not any(word in device.name.lower() for device in devices for word in _SLOW)


def activations(spec: ModelSpec, widths: Widths, devices: Sequence[Device]) -> int:
    """Bytes that the longest batch takes on one device beside weights and KV cache."""
    batch = read_count(spec.args, "--max-num-batched-tokens", default_batch(spec, devices))
    sequences = read_count(spec.args, "--max-num-seqs", default_sequences(spec, devices))
    batch, sequences = batch or default_batch(spec, devices), sequences or default_sequences(spec, devices)
    layer = batch * 2 * (2 * widths.hidden + 3 * widths.inner // spec.tensor_parallel)
    return max(layer, sequences * (widths.vocabulary or 0) * SAMPLER_BYTES)


def graphs(spec: ModelSpec, widths: Widths, devices: Sequence[Device]) -> int:
    """Bytes of CUDA graphs; none where they are turned off."""
    if _eager(spec):
        return 0
    sequences = read_count(spec.args, "--max-num-seqs", default_sequences(spec, devices))
    captured = min(MOST_GRAPH_TOKENS, 2 * (sequences or MOST_GRAPH_TOKENS))
    return widths.layers * GRAPHS_A_LAYER * captured // MOST_GRAPH_TOKENS


def _eager(spec: ModelSpec) -> bool:
    names = {arg.replace("_", "-") for arg in spec.args}
    return "--enforce-eager" in names or values_of(spec.args, "--enforce-eager")[:1] == ["true"]


def overhead(spec: ModelSpec, widths: Widths | None, variant: str, devices: Sequence[Device]) -> int:
    """Bytes that vLLM takes on each of `devices` beside weights and KV cache. `variant`: `cpu` or `cuda`."""
    if variant == "cpu":
        more = 0 if widths is None else activations(spec, widths, devices) - CPU_ACTIVATIONS
        return CPU_OVERHEAD + max(0, more)
    if widths is None:
        return CUDA_OVERHEAD
    return CUDA_CONTEXT + activations(spec, widths, devices) + graphs(spec, widths, devices)
