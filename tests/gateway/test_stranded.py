"""Requests whose instances take no connections although the table has them: held like those of a model that wakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.stranded import Stranded
from shoal.gateway.upstream import EngineConnection, Pool
from shoal.messages import VirtualModel
from tests.gateway.harness import Client, Engine, eventually
from tests.gateway.native import Gate, NativeWorld, answered, chat, failed, refused, serves, sleeps
from tests.gateway.uploading import LARGE, head

HOLD_OFF = b"X-Shoal-Hold: off\r\n"


async def stranded(world: NativeWorld, *requests: bytes) -> list[Client]:
    """Requests that are held so."""
    clients = await world.sent(*requests)
    await eventually(lambda: sum(world.native_relay.stranded.counts().values()) == len(requests))
    return clients


async def dead(world: NativeWorld, name: str = "e", script: Gate | None = None) -> Engine:
    """An engine that takes no connections until it is started again."""
    engine = await world.engine(name) if script is None else await world.engine(name, script)
    await engine.stop()
    return engine


async def test_a_request_is_held_until_its_engine_takes_connections_again(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine, capacity=1))
    (client,) = await stranded(native_world, chat(name="a"))
    (view,) = (await native_world.controls.requests()).values()
    assert (view.phase, view.instance, view.model) == ("held", None, "m")
    await eventually(lambda: [one.held for one in native_world.controls.report.waiting] == [1])
    assert native_world.outstanding == {}
    await engine.start()
    answer = await client.response()
    assert answer.status == 200
    assert float(answer.get("x-shoal-wake-ms") or 0) > 0
    assert len(engine.received) == 1
    assert not native_world.native_relay.stranded
    assert native_world.counts == {("m", "ok"): 1}
    await eventually(lambda: native_world.controls.report.waiting == ())


async def test_the_next_table_has_another_instance(native_world: NativeWorld) -> None:
    engine, other = await dead(native_world), await native_world.engine("other")
    await native_world.begin(serves("m", engine))
    clients = await stranded(native_world, *(chat(name=str(i)) for i in range(5)))
    await native_world.controls.tell(serves("m", other))
    assert [(await client.response()).status for client in clients] == [200] * 5
    assert {message.get("x-name") for message in other.received} == set("01234")


async def test_the_next_table_says_that_it_comes(native_world: NativeWorld) -> None:
    """Then it is held like others, and the controller is asked for the model."""
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    (client,) = await stranded(native_world, chat())
    await native_world.controls.tell(sleeps("m"))
    await eventually(lambda: native_world.controls.wanted == ["m"])
    assert native_world.native_relay.admission.waiting("m") == 1
    assert not native_world.native_relay.stranded
    await engine.start()
    await native_world.controls.tell(serves("m", engine))
    assert (await client.response()).status == 200


async def test_the_next_table_says_that_it_will_not_come(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine), serves("n", engine))
    clients = await stranded(native_world, chat("m"), chat("n"))
    await native_world.controls.tell(failed("m", "It is broken."))
    status, code, answer = await refused(clients[0])
    assert (status, code, answer.error["message"]) == (503, "model_not_ready", "It is broken.")
    assert (await refused(clients[1]))[:2] == (404, "model_not_found")
    assert native_world.counts[("m", "unavailable")] == 1


async def test_a_request_that_does_not_wait_is_told_when_to_come_back(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    answer = await native_world.ask(chat(extra=HOLD_OFF))
    assert (answer.status, answer.error["code"], answer.get("retry-after")) == (503, "engine_connection_failed", "5")
    assert native_world.counts == {("m", "unavailable"): 1}


async def test_it_is_held_no_longer_than_others(native_world: NativeWorld) -> None:
    native_world.configure(hold_timeout=0.3)
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    answer = await native_world.ask(chat())
    assert (answer.status, answer.error["code"], answer.get("retry-after")) == (503, "engine_connection_failed", "5")
    assert "held" in str(answer.error["message"])
    assert native_world.counts == {("m", "unavailable"): 1}
    assert native_world.native_relay.requests == {}


async def test_a_client_that_leaves_is_forgotten(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    leaves, stays = await stranded(native_world, chat(name="a"), chat(name="b"))
    leaves.writer.close()
    await eventually(lambda: native_world.native_relay.stranded.counts() == {"m": 1})
    assert native_world.counts == {("m", "cancelled"): 1}
    (id,) = await native_world.controls.requests()
    assert await native_world.controls.cancel(id)
    assert (await refused(stays))[:2] == (503, "request_cancelled")
    assert not native_world.native_relay.stranded


async def test_its_slot_is_free_for_others_and_it_takes_its_turn_again(native_world: NativeWorld) -> None:
    """Of one model two requests run, and no more once it is back."""
    gate = Gate()
    engine = await dead(native_world, script=gate)
    await native_world.begin(serves("m", engine, limit=2))
    clients = await stranded(native_world, *(chat(name=name) for name in "abcd"))
    assert native_world.native_relay.admission.running("m") == 0
    await engine.start()
    await eventually(lambda: len(gate.begun) == 2)
    await native_world.controls.settled()
    assert native_world.native_relay.admission.waiting("m") == 2
    gate.let_go(*"abcd")
    assert [await answered(client) for client in clients] == list("abcd")


async def test_what_a_virtual_model_changes_is_changed_once(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    virtual = VirtualModel("v", "m", set={"n": 1}, system="Be kind.")
    await native_world.begin(serves("m", engine), virtual=(virtual,))
    (client,) = await stranded(native_world, chat("v", messages=[]))
    await engine.start()
    assert (await client.response()).status == 200
    (message,) = engine.received
    assert msgspec.json.decode(message.body) == {
        "model": "m", "n": 1, "messages": [{"role": "system", "content": "Be kind."}]
    }  # fmt: skip


async def test_a_form_is_held_where_it_is(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    (client,) = await stranded(native_world, head(len(LARGE)) + LARGE[:1000])
    await client.send(LARGE[1000:])
    await engine.start()
    assert (await client.response()).status == 200
    assert [message.body for message in engine.received] == [LARGE]


async def test_a_third_instance_is_tried_a_moment_later(native_world: NativeWorld) -> None:
    gone = [await dead(native_world, f"gone{i}") for i in range(2)]
    good = await native_world.engine("good")
    await native_world.begin(serves("m", *gone, good))
    assert (await native_world.ask(chat())).status == 200
    assert len(good.received) == 1


async def test_a_relay_that_stops_does_not_wait_for_it(native_world: NativeWorld) -> None:
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    (client,) = await stranded(native_world, chat())
    stopping = asyncio.create_task(native_world.native_relay.stop(20))
    assert (await refused(client))[:2] == (503, "relay_stopping")
    await stopping


async def test_no_more_are_held_than_may_wait(native_world: NativeWorld) -> None:
    native_world.configure(queue_length=2)
    engine = await dead(native_world)
    await native_world.begin(serves("m", engine))
    clients = await stranded(native_world, chat(name="a"), chat(name="b"))
    answer = await native_world.ask(chat(name="c"))
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert "(2)" in str(answer.error["message"])
    await engine.start()
    assert [(await client.response()).status for client in clients] == [200, 200]


@pytest.mark.parametrize(("known", "refusal"), [(True, (503, "model_not_ready")), (False, (404, "model_not_found"))])
async def test_the_table_changes_while_another_instance_is_tried(
    native_world: NativeWorld, monkeypatch: pytest.MonkeyPatch, known: bool, refusal: tuple[int, str]
) -> None:
    connect, tries, goes_on = Pool._connect, [], asyncio.Event()

    async def second_waits(pool: Pool, done: Callable[[EngineConnection | OSError], None]) -> None:
        tries.append(pool.address)
        if len(tries) == 2:
            await goes_on.wait()
        await connect(pool, done)

    monkeypatch.setattr(Pool, "_connect", second_waits)
    engines = [await dead(native_world, f"gone{i}") for i in range(2)]
    await native_world.begin(serves("m", *engines))
    (client,) = await native_world.sent(chat())
    await eventually(lambda: len(tries) == 2)
    await native_world.controls.tell(*([failed("m", "It is broken.")] if known else []))
    await eventually(lambda: not (route := native_world.native_relay.routes.find("m")) or not route.targets)
    goes_on.set()
    assert (await refused(client))[:2] == refusal
    await eventually(lambda: not native_world.native_relay.requests)


# -- a connection that had ended ---------------------------------------------------------------------------------------


class Socket(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def writelines(self, data: object) -> None:
        """Nobody reads it."""


class Waits:
    """A sender that keeps what it is told."""

    method = b"POST"
    whole = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_interim(self, head: object) -> None:
        """Nothing is made of it."""

    def on_unsent(self, error: OSError) -> None:
        self.told.append("unsent")

    def on_broken(self, why: str) -> None:
        self.told.append("broken")


@pytest.mark.parametrize(
    ("parts", "came", "error", "told"),
    [
        ((b"a",), b"", BrokenPipeError(), "unsent"),
        ((b"a", b"b"), b"", BrokenPipeError(), "broken"),  # some of it may have gone
        ((b"a",), b"", ConnectionResetError(), "broken"),  # it may have been read
        ((b"a",), b"", None, "broken"),
        ((b"a",), b"HTTP/1.1 2", BrokenPipeError(), "broken"),
        ((b"a",), b"HTTP/1.1 103 Early Hints\r\n\r\n", BrokenPipeError(), "broken"),
    ],
)
async def test_only_a_first_write_that_was_refused_has_sent_nothing(
    parts: tuple[bytes, ...], came: bytes, error: OSError | None, told: str
) -> None:
    connection, sender = EngineConnection(Pool("unix:/nowhere", 1.0)), Waits()
    connection.connection_made(Socket())
    connection.send(sender, parts)  # type: ignore[arg-type]
    if came:
        connection.data_received(came)
    connection.connection_lost(error)
    assert sender.told == [told]


async def test_a_body_that_went_on_after_its_head_may_have_been_read() -> None:
    connection, sender = EngineConnection(Pool("unix:/nowhere", 1.0)), Waits()
    connection.connection_made(Socket())
    connection.send(sender, (b"head",))  # type: ignore[arg-type]
    connection.write(b"the first of the body")
    connection.connection_lost(BrokenPipeError())
    assert sender.told == ["broken"]


# -- the pure part -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    id: str
    model: str
    arrived: float
    held_until: float


REQUESTS = st.lists(
    st.builds(Request, st.uuids().map(str), st.sampled_from("abc"), st.floats(0, 9), st.floats(0, 9)), max_size=12
)


@given(REQUESTS, REQUESTS, st.floats(0, 9), st.sampled_from(["a", "b", "c", None]), st.sets(st.sampled_from("abc")))
def test_each_leaves_once_and_nothing_is_kept(
    requests: list[Request], others: list[Request], now: float, model: str | None, worth: set[str]
) -> None:
    held: Stranded[Request] = Stranded()
    for request in requests:
        held.add(request)
    for request in others:
        held.leave(request)
    assert sum(held.counts().values()) == len(requests)
    expired = held.expired(now)
    assert expired == [
        one for name in dict.fromkeys(one.model for one in requests) for one in expired if one.model == name
    ]
    assert {one.id for one in expired} == {one.id for one in requests if one.held_until <= now}
    left = [one for one in requests if one not in expired]
    tried = held.trials(worth.__contains__)
    assert sorted(one.model for one in tried) == sorted(worth & {one.model for one in left})
    left = [one for one in left if one not in tried]
    assert all((one in held) == (one in left) for one in requests)
    taken = held.take(model)
    assert [one.arrived for one in taken] == sorted(one.arrived for one in taken)
    assert {one.id for one in taken} == {one.id for one in left if model in (None, one.model)}
    for request in left:
        held.leave(request)
    assert not held
    assert held.counts() == {}
