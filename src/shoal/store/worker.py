"""One thread that runs calls in order and hands each result to an event loop. Asleep while there is none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A daemon thread: a database that hangs cannot keep the process from exiting."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]] | None]
        self._calls = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T], done: Callable[[T | None, Exception | None], None]) -> None:
        """Run `call` in the thread, then `done(result, error)` in the event loop."""
        self._calls.put((call, done))

    async def call(self, call: Callable[[], T], finish: Callable[[T], T] | None = None) -> T:
        """What `call` returns or raises in the thread; `finish` changes it in the loop before anything else runs."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result if finish is None else finish(result))

        self.submit(call, done)
        return await future

    def stop(self) -> None:
        """End the thread after the calls that wait."""
        self._calls.put(None)

    def _run(self) -> None:
        while (job := self._calls.get()) is not None:
            call, done = job
            result: Any = None
            failure: Exception | None = None
            try:
                result = call()
            except Exception as error:
                failure = error
            if self._loop.is_closed():
                continue
            try:
                self._loop.call_soon_threadsafe(done, result, failure)
            except RuntimeError:  # closed meanwhile: nobody waits for the answer
                continue
