"""A tenant that floods a model: `python -m shoal.bench.flood --address A --model M …`, until SIGTERM; prints a `Flood`.

So many clients send one request after the other, each for as long an answer as chance says, so that they do not end
together. A process of its own, so that reading the answers delays nobody who is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
from collections import Counter

import aiohttp
import msgspec

from shoal.ending import asked_to_end

from . import load

PAUSE = 0.2
"""Seconds that a client waits after a refusal, or a broken connection."""


class Flood(msgspec.Struct, frozen=True):
    """What became of a flood: answers that were whole, tokens in them, how long the least delayed of the requests that
    were not the first of their clients waited in Shoal's queue in milliseconds (None: no relay said), and what else
    happened, counted."""

    requests: int
    tokens: int
    least_wait_ms: float | None
    wrong: dict[str, int]


class Flooder:
    """Sends, and counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        self._requests = self._tokens = 0
        self._waits: list[float] = []
        self._wrong: Counter[str] = Counter()

    async def run(self) -> Flood:
        """Flood until this process is asked to end."""
        stop = asked_to_end()
        options = self._options
        async with load.client(options.address, key=options.key, keep=True) as session:
            url = f"{load.url_of(options.address)}/v1/completions"
            clients = [asyncio.create_task(self._client(session, url)) for _ in range(options.clients)]
            await stop.wait()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        return Flood(self._requests, self._tokens, min(self._waits, default=None), dict(self._wrong))

    async def _client(self, session: aiohttp.ClientSession, url: str) -> None:
        first = True
        while True:
            try:
                await self._one(session, url, first)
            except (aiohttp.ClientError, OSError) as error:
                self._wrong[type(error).__name__] += 1
                await asyncio.sleep(PAUSE)
            first = False

    async def _one(self, session: aiohttp.ClientSession, url: str, first: bool) -> None:
        options, chance = self._options, self._random
        prompt = load.prompt(chance, options.prompt, options.vocabulary)
        tokens = chance.randint(options.shortest, options.longest)
        body = load.body(prompt, tokens, model=options.model, stream=False)
        async with session.post(url, data=body) as response:
            answer = await response.read()
        if response.status != 200:
            self._wrong[str(response.status)] += 1
            await asyncio.sleep(PAUSE)
            return
        self._requests += 1
        self._tokens += tokens if f'"completion_tokens":{tokens}'.encode() in answer.replace(b" ", b"") else 0
        waited = response.headers.get("x-shoal-queue-ms")
        if waited is not None and not first:
            self._waits.append(float(waited))


def main() -> None:
    """Flood, and print what became of it."""
    parser = argparse.ArgumentParser(prog="python -m shoal.bench.flood", description=__doc__)
    parser.add_argument("--address", required=True, help="unix:/path or tcp:host:port of a relay or an engine")
    parser.add_argument("--key", default="none", help="the API key to send")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=200, help="requests that are under way at once")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of each prompt")
    parser.add_argument("--shortest", type=int, default=64, help="tokens of the shortest answer")
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest answer")
    parser.add_argument("--vocabulary", type=int, default=30_000, help="tokens that the model knows")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        print(msgspec.json.encode(asyncio.run(Flooder(options).run())).decode())  # noqa: T201


if __name__ == "__main__":
    main()
