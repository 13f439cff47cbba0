"""Watching one engine from outside: its log while it starts, then its health and its readings."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

from shoal.engines.base import Engine
from shoal.engines.progress import ProgressTracker
from shoal.fleet import facts
from shoal.fleet.hang import HangDetector
from shoal.fleet.logs import Follower
from shoal.fleet.shim import BEGIN
from shoal.fleet.state import Instance, InstanceState, Progress
from shoal.net import UnixAddress, parse_address

FIRST_LOOK = 0.02
SLOWEST_LOOK = 0.5
ANSWER = 5.0
READS_AT_ONCE = 64
LONGEST_LINE = 1000
"""Characters of a line of the log that are looked at for a number."""
_log = logging.getLogger(__name__)


class Probe:
    """Asks an engine over HTTP. No answer is an answer: None."""

    def __init__(self, address: str) -> None:
        where = parse_address(address)
        if isinstance(where, UnixAddress):
            self._connector: aiohttp.BaseConnector = aiohttp.UnixConnector(str(where.path), force_close=True)
            self._base = "http://engine"
            self._socket: Path | None = where.path
        else:
            self._connector = aiohttp.TCPConnector(force_close=True)
            self._base = f"http://{where.host}:{where.port}"
            self._socket = None
        self._session = aiohttp.ClientSession(
            connector=self._connector, timeout=aiohttp.ClientTimeout(total=ANSWER), trust_env=False
        )

    async def get(self, path: str) -> str | None:
        """The body of a 200, or None."""
        if self._socket is not None and not self._socket.exists():
            return None
        try:
            async with self._session.get(self._base + path) as response:
                return await response.text(errors="replace") if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError):
            return None

    async def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, limit: float = ANSWER
    ) -> tuple[int, str] | None:
        """Status and body of an answer that may take `limit` seconds, or None."""
        try:
            async with self._session.request(
                method, self._base + path, json=body, timeout=aiohttp.ClientTimeout(total=limit)
            ) as response:
                return response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError):
            return None

    async def context_length(self) -> int | None:
        """The longest context that the engine serves, as its list of models says."""
        try:
            length = json.loads(await self.get("/v1/models") or "")["data"][0]["max_model_len"]
            return int(length) if length else None
        except (ValueError, KeyError, IndexError, TypeError):
            return None

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


class Monitor:
    """Watches one instance until cancelled, and tells what it sees."""

    def __init__(
        self,
        engine: Engine,
        log: Path,
        tell: Callable[[facts.Fact], None],
        *,
        engine_pid: Callable[[], int | None],
        interval: float,
        hang_timeout: float,
    ) -> None:
        self._engine = engine
        self._log = log
        self._tell = tell
        self._engine_pid = engine_pid
        self._interval = interval
        self._hang_timeout = hang_timeout

    async def run(self, instance: Instance, earlier: Sequence[Mapping[str, float]]) -> None:
        """From the start, or from readiness on where the instance is there already."""
        probe = Probe(instance.address)
        try:
            if instance.state is InstanceState.STARTING and not await self._until_ready(instance, probe, earlier):
                return
            await self._while_ready(instance.id, probe)
        finally:
            await probe.close()

    def _tracker(self, earlier: Sequence[Mapping[str, float]]) -> ProgressTracker:
        tracker = ProgressTracker(self._engine.milestones, earlier)
        tracker.progress(time.monotonic())  # its clock starts now
        return tracker

    def _weights(self, line: str) -> int:
        """Bytes of weights on a device that a line of the log tells of, or 0."""
        found = self._engine.weights_line.search(line[:LONGEST_LINE])
        return 0 if found is None else int(float(found["gib"]) * 2**30)

    async def _until_ready(self, instance: Instance, probe: Probe, earlier: Sequence[Mapping[str, float]]) -> bool:
        tracker = self._tracker(earlier)
        follower = Follower(self._log)
        shown: Progress | None = None
        weights = 0
        pause = FIRST_LOOK
        limit = instance.spec.start_timeout if instance.spec is not None else float("inf")
        deadline = time.monotonic() + limit
        try:
            while True:
                for _ in range(READS_AT_ONCE):  # an engine may print faster than this reads
                    if not (lines := follower.read()):
                        break
                    for line in lines:
                        if line == BEGIN:  # what came before was an earlier start
                            tracker, weights = self._tracker(earlier), 0
                        tracker.feed(line, time.monotonic())
                        weights = max(weights, self._weights(line))
                    await asyncio.sleep(0)  # a flood of lines must not hold up everyone else
                if await probe.get("/health") is not None:
                    phases = tracker.phases(time.monotonic())
                    self._tell(facts.Healthy(instance.id, self._engine_pid(), phases, weights or None))
                    return True
                now = time.monotonic()
                if now > deadline:
                    self._tell(facts.Overdue(instance.id, tracker.phases(now)))
                    return False
                progress = tracker.progress(now)
                if shown is None or (progress.phase, progress.percent) != (shown.phase, shown.percent):
                    shown = progress
                    self._tell(facts.Progressed(instance.id, progress))
                await asyncio.sleep(pause)
                pause = min(SLOWEST_LOOK, pause * 1.2)
        finally:
            follower.close()

    async def _while_ready(self, instance: str, probe: Probe) -> None:
        if (length := await probe.context_length()) is not None:
            self._tell(facts.Described(instance, length))
        detector = HangDetector(self._hang_timeout)
        while True:
            alive = await probe.get("/health") is not None
            text = await probe.get("/metrics") if alive else None
            metrics = self._engine.read_metrics(text) if text is not None else None
            if metrics is not None:
                self._tell(facts.Measured(instance, metrics))
            reason = detector.look(time.monotonic(), metrics)
            if reason is not None:
                self._tell(facts.Hung(instance, reason))
                return
            await asyncio.sleep(self._interval)
