"""The relay's side of the relay socket, against a scripted controller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from shoal.gateway import link as link_module
from shoal.gateway.link import Link, load_table, save_table
from shoal.gateway.routes import Routes
from shoal.messages import (
    MAX_LINE,
    Cancelled,
    CancelRequest,
    ListRequests,
    ModelCount,
    RelayReport,
    RequestList,
    RequestView,
    Route,
    Traffic,
    Wanted,
)
from tests.gateway.harness import PATIENCE, World, eventually, get, post, route, table
from tests.gateway.linked import COMES, ROUTE, Controller, linked


@pytest.fixture
async def routes(folder: Path) -> AsyncIterator[Routes]:
    """Routes that a running link keeps up to date."""
    routes = Routes(changed=lambda: link.changed())
    link = Link(routes, folder / "r.sock", folder / "table.json")
    link.restore()
    task = asyncio.create_task(link.run())
    yield routes
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_tables_are_acknowledged_and_changes_reported(controller: Controller, routes: Routes) -> None:
    await controller.start()
    await controller.accept()
    await controller.send(table(ROUTE, version=3))
    report = await controller.report()
    assert (report.epoch, report.version, report.outstanding, report.counts) == ("e1", 3, {}, ())
    assert routes.table == table(ROUTE, version=3)
    await controller.send(table(version=2))  # an older one is acknowledged with the version in force
    assert (await controller.report()).version == 3
    with routes.carrying("m-0"):
        assert (await controller.report()).outstanding == {"m-0": 1}
        for _ in range(1000):  # a burst of changes makes few reports, and the last one tells all
            routes.count("m", "ok")
        seen = 0
        while report.counts != (ModelCount("m", "ok", 1000),):
            report = await controller.report()
            seen += 1
        assert seen <= 2
    while report.outstanding:
        report = await controller.report()
    await controller.send(table(epoch="e0", version=1))
    report = await controller.report()
    assert (report.epoch, report.version, report.counts) == ("e0", 1, ())


async def test_controller_that_comes_late_and_comes_back(controller: Controller, routes: Routes) -> None:
    await asyncio.sleep(0.2)
    await controller.start()
    await controller.accept()
    await controller.send(table(ROUTE))
    first = await controller.report()
    await controller.stop()
    await asyncio.sleep(0.2)
    assert routes.table == table(ROUTE)  # the last table stays in force
    await controller.start()
    await controller.accept()
    await controller.send(table(ROUTE, epoch="e2"))
    again = await controller.report()
    assert (again.relay, again.epoch) == (first.relay, "e2")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"nonsense\n",
        b'{"type":"report","relay":"","epoch":"","version":1,"outstanding":{}}\n',
        b'{"type":"table","epoch":"e9","version":9,"routes":[],"protocol":999}\n',
        b'{"type":"something new"}\n',
        b"x" * (MAX_LINE + 2) + b"\n",
    ],
    ids=["no JSON", "no table", "another protocol", "a type unknown here", "too long"],
)
async def test_nonsense_is_survived(
    controller: Controller, routes: Routes, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await controller.start()
    await controller.accept()
    await controller.send(table(ROUTE))
    await controller.report()
    with contextlib.suppress(ConnectionError):  # the relay may close before it has read all of it
        await controller.send(nonsense)
    await controller.accept()
    assert routes.table == table(ROUTE)
    assert "connecting again" in caplog.text


async def test_the_table_is_saved_and_restored(controller: Controller, routes: Routes, folder: Path) -> None:
    file = folder / "table.json"
    await controller.start()
    await controller.accept()
    for version in (1, 2, 3):
        await controller.send(table(ROUTE, version=version))
        await controller.report()
    await eventually(lambda: load_table(file) == table(ROUTE, version=3))
    restored = Routes()
    Link(restored, folder / "r.sock", file).restore()
    assert restored.table == table(ROUTE, version=3)
    await eventually(lambda: [p.name for p in folder.iterdir() if p.name.startswith("table")] == ["table.json"])


async def test_a_table_that_cannot_be_saved_is_used(
    controller: Controller, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    routes = Routes()
    link = Link(routes, folder / "r.sock", folder / "missing" / "table.json")
    task = asyncio.create_task(link.run())
    await controller.start()
    await controller.accept()
    for version in (1, 2, 3):
        await controller.send(table(ROUTE, version=version))
        assert (await controller.report()).version == version
    await controller.send(table(version=1))
    await controller.report()  # the three saves are behind it
    assert caplog.text.count("cannot be saved") == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"type":"table","epoch":"e"}', b"\xff" * 100])
def test_a_broken_file_is_ignored(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "table.json"
    file.write_bytes(content)
    caplog.set_level(logging.WARNING)
    assert load_table(file) is None
    assert len(caplog.records) == 1
    assert load_table(tmp_path / "none.json") is None
    assert len(caplog.records) == 1  # no file is no fault


def test_a_failed_save_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.json"
    save_table(file, table(ROUTE))

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_table(file, table(ROUTE, version=2))
    assert load_table(file) == table(ROUTE)
    assert list(tmp_path.iterdir()) == [file]


async def test_a_relay_serves_from_its_file_and_then_from_the_controller(world: World, controller: Controller) -> None:
    old, new = await world.engine("old"), await world.engine("new")
    await world.start(route("m", old))
    assert (await world.ask(post())).status == 200
    await controller.start()
    await controller.accept()
    await controller.send(table(route("n", new), epoch="e2"))
    await controller.report()
    assert (await world.ask(post())).status == 404
    assert (await world.ask(post(body=b'{"model":"n"}'))).status == 200
    assert (len(old.received), len(new.received)) == (1, 1)
    await asyncio.wait_for(old.left.wait(), PATIENCE)  # connections to an engine that left the table are closed
    await controller.stop()
    assert (await world.ask(post(body=b'{"model":"n"}'))).status == 200
    assert (await world.ask(get("/v1/models/n"))).status == 200


async def test_a_request_outlives_its_instances_place_in_the_table(world: World, controller: Controller) -> None:
    gate = asyncio.Event()

    async def script(_: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n12")
        await gate.wait()
        writer.write(b"34")

    engine = await world.engine(script=script)
    await controller.start()
    await world.start(route("m", engine))
    await controller.accept()
    client = await world.client()
    await client.send(post())
    await eventually(lambda: engine.received)
    await controller.send(table(route("m"), epoch="e2"))
    report = await controller.report()
    while report.epoch != "e2":
        report = await controller.report()
    assert report.outstanding == {"m-0": 1}
    gate.set()
    assert (await client.response()).body == b"1234"
    while report.outstanding:
        report = await controller.report()
    assert report.counts == (ModelCount("m", "ok", 1),)


@pytest.mark.parametrize("ticks", range(8))
async def test_a_link_that_is_ended_while_a_conversation_ends_closes_it(
    controller: Controller, folder: Path, ticks: int
) -> None:
    link = Link(Routes(), folder / "r.sock", folder / "table.json")
    task = asyncio.create_task(link.run())
    await controller.start()
    await controller.accept()
    await controller.send(table(ROUTE))
    await controller.report()
    controller.writers[-1].write_eof()
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert controller.reader is not None
    async with asyncio.timeout(PATIENCE):
        assert await controller.reader.read() == b""


async def test_a_report_may_say_more_than_routes_know(controller: Controller, folder: Path) -> None:
    numbers = RelayReport("", "", 0, {"m-0": 1}, traffic=(Traffic("m", 1, 2),))
    async with linked(folder, report=lambda: numbers) as link:
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE, version=4))
        report = await controller.report()
        assert report == msgspec.structs.replace(numbers, relay=link.name, epoch="e1", version=4)


async def test_a_model_is_asked_for_once_a_table_and_again_after_a_lost_connection(
    controller: Controller, folder: Path
) -> None:
    async with linked(folder) as link:
        link.want("m")  # before there is anybody to ask
        await controller.start()
        await controller.accept()
        await controller.send(table(COMES))
        await controller.report()
        assert await controller.next() == Wanted("m")
        for _ in range(1000):
            link.want("m")
        link.unwant("m")
        link.want("m")
        await controller.send(table(msgspec.structs.replace(COMES, state="starting"), version=2))
        assert (await controller.report()).version == 2  # the wishes before it would have come before it
        assert await controller.next() == Wanted("m")
        await controller.stop()
        await eventually(lambda: not link.connected)
        link.want("m")
        await controller.start()
        await controller.accept()
        await controller.send(table(msgspec.structs.replace(COMES, state="starting"), version=2))
        await controller.report()
        assert await controller.next() == Wanted("m"), "the table is the same, but the controller may not be"


@pytest.mark.parametrize(
    "route",
    [ROUTE, None, Route("m", "failed", 1, detail="it does not fit")],
    ids=["serves", "is gone", "does not come"],
)
async def test_what_no_request_can_wait_for_is_wanted_no_more(
    controller: Controller, folder: Path, route: Route | None
) -> None:
    async with linked(folder) as link:
        await controller.start()
        await controller.accept()
        await controller.send(table(COMES))
        await controller.report()
        link.want("m")
        assert await controller.next() == Wanted("m")
        await controller.send(table(*([route] if route else []), version=2))
        await controller.report()
        await eventually(lambda: not link.wanted)
        await controller.send(table(COMES, version=3))
        assert (await controller.report()).version == 3
        await controller.send(ListRequests(1))
        assert isinstance(await controller.next(), RequestList), "nobody wants it"


async def test_what_is_wanted_no_more_is_not_asked_for(controller: Controller, folder: Path) -> None:
    async with linked(folder) as link:
        link.want("m")
        link.unwant("m")
        link.unwant("never wanted")
        await controller.start()
        await controller.accept()
        await controller.send(table(COMES))
        await controller.report()
        await controller.send(ListRequests(1))
        assert isinstance(await controller.next(), RequestList)


async def test_questions_are_answered(controller: Controller, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "REQUESTS_LISTED", 2)
    ages = {"a": 1.0, "b": 3.0, "c": 2.0}
    views = [RequestView(id, "m", "t", None, "normal", "held", age) for id, age in ages.items()]
    async with linked(folder, requests=lambda: views, cancel=lambda id: id == "a"):
        await controller.start()
        await controller.accept()
        await controller.send(ListRequests(7))
        assert await controller.next() == RequestList(7, (views[1], views[2])), "the oldest first, and not too many"
        await controller.send(CancelRequest(8, "a"))
        assert await controller.next() == Cancelled(8, found=True)
        await controller.send(CancelRequest(9, "z"))
        assert await controller.next() == Cancelled(9, found=False)


async def test_a_relay_without_a_list_has_no_requests(controller: Controller, routes: Routes) -> None:
    await controller.start()
    await controller.accept()
    await controller.send(ListRequests(1))
    assert await controller.next() == RequestList(1, ())
    await controller.send(CancelRequest(2, "a"))
    assert await controller.next() == Cancelled(2, found=False)


@pytest.mark.parametrize("callback", ["requests", "report"])
async def test_a_fault_in_a_callback_does_not_leave_the_relay_deaf(
    controller: Controller, folder: Path, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [ZeroDivisionError("a fault")]

    def report() -> RelayReport:
        if callback == "report" and faults:
            raise faults.pop()
        return RelayReport("", "", 0, {})

    def requests() -> list[RequestView]:
        if callback == "requests" and faults:
            raise faults.pop()
        return []

    async with linked(folder, report=report, requests=requests) as link:
        await controller.start()
        await controller.accept()
        link.changed() if callback == "report" else await controller.send(ListRequests(1))
        await controller.accept()
        await controller.send(table(ROUTE))
        assert (await controller.report()).version == 1
        await controller.send(ListRequests(2))
        assert await controller.next() == RequestList(2, ())
    assert "connecting again" in caplog.text
    caplog.clear()
