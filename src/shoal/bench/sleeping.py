"""An engine that is put to sleep and woken again and again by its own HTTP, and what was promised of that."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from .load import body
from .results import Check
from .stats import median

Row = Mapping[str, Any]
PATIENCE = 120.0
"""Seconds that any one answer may take."""


class SleeperError(RuntimeError):
    """An engine did not do as it was told, and what it said."""


class Engine:
    """An engine on a port of loopback, asked for one thing at a time on new connections."""

    def __init__(self, port: int, model: str = "m") -> None:
        self._port = port
        self._model = model

    def sleep(self, level: int = 1) -> float:
        """Put it to sleep; the seconds until it says that it sleeps."""
        return self._timed("POST", f"/sleep?level={level}&mode=abort")

    def wake(self) -> float:
        """Wake it; the seconds until it says that it is awake."""
        return self._timed("POST", "/wake_up")

    def copies(self, what: str) -> dict[str, Any]:
        """`take`, `forget` or `look` at the host copies of its weights: what it says of those of its first rank."""
        answer = json.loads(self._ask("POST", "/collective_rpc", {"method": "shoal_copies", "args": [what]}))
        found: dict[str, Any] = answer["results"][0]
        return found

    def take_copy(self, timeout: float = PATIENCE) -> tuple[float, int]:
        """Have the copy taken in the background and wait for it: seconds and bytes. Raises SleeperError."""
        began = time.monotonic()
        found = self.copies("take")
        while found["held"] < found["size"] or not found["size"]:
            if found["reason"] or time.monotonic() - began > timeout:
                raise SleeperError(f"no copy after {time.monotonic() - began:.1f} s: {found}")
            time.sleep(0.05)
            found = self.copies("look")
        return time.monotonic() - began, int(found["size"])

    def first_token(self, prompt: Sequence[int], tokens: int = 8) -> float:
        """Seconds from sending a request to its first token."""
        return first_token("127.0.0.1", self._port, body(prompt, tokens, model=self._model))

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
        """What it answers to each prompt, one after another."""
        bodies = [json.loads(body(prompt, tokens, model=self._model, stream=False)) for prompt in prompts]
        found = [json.loads(self._ask("POST", "/v1/completions", one)) for one in bodies]
        return [str(one["choices"][0]["text"]) for one in found]

    def _timed(self, method: str, path: str) -> float:
        began = time.monotonic()
        self._ask(method, path, None)
        return time.monotonic() - began

    def _ask(self, method: str, path: str, data: Mapping[str, Any] | None) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as connection:
            payload = None if data is None else json.dumps(data).encode()
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != 200:
            raise SleeperError(f"{path} was answered with {answer.status}: {text[:300]!r}")
        return text


def first_token(host: str, port: int, data: bytes) -> float:
    """Seconds from sending a streamed completion to the first event that has a token; the rest is read too.

    Raises SleeperError.
    """
    began = time.monotonic()
    found = 0.0
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SleeperError(f"a completion was answered with {answer.status}: {answer.read()[:300]!r}")
        for line in _lines(answer):
            if not found and b'"choices":[{' in line.replace(b'": ', b'":'):
                found = time.monotonic() - began
    if not found:
        raise SleeperError("a completion ended without a token")
    return found


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := answer.readline():
        yield line


def host_memory(pid: int) -> int:
    """Bytes of the host's memory that a process and its descendants hold for themselves, pinned ones too."""
    total = 0
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            total += _own(one.pid)
    return total


def _own(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return 1024 * int(fields.get("RssAnon", "0 kB").split()[0])


def sleep_checks(rows: Sequence[Row]) -> list[Check]:
    """What is promised of sleep and wake, as far as there are rows for it."""
    checks: list[Check] = []
    ours = [row for row in rows if row["system"] == "shoal"]
    naps = {what: [row for row in ours if row["what"] == what] for what in ("after the copy", "later")}
    for what, name in (("after the copy", "first sleep, after the copy in the background"), ("later", "later sleeps")):
        if found := naps[what]:
            checks.append(Check(name, max(row["sleep_s"] for row in found), "s", 0.1))
    every = [row for row in ours if "same_answers" in row]
    if every:
        checks.append(Check("answers that differ after a sleep", sum(not r["same_answers"] for r in every), "naps", 0))
        checks.append(Check("asleep: KV cache held", max(row["kv_asleep_mib"] for row in every), "MiB", 0))
    stock = [row["asleep_gib"] for row in rows if row["system"] == "stock" and "asleep_gib" in row]
    held = [row["asleep_gib"] for row in ours if "asleep_gib" in row]
    if stock and held:
        checks.append(Check("asleep: device memory of stock's", max(held) / min(stock), "×", 1.0))
    for row in ours:
        if row["what"] == "cycles":
            name = f"{row['cycles']} cycles"
            checks += [
                Check(f"{name}: device memory more than at first", row["device_drift_mib"], "MiB", 16),
                Check(f"{name}: host memory more than at first", row["host_drift_mib"], "MiB", 64),
            ]
    own = [row["wake_to_first_s"] for row in naps["later"]]
    for row in ours:
        if row["what"] == "endpoint":
            checks.append(Check("wake to first token through the endpoint", max(row["first_token_s"]), "s", 0.5))
            if own:
                over = 1e3 * (median(row["first_token_s"]) - median(own))
                checks.append(Check("a held request over the engine's own wake", over, "ms", 50))
    return checks
