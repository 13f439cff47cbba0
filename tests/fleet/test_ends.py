"""An engine is ended once the store knows, however the store answers, and never another one in its place."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from shoal.fleet.ends import end_once_saved


@dataclass
class Fleet:
    """Groups by instance, the ends that came, and a store that answers when it is told to."""

    groups: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def group(self, instance: str) -> int | None:
        return self.groups.get(instance)

    def end(self, instance: str) -> bool:
        self.ended.append(instance)
        return True

    async def flush(self) -> bool:
        self.asked.set()
        return await self.answer

    async def begin(self) -> asyncio.Task[None]:
        """Ask for the end of `a`, as far as the store."""
        task = asyncio.create_task(end_once_saved(self, "a", self.end, self.flush))
        await self.asked.wait()
        return task


@pytest.mark.parametrize("saved", [True, False])
async def test_not_before_the_store_has_answered(saved: bool) -> None:
    fleet = Fleet({"a": 1, "b": 2})
    task = await fleet.begin()
    assert fleet.ended == [], "a controller that is killed now leaves an engine that serves"
    fleet.answer.set_result(saved)
    await task
    assert fleet.ended == ["a"]


@pytest.mark.parametrize("now", [None, 3], ids=["ended", "started again"])
async def test_what_is_gone_meanwhile_is_left_alone(now: int | None) -> None:
    fleet = Fleet({"a": 1})
    task = await fleet.begin()
    fleet.groups = {} if now is None else {"a": now}
    fleet.answer.set_result(True)
    await task
    assert fleet.ended == []


async def test_what_had_not_begun_is_not_ended_later() -> None:
    fleet = Fleet()
    task = await fleet.begin()
    fleet.groups["a"] = 1
    fleet.answer.set_result(True)
    await task
    assert fleet.ended == []
