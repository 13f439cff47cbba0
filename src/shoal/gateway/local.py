"""What the relay answers from its own knowledge: the list of models, and health while the controller is away. Pure."""

from __future__ import annotations

from typing import Any

from shoal.errors import ShoalError
from shoal.gateway.routes import Routes
from shoal.messages import Route

AWAY = "the controller does not answer: models cannot be changed now; those that are ready go on serving"


def model_list(routes: Routes) -> dict[str, Any]:
    """OpenAI's list of models, with each one's state."""
    return {"object": "list", "data": [model_view(route) for route in routes.table.routes]}


def model_view(route: Route) -> dict[str, Any]:
    """OpenAI's model object; `state` and `context_length` (tokens, or null) are Shoal's."""
    return {
        "id": route.model,
        "object": "model",
        "created": route.created,
        "owned_by": "shoal",
        "state": route.state,
        "context_length": route.context_length,
    }


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
