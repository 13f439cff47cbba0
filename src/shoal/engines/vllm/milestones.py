"""Log lines of vLLM that show how far a start has come; seen in 0.32, where the CPU build starts in 25 to 45 s.

Most of that is three processes importing torch one after another; with a large model on a GPU, weights and
compilation take over. Shares are of the whole; what earlier loads took refines them.
"""

from __future__ import annotations

import re

from shoal.engines.base import Milestone


def _milestone(pattern: str, phase: str, percent: int) -> Milestone:
    return Milestone(re.compile(pattern), phase, percent)


MILESTONES: tuple[Milestone, ...] = (
    _milestone(r"non-default args:", "reading the configuration", 20),
    _milestone(r"Resolved architecture:", "starting processes", 35),
    _milestone(r"Initializing a V1 LLM engine", "starting processes", 45),
    _milestone(r"rank \d+ in world size \d+ is assigned", "loading weights", 60),
    _milestone(r"Starting to load model", "loading weights", 62),
    _milestone(r"Loading (?:weights|model weights) took|Model loading took", "preparing memory", 78),
    _milestone(r"Dynamo bytecode transform time|Directly load the compiled graph|torch\.compile took", "compiling", 80),
    _milestone(r"KV cache size: [\d,]+ tokens", "warming up", 88),
    _milestone(r"Capturing CUDA graphs", "capturing graphs", 90),
    _milestone(r"init engine \(profile, create kv cache, warmup model\) took", "opening the server", 95),
    _milestone(r"Starting vLLM server on", "opening the server", 98),
    _milestone(r"Application startup complete", "ready", 100),
)

WEIGHTS_LINE = re.compile(r"Model loading took (?P<gib>\d+(?:\.\d+)?) GiB")
"""Each rank says it of its own device; 0.26 and 0.32 differ in what follows."""
