"""Sleep and wake as vLLM has them, with the memory that comes back, and the ways in which both can fail."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Coroutine
from typing import Any

from shoal.engines.simulated.completions import RequestError
from shoal.engines.simulated.copies import HostCopy
from shoal.engines.simulated.core import Core
from shoal.engines.simulated.http import Request
from shoal.engines.simulated.options import Options

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {:.2f} GiB while waking up."
TAGS = ("weights", "kv_cache")


class Slumber:
    """Whether the engine sleeps, and what it holds meanwhile. `elastic` has a `sleep` and a `wake` of its own."""

    def __init__(self, options: Options, core: Core, crash: Callable[[], None], log: Callable[[str], None]) -> None:
        self._options = options
        self._core = core
        self._crash = crash
        self._log = log
        self.on_sleep: Callable[[], None] | None = None
        self.on_wake: Callable[[], None] | None = None
        self.level: int | None = None
        self._dropped = False
        self._tags: set[str] = set()
        self.spoiled = False
        """Its weights are not what they were: it answers otherwise than before."""
        self._memory = occupy(options.memory)
        size = max(options.memory, options.device_memory)
        self.copy = HostCopy(size, options.copy_seconds, fails="copy-fails" in options.fail)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def device_memory(self) -> int:
        """Bytes of device memory that it reports."""
        return 0 if self.level and not self._keeps else self._options.device_memory

    @property
    def _keeps(self) -> bool:
        return "sleep-keeps-memory" in self._options.fail

    async def sleep(self, request: Request) -> dict[str, object]:
        """`POST /sleep?level=1&mode=abort`. Raises RequestError."""
        level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
        if level not in ("0", "1", "2") or mode not in ("abort", "wait", "keep"):
            raise RequestError(400, "level has to be 0, 1 or 2, and mode abort, wait or keep", "Bad Request")
        if "sleep-fails" in self._options.fail:
            raise RequestError(
                500, "the simulated sleep failed, as --fail sleep-fails asked for", "InternalServerError"
            )
        if mode == "abort":
            self._core.abort_all()
        while mode == "wait" and self._core.running + self._core.waiting:
            await asyncio.sleep(0.01)
        self._core.pause()
        await self._whatever_happens(self._fall_asleep(int(level)))
        return {"status": "sleeping", "level": int(level)}

    async def wake_up(self, request: Request) -> dict[str, object]:
        """`POST /wake_up`, or with `tags` in parts. Raises RequestError."""
        if "wake-fails" in self._options.fail:
            raise RequestError(500, "the simulated wake failed, as --fail wake-fails asked for", "InternalServerError")
        if "wake-oom" in self._options.fail:
            text = OUT_OF_MEMORY.format(max(self._options.memory, self._options.device_memory) / 2**30)
            self._log(text)
            asyncio.get_running_loop().call_later(0.05, self._crash)
            raise RequestError(500, text, "InternalServerError")
        tag = request.query.get("tags")
        await self._whatever_happens(self._wake(set(TAGS if tag is None else (tag,))))
        return {"status": "awake", "tags": None if tag is None else [tag]}

    def call(self, method: object, args: object) -> object:
        """`POST /collective_rpc`: what the worker answers. Raises RequestError if it has no such method."""
        if method == "reload_weights":
            self.reload()
            return None
        what = args[0] if isinstance(args, list) and args else "look"
        if method != "shoal_copies" or what not in ("take", "forget", "look"):
            text = f"the simulated engine has no {method!r} of {what!r}; it has reload_weights and shoal_copies"
            raise RequestError(400, text, "Bad Request")
        return {"take": self.copy.take, "forget": self.copy.forget, "look": self.copy.look}[what]()

    def reload(self) -> None:
        """Read dropped weights anew."""
        self._dropped = False

    async def _whatever_happens(self, work: Coroutine[Any, Any, None]) -> None:
        """As in vLLM, it goes on although whoever asked for it goes away."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _fall_asleep(self, level: int) -> None:
        self._log(f"falling asleep at level {level}")
        await asyncio.sleep(self._options.sleep_seconds + (self.copy.complete() if level == 1 else 0.0))
        self.level = level
        self._tags = set()
        if level and not self._keeps:
            self._memory = None
            self._dropped = level == 2
            self._core.discard()
            if self.on_sleep is not None:
                self.on_sleep()
        after = self._options.fails_after("dies-asleep")
        if after is not None:
            asyncio.get_running_loop().call_later(after, self._crash)

    async def _wake(self, tags: set[str]) -> None:
        self._log(f"waking up {' and '.join(sorted(tags))}")
        await asyncio.sleep(self._options.sleep_seconds)
        self._tags |= tags
        if "weights" in self._tags and self._memory is None:
            self._memory = occupy(self._options.memory)
        if not self._tags.issuperset(TAGS):
            return
        self.spoiled = self._dropped or (self.level is not None and "canary-differs" in self._options.fail)
        self.level = None
        self.copy.woke()
        if self.on_wake is not None:
            self.on_wake()
        self._core.resume()


def occupy(size: int) -> mmap.mmap | None:
    """Memory of the operating system, every page of it touched."""
    if not size:
        return None
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, mmap.PAGESIZE):
        memory[offset] = 1
    return memory
