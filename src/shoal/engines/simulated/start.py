"""A start as vLLM logs it, and the ways in which one can fail."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

from shoal import __version__
from shoal.engines.simulated.api import log
from shoal.engines.simulated.options import Options

if TYPE_CHECKING:
    from shoal.engines.simulated.elastic import Elastic

_GIB = 2**30


class StartError(Exception):
    """A start that failed, with what vLLM would have logged."""

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[-1])
        self.lines = lines


async def start(options: Options) -> None:
    """Take `start_seconds` and log vLLM's milestones on the way. Raises StartError."""
    began = time.monotonic()

    async def reach(share: float) -> None:
        await asyncio.sleep(max(0.0, began + share * options.start_seconds - time.monotonic()))

    say("APIServer", "api_utils.py", f"version {__version__}, model {options.model}")
    say("APIServer", "api_utils.py", f"non-default args: {{'model': {options.model!r}}}")
    for number in range(int(options.fail.get("log-flood", 0))):
        say("APIServer", "flood.py", f"line {number} of a flood {'=' * 160}")
        if number % 1000 == 999:
            await asyncio.sleep(0)
    await reach(0.1)
    _check_model(options)
    say("APIServer", "model.py", "Resolved architecture: SimulatedForCausalLM")
    say("APIServer", "model.py", f"Using max model len {options.max_model_len}")
    say("EngineCore", "core.py", f"Initializing a V1 LLM engine (v{__version__}) with config: model={options.model!r}")
    await reach(0.2)
    say("Worker", "model_runner.py", f"Starting to load model {options.model}...")
    for shard in (0, 1, 2):
        await reach(0.2 + shard * 0.2)
        if shard == 1:
            _check_memory(options)
        log(f"Loading safetensors checkpoint shards: {shard * 50:3d}% Completed | {shard}/2")
    say("Worker", "default_loader.py", f"Loading weights took {0.4 * options.start_seconds:.2f} seconds")
    size = max(options.memory, options.device_memory) / _GIB
    took = 0.4 * options.start_seconds
    say("Worker", "model_runner.py", f"Model loading took {size:.2f} GiB memory and {took:.6f} seconds")
    await reach(0.8)
    say("Worker", "worker.py", f"Available KV cache memory: {size:.2f} GiB")
    say("EngineCore", "kv_cache_utils.py", f"KV cache size: {options.kv_cache_tokens:,} tokens")
    await reach(1.0)
    took = 0.4 * options.start_seconds
    say("EngineCore", "core.py", f"init engine (profile, create kv cache, warmup model) took {took:.2f} s")


async def join(elastic: Elastic) -> None:
    """Wait until the memory broker has taken the engine in. Raises StartError."""
    from shoal.memory.client import LeaseError

    try:
        await elastic.connected()
    except LeaseError as error:
        raise StartError(f"shoal.memory.client.LeaseError: {error}") from None


def say(process: str, file: str, message: str) -> None:
    """Log a line as vLLM's processes do."""
    log(f"({process} pid={os.getpid()}) INFO {time.strftime('%m-%d %H:%M:%S')} [{file}:1] {message}")


def report(error: StartError) -> None:
    """Print a failed start as vLLM does: a traceback on standard error."""
    sys.stderr.write("Traceback (most recent call last):\n")
    sys.stderr.write('  File "<simulated>", line 1, in load_model\n')
    sys.stderr.write("".join(f"{line}\n" for line in error.lines))
    sys.stderr.flush()


def _check_model(options: Options) -> None:
    if "bad-architecture" in options.fail:
        raise StartError(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, Model architectures ['SimulatedForNothing'] are not supported for now. "
            "Supported architectures: dict_keys(['SimulatedForCausalLM'])",
        )
    length = options.max_model_len
    if "context-too-long" in options.fail:
        length = max(length, options.model_len + 1)
    if length > options.model_len:
        raise StartError(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            f"  Value error, User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={options.model_len} or model_max_length=None in model's config.json). "
            "To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
        )


def _check_memory(options: Options) -> None:
    if "oom" in options.fail:
        wanted = max(options.device_memory, options.memory, 2 * _GIB) / _GIB
        raise StartError(
            f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted:.2f} GiB. GPU 0 has a total "
            f"capacity of {wanted:.2f} GiB of which 512.00 MiB is free."
        )
    if "start-exit" in options.fail:
        raise StartError("RuntimeError: the simulated start failed, as --fail start-exit asked for")
