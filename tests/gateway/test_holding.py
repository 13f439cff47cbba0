"""Requests for models that do not serve yet: held, asked for once, served once the model comes, or refused."""

from __future__ import annotations

import asyncio

import pytest

from shoal.messages import VirtualModel
from tests.gateway.harness import Message, eventually, reply
from tests.gateway.native import Gate, NativeWorld, answered, bearer, chat, failed, key, refused, serves, sleeps

HOLD_OFF = b"X-Shoal-Hold: OFF\r\n"


async def test_a_request_is_held_until_its_model_serves(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"))
    (client,) = await native_world.sent(chat())
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    (view,) = (await native_world.controls.requests()).values()
    assert (view.phase, view.position, view.instance, view.model) == ("held", 1, None, "m")
    await eventually(lambda: native_world.controls.report.waiting)
    (waiting,) = native_world.controls.report.waiting
    assert (waiting.model, waiting.held, waiting.queued) == ("m", 1, 0)
    await native_world.controls.tell(serves("m", engine))
    answer = await client.response()
    assert answer.status == 200
    assert float(answer.get("x-shoal-wake-ms") or 0) > 0
    assert answer.get("x-shoal-queue-ms") == "0.0"
    assert native_world.native_relay.link.wanted == set()
    await eventually(lambda: native_world.controls.report.waiting == ())
    assert native_world.observed("queue") == 1


async def test_a_model_is_asked_for_once_a_table(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    controls = native_world.controls
    await native_world.begin(sleeps("m"), sleeps("other"))
    clients = await native_world.sent(*(chat() for _ in range(20)))
    await controls.settled()
    assert controls.wanted == ["m"]
    for asked in (2, 3):
        await controls.tell(sleeps("m", detail=f"table {asked}"), sleeps("other"))
        clients += await native_world.sent(chat())
        await controls.settled()
        assert controls.wanted == ["m"] * asked
    await controls.tell(serves("m", engine), sleeps("other"))
    assert [(await client.response()).status for client in clients] == [200] * 22
    await controls.tell(sleeps("m"), sleeps("other"))
    await controls.settled()
    assert controls.wanted == ["m"] * 3, "nobody waits any more"


async def test_held_requests_start_as_the_limit_allows_and_in_fair_order(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    keys = (key("a"), key("b"), key("c", priority="low"))
    await native_world.begin(sleeps("m"), keys=keys)
    names = ["a0", "a1", "a2", "a3", "c0", "b0", "b1"]
    clients = await native_world.sent(*(chat(name=name, extra=bearer(name[0])) for name in names))
    views = await native_world.controls.requests()
    assert {view.phase for view in views.values()} == {"held"}
    assert sorted(view.position or 0 for view in views.values()) == [1, 2, 3, 4, 5, 6, 7]
    await native_world.controls.tell(serves("m", engine, capacity=1), keys=keys)
    await eventually(lambda: gate.begun)
    phases = [view.phase for view in (await native_world.controls.requests()).values()]
    assert sorted(phases) == ["queued"] * 6 + ["waiting"], "its model serves, so they are held no more"
    gate.let_go(*names)
    for client in clients:
        await answered(client)
    assert gate.begun == ["a0", "b0", "a1", "b1", "a2", "a3", "c0"]


async def test_a_model_that_will_not_come_is_refused_with_the_reason(native_world: NativeWorld) -> None:
    await native_world.begin(sleeps("m"))
    clients = await native_world.sent(chat(), chat())
    await native_world.controls.tell(failed("m", "m does not fit: 3 GiB are free, 5 GiB are needed"))
    for client in clients:
        status, code, answer = await refused(client)
        assert (status, code) == (503, "model_not_ready")
        assert answer.error["message"] == "m does not fit: 3 GiB are free, 5 GiB are needed"
        assert answer.get("retry-after") is None
    assert (await native_world.ask(chat())).status == 503  # at once
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    assert native_world.counts == {("m", "unavailable"): 3}
    assert native_world.native_relay.link.wanted == set()


@pytest.mark.parametrize(("retry_after", "expected"), [(17, "17"), (None, "5")])
async def test_who_does_not_want_to_be_held_is_told_at_once_but_the_model_is_made_ready(
    native_world: NativeWorld, retry_after: int | None, expected: str
) -> None:
    await native_world.begin(sleeps("m", detail="m is not loaded", retry_after=retry_after))
    for _ in range(3):
        answer = await native_world.ask(chat(extra=HOLD_OFF))
        assert (answer.status, answer.error["code"], answer.get("retry-after")) == (503, "model_not_ready", expected)
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    await native_world.controls.tell(sleeps("m"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"], "nobody waits for it"
    assert native_world.counts == {("m", "unavailable"): 3}


async def test_a_model_that_serves_has_a_queue_whatever_is_said_of_holding(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    clients = await native_world.sent(chat(name="a"), chat(name="b", extra=HOLD_OFF))
    gate.let_go("a", "b")
    assert [await answered(client) for client in clients] == ["a", "b"]


async def test_holding_has_an_end(native_world: NativeWorld) -> None:
    native_world.configure(hold_timeout=0.05)
    await native_world.begin(sleeps("m", detail="m is queued: the device is full"))
    status, code, answer = await refused(await native_world.send(chat()))
    assert (status, code) == (503, "model_not_ready")
    assert "was held for" in str(answer.error["message"])
    assert "the device is full" in str(answer.error["message"])
    assert answer.get("retry-after") == "5"
    assert native_world.native_relay.link.wanted == set()
    await native_world.controls.tell(sleeps("m"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    assert native_world.counts == {("m", "unavailable"): 1}
    assert native_world.observed("queue") == 1


async def test_a_wish_lasts_as_long_as_somebody_waits(native_world: NativeWorld) -> None:
    await native_world.begin(sleeps("m"))
    first, second = await native_world.sent(chat(), chat())
    first.close()
    await eventually(lambda: native_world.counts == {("m", "cancelled"): 1})
    assert native_world.native_relay.link.wanted == {"m"}
    second.close()
    await eventually(lambda: native_world.counts == {("m", "cancelled"): 2})
    assert native_world.native_relay.link.wanted == set()
    await eventually(lambda: native_world.controls.report.waiting == ())
    await native_world.controls.tell(sleeps("m"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]


async def test_a_wish_without_a_controller_is_told_the_next_one(native_world: NativeWorld) -> None:
    native_world.save(sleeps("m"))
    engine = await native_world.engine()
    await native_world.start()
    (client,) = await native_world.sent(chat())
    native_world.controls.table = native_world.routes.table  # a controller that took up where the last one ended
    await native_world.controls.start()
    await eventually(lambda: native_world.controls.wanted == ["m"])
    await native_world.controls.tell(serves("m", engine))
    assert (await client.response()).status == 200


async def test_stopping_does_not_wait_for_models(native_world: NativeWorld) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("n", engine, capacity=1), sleeps("m"))
    runs, queued, held = await native_world.sent(chat("n", "runs"), chat("n", "queued"), chat())
    stopping = asyncio.create_task(native_world.native_relay.stop(60))
    status, code, _ = await refused(held)
    assert (status, code) == (503, "relay_stopping")
    assert await held.closed() == b""
    gate.let_go("runs", "queued")
    assert [await answered(runs), await answered(queued)] == ["runs", "queued"]
    await stopping
    native_world.relay = None


async def test_who_waits_for_a_turn_is_held_when_the_model_goes_and_has_it_asked_for(
    native_world: NativeWorld,
) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    runs, waits = await native_world.sent(chat(name="runs"), chat(name="waits"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == []
    await native_world.controls.tell(sleeps("m"))
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]
    gate.let_go("runs", "waits")
    assert await answered(runs) == "runs"
    assert gate.begun == ["runs"]
    assert [view.phase for view in (await native_world.controls.requests()).values()] == ["held"]
    await native_world.controls.tell(serves("m", engine, capacity=1))
    assert await answered(waits) == "waits"


async def test_only_valid_bytes_follow_a_hold(native_world: NativeWorld) -> None:
    events = b"data: {}\n\ndata: [DONE]\n\n"

    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\ncontent-type: text/event-stream", body=events)

    engine = await native_world.engine(script=script)
    await native_world.begin(sleeps("m"))
    (client,) = await native_world.sent(chat(stream=True))
    await native_world.controls.tell(serves("m", engine))
    assert (await client.response()).body == events


# -- models that stand in ----------------------------------------------------------------------------------------------

FAST = VirtualModel("fast", "m", fallback=("n", "k"))


async def test_another_model_answers_when_the_hold_ends(native_world: NativeWorld) -> None:
    native_world.configure(hold_timeout=0.05)
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"), serves("n", engine), virtual=(FAST,))
    answer = await native_world.ask(chat("fast"))
    assert answer.status == 200
    assert engine.received[0].json["model"] == "n"
    assert float(answer.get("x-shoal-queue-ms") or 0) + float(answer.get("x-shoal-wake-ms") or 0) >= 50
    assert native_world.controls.wanted == ["m"]
    assert native_world.native_relay.link.wanted == set()
    assert native_world.counts == {("n", "ok"): 1}


async def test_another_model_answers_when_the_table_says_that_the_first_will_not(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"), sleeps("n"), virtual=(FAST,))
    (client,) = await native_world.sent(chat("fast"))
    await native_world.controls.tell(failed("m", "broken"), sleeps("n"), virtual=(FAST,))
    await eventually(lambda: native_world.controls.wanted[-1:] == ["n"])
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m", "n"]
    await native_world.controls.tell(failed("m", "broken"), serves("n", engine), virtual=(FAST,))
    assert (await client.response()).status == 200


async def test_another_model_answers_when_the_first_is_forgotten(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"), sleeps("n"), serves("k", engine), virtual=(FAST,))
    (client,) = await native_world.sent(chat("fast"))
    await native_world.controls.tell(serves("k", engine))  # the one after it is gone as well
    assert (await client.response()).status == 200
    assert engine.received[0].json["model"] == "k"


async def test_the_first_refusal_is_told_when_none_stands_in(native_world: NativeWorld) -> None:
    await native_world.begin(sleeps("m"), failed("n", "n is broken"), virtual=(FAST,))
    (client,) = await native_world.sent(chat("fast"))
    await native_world.controls.tell(failed("m", "m is broken"), failed("n", "n is broken"), virtual=(FAST,))
    status, code, answer = await refused(client)
    assert (status, code, answer.error["message"]) == (503, "model_not_ready", "m is broken")
    answer = await native_world.ask(chat("fast"))
    assert (answer.status, answer.error["message"]) == (503, "m is broken")


async def test_who_does_not_want_to_be_held_gets_the_model_that_serves(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"), serves("n", engine), virtual=(FAST,))
    assert (await native_world.ask(chat("fast", extra=HOLD_OFF))).status == 200
    assert engine.received[0].json["model"] == "n"
    await native_world.controls.settled()
    assert native_world.controls.wanted == ["m"]


async def test_a_model_that_is_gone_is_not_told_by_names_that_a_key_may_not_see(native_world: NativeWorld) -> None:
    keys = (key("a", models=("m", "mine")),)
    await native_world.begin(sleeps("m"), sleeps("mine"), sleeps("secret"), keys=keys, keys_required=True)
    (client,) = await native_world.sent(chat(extra=bearer("a")))
    await native_world.controls.tell(sleeps("mine"), sleeps("secret"), keys=keys, keys_required=True)
    status, code, answer = await refused(client)
    assert (status, code) == (404, "model_not_found")
    assert "Known models: mine." in str(answer.error["message"])
