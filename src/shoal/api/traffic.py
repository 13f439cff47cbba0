"""What models are asked and answer, in numbers that a page can make rates and percentiles of."""

from __future__ import annotations

import time
from collections import Counter

from fastapi import APIRouter
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.fleet.snapshot import Fleet
from shoal.gateway.measures import BOUNDS

router = APIRouter(prefix="/api/v1", tags=["requests"])
_BOUNDS = BOUNDS["first_byte"]


class ModelTraffic(BaseModel):
    """A model's requests over all relays. `requests` (that ended) and tokens count since the relays started, and begin
    anew with them."""

    model: str
    running: int
    queued: int
    """Requests that wait for their turn."""
    held: int
    """Requests that wait for the model."""
    requests: int
    prompt_tokens: int
    completion_tokens: int
    first_byte: list[int]
    """Answers by the time to their first byte: one count for each of `bounds`, and one of those beyond them all."""


class Traffic(BaseModel):
    """Every model's traffic, by name. `at` in Unix seconds; `bounds` are upper bounds in seconds, ascending."""

    at: float
    bounds: list[float]
    models: list[ModelTraffic]


@router.get("/traffic")
async def get_traffic(controller: Context) -> Traffic:
    """What models are asked and answer. The difference of two readings gives rates and percentiles of the time
    between."""
    return traffic(controller.manager.fleet, time.time())


def traffic(fleet: Fleet, now: float) -> Traffic:
    """The traffic that the relays reported last. Pure."""
    sums: Counter[tuple[str, str]] = Counter()
    first: dict[str, list[int]] = {}
    # A relay that connects anew may be there twice for a moment; it has carried its requests once.
    for report in {report.relay: report for report in fleet.relays.values()}.values():
        for instance, running in report.outstanding.items():
            if (known := fleet.instances.get(instance)) is not None:
                sums[known.model, "running"] += running
        for waiting in report.waiting:
            sums[waiting.model, "queued"] += waiting.queued
            sums[waiting.model, "held"] += waiting.held
        for count in report.counts:
            sums[count.model, "requests"] += count.requests
        for carried in report.traffic:
            sums[carried.model, "prompt_tokens"] += carried.prompt_tokens
            sums[carried.model, "completion_tokens"] += carried.completion_tokens
        for item in report.distributions:
            # Those of a relay of another version may have other buckets.
            if item.name == "first_byte" and len(item.counts) == len(_BOUNDS) + 1:
                known_counts = first.setdefault(item.model, [0] * (len(_BOUNDS) + 1))
                first[item.model] = [a + b for a, b in zip(known_counts, item.counts, strict=True)]
    return Traffic(at=now, bounds=list(_BOUNDS), models=[_of(name, sums, first) for name in sorted(fleet.models)])


def _of(name: str, sums: Counter[tuple[str, str]], first: dict[str, list[int]]) -> ModelTraffic:
    return ModelTraffic(
        model=name,
        running=sums[name, "running"],
        queued=sums[name, "queued"],
        held=sums[name, "held"],
        requests=sums[name, "requests"],
        prompt_tokens=sums[name, "prompt_tokens"],
        completion_tokens=sums[name, "completion_tokens"],
        first_byte=first.get(name, [0] * (len(_BOUNDS) + 1)),
    )
