"""Whose turn it is, in a running relay: limits, the order of the queue, refusals, and other instances."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.messages import Route
from tests.gateway.harness import Message, eventually, post
from tests.gateway.native import Gate, NativeWorld, answered, bearer, chat, key, refused, serves


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.mark.parametrize(
    ("instances", "capacity", "limit", "workers", "at_once"),
    [
        (1, 2, None, 1, 2),
        (2, 1, None, 1, 2),
        (1, 9, 3, 1, 3),
        (1, 1, 3, 1, 3),  # what people set is what counts
        (1, 3, None, 2, 2),  # each of two relays lets half of them run, rounded up
        (1, 1, None, 8, 1),
        (1, 0, None, 1, 6),  # nobody knows what it can
    ],
)
async def test_as_many_run_as_the_instances_can_or_the_model_may(
    native_world: NativeWorld, gate: Gate, instances: int, capacity: int, limit: int | None, workers: int, at_once: int
) -> None:
    engines = [await native_world.engine(f"e{i}", gate) for i in range(instances)]
    native_world.configure(relay_workers=workers)
    await native_world.begin(serves("m", *engines, capacity=capacity, limit=limit))
    names = [f"r{i}" for i in range(6)]
    clients = await native_world.sent(*(chat(name=name) for name in names))
    await eventually(lambda: len(gate.begun) == at_once)
    for done in range(6 - at_once):
        gate.let_go(names[done])
        await eventually(lambda done=done: len(gate.begun) == at_once + done + 1)  # type: ignore[misc]
    gate.let_go(*names)
    assert [await answered(client) for client in clients] == names
    assert set(gate.begun[:at_once]) == set(names[:at_once])
    assert gate.begun[at_once:] == names[at_once:]
    await eventually(lambda: native_world.counts == {("m", "ok"): 6})
    assert native_world.outstanding == {}


async def test_classes_by_header_by_body_and_by_key(native_world: NativeWorld, gate: Gate) -> None:
    engine = await native_world.engine(script=gate)
    keys = tuple(key(name, priority=name) for name in ("high", "normal", "low"))
    await native_world.begin(serves("m", engine, capacity=1), keys=keys)
    requests = {
        "first": chat(name="first"),
        "low by body": chat(name="low by body", priority="low"),
        "low by key": chat(name="low by key", extra=bearer("low")),
        "no more than its key": chat(name="no more than its key", extra=bearer("low"), priority="high"),
        "less than its key": chat(name="less than its key", extra=bearer("high") + b"X-Shoal-Priority: normal\r\n"),
        "normal": chat(name="normal", priority=7),  # a number is the engine's own
        "nonsense": chat(name="nonsense", extra=b"x-shoal-priority: highest\r\n"),
        "high by key": chat(name="high by key", extra=bearer("high")),
        "header before body": chat(name="header before body", extra=b"x-shoal-priority: HIGH\r\n", priority="low"),
        "high by body": chat(name="high by body", priority="high"),
    }
    clients = await native_world.sent(*requests.values())
    classes = {view.priority for view in (await native_world.controls.requests()).values()}
    assert classes == {"high", "normal", "low"}
    gate.let_go(*requests)
    for client in clients:
        await answered(client)
    order = [name for name in gate.begun if name != "first"]
    assert set(order[:3]) == {"high by key", "header before body", "high by body"}
    assert set(order[3:6]) == {"less than its key", "normal", "nonsense"}
    assert set(order[6:]) == {"low by body", "low by key", "no more than its key"}


async def test_the_body_goes_on_with_the_priority_that_it_had(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    for priority in ("high", 3):
        request = chat(priority=priority)
        await native_world.ask(request)
        assert request.endswith(engine.received[-1].body)


async def test_tenants_share_in_turns(native_world: NativeWorld, gate: Gate) -> None:
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1), keys=(key("a"), key("b")))
    flood = [f"a{i}" for i in range(6)]
    clients = await native_world.sent(*(chat(name=name, extra=bearer("a")) for name in flood))
    clients += await native_world.sent(*(chat(name=name, extra=bearer("b")) for name in ("b0", "b1")))
    gate.let_go(*flood, "b0", "b1")
    for client in clients:
        await answered(client)
    assert gate.begun.index("b0") <= 2
    assert gate.begun.index("b1") <= 4


async def test_beside_a_flood_a_slot_is_kept_for_others(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(fair_reserve=0.25)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=4), keys=(key("a"), key("b")))
    flood = [f"a{i}" for i in range(8)]
    clients = await native_world.sent(chat(name="b0", extra=bearer("b")))
    clients += await native_world.sent(*(chat(name=name, extra=bearer("a")) for name in flood))
    await eventually(lambda: len(gate.begun) == 3)
    clients += await native_world.sent(chat(name="b1", extra=bearer("b")))
    await eventually(lambda: "b1" in gate.begun)
    gate.let_go("b0")
    await eventually(lambda: native_world.counts == {("m", "ok"): 1})
    assert set(gate.begun) == {"b0", "b1", "a0", "a1"}, "the flood does not take the slot that is kept"
    gate.let_go("b1", *flood)
    for client in clients:
        await answered(client)
    assert gate.begun[4:] == flood[2:]


async def test_once_others_have_left_the_kept_slot_is_given_away(native_world: NativeWorld, gate: Gate) -> None:
    """A class waits for those before it even where a slot is kept for it, until they have left."""
    native_world.configure(fair_reserve=0.25)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=4), keys=(key("a", priority="high"), key("b")))
    await native_world.sent(chat(name="b0", extra=bearer("b")))
    flood = await native_world.sent(*(chat(name=f"a{i}", extra=bearer("a")) for i in range(3)))
    await native_world.sent(chat(name="b1", extra=bearer("b")))
    assert set(gate.begun) == {"b0", "a0", "a1"}
    flood[2].close()
    await eventually(lambda: "b1" in gate.begun)
    gate.let_go("b0", "b1", "a0", "a1")


async def test_a_tenant_is_who_a_header_says_where_there_is_no_key(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(tenant_headers=("x-team", "x-user"))
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine), keys=(key("k"),))
    user = b"X-User: ada\xff\r\n"
    await native_world.sent(
        chat(name="a", extra=user),
        chat(name="b", extra=user + b"X-TEAM: blue\r\n"),
        chat(name="c", extra=user + bearer("k")),
        chat(name="d"),
    )
    tenants = sorted(view.tenant for view in (await native_world.controls.requests()).values())
    assert tenants == ["127.0.0.1", "ada�", "blue", "id-k"]
    gate.let_go("a", "b", "c", "d")


async def test_a_full_queue_refuses_and_says_when_to_come_back(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(queue_length=1)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    runs, waits = await native_world.sent(chat(name="runs"), chat(name="waits"))
    client = await native_world.send(chat(name="refused"))
    status, code, answer = await refused(client)
    assert (status, code) == (429, "queue_full")
    assert int(answer.get("retry-after") or 0) >= 1
    gate.let_go("runs", "waits", "again")
    assert [await answered(runs), await answered(waits)] == ["runs", "waits"]
    await client.send(chat(name="again"))  # the connection is still good
    assert await answered(client) == "again"
    assert native_world.counts == {("m", "ok"): 3, ("m", "refused"): 1}
    assert native_world.observed("queue") == 3


async def test_who_has_most_of_a_full_queue_gives_way(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(queue_length=3)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1), keys=(key("a"), key("b")))
    first, *flood = await native_world.sent(*(chat(name=f"a{i}", extra=bearer("a")) for i in range(4)))
    (other,) = await native_world.sent(chat(name="b", extra=bearer("b")))
    status, code, answer = await refused(flood[-1])  # the newest of the tenant with the most
    assert (status, code) == (429, "queue_full")
    assert answer.get("retry-after")
    gate.let_go("a0", "a1", "a2", "b")
    assert [await answered(client) for client in (first, flood[0], flood[1], other)] == ["a0", "a1", "a2", "b"]
    assert "a3" not in gate.begun
    assert native_world.counts == {("m", "ok"): 4, ("m", "refused"): 1}
    await eventually(lambda: native_world.observed("queue") == 5)


async def test_waiting_ends_after_a_while(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(queue_timeout=0.05)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    runs, waits = await native_world.sent(chat(name="runs"), chat(name="waits"))
    status, code, answer = await refused(waits)
    assert (status, code) == (429, "queue_timeout")
    assert int(answer.get("retry-after") or 0) >= 1
    gate.let_go("runs")
    assert await answered(runs) == "runs"  # what runs may take longer
    assert gate.begun == ["runs"]
    assert native_world.counts == {("m", "ok"): 1, ("m", "refused"): 1}


async def test_who_leaves_the_queue_makes_room(native_world: NativeWorld, gate: Gate) -> None:
    native_world.configure(queue_length=2)
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    runs, leaves, waits = await native_world.sent(*(chat(name=name) for name in ("runs", "leaves", "waits")))
    leaves.close()
    await eventually(lambda: native_world.counts == {("m", "cancelled"): 1})
    (comes,) = await native_world.sent(chat(name="comes"))
    gate.let_go("runs", "waits", "comes")
    assert [await answered(client) for client in (runs, waits, comes)] == ["runs", "waits", "comes"]
    assert gate.begun == ["runs", "waits", "comes"]


async def test_who_leaves_the_engine_makes_room(native_world: NativeWorld, gate: Gate) -> None:
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    leaves, waits = await native_world.sent(chat(name="leaves"), chat(name="waits"))
    leaves.close()
    gate.let_go("waits")
    assert await answered(waits) == "waits"


async def test_a_limit_that_changes_is_followed_at_once(native_world: NativeWorld, gate: Gate) -> None:
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, limit=1))
    names = ["a", "b", "c", "d"]
    clients = await native_world.sent(*(chat(name=name) for name in names))
    await native_world.controls.tell(serves("m", engine, limit=3))
    await eventually(lambda: len(gate.begun) == 3)
    await native_world.controls.tell(serves("m", engine, limit=1))
    gate.let_go("a", "b")
    await answered(clients[1])
    assert set(gate.begun) == {"a", "b", "c"}  # one of them still runs
    gate.let_go("c", "d")
    assert await answered(clients[3]) == "d"


async def test_a_cost_beyond_all_measure_is_a_cost(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    assert (await native_world.ask(chat(max_tokens=10_000_000, n=128))).status == 200


# -- instances ---------------------------------------------------------------------------------------------------------


async def test_an_instance_that_takes_no_connections_is_left_alone_for_a_while(native_world: NativeWorld) -> None:
    good, gone = await native_world.engine("good"), await native_world.engine("gone")
    await gone.stop()
    await native_world.begin(serves("m", gone, good))
    answers = [(await native_world.ask(chat())).status for _ in range(6)]
    assert answers == [200] * 6
    assert native_world.native_relay.circuits.open(0.0)
    await gone.start()
    native_world.native_relay.circuits.succeeded("m-0")  # as once its time has passed and it answers
    for _ in range(2):
        assert (await native_world.ask(chat())).status == 200
    assert len(gone.received) == 1


async def test_an_instance_alone_is_tried_however_often_it_failed(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await engine.stop()
    await native_world.begin(serves("m", engine, capacity=1))
    for _ in range(3):
        answer = await native_world.ask(chat(extra=b"X-Shoal-Hold: off\r\n"))
        assert (answer.status, answer.error["code"]) == (503, "engine_connection_failed")
    await engine.start()
    assert (await native_world.ask(chat())).status == 200
    assert native_world.counts == {("m", "unavailable"): 3, ("m", "ok"): 1}
    assert not native_world.native_relay.circuits.failing


async def test_only_two_instances_are_tried(native_world: NativeWorld) -> None:
    engines = [await native_world.engine(f"e{i}") for i in range(3)]
    for engine in engines[:2]:
        await engine.stop()
    await native_world.begin(serves("m", *engines))
    answer = await native_world.ask(chat(extra=b"X-Shoal-Hold: off\r\n"))
    assert (answer.status, answer.error["code"]) == (503, "engine_connection_failed")
    assert native_world.outstanding == {}
    assert (await native_world.ask(chat())).status == 200  # the third


async def test_an_instance_that_may_have_begun_is_not_passed_over(native_world: NativeWorld) -> None:
    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    breaks, works = await native_world.engine("a", script), await native_world.engine("b")
    await native_world.begin(serves("m", breaks, works))
    answer = await native_world.ask(chat())
    assert (answer.status, answer.error["code"]) == (502, "engine_died")
    assert works.received == []


async def test_an_instance_that_drains_gets_nothing_new_and_finishes_what_it_has(
    native_world: NativeWorld, gate: Gate
) -> None:
    old, new = await native_world.engine("old", gate), await native_world.engine("new")
    route = serves("m", old, new)
    await native_world.begin(msgspec.structs.replace(route, targets=route.targets[:1]))
    (runs,) = await native_world.sent(chat(name="runs"))
    await native_world.controls.tell(msgspec.structs.replace(route, targets=route.targets[1:]))
    for _ in range(5):
        assert (await native_world.ask(chat(name="later"))).status == 200
    assert native_world.outstanding == {"m-0": 1}
    gate.let_go("runs")
    assert await answered(runs) == "runs"
    assert gate.begun == ["runs"]
    await eventually(lambda: native_world.controls.report.outstanding == {})


async def test_who_waits_for_a_model_that_is_taken_away_is_told(native_world: NativeWorld, gate: Gate) -> None:
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1), Route("other", "unloaded", 1))
    runs, waits = await native_world.sent(chat(name="runs"), chat(name="waits"))
    await native_world.controls.tell(Route("other", "unloaded", 1))
    status, code, answer = await refused(waits)
    assert (status, code) == (404, "model_not_found")
    assert "Known models: other." in str(answer.error["message"])
    gate.let_go("runs")
    assert await answered(runs) == "runs"
    await native_world.controls.tell(serves("m", engine))
    gate.let_go("again")
    assert await answered(await native_world.send(post(extra=b"X-Name: again\r\n"))) == "again"
