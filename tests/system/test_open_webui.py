"""What Open WebUI sends, replayed: it polls the list of models for every user, chats in streams that it may cut short,
and asks for a title, tags and follow-up questions behind each answer. Its users are tenants by the header with their id
(`ENABLE_FORWARD_USER_INFO_HEADERS`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import psutil
import pytest

from shoal.engines.simulated import text
from tests.system.harness import PATIENCE, Shoal, a_shoal, until

USERS = 20
ROUNDS = 3
TASKS = ("title_generation", "tags_generation", "follow_up_generation")
LIST_TIMEOUT = 10.0
"""Seconds that Open WebUI waits for a list of models by default; after that the models are gone from its page."""


@dataclass
class User:
    """One of its users."""

    url: str
    number: int
    key: str = ""

    @property
    def id(self) -> str:
        return f"7f3c0c1e-0000-4000-8000-{self.number:012}"

    def headers(self, chat: str | None = None) -> dict[str, str]:
        """As it forwards them: names are quoted, because headers are ASCII."""
        return {
            "Content-Type": "application/json",
            "X-OpenWebUI-User-Name": quote(f"Zoë Müller {self.number}", safe=" "),
            "X-OpenWebUI-User-Id": self.id,
            "X-OpenWebUI-User-Email": f"user{self.number}@shoal.test",
            "X-OpenWebUI-User-Role": "user" if self.number else "admin",
            **({"X-OpenWebUI-Chat-Id": chat} if chat else {}),
            **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
        }

    async def models(self) -> list[dict[str, Any]]:
        """The list of models, over a connection of its own."""
        timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{self.url}/v1/models", headers=self.headers()) as response,
        ):
            listed = await response.json()
        assert "error" not in listed
        found: list[dict[str, Any]] = listed["data"]
        return found

    @asynccontextmanager
    async def completion(self, body: dict[str, Any], chat: str | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """A chat completion, over a connection of its own, which is closed with the block."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout, read_bufsize=4 * 2**20) as session:
            content = json.dumps(body)
            url = f"{self.url}/v1/chat/completions"
            async with session.request("POST", url, data=content, headers=self.headers(chat)) as response:
                yield response

    async def stream(self, model: str, prompt: str, chat: str, *, pieces: int | None = None) -> str:
        """Chat, and read the answer or as many pieces of it; then "stop" is pressed."""
        body = {
            "stream": True,
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream_options": {"include_usage": True},
            **({} if pieces is None else {"max_tokens": 20_000, "ignore_eos": True}),
        }
        said, usage, done = [], None, False
        async with self.completion(body, chat) as response:
            assert response.status == 200, await response.text()
            assert "text/event-stream" in response.headers["Content-Type"]
            async for line in response.content:
                if line == b"data: [DONE]\n":
                    done = True
                elif line.startswith(b"data: "):
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage") or usage
                    said += [choice["delta"]["content"] for choice in chunk["choices"]]
                if pieces is not None and len(said) > pieces:
                    return "".join(said)
        assert done
        assert usage is not None
        assert usage["completion_tokens"] == len(said) - 1
        return "".join(said)

    async def task(self, model: str, kind: str, chat: str) -> str:
        """What it asks for itself behind a chat."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"### Task: {kind} of {chat}"}],
            "stream": False,
            **({"max_completion_tokens": 1000} if kind == "title_generation" else {}),
        }
        async with self.completion(body, chat) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["choices"][0]["message"]["content"])


@pytest.fixture
def shoal() -> Iterator[Shoal]:
    with a_shoal() as shoal:
        yield shoal.start()


def under_way(shoal: Shoal) -> list[dict[str, Any]]:
    with shoal.client as client:
        found: list[dict[str, Any]] = client.requests()["requests"]
        return found


async def listed(shoal: Shoal, count: int) -> list[dict[str, Any]]:
    """What is under way, as soon as there is as much."""
    return await asyncio.to_thread(
        until, lambda: found if len(found := under_way(shoal)) >= count else [], f"{count} requests"
    )


async def test_twenty_users_who_poll_chat_and_press_stop(shoal: Shoal) -> None:
    shoal.add("m", "--max-num-seqs", "8", "--tokens-per-second", "1000")
    shoal.add("sleepy", "--start-seconds", "0.5")
    shoal.load("m")
    relay = psutil.Process(shoal.pid("shoal.gateway"))
    await User(shoal.url, 0).models()
    before = relay.num_fds()
    ends: Counter[str] = Counter()

    async def use(user: User) -> None:
        chance = random.Random(user.number)
        for number in range(ROUNDS):
            assert [model["id"] for model in await user.models()] == ["m", "sleepy"]
            chat, prompt = f"chat-{user.number}-{number}", f"question {number} of {user.number}"
            model = "sleepy" if number == 1 and user.number % 5 == 0 else "m"
            whole = text.answer(f"user: {prompt}")
            if chance.random() < 0.3:
                said = await user.stream(model, prompt, chat, pieces=chance.randint(0, 20))
                assert whole.startswith(said) or said.startswith(whole)
                ends["stopped"] += 1
                continue
            assert await user.stream(model, prompt, chat) == whole
            ends["whole"] += 1
            answers = await asyncio.gather(*(user.task(model, kind, chat) for kind in TASKS), user.models())
            assert list(answers[:-1]) == [text.answer(f"user: ### Task: {kind} of {chat}") for kind in TASKS]

    async with asyncio.timeout(2 * PATIENCE):
        await asyncio.gather(*(use(User(shoal.url, number)) for number in range(USERS)))
    assert ends["whole"] > ends["stopped"] > 0
    await asyncio.to_thread(until, lambda: not under_way(shoal), "the end of all requests")

    def idle() -> bool:
        with shoal.http() as http:
            lines = http.get("/metrics").text.splitlines()
        running = [line for line in lines if line.startswith("shoal_engine_requests_running{")]
        return bool(running) and all(line.endswith(" 0.0") for line in running)

    await asyncio.to_thread(until, idle, "the end of all requests in the engines")
    engines = 2 * 8  # connections to engines are kept for a while
    await asyncio.to_thread(until, lambda: relay.num_fds() <= before + engines, "the end of all connections")


async def test_users_are_tenants_and_the_quiet_one_is_served(shoal: Shoal) -> None:
    shoal.add("m", "--max-num-seqs", "2", "--tokens-per-second", "50")
    shoal.load("m")
    loud, quiet = User(shoal.url, 1), User(shoal.url, 2)
    order: list[str] = []

    async def ask(user: User, name: str) -> None:
        await user.task("m", "tags_generation", f"{name}-{len(order)}")
        order.append(name)

    flood = [asyncio.create_task(ask(loud, "loud")) for _ in range(40)]
    assert {one["tenant"] for one in await listed(shoal, 20)} == {loud.id}
    one = asyncio.create_task(ask(quiet, "quiet"))

    def there() -> bool:
        return "quiet" in order or quiet.id in {request["tenant"] for request in under_way(shoal)}

    await asyncio.to_thread(until, there, "the quiet one's request")
    before = len(order)
    async with asyncio.timeout(PATIENCE):
        await one
        assert order.index("quiet") - before < 10, "it waits for its turn, not for all the others"
        assert {user["tenant"] for user in under_way(shoal)} == {loud.id}
        await asyncio.gather(*flood)


async def test_one_key_for_all_of_its_users(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    with shoal.client as api:
        made = api.create_key({"name": "open-webui"})
    await asyncio.to_thread(until, lambda: shoal.chat("m").status_code == 401, "the key at the relay")
    stranger, user = User(shoal.url, 1), User(shoal.url, 2, made["key"])
    async with stranger.completion({"model": "m", "messages": []}) as response:
        assert response.status == 401
        assert "API key" in (await response.json())["error"]["message"]  # which is what it shows
    assert [model["id"] for model in await user.models()] == ["m"]
    assert await user.stream("m", "hello", "chat") == text.answer("user: hello")
    messages = [{"role": "user", "content": "hello"}]
    endless = {"model": "m", "messages": messages, "stream": True, "max_tokens": 20_000, "ignore_eos": True}
    async with user.completion(endless):
        (one,) = await listed(shoal, 1)
    assert (one["tenant"], one["key"]) == (made["id"], "open-webui")
