"""A worker's process as the pager's other end sees it, without vLLM and torch: started by `test_ranks.py`.

`python far_worker.py ENGINE RANK PARENT BLOCKS LIMIT_PAGES`; then a word a line: suspend, resume, backed, garbage.
"""

from __future__ import annotations

import sys

from shoal.engines.vllm.plugin.rank import RankMemory
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm.host import HostVmm


def main(engine: str, rank: str, parent: str, blocks: str, limit: str) -> None:
    memory = RankMemory(engine, int(rank), f"device-{rank}", 1 << 30)
    if int(blocks):
        page = HostVmm().page_size
        vmm = HostVmm(limit=int(limit) * page)
        memory.arena = Arena(vmm, Geometry.contiguous(int(blocks), page, page), slice_bytes=64 * page)
    else:
        memory.reason = "its cache is of another kind"
    memory.serve(int(parent))
    print("serves", flush=True)
    for line in sys.stdin:
        word = line.strip()
        try:
            if word == "suspend":
                memory.suspended()
            elif word == "resume":
                memory.resumed()
            elif word == "close":
                break
            answer = f"done {memory.arena.backed_blocks if memory.arena else 0}"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(answer, flush=True)
    memory.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
