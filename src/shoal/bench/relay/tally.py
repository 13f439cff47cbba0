"""What load generators say of a run, on one line of their output. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

MARK = "result "


class Served(msgspec.Struct, frozen=True):
    """Requests that a closed loop had answered in `seconds`, and their latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    failed: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Streamed(msgspec.Struct, frozen=True):
    """Events that open streams got in `seconds`; microseconds from a request to its first event, and from when an
    event was made to when it was read; and what the proxy used meanwhile: seconds of CPU time, resident bytes at the
    end."""

    streams: int
    events: int
    seconds: float
    first_p50_us: float
    first_p99_us: float
    delay_p50_us: float
    delay_p99_us: float
    cpu: float
    rss: int
    failed: int


class Aborted(msgspec.Struct, frozen=True):
    """Streams that were begun and broken off in `seconds`. Of those, `partial` had sent only a part of their request,
    `unanswered` had seen no byte of an answer, `failed` had something else than a stream."""

    streams: int
    seconds: float
    partial: int
    unanswered: int
    failed: int
    wrong: dict[str, int] = {}


Tally = TypeVar("Tally", Served, Streamed, Aborted)


def line(tally: Served | Streamed | Aborted) -> str:
    """`tally` as `parse` reads it."""
    return MARK + msgspec.json.encode(tally).decode()


def parse(output: str, kind: type[Tally]) -> Tally:
    """The last result of this kind in a load generator's output. Raises ValueError if there is none."""
    for found in reversed(output.splitlines()):
        if found.startswith(MARK):
            return msgspec.json.decode(found[len(MARK) :], type=kind)
    raise ValueError(f"the load generator gave no result; its output ends with {output[-400:]!r}")
