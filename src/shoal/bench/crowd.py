"""Clients of all kinds at once: what they send, and how each request ended. For a Shoal with simulated models.

Requests are sent when chance says (open loop, Poisson) or one after the other (`Crowd.ramp`). Prompts and answers have
known numbers of tokens, so that what was used can be added up without asking.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

How = Literal["over", "broken", "left"]
"""The end of a response as its reader saw it: it was over, it broke off, or the reader left."""
WHOLE, LEFT = "whole", "left"
"""Ends of requests: a whole answer; the client went away, as it was meant to."""
_WORDS = ("the", "water", "moves", "and", "a", "small", "fish", "turns", "with", "the", "others", "toward", "light")
_ROW = re.compile(r"^\| (\d{3}) \| ([^|]+) \|", re.MULTILINE)
_DATA = re.compile(rb"^data: (\{.*\})$", re.MULTILINE)
FAULTS = frozenset({(500, "internal_error")})
"""Documented, and a fault of the relay all the same."""


def documented(manual: str) -> set[tuple[int, str]]:
    """Statuses and codes in the table of errors in `docs/gateway.md`, but for faults of the relay.

    Raises ValueError if there is no such table.
    """
    found = {
        (int(status), code) for status, codes in _ROW.findall(manual) for code in re.findall(r"`([a-z_]+)`", codes)
    }
    if not found:
        raise ValueError("the manual has no table of statuses and codes")
    return found - FAULTS


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: to `path`, as the bearer of `key`. `leaves`: after how many pieces of the answer the client goes
    away, None: never. `tokens`: of prompt and answer, if it is answered."""

    path: str
    body: bytes
    key: str
    model: str
    stream: bool = False
    leaves: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    tokens: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Asker:
    """Makes up requests. `keys`: by what each is for: `app`, `batch`, `limited` and `narrow`, which may use the first
    model only."""

    chats: Sequence[str]
    embedding: str
    keys: Mapping[str, str]
    chance: random.Random

    def plain(self) -> Ask:
        """A stream or a whole answer of a chat model."""
        return self._chat(self.keys["app"], stream=self.chance.random() < 0.6)

    def any(self) -> Ask:
        """Anything that clients do."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.10:
            return self._embedding()
        if kind < 0.20:
            # So long an answer that it cannot be over before the client has gone.
            ask = self._chat(self.keys["app"], stream=True, answer=2000, leaves=chance.choice([0, 1, 1, 5]))
        elif kind < 0.30:
            ask = self._chat(self.keys["batch"], stream=False, headers=(("x-shoal-priority", "low"),))
        elif kind < 0.40:
            ask = self._chat(self.keys["limited"], stream=True)
        elif kind < 0.45:
            ask = self._chat(self.keys["narrow"], stream=True)
        elif kind < 0.50:
            ask = self._chat(self.keys["app"], stream=True, headers=(("x-shoal-hold", "off"),))
        elif kind < 0.53:
            ask = self._wrong()
        else:
            ask = self.plain()
        return ask

    def _chat(
        self,
        key: str,
        *,
        stream: bool,
        answer: int | None = None,
        leaves: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Ask:
        chance = self.chance
        model = chance.choice(self.chats)
        words = chance.randint(1, 40)
        tokens = answer or chance.randint(4, 40)
        text = " ".join(itertools.islice(itertools.cycle(_WORDS), words))
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        if stream:
            body["stream"] = True
            if chance.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
        # The simulated engine counts the words, and the role before them.
        return Ask(
            "/v1/chat/completions", json.dumps(body).encode(), key, model, stream, leaves, headers, (words + 1, tokens)
        )

    def _embedding(self) -> Ask:
        words = self.chance.randint(1, 200)
        text = " ".join(itertools.islice(itertools.cycle(_WORDS), words))
        body = json.dumps({"model": self.embedding, "input": text}).encode()
        return Ask("/v1/embeddings", body, self.keys["app"], self.embedding, tokens=(words, 0))

    def _wrong(self) -> Ask:
        """What is refused."""
        key, path, model = self.keys["app"], "/v1/chat/completions", self.chats[0]
        return self.chance.choice(
            [
                Ask(path, b'{"model": "no such model", "messages": []}', key, model),
                Ask(path, b'{"model": ', key, model),
                Ask(path, b"{}", key, model),
                Ask(path, b'{"model": "x"}', "sk-shoal-none", model),
                Ask(path, b'{"model": "x"}', "", model),
            ]
        )


@dataclass(slots=True)
class Used:
    """What was used of a model with a key: whole answers, tokens of their prompts, and of themselves."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Crowd:
    """All clients together, and what became of what they sent. `ends`: by `WHOLE`, `LEFT`, or `STATUS code`."""

    url: str
    asker: Asker
    allowed: set[tuple[int, str]]
    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    used: dict[tuple[str, str], Used] = field(default_factory=dict)
    looks: Counter[str] = field(default_factory=Counter)
    """What pollers were answered: `PATH status`."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds of the request that took longest, and its end."""

    def session(self) -> aiohttp.ClientSession:
        """Connections that are kept, as clients keep them."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json"},
        )

    async def ramp(self, clients: int, seconds: float) -> float:
        """Whole answers a second that so many clients get which send plain requests one after the other."""
        over = time.monotonic() + seconds
        before = self.ends[WHOLE]
        async with self.session() as session:

            async def client() -> None:
                while time.monotonic() < over:
                    await self.one(session, self.asker.plain())

            began = time.monotonic()
            await asyncio.gather(*(client() for _ in range(clients)))
        return (self.ends[WHOLE] - before) / (time.monotonic() - began)

    async def drive(self, rate: float, seconds: float, patience: float) -> None:
        """`rate` requests a second for so long, whatever becomes of those before; then wait for the last of them.

        Raises TimeoutError if one has not ended `patience` seconds later.
        """
        chance = self.asker.chance
        due = time.monotonic()
        over = due + seconds
        async with self.session() as session:
            tasks: set[asyncio.Task[None]] = set()
            while (due := due + chance.expovariate(rate)) < over:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self.one(session, self.asker.any()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=patience)
                for task in late:
                    task.cancel()
                if late:
                    raise TimeoutError(f"{len(late)} requests had no end {patience:g} s after the last was sent")

    async def look(self, path: str, every: float, *, keyed: bool) -> None:
        """Get `path` again and again, until cancelled."""
        headers = {"Authorization": f"Bearer {self.asker.keys['app']}"} if keyed else {}
        async with self.session() as session:
            while True:
                try:
                    async with session.get(self.url + path, headers=headers) as response:
                        await response.read()
                    self.looks[f"{path} {response.status}"] += 1
                except aiohttp.ClientError as error:
                    self.wrong.append(f"{path}: {error!r}")
                await asyncio.sleep(every)

    async def one(self, session: aiohttp.ClientSession, ask: Ask) -> None:
        """Send a request and note its end."""
        self.sent += 1
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {ask.key}"} if ask.key else {}
        try:
            async with session.post(
                self.url + ask.path, data=ask.body, headers=headers | dict(ask.headers)
            ) as response:
                end = self._ended(ask, *await self._read(response, ask))
        except aiohttp.ClientError as error:
            end = self._ended(ask, 0, repr(error).encode(), "broken")
        self.slowest = max(self.slowest, (time.monotonic() - began, f"{end} of {ask.model}, {ask.headers}"))

    async def _read(self, response: aiohttp.ClientResponse, ask: Ask) -> tuple[int, bytes, How]:
        """Status, body as far as it came, and how it ended. Leaves if it is meant to."""
        body = b""
        pieces = 0
        try:
            if response.status == 200 and ask.leaves == 0:
                response.close()
                return response.status, body, "left"
            async for piece in response.content.iter_any():
                body += piece
                pieces += 1
                if response.status == 200 and ask.leaves is not None and pieces >= ask.leaves:
                    response.close()
                    return response.status, body, "left"
        except aiohttp.ClientPayloadError:
            return response.status, body, "broken"
        return response.status, body, "over"

    def _ended(self, ask: Ask, status: int, body: bytes, how: How) -> str:
        """Count one end; what it is counted as."""
        end = end_of(ask, status, body, how)
        counted = f"{end[0]} {end[1]}" if isinstance(end, tuple) else end or "wrong"
        self.ends[counted] += 1
        if isinstance(end, tuple):
            if end not in self.allowed:
                self._note(ask, end, body)
        elif end == WHOLE:
            used = self.used.setdefault((ask.key, ask.model), Used())
            used.requests += 1
            used.prompt_tokens += ask.tokens[0]
            used.completion_tokens += ask.tokens[1]
        elif not end:
            self._note(ask, (status, "broken" if how == "broken" else "not what was asked for"), body)
        return counted

    def _note(self, ask: Ask, end: tuple[int, str], body: bytes) -> None:
        if len(self.wrong) < 100:
            at = time.strftime("%H:%M:%S")
            self.wrong.append(f"{at} {ask.path} {ask.model} stream={ask.stream} {end}: {body[-300:]!r}")


def end_of(ask: Ask, status: int, body: bytes, how: How) -> str | tuple[int, str]:
    """How a request ended: `WHOLE`, `LEFT`, status and code of an error, or "" for what must not be. Pure.

    An answer that broke off says why: a stream in an `error` event; another body has no place for it, and is
    `(502, "engine_died")`, which is what its break means.
    """
    if how == "left":
        return LEFT
    broken = how == "broken"
    if status != 200:
        return "" if broken else (status, _code(body))
    if broken and not ask.stream:
        return 502, "engine_died"
    if ask.stream:
        errors = [event for event in _DATA.findall(body) if b'"error"' in event]
        if errors:
            return (502, _code(errors[-1])) if broken or not body.rstrip().endswith(b"[DONE]") else ""
        return WHOLE if not broken and body.endswith(b"data: [DONE]\n\n") and _agrees(ask, body) else ""
    return WHOLE if _agrees(ask, body) else ""


def _agrees(ask: Ask, body: bytes) -> bool:
    """Whether the usage that an answer tells is what was expected; a stream need not tell."""
    if ask.stream:
        events = [json.loads(event) for event in _DATA.findall(body)]
        told = [event["usage"] for event in events if event.get("usage")]
        if (b"include_usage" in ask.body) != bool(told):
            return False
        pieces = sum(bool(choice["delta"].get("content")) for event in events for choice in event["choices"])
        if pieces != ask.tokens[1]:
            return False
    else:
        try:
            told = [json.loads(body)["usage"]]
        except (ValueError, KeyError, TypeError):
            return False
    return all((one["prompt_tokens"], one["completion_tokens"]) == ask.tokens for one in told)


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no code"
