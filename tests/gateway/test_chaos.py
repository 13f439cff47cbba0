"""Many clients and engines at once, most of them rude: the counters come out right, and polite ones notice nothing."""

from __future__ import annotations

import asyncio
import random

from tests.gateway.harness import PATIENCE, Message, World, eventually, post, reply, route

REQUESTS = 300


async def test_counters_come_out_right(world: World) -> None:
    dice = random.Random(7)

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(dice.random() / 50)
        kind = message.target
        if kind == "/v1/dies":
            writer.close()
        elif kind == "/v1/breaks":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx")
            writer.close()
        elif kind == "/v1/hangs":
            await reader.read()
        else:
            await reply(writer, body=message.body)

    engines = [await world.engine(f"e{i}", script) for i in range(3)]
    await world.start(route("m", *engines))
    gate = asyncio.Semaphore(40)
    results: list[tuple[str, int]] = []

    async def one(number: int) -> None:
        kind = dice.choice(["fine", "fine", "fine", "dies", "breaks", "hangs", "nonsense"])
        async with gate:
            client = await world.client()
            body = b"{" if kind == "nonsense" else b'{"model":"m","n":%d}' % number
            await client.send(post(f"/v1/{kind}", body))
            if kind == "hangs":
                await asyncio.sleep(dice.random() / 20)
                results.append((kind, 0))
            elif kind == "breaks":
                await client.closed()
                results.append((kind, 0))
            else:
                answer = await client.response()
                results.append((kind, answer.status))
                assert kind != "fine" or answer.body == body
            client.close()

    async with asyncio.timeout(3 * PATIENCE):
        await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    expected = {"fine": 200, "dies": 502, "nonsense": 400, "hangs": 0, "breaks": 0}
    assert all(status == expected[kind] for kind, status in results)
    kinds = [kind for kind, _ in results]
    await eventually(lambda: world.outstanding == {} and sum(world.counts.values()) == REQUESTS)
    assert world.counts == {
        ("m", "ok"): kinds.count("fine"),
        ("m", "engine_error"): kinds.count("dies") + kinds.count("breaks"),
        ("m", "cancelled"): kinds.count("hangs") - world.counts.get(("", "cancelled"), 0),
        ("", "client_error"): kinds.count("nonsense"),
    } | {key: n for key, n in world.counts.items() if key == ("", "cancelled")}
