"""Open-loop load: requests are sent when they are due, whatever became of those before.

Each request has a connection of its own: a kept one may be closed by the server just as the next request enters it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from shoal.net import UnixAddress, parse_address

_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_CHOICE = b'"choices":[{'
_TAIL = 2048
"""Bytes of a stream's end that are kept: usage and the last event fit into them."""


@dataclass(slots=True)
class Served:
    """One request and what became of it. Times in seconds of `time.monotonic`; 0.0 is never."""

    model: int
    due: float
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    end: float = 0.0
    tokens: int = 0
    queued: float = 0.0
    """Seconds in Shoal's queue, as it says itself."""
    finished: bool = False
    error: str = ""
    woken: float = 0.0
    """Seconds that it waited until its model served, as Shoal says."""

    def complete(self, tokens: int) -> bool:
        """Whether the stream came to its end with as many tokens as were asked for."""
        return self.finished and self.tokens == tokens


@dataclass(frozen=True, slots=True)
class Due:
    """A request to be sent `at` seconds after the start to the server of `model`."""

    at: float
    model: int
    body: bytes


def prompt(rng: random.Random, tokens: int, vocabulary: int) -> list[int]:
    """Random token ids, clear of special ones at either end of the vocabulary."""
    return [rng.randrange(vocabulary // 100, vocabulary * 9 // 10) for _ in range(tokens)]


def body(prompt: Sequence[int], tokens: int, *, model: str = "m", stream: bool = True) -> bytes:
    """A greedy request for exactly so many tokens; if `stream`, a stream that tells its usage."""
    request = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    return json.dumps(
        request | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    ).encode()


def client(address: str = "", *, key: str = "", keep: bool = False) -> aiohttp.ClientSession:
    """A session for `send`: no limits, no time limit, and no kept connections unless told to `keep` them.

    `address`: `unix:/path` if that is where everything goes, whatever host a URL names. `key`: an API key to send.
    """
    place = parse_address(address) if address else None
    connector = (
        aiohttp.UnixConnector(str(place.path), limit=0, force_close=not keep)
        if isinstance(place, UnixAddress)
        else aiohttp.TCPConnector(limit=0, force_close=not keep)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
    )


def url_of(address: str) -> str:
    """The URL for a session of `client` at `unix:/path` or `tcp:host:port`. Raises ValueError."""
    place = parse_address(address)
    return "http://engine" if isinstance(place, UnixAddress) else f"http://{place.host}:{place.port}"


async def send(session: aiohttp.ClientSession, url: str, data: bytes, served: Served) -> None:
    """Send one request and note in `served` what came when. Only a cancellation is raised."""
    tail = b""
    try:
        served.sent = time.monotonic()
        async with session.post(f"{url}/v1/completions", data=data) as response:
            if response.status != 200:
                served.error = f"{response.status} {(await response.text())[:200]}"
                return
            served.queued = 1e-3 * float(response.headers.get("x-shoal-queue-ms", 0))
            served.woken = 1e-3 * float(response.headers.get("x-shoal-wake-ms", 0))
            async for chunk in response.content.iter_any():
                now = time.monotonic()
                # The first token may come with others, and the usage comes alone: only events with a choice count.
                # An event may also be cut in two: the end of the last piece is looked at again, short of a whole match.
                if _CHOICE in tail[1 - len(_CHOICE) :] + chunk:
                    served.first = served.first or now
                    served.last = now
                tail = (tail + chunk)[-_TAIL:]
        served.end = time.monotonic()
        counted = _TOKENS.findall(tail)
        served.tokens = int(counted[-1]) if counted else 0
        served.finished = tail.rstrip().endswith(b"[DONE]") and served.first > 0
        if not served.finished:
            served.error = f"the stream ended early: …{tail[-200:].decode(errors='replace')}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        served.error = repr(error)[:200]


async def drive(
    session: aiohttp.ClientSession, urls: Sequence[str], planned: Sequence[Due], start: float, patience: float
) -> list[Served]:
    """Send every request `start` (monotonic) plus `at`; all that were planned, as they ended.

    What is not over `patience` seconds after the last was due is cancelled and counts as failed.
    """
    ordered = sorted(planned, key=lambda due: due.at)
    served = [Served(due.model, start + due.at) for due in ordered]
    tasks: list[asyncio.Task[None]] = []
    try:
        for due, one in zip(ordered, served, strict=True):
            wait = one.due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(send(session, urls[due.model], due.body, one)))
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for one in served:
        if not one.finished and not one.error:
            one.error = f"not over {patience:g} s after the last request"
    return served
