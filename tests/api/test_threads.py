"""Work that may hang: how much of it, how long it is waited for, and what becomes of it."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from shoal.api.threads import NoAnswerError, Threads


def fails() -> None:
    raise KeyError("x")


async def test_what_work_returns_and_raises() -> None:
    threads = Threads(2, 30)
    assert await asyncio.gather(*(threads.run(partial(pow, n, 2)) for n in range(9))) == [n * n for n in range(9)]
    for _ in range(5):
        with pytest.raises(KeyError):
            await threads.run(fails)
    assert threading.current_thread().name != await threads.run(lambda: threading.current_thread().name)


async def test_while_all_hang_nothing_more_is_begun_and_afterwards_all_is_well() -> None:
    threads, release, begun = Threads(2, 0.01), threading.Event(), []

    def hang() -> None:
        begun.append(1)
        release.wait()

    for _ in range(5):
        with pytest.raises(NoAnswerError):
            await threads.run(hang)
    assert (len(begun), threads.hang) == (2, True)
    threads.patience = 30
    release.set()
    assert await threads.run(lambda: "well") == "well"


async def test_one_that_hangs_leaves_the_other() -> None:
    threads, release = Threads(2, 0.01), threading.Event()
    with pytest.raises(NoAnswerError):
        await threads.run(release.wait)
    threads.patience = 30
    assert [await threads.run(lambda: 1) for _ in range(3)] == [1, 1, 1]
    release.set()


async def test_a_place_that_does_not_come_free_is_not_waited_for_for_ever() -> None:
    threads, release = Threads(1, 0.05), threading.Event()
    both = await asyncio.gather(*(threads.run(release.wait) for _ in range(2)), return_exceptions=True)
    assert [type(one) for one in both] == [NoAnswerError, NoAnswerError]
    release.set()


async def test_who_leaves_keeps_no_place_beyond_the_work() -> None:
    threads, release = Threads(1, 30), threading.Event()
    left = asyncio.create_task(threads.run(release.wait))
    await asyncio.sleep(0)
    left.cancel()
    waiting = asyncio.create_task(threads.run(lambda: 1))
    release.set()
    assert await waiting == 1
    assert left.cancelled()
