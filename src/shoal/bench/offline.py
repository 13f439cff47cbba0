"""One offline engine (`vllm.LLM`) that does what it is told: `python -m shoal.bench.offline` in an engine.

Reads JSON objects from standard input, the first with what the engine is started with, then loads (`make_prompts`),
``{"sleep": level}``, ``{"wake": true}``, ``{"call": method, "with": arguments}`` for a method of its workers and
``{"change": true}`` for a weight that changes, and answers each with one on standard output; whatever else is printed
goes to standard error. The engine runs in this very process, so that nothing but it is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any


def make_prompts(load: Mapping[str, Any]) -> list[list[int]]:
    """The prompts of a load: `count` of `length` random tokens, after one of `prefixes` shared ones of `shared` tokens.

    The same numbers and the same `seed` give the same prompts.
    """
    rng = random.Random(load["seed"])
    low, high = load["vocabulary"] // 100, load["vocabulary"] * 9 // 10

    def tokens(number: int) -> list[int]:
        return [rng.randrange(low, high) for _ in range(number)]

    common = [tokens(load.get("shared", 0)) for _ in range(load.get("prefixes", 1))]
    return [common[number % len(common)] + tokens(load["length"]) for number in range(load["count"])]


def digest(answers: Sequence[Sequence[int]]) -> str:
    """A hash of the tokens of all answers, in order."""
    text = json.dumps([list(answer) for answer in answers]).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def as_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """What `vllm.LLM` calls these flags: ``--worker-cls x`` is ``worker_cls="x"``. Numbers become numbers."""
    settings: dict[str, Any] = {}
    for flag, text in zip(arguments[::2], arguments[1::2], strict=True):
        value: Any = text
        for kind in (int, float):
            try:
                value = kind(text)
                break
            except ValueError:
                continue
        settings[flag.removeprefix("--").replace("-", "_")] = value
    return settings


def _generate(engine: Any, load: Mapping[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": tokens} for tokens in make_prompts(load)[load.get("skip", 0) :]]
    sampling = SamplingParams(max_tokens=load["tokens"], ignore_eos=True, detokenize=False, temperature=0)
    began = time.monotonic()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.monotonic() - began
    answers = [output.outputs[0].token_ids for output in outputs]
    given = sum(len(output.prompt_token_ids) for output in outputs)
    return {
        "seconds": seconds,
        "out_tokens": sum(len(answer) for answer in answers),
        "in_tokens": given,
        "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
        "tokens_hash": digest(answers),
    }


def _change_a_weight(model: Any) -> None:
    """Turn the last layer's normalisation around, in place: every answer is another one then."""
    *_, weight = (weight for name, weight in model.named_parameters() if "norm" in name)
    weight.data.neg_()


def main() -> None:
    """Start the engine, and serve commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    settings = json.loads(sys.stdin.readline())
    began = time.monotonic()
    from vllm import LLM

    engine = LLM(**settings)
    answers.write(json.dumps({"ready": time.monotonic() - began}) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        began = time.monotonic()
        if "sleep" in command:
            engine.sleep(level=command["sleep"])
            answers.write(json.dumps({"seconds": time.monotonic() - began}) + "\n")
        elif "wake" in command:
            engine.wake_up()
            answers.write(json.dumps({"seconds": time.monotonic() - began}) + "\n")
        elif "call" in command:
            answers.write(json.dumps({"results": engine.collective_rpc(command["call"], args=command["with"])}) + "\n")
        elif "change" in command:
            engine.apply_model(_change_a_weight)
            answers.write("{}\n")
        else:
            answers.write(json.dumps(_generate(engine, command)) + "\n")


if __name__ == "__main__":
    main()
