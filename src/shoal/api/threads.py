"""Work that may never end, such as reading a network share that is away: in few threads, and with an end to waiting."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """Nothing came of it in time, or nothing was tried, because all threads hang."""


class Threads:
    """At most `most` threads at once, none of which is waited for longer than `patience` seconds.

    One that hangs keeps its place until it ends; while all do, nothing more is begun. Unlike an executor's they keep
    no process from ending. To be used in one event loop.
    """

    def __init__(self, most: int, patience: float) -> None:
        self.patience = patience
        self._most = most
        self._places = asyncio.Semaphore(most)
        self._began: dict[asyncio.Future[Any], float] = {}

    @property
    def hang(self) -> bool:
        """Whether all of them do."""
        late = asyncio.get_running_loop().time() - self.patience
        return len(self._began) == self._most and max(self._began.values()) <= late

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises NoAnswerError; what was begun then goes on unheard."""
        if self.hang:
            raise NoAnswerError
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise NoAnswerError from None
        call = self._begin(work, loop)
        done, _ = await asyncio.wait({call}, timeout=max(0.0, until - loop.time()))
        if not done:
            raise NoAnswerError
        return call.result()

    def _begin(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> asyncio.Future[T]:
        call: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            end: Callable[[], None]
            try:
                result = work()
            except BaseException as error:  # raised where it is waited for
                end = _bound(call.set_exception, error)
            else:
                end = _bound(call.set_result, result)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(end)

        self._began[call] = loop.time()
        call.add_done_callback(self._ended)
        threading.Thread(target=run, name="shoal-aside", daemon=True).start()
        return call

    def _ended(self, call: asyncio.Future[Any]) -> None:
        del self._began[call]
        self._places.release()
        call.exception()  # whoever asked may be gone


def _bound(set_it: Callable[[Any], None], value: Any) -> Callable[[], None]:
    return lambda: set_it(value)
