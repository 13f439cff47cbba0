"""When devices are measured, and which measurements are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

from shoal.memory.measuring import LATE, Follower, Reading

from .tool import eventually


class Slow:
    """Measurements that end when the test says so; each is the number of its beginning."""

    def __init__(self, patience: float = 30.0) -> None:
        self.begun = 0
        self.may_end = threading.Semaphore(0)
        self.told: list[int] = []
        self.follower = Follower(self.measure, 60.0, self.tell, patience)

    def measure(self) -> Mapping[str, Reading]:
        self.begun += 1
        number = self.begun
        assert self.may_end.acquire(timeout=30)
        return {"gpu": Reading(100, number)}

    def tell(self, readings: Mapping[str, Reading]) -> None:
        self.told.append(readings["gpu"].free if readings else 0)

    async def has_begun(self, number: int) -> None:
        await eventually(lambda: self.begun == number)


async def test_what_began_before_somebody_was_in_a_hurry_is_not_told() -> None:
    slow = Slow()
    task = asyncio.create_task(slow.follower.run())
    slow.follower.follow()
    await slow.has_begun(1)
    slow.follower.follow()
    slow.may_end.release()
    await slow.has_begun(2)
    assert slow.told == []
    slow.may_end.release()
    await eventually(lambda: slow.told == [2])
    slow.follower.follow()  # while it rests, it begins at once
    await slow.has_begun(3)
    slow.may_end.release()
    await eventually(lambda: slow.told == [2, 3])
    task.cancel()


async def test_somebody_is_told_in_the_end_though_others_are_always_in_a_hurry() -> None:
    slow = Slow()
    task = asyncio.create_task(slow.follower.run())
    slow.follower.follow()
    for number in range(1, LATE + 2):
        await slow.has_begun(number)
        assert slow.told == []
        slow.follower.follow()
        slow.may_end.release()
    await eventually(lambda: slow.told == [LATE + 1])
    await slow.has_begun(LATE + 2)
    slow.may_end.release()
    task.cancel()


async def test_nobody_waits_for_ever_for_a_driver_that_hangs_and_it_is_asked_once() -> None:
    slow = Slow(patience=0.01)
    task = asyncio.create_task(slow.follower.run())
    slow.follower.follow()
    await eventually(lambda: slow.told == [0])
    slow.follower.follow()
    await eventually(lambda: slow.told == [0, 0])
    assert slow.begun == 1
    slow.may_end.release()
    slow.follower.follow()
    await eventually(lambda: slow.told[-1] == 1)
    task.cancel()
