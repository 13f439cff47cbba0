"""Requests of the native relay that have waited for too long, and trials of those that no instance took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay

LONGEST_RETRY, UNKNOWN_RETRY = 600, 10
"""Seconds of the longest `Retry-After`, and of one where nothing is known of how fast the queue moves."""


def expire(relay: NativeRelay, now: float) -> None:
    """Refuse the requests that have been held, or have waited for their turn, for as long as they may."""
    for job in relay.admission.expired(now):
        route = relay.routes.find(job.model)
        if route is not None and not route.targets:
            error = relay.unready(route)
            error.message = f"The request was held for {now - job.submitted:.0f} s. {error.message}"
            job.owner.refuse_waiting(error, "unavailable")
        else:
            seconds = relay.admission.estimate(job.model, now)
            error = ShoalError(
                f"The request waited {now - job.submitted:.0f} s for its turn at {job.model!r}; try again later.",
                status=429,
                code="queue_timeout",
                headers={"Retry-After": str(max(1, min(LONGEST_RETRY, round(seconds or UNKNOWN_RETRY))))},
            )
            job.owner.refuse_waiting(error, "refused")


def expire_stranded(relay: NativeRelay, now: float) -> None:
    """The same for those that no instance took; of each model one tries again, if that is worth it."""
    for request in relay.stranded.expired(now):
        error = relay.unreachable(request.model)
        error.message = f"The request was held for {relay.config.hold_timeout:.0f} s. {error.message}"
        request.refuse_stranded(error)
    avoided = relay.circuits.open(now)

    def worth(model: str) -> bool:
        route = relay.routes.find(model)
        return route is None or not all(target.instance in avoided for target in route.targets)

    for request in relay.stranded.trials(worth):
        request.resume()
