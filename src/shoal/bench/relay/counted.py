"""Our relay, in an interpreter that says what it holds: `python -m shoal.bench.relay.counted FILE …`, the rest as for
`python -m shoal.gateway`.

Resident memory cannot tell whether a few bytes are kept of each of many requests: it grows and shrinks by whole arenas,
and by what the collector has not come to yet. The interpreter's own count of its blocks can, to the block.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from shoal.gateway.__main__ import main

from ..processes import Running

ASKING = signal.SIGUSR1
ANSWERS_WITHIN = 30.0


def blocks(running: Running, file: Path) -> int:
    """Blocks of memory that the interpreter of a counted relay holds now. Raises DiedError, or TimeoutError."""
    file.unlink(missing_ok=True)
    running.process.send_signal(ASKING)
    deadline = time.monotonic() + ANSWERS_WITHIN
    while time.monotonic() < deadline:
        running.check()
        if file.exists() and (text := file.read_text()).endswith("\n"):
            return int(text)
        time.sleep(0.02)
    raise TimeoutError(f"the relay did not say within {ANSWERS_WITHIN:.0f} s what it holds")


def _answer(file: Path) -> None:
    def answer(_number: int, _frame: FrameType | None) -> None:
        gc.collect()
        file.write_text(f"{sys.getallocatedblocks()}\n")

    signal.signal(ASKING, answer)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
    raise SystemExit(main(sys.argv[2:]))
