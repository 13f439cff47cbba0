"""What a run keeps of each request and of the broker's books."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

from shoal.bench.load import Served
from shoal.bench.raw import COLUMNS, FILE, BookWatch, keep, requests
from shoal.memory.broker import Broker
from tests.memory.engines import GPU, MIB, Engines, has
from tests.memory.tool import eventually


def test_requests_are_rows_of_seconds_from_the_start() -> None:
    one = Served(3, due=11.0, sent=11.25, first=12.0, last=12.5, end=12.75, tokens=7, queued=0.125, woken=0.5)
    never = Served(0, due=10.5)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in requests([one, never], 10.0)]
    assert rows[0] == {
        "model": 3, "due": 1.0, "sent": 1.25, "first": 2.0, "last": 2.5, "end": 2.75, "queued": 0.125, "woken": 0.5,
        "tokens": 7,
    }  # fmt: skip
    assert (rows[1]["due"], rows[1]["first"], rows[1]["end"]) == (0.5, 0.0, 0.0)


def test_lines_are_added_to_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    keep(folder, {"what": "a"})
    keep(folder, {"what": "b"})
    with gzip.open(folder / FILE, "rt") as file:
        assert [json.loads(line)["what"] for line in file] == ["a", "b"]


async def test_books_are_followed_until_the_broker_goes() -> None:
    path = Path("/tmp") / f"shoal-books-{id(asyncio.current_task())}.sock"
    broker = Broker(path)
    await broker.start()
    engines = Engines(path)
    try:
        a = await engines.joined("a")
        a.ask(300 * MIB)
        await has(a, 300 * MIB)
        watch = await asyncio.to_thread(BookWatch, path, 0.01)
        await asyncio.to_thread(watch.__enter__)
        await eventually(lambda: len(watch.rows(0.0)) >= 2)
        (device,) = watch.rows(0.0)[-1]["devices"]
        assert (device["key"], device["leased"], device["budget"]) == ("gpu", 300, GPU >> 20)
        assert device["engines"] == {"a": [300, 0, 0, 300]}
    finally:
        await asyncio.to_thread(engines.close)
        await broker.stop()
    await asyncio.to_thread(watch.__exit__)
    assert not path.exists()
