"""One thing after the other: the loop that hands commands and facts to whoever owns the fleet's state."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from shoal.errors import ShoalError
from shoal.fleet.facts import Fact

T = TypeVar("T")


class Inbox(ABC):
    """`run` its loop; `do` runs a command inside it; `tell` hands it a fact."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[Fact | Callable[[], None]] = asyncio.Queue()

    @abstractmethod
    def handle(self, item: Fact | Callable[[], None]) -> None:
        """Take one command or fact, and do all that follows from it. Raises nothing."""

    async def run(self) -> None:
        """Take one thing after the other, for ever."""
        while True:
            self.handle(await self._inbox.get())

    def tell(self, fact: Fact) -> None:
        """Hand over a fact. Never blocks."""
        self._inbox.put_nowait(fact)

    async def do(self, command: Callable[[], T]) -> T:
        """Run `command` inside the loop; its result or error."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                result = command()
            except ShoalError as error:
                if not future.done():
                    future.set_exception(error)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
                raise
            else:
                if not future.done():
                    future.set_result(result)

        self._inbox.put_nowait(run)
        return await future
