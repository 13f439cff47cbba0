"""Whether an instance of vLLM can sleep, how it is started so that it can, and what its sleep gives back. Pure."""

from __future__ import annotations

from shoal.engines.arguments import values_of
from shoal.engines.vllm.elastic import UnsupportedVersionError, check_version
from shoal.engines.vllm.sizing import why_fixed
from shoal.fleet.spec import ModelSpec

ARGUMENT = "--enable-sleep-mode"
WORKER = "shoal.engines.vllm.plugin.copying.CopyingWorker"
"""The worker of an engine that sleeps and is not elastic; the elastic one keeps host copies too."""

DEVELOPMENT = "VLLM_SERVER_DEV_MODE"
"""The variable without which vLLM has no `/sleep`. It brings other paths too, which only Shoal's user may reach."""

ON_CPU = "vLLM on the CPU frees nothing when it sleeps"
UNSCALED = ("auto", "bfloat16", "float16", "float32")
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_RESIZED = (
    "--quantization", "-q", "--load-format", "--hf-overrides", "--cpu-offload-gb", "--model-loader-extra-config",
)  # fmt: skip
"""Arguments by which vLLM holds other weights on the device than the files have."""


def why_sleepless(spec: ModelSpec, variant: str) -> str:
    """Why an instance of `spec` cannot sleep; empty if it can. `variant`: `cpu` or `cuda`."""
    if spec.sleep == "off":
        return "sleep is off"
    if variant == "cpu":
        return ON_CPU
    if spec.port is not None:
        return "a fixed port would let others on this machine reach the paths that come with vLLM's sleep"
    if spec.env.get(DEVELOPMENT, "1") != "1":
        return f"the variable {DEVELOPMENT} is not 1"
    if any("expandable_segments:true" in spec.env.get(name, "").lower() for name in _ALLOCATOR):
        return "expandable segments and vLLM's sleep exclude each other"
    cache = (values_of(spec.args, "--kv-cache-dtype") or ["auto"])[-1]
    if cache not in UNSCALED and not why_fixed(spec):
        return f"a KV cache of {cache} can be elastic or sleep, and elastic is preferred; set `elastic: off` to sleep"
    return ""


def arguments(spec: ModelSpec) -> list[str]:
    """Arguments of `vllm serve` for an engine that can sleep."""
    return [] if ARGUMENT in spec.args else [ARGUMENT]


def copying(version: str) -> list[str]:
    """Arguments of one of `version` that keeps host copies of its weights; none where the worker is not known to fit.

    They come before the model's own, which win.
    """
    try:
        check_version(version)
    except UnsupportedVersionError:
        return []
    return ["--worker-cls", WORKER]


def environment() -> dict[str, str]:
    """Its variables."""
    return {DEVELOPMENT: "1"}


def knows_weights(spec: ModelSpec) -> bool:
    """Whether the device holds what the model's files say."""
    names = {arg.partition("=")[0].replace("_", "-") for arg in spec.args}
    return not names.intersection(_RESIZED)
