"""Holds most of a GPU, so that a large card is a smaller one: `python -m shoal.bench.ballast BYTES-TO-LEAVE-FREE`.

Needs torch with CUDA. Prints the bytes then free, and holds the rest until it is ended.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Take what is free but for the bytes given, and wait."""
    import torch

    leave = int(sys.argv[1])
    free, _ = torch.cuda.mem_get_info()
    if free < leave:
        sys.exit(f"only {free} bytes are free; a card of {leave} cannot be made of it")
    held = torch.empty(free - leave, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    sys.stdout.write(f"{torch.cuda.mem_get_info()[0]} {held.numel()}\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
