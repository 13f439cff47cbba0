"""vLLM's metric names, which the simulated engine shares, read into `EngineMetrics`."""

from __future__ import annotations

import re

from shoal.engines.base import EngineMetrics
from shoal.engines.promtext import parse_samples

_CACHE = re.compile(r"^vllm:cache_config_info\{([^\n]{1,20000})\}", re.MULTILINE)
_LABEL = re.compile(r'(block_size|num_gpu_blocks|kv_cache_memory_bytes)="(\d{1,18})"')


def read_vllm_metrics(text: str) -> EngineMetrics:
    """Readings out of a page at vLLM's `/metrics`. With several engine cores in one process they are summed."""
    samples = parse_samples(text)
    usage = samples.get("vllm:kv_cache_usage_perc", samples.get("vllm:gpu_cache_usage_perc"))  # the older name
    return EngineMetrics(
        requests_running=samples.get("vllm:num_requests_running"),
        requests_waiting=samples.get("vllm:num_requests_waiting"),
        kv_usage=None if usage is None else min(1.0, max(0.0, usage)),
        prompt_tokens_total=samples.get("vllm:prompt_tokens_total"),
        generation_tokens_total=samples.get("vllm:generation_tokens_total"),
        preemptions_total=samples.get("vllm:num_preemptions_total"),
        prefix_queries_total=samples.get("vllm:prefix_cache_queries_total"),
        prefix_hits_total=samples.get("vllm:prefix_cache_hits_total"),
        kv_token_bytes=_token_bytes(text),
        # A histogram of tokens per step, despite its name: its count is the number of steps.
        steps_total=samples.get("vllm:iteration_tokens_total_count"),
        device_memory=samples.get("simulated:device_memory_bytes"),  # vLLM itself does not say
    )


def _token_bytes(text: str) -> float | None:
    """What a token takes of the KV cache, by its size, its blocks and their tokens; None unless all are given."""
    info = _CACHE.search(text)
    if info is None:
        return None
    given = {name: int(value) for name, value in _LABEL.findall(info[1])}
    tokens = given.get("block_size", 0) * given.get("num_gpu_blocks", 0)
    return given["kv_cache_memory_bytes"] / tokens if tokens and given.get("kv_cache_memory_bytes") else None
