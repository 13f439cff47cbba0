"""Traffic for a simulation: traces read from JSON lines, written, and generated.

One request a line, in the order of time::

    {"at": 12.5, "model": "llama", "prompt_tokens": 800, "output_tokens": 200, "keep_alive": "5m", "priority": "high"}

`at` is in seconds from the start; `keep_alive` (seconds, or such as `"5m"`; negative: for ever) and `priority` may be
left out, so may the tokens.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import msgspec

from shoal.errors import ShoalError
from shoal.messages import PRIORITIES, Priority
from shoal.units import parse_seconds


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace. `keep_alive` in seconds; negative: for ever."""

    at: float
    model: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    keep_alive: float | None = None
    priority: Priority = "normal"
    line: int = 0


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    at: float
    model: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    keep_alive: float | str | None = None
    priority: Priority = "normal"


def read(path: Path) -> Iterator[Request]:
    """The requests of a trace, read as they are asked for. Raises ShoalError with file and line."""
    try:
        with path.open("rb") as file:
            yield from _parse(file, str(path))
    except OSError as error:
        raise _broken(f"{path} cannot be read: {error.strerror}") from None


def _parse(lines: Iterable[bytes], name: str) -> Iterator[Request]:
    decoder = msgspec.json.Decoder(_Line)
    before = 0.0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
            keep_alive = None if line.keep_alive is None else parse_seconds(line.keep_alive)
        except (msgspec.MsgspecError, ValueError) as error:
            raise _broken(f"{name}, line {number}: {error}") from None
        if not math.isfinite(line.at) or line.at < before:
            raise _broken(
                f"{name}, line {number}: `at` is {line.at:g}, before the {before:g} of the line above; "
                "sort the trace by time, from 0 on"
            )
        if line.prompt_tokens < 0 or line.output_tokens < 0:
            raise _broken(f"{name}, line {number}: tokens cannot be fewer than none")
        before = line.at
        yield Request(
            line.at, line.model, line.prompt_tokens, line.output_tokens, keep_alive, line.priority, number
        )  # fmt: skip


def write(path: Path, requests: Iterable[Request]) -> Iterator[Request]:
    """Pass requests on, writing each to a trace. Raises ShoalError."""
    try:
        with path.open("w") as file:
            for request in requests:
                fields = {"at": round(request.at, 3), "model": request.model}
                fields |= {"prompt_tokens": request.prompt_tokens, "output_tokens": request.output_tokens}
                if request.keep_alive is not None:
                    fields["keep_alive"] = request.keep_alive
                if request.priority != "normal":
                    fields["priority"] = request.priority
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                yield msgspec.structs.replace(request, at=round(request.at, 3))
    except OSError as error:
        raise _broken(f"{path} cannot be written: {error.strerror}") from None


def generate(
    models: Sequence[str], count: int, duration: float, *, zipf: float = 1.0, burst: float = 5.0, gap: float = 10.0,
    seed: int = 0,
) -> Iterator[Request]:  # fmt: skip
    """`count` requests over about `duration` seconds, the same for the same `seed`.

    They come in bursts, whose beginnings are a Poisson process: one burst is for one model and has `burst` requests on
    average (geometric), `gap` seconds apart on average (exponential). The k-th of `models` is asked for in proportion
    to ``k ** -zipf`` (0: all alike). Lengths are log-normal: medians of 500 tokens in and 150 out.
    """
    chance = random.Random(seed)
    weights = list(accumulate(rank**-zipf for rank in range(1, len(models) + 1)))
    every = duration * burst / max(1, count)
    due: list[tuple[float, int, str]] = []
    number, begins = 0, chance.expovariate(1 / every)
    for _ in range(count):
        if not due or begins <= due[0][0]:
            heapq.heappush(due, (begins, number, chance.choices(models, cum_weights=weights)[0]))
            number += 1
            begins += chance.expovariate(1 / every)
        at, burst_number, model = heapq.heappop(due)
        if chance.random() >= 1 / burst:
            heapq.heappush(due, (at + chance.expovariate(1 / gap), burst_number, model))
        prompt = 1 + round(500 * chance.lognormvariate(0, 1))
        yield Request(at, model, prompt, 1 + round(150 * chance.lognormvariate(0, 0.8)))


def level(priority: Priority) -> int:
    """0, 1, 2 for high, normal, low."""
    return PRIORITIES.index(priority)


def _broken(message: str) -> ShoalError:
    return ShoalError(message, status=400, code="invalid_trace")
