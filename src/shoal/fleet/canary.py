"""The canary: one token of one prompt, greedily. An engine that woke whole answers it as it did before its sleep."""

from __future__ import annotations

import json

from shoal.fleet.monitor import Probe

PROMPT = "The capital of France is"
LIMIT = 60.0
"""Seconds that the answer may take: it is the only request, but the first after a wake may compile."""
NONE = ""
"""What is recorded of an engine that completes no text, such as one for embeddings."""


async def ask(probe: Probe, model: str) -> str | None:
    """What the engine answers, `NONE` if it completes no text, or None if it does not answer or fails."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "seed": 0}
    answer = await probe.ask("POST", "/v1/completions", body, limit=LIMIT)
    if answer is None:
        return None
    status, text = answer
    if status in (400, 401, 403, 404, 405, 501):  # it has no such path, or a key of its own
        return NONE
    if status != 200:
        return None
    try:
        return f"text: {json.loads(text)['choices'][0]['text']!s}"
    except (ValueError, KeyError, IndexError, TypeError):
        return None
