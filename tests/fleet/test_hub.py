"""The event stream: snapshots, deltas told together, resumption, and watchers that do not keep up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from typing import cast

import pytest

from shoal.fleet.hub import BEHIND, RING, RING_BYTES, Hub

Told = tuple[str, str, object]
SOON = 0.01
"""Seconds between two times that a hub of these tests tells."""


def read(frame: bytes) -> Told:
    """Id, event and data of one frame."""
    fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
    return fields["id"], fields["event"], json.loads(fields["data"])


class Watcher:
    """One that takes frames from a stream, of which several may come at a time."""

    def __init__(self, hub: Hub, last: str | None = None) -> None:
        self.stream = cast("AsyncGenerator[bytes]", hub.stream(last))
        self.left: list[bytes] = []
        self.pieces = 0

    async def take(self, count: int) -> list[Told]:
        while len(self.left) < count:
            piece = await asyncio.wait_for(anext(self.stream), 5)
            self.pieces += 1
            self.left += [frame for frame in piece.split(b"\n\n") if frame]
        taken, self.left = self.left[:count], self.left[count:]
        return [read(frame) for frame in taken]


def events(told: list[Told]) -> list[tuple[str, object]]:
    return [(event, data) for _, event, data in told]


async def tell(hub: Hub, event: str, *values: object) -> None:
    """Publish, and wait until watchers are told: at once, if that is more than the hub keeps by a snapshot."""
    watcher = Watcher(hub)
    await watcher.take(1)
    for value in values:
        hub.publish(event, value)
    await watcher.take(1)
    await watcher.stream.aclose()


async def test_a_snapshot_then_what_changes() -> None:
    hub = Hub(lambda: {"models": []}, SOON)
    await tell(hub, "move", "before")
    watcher = Watcher(hub)
    assert events(await watcher.take(1)) == [("snapshot", {"models": []})]
    assert hub.watchers == 1
    hub.publish("message", {"name": "after"})
    assert events(await watcher.take(1)) == [("message", {"name": "after"})]
    await watcher.stream.aclose()
    assert hub.watchers == 0


async def test_nothing_older_than_a_snapshot_comes_after_it() -> None:
    now: dict[str, object] = {"name": "m", "state": "unloaded"}
    hub = Hub(lambda: now, 3600)
    early = Watcher(hub)
    await early.take(1)
    hub.publish("message", "the first after a quiet time")
    await early.take(1)
    for state in ("queued", "starting"):
        now = {"name": "m", "state": state}
        hub.publish("model", now)
        hub.publish("message", f"m is {state}")
    late = Watcher(hub)
    assert events(await late.take(1)) == [("snapshot", {"name": "m", "state": "starting"})]
    assert events(await early.take(4))[-1] == ("message", "m is starting")
    hub.publish("message", "later")
    hub._tell()
    assert events(await late.take(1)) == [("message", "later")]


async def test_what_one_step_changes_is_told_in_one_piece_and_at_once() -> None:
    hub = Hub(lambda: "whole", 3600)
    watcher = Watcher(hub)
    await watcher.take(1)
    for number in range(5):
        hub.publish("message", number)
    assert events(await watcher.take(5)) == [("message", number) for number in range(5)]
    assert watcher.pieces == 2  # the snapshot, and one


async def test_what_comes_soon_after_waits_and_only_the_last_is_told() -> None:
    hub = Hub(lambda: "whole", 0.05)
    watcher = Watcher(hub)
    await watcher.take(1)
    hub.publish("devices", {"devices": "first"})
    await watcher.take(1)
    began = asyncio.get_running_loop().time()
    for number in range(100):
        hub.publish("devices", {"devices": number})
        await asyncio.sleep(0)
    assert events(await watcher.take(1)) == [("devices", {"devices": 99})]
    assert asyncio.get_running_loop().time() - began > 0.02


async def test_what_may_change_after_it_was_published_is_told_as_it_was() -> None:
    hub = Hub(lambda: "whole", SOON)
    watcher = Watcher(hub)
    await watcher.take(1)
    for event in ("preset_run", "move", "message", "model_removed"):
        told = {"name": "before"}
        hub.publish(event, told)
        told["name"] = "after"
        assert events(await watcher.take(1)) == [(event, {"name": "before"})]


async def test_a_watcher_that_comes_back_gets_what_it_missed() -> None:
    hub = Hub(lambda: "whole", SOON)
    ((first, _, _),) = await Watcher(hub).take(1)
    await tell(hub, "message", 1, 2)
    again = await Watcher(hub, first).take(2)
    assert events(again) == [("message", 1), ("message", 2)]
    assert events(await Watcher(hub, again[0][0]).take(1)) == [("message", 2)]


async def test_one_that_comes_back_and_missed_nothing_gets_what_comes() -> None:
    hub = Hub(lambda: "whole", SOON)
    await tell(hub, "message", 1)
    ((last, _, _),) = await Watcher(hub).take(1)
    watcher = Watcher(hub, last)
    first = asyncio.ensure_future(watcher.take(1))
    await asyncio.sleep(0)
    hub.publish("message", 2)
    assert events(await first) == [("message", 2)]


async def test_what_is_no_longer_known_is_a_new_snapshot() -> None:
    hub = Hub(lambda: "whole", SOON)
    await tell(hub, "message", *range(RING + 10))
    epoch = (await Watcher(hub).take(1))[0][0].split("-")[0]
    for last in (
        f"{epoch}-3",
        "other-5",
        "nonsense",
        f"{epoch}-99999999",
        f"{epoch}-x",
        f"{epoch}-²",
        f"{epoch}-{'9' * 5000}",
        "",
    ):
        assert events(await Watcher(hub, last).take(1)) == [("snapshot", "whole")], last


async def test_what_is_kept_for_those_who_come_back_is_bounded_in_bytes() -> None:
    hub = Hub(lambda: "whole", SOON)
    await tell(hub, "message", "first", *itertools.repeat("x" * (RING_BYTES // 10), 20))
    epoch = (await Watcher(hub).take(1))[0][0].split("-")[0]
    assert sum(map(len, hub._ring._frames)) <= RING_BYTES
    assert (await Watcher(hub, f"{epoch}-1").take(1))[0][1] == "snapshot"
    assert (await Watcher(hub, f"{epoch}-20").take(1))[0][1] == "message"


@pytest.mark.parametrize("size", [10, BEHIND // 50])
async def test_watchers_that_fall_behind_share_one_snapshot_and_leave_no_queue(size: int) -> None:
    """Whether what they missed is gone (many frames) or only much."""
    made = []

    def snapshot() -> str:
        made.append(1)
        return f"whole {len(made)}"

    hub = Hub(snapshot, SOON)
    watchers = [Watcher(hub) for _ in range(20)]
    for watcher in watchers:
        await watcher.take(1)
    assert len(made) == 1
    for _ in range(2):
        await tell(hub, "message", *itertools.repeat("x" * size, RING if size == 10 else 60))
    before = len(made)
    told = [events(await watcher.take(1)) for watcher in watchers]
    assert told == [[("snapshot", told[0][0][1])]] * 20
    assert len(made) <= before + 1
    hub.publish("message", "new")
    for watcher in watchers:
        assert events(await watcher.take(1)) == [("message", "new")]
        assert watcher.pieces == 3


async def test_a_large_batch_alone_makes_nobody_fall_behind() -> None:
    hub = Hub(lambda: "whole", SOON)
    watcher = Watcher(hub)
    await watcher.take(1)
    await tell(hub, "message", *itertools.repeat("x" * BEHIND, 4))
    assert {event for _, event, _ in await watcher.take(4)} == {"message"}


async def test_a_snapshot_that_is_shared_lacks_nothing_that_is_not_told_later() -> None:
    """One that comes while something waits to be told may get the snapshot of before; the change follows."""
    state = ["a"]
    hub = Hub(lambda: list(state), 0.05)
    first = Watcher(hub)
    await first.take(1)
    hub.publish("message", "quiet")
    await first.take(1)
    await Watcher(hub).take(1)
    state[0] = "b"
    hub.publish("devices", {"devices": "b"})
    late = Watcher(hub)
    assert events(await late.take(2)) in (
        [("snapshot", ["a"]), ("devices", {"devices": "b"})],
        [("snapshot", ["b"]), ("devices", {"devices": "b"})],
    )


async def test_hundreds_of_watchers_are_told_and_forgotten() -> None:
    hub = Hub(lambda: "whole", SOON)
    watchers = [Watcher(hub) for _ in range(300)]
    for watcher in watchers:
        await watcher.take(1)
    hub.publish("message", 1)
    for watcher in watchers:
        assert events(await watcher.take(1)) == [("message", 1)]
    assert hub.watchers == 300
    for watcher in watchers:
        await watcher.stream.aclose()
    assert hub.watchers == 0
