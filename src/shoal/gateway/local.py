"""What the relay answers from its own knowledge: the list of models, and health while the controller is away. Pure."""

from __future__ import annotations

from typing import Any

from shoal.errors import NotFoundError, ShoalError
from shoal.gateway.routes import Routes
from shoal.gateway.virtual import Names, Visible
from shoal.messages import Route

AWAY = "the controller does not answer: models cannot be changed now; those that are ready go on serving"
UNAVAILABLE = "unavailable"
"""State of a virtual model when nothing that it stands for exists."""


def model_list(routes: Routes, visible: Visible | None = None) -> dict[str, Any]:
    """OpenAI's list of models: every name that a client may use and that is `visible`, sorted, each with its state."""
    names = Names(routes.table)
    return {"object": "list", "data": [_view(names, name) for name in names.known(visible)]}


def model_named(routes: Routes, name: str, visible: Visible | None = None) -> dict[str, Any]:
    """One model of that list. Raises ShoalError 404 `model_not_found` if it is not in there."""
    names = Names(routes.table)
    if name not in names.known(visible):
        raise names.missing(name, visible)
    return _view(names, name)


def model_view(route: Route) -> dict[str, Any]:
    """OpenAI's model object; `state` and `context_length` (tokens, or null) are Shoal's. The latter is there again as
    `max_model_len`, under which clients of vLLM look for it."""
    return {
        "id": route.model,
        "object": "model",
        "created": route.created,
        "owned_by": "shoal",
        "state": route.state,
        "context_length": route.context_length,
        "max_model_len": route.context_length,
    }


def _view(names: Names, name: str) -> dict[str, Any]:
    """A model, or what an adapter or a virtual model has of the one that serves it, which is its `parent`."""
    virtual = names.virtual(name)
    try:
        resolved = names.resolve(name)
    except NotFoundError:
        assert virtual is not None
        view = model_view(Route(name, UNAVAILABLE, virtual.created))
        return {**view, "root": virtual.model, "parent": virtual.model}
    view = model_view(names.route(resolved))
    if virtual is not None:
        created = virtual.created or view["created"]
        return {**view, "id": name, "created": created, "root": resolved.engine_name, "parent": resolved.engine_name}
    if name != resolved.model:
        return {**view, "id": name, "root": name, "parent": resolved.model}
    return view


def health_without_controller(path: str, routes: Routes) -> tuple[int, dict[str, Any]] | None:
    """Status and body for a health path while the controller is away; None for other paths."""
    if path == "/health/live":
        return 200, {"status": "live", "degraded": [AWAY]}
    if path == "/health/ready":
        ready = routes.has_targets
        return (200 if ready else 503), {"status": "ready" if ready else "not ready", "degraded": [AWAY]}
    return None


def controller_away(*, sent: bool) -> ShoalError:
    """The answer for the controller's paths. `sent`: it had the request already, and may have acted on it."""
    message = (
        "The controller went away before it answered; look whether the request took effect, and try again."
        if sent
        else "The controller is away, probably restarting; try again in a moment. Inference is not affected."
    )
    return ShoalError(message, status=503, code="controller_away", headers={"Retry-After": "1"})
