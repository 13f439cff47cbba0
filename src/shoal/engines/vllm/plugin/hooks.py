"""What the plugin relies on in vLLM, checked before anything depends on it.

Everything here is overridden, called or read by the plugin. A vLLM in which one of these is missing or takes other
arguments stops the start with the hook's name; it never runs half-elastic.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

from shoal.engines.vllm.elastic import NEWEST, OLDEST, check_version


class HookError(RuntimeError):
    """vLLM is not as expected, and where."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A callable `name` of `module` whose parameters begin with `takes`; `()` asks only that it exists."""

    module: str
    name: str
    takes: tuple[str, ...] = ()


_WORKER = "vllm.v1.worker.gpu_worker"
_ALLOCATOR = "vllm.device_allocator.cumem"
_POOL = "vllm.v1.core.block_pool"
_UTILS = "vllm.v1.core.kv_cache_utils"
_SCHEDULER = "vllm.v1.core.sched.async_scheduler"

WORKER_HOOKS = (
    Hook(_WORKER, "Worker._maybe_get_memory_pool_context", ("self", "tag")),
    Hook(_WORKER, "Worker.initialize_from_config", ("self", "kv_cache_config")),
    Hook(_WORKER, "Worker.determine_available_memory", ("self",)),
    Hook(_WORKER, "Worker.compile_or_warm_up_model", ("self",)),
    Hook(_WORKER, "Worker.execute_model", ("self", "scheduler_output")),
    Hook(_WORKER, "Worker.get_kv_cache_spec", ("self",)),
    Hook(_WORKER, "Worker.sleep", ("self", "level")),
    Hook(_WORKER, "Worker.wake_up", ("self", "tags")),
    Hook(_WORKER, "Worker.shutdown", ("self",)),
    Hook("torch", "_C._construct_storage_from_data_pointer"),
)

COPY_HOOKS = (
    Hook(_WORKER, "Worker._maybe_get_memory_pool_context", ("self", "tag")),
    Hook(_WORKER, "Worker.execute_model", ("self", "scheduler_output")),
    Hook(_WORKER, "Worker.sleep", ("self", "level")),
    Hook(_WORKER, "Worker.shutdown", ("self",)),
    Hook(_ALLOCATOR, "CuMemAllocator.get_instance"),
    Hook(_ALLOCATOR, "CuMemAllocator.sleep", ("self", "offload_tags")),
    Hook(_ALLOCATOR, "CuMemAllocator.wake_up", ("self", "tags")),
    Hook(_ALLOCATOR, "CuMemAllocator._python_free_callback", ("self", "ptr")),
    Hook("vllm.device_allocator", "AllocationData", ("handle", "tag", "cpu_backup_tensor")),
    Hook("torch", "_C._construct_storage_from_data_pointer"),
)
"""What host copies of weights rely on. Where these are otherwise, vLLM sleeps as it does by itself."""

SCHEDULER_HOOKS = (
    Hook(_SCHEDULER, "AsyncScheduler.schedule", ("self",)),
    Hook(_SCHEDULER, "AsyncScheduler.update_from_output", ("self", "scheduler_output", "model_runner_output")),
    Hook(_SCHEDULER, "AsyncScheduler.finish_requests", ("self", "request_ids", "finished_status")),
    Hook(_SCHEDULER, "AsyncScheduler.make_stats", ("self",)),
    Hook(_SCHEDULER, "AsyncScheduler.shutdown", ("self",)),
    Hook(_POOL, "BlockPool._maybe_evict_cached_block", ("self", "block")),
    Hook(_POOL, "BlockPool.get_num_free_blocks", ("self",)),
    Hook(_POOL, "BlockPool.get_cached_block", ("self", "block_hash", "kv_cache_group_ids")),
    Hook(_UTILS, "FreeKVCacheBlockQueue.remove", ("self", "block")),
    Hook(_UTILS, "FreeKVCacheBlockQueue.prepend_n", ("self", "blocks")),
    Hook("vllm.v1.request", "RequestStatus.FINISHED_ERROR"),
    Hook("vllm.v1.engine", "FinishReason.ERROR"),
    Hook("vllm.v1.engine", "EngineCoreOutput"),
    Hook("vllm.v1.engine", "EngineCoreOutputs"),
)

POOL_FIELDS = ("blocks", "null_block", "num_gpu_blocks", "free_block_queue")
QUEUE_FIELDS = ("num_free_blocks", "fake_free_list_head", "fake_free_list_tail")
BLOCK_FIELDS = ("block_id", "ref_cnt", "block_hash", "next_free_block", "prev_free_block")
SCHEDULER_FIELDS = (
    "kv_cache_manager",
    "running",
    "waiting",
    "requests",
    "num_lookahead_tokens",
    "max_num_running_reqs",
)


def verify(hooks: tuple[Hook, ...], version: str) -> tuple[int, int]:
    """Major and minor of vLLM's `version`. Raises HookError, or UnsupportedVersionError."""
    number = check_version(version)
    for hook in hooks:
        _verify(hook, version)
    return number


def verify_fields(owner: object, names: tuple[str, ...], version: str) -> None:
    """Raises HookError unless `owner` has all of the attributes."""
    for name in names:
        if not hasattr(owner, name):
            raise _error(f"{type(owner).__name__}.{name}", "is missing", version)


def _verify(hook: Hook, version: str) -> None:
    try:
        found: object = importlib.import_module(hook.module)
        for part in hook.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise _error(f"{hook.module}:{hook.name}", f"is missing ({error})", version) from error
    if not hook.takes:
        return
    if not callable(found):
        raise _error(f"{hook.module}:{hook.name}", "is not a function", version)
    names = tuple(inspect.signature(found).parameters)
    # A method that only passes everything on takes whatever we give.
    if names[: len(hook.takes)] != hook.takes and names[1:] not in (("args", "kwargs"), ("a", "k")):
        raise _error(
            f"{hook.module}:{hook.name}", f"takes ({', '.join(names)}), not ({', '.join(hook.takes)})", version
        )


def _error(what: str, how: str, version: str) -> HookError:
    return HookError(
        f"Shoal's worker does not fit this vLLM {version}: {what} {how}. Supported are {OLDEST[0]}.{OLDEST[1]} to "
        f"{NEWEST[0]}.{NEWEST[1]} as released; install one of them, or run with a fixed KV cache (elastic: off)"
    )
