"""The event stream: snapshots, deltas, resumption, and watchers that do not keep up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from shoal.fleet.hub import BACKLOG, RING, RING_BYTES, Hub


def read(frame: bytes) -> tuple[str, str, object]:
    """Id, event and data of one frame."""
    fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
    return fields["id"], fields["event"], json.loads(fields["data"])


async def take(stream: AsyncIterator[bytes], count: int) -> list[tuple[str, str, object]]:
    return [read(await asyncio.wait_for(anext(stream), 5)) for _ in range(count)]


async def test_a_snapshot_then_what_changes() -> None:
    hub = Hub(lambda: {"models": []})
    hub.publish("model", {"name": "before"})
    stream = hub.stream()
    (first,) = await take(stream, 1)
    assert first[1:] == ("snapshot", {"models": []})
    hub.publish("model", {"name": "after"})
    (second,) = await take(stream, 1)
    assert second[1:] == ("model", {"name": "after"})
    await stream.aclose()  # type: ignore[attr-defined]
    assert hub.watchers == 0


async def test_a_watcher_that_comes_back_gets_what_it_missed() -> None:
    hub = Hub(lambda: "whole")
    stream = hub.stream()
    (first,) = await take(stream, 1)
    hub.publish("model", 1)
    hub.publish("model", 2)
    again = await take(hub.stream(first[0]), 2)
    assert [(event, data) for _, event, data in again] == [("model", 1), ("model", 2)]
    assert (await take(hub.stream(again[0][0]), 1))[0][2] == 2


async def test_what_is_no_longer_known_is_a_new_snapshot() -> None:
    hub = Hub(lambda: "whole")
    for number in range(RING + 10):
        hub.publish("model", number)
    epoch = (await take(hub.stream(), 1))[0][0].split("-")[0]
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
        ((_, event, data),) = await take(hub.stream(last), 1)
        assert (event, data) == ("snapshot", "whole"), last


async def test_what_is_kept_for_those_who_come_back_is_bounded_in_bytes() -> None:
    hub = Hub(lambda: "whole")
    hub.publish("model", "first")
    epoch = (await take(hub.stream(), 1))[0][0].split("-")[0]
    for _ in range(20):
        hub.publish("model", "x" * (RING_BYTES // 10))
    assert sum(len(frame) for _, frame in hub._ring) <= RING_BYTES
    assert (await take(hub.stream(f"{epoch}-1"), 1))[0][1] == "snapshot"
    assert (await take(hub.stream(f"{epoch}-20"), 1))[0][1] == "model"


async def test_a_watcher_that_falls_behind_gets_a_snapshot_and_not_a_growing_queue() -> None:
    hub = Hub(lambda: "whole")
    stream = hub.stream()
    await take(stream, 1)
    for number in range(BACKLOG * 3):
        hub.publish("model", number)
    ((_, event, data),) = await take(stream, 1)
    assert (event, data) == ("snapshot", "whole")
    hub.publish("model", "new")
    assert (await take(stream, 1))[0][2] == "new"
