"""What the native relay tells the controller of the requests that it has."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from shoal.messages import RelayReport, RequestView, Waiting

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay


def report(relay: NativeRelay) -> RelayReport:
    """Its numbers; the link fills in whose they are, and of which table."""
    waiting = []
    stranded = relay.stranded.counts()
    for model in dict.fromkeys((*relay.admission.waiting_models(), *stranded)):
        count, more = relay.admission.waiting(model), stranded.get(model, 0)
        route = relay.routes.find(model)
        held = route is not None and not route.targets
        waiting.append(Waiting(model, held=count + more) if held else Waiting(model, queued=count, held=more))
    return RelayReport(
        "",
        "",
        0,
        relay.routes.outstanding,
        relay.counts,
        tuple(waiting),
        relay.measures.distributions(),
        relay.measures.traffic(),
        relay.keeping.demand(),
    )


def views(relay: NativeRelay) -> list[RequestView]:
    """Each request that waits or runs, with its place in the queue."""
    now = monotonic()
    places: dict[int, int] = {}
    for model in relay.admission.waiting_models():
        places.update((id(job.owner), place) for place, job in enumerate(relay.admission.order(model), 1))
    return [request.view(now, places.get(id(request))) for request in relay.requests.values()]
