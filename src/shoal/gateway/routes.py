"""Where requests go: the table of the controller, and what runs where. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from shoal.errors import NotFoundError, ShoalError
from shoal.messages import ModelCount, Outcome, Route, RoutingTable, Target

UNKNOWN = ""
"""The model name under which requests are counted that name no known model; no model can have it."""
NAMES_SHOWN = 20


class Routes:
    """The newest routing table, outstanding requests by instance, and ended requests by model and outcome."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when outstanding requests or counts change; see `settle`."""
        self._changed = changed
        self._table = RoutingTable(epoch="", version=0)
        self._routes: dict[str, Route] = {}
        self._outstanding: dict[str, int] = {}
        self._counts: dict[tuple[str, Outcome], int] = {}
        self._turn = 0
        self._last_turn: dict[str, int] = {}
        self._moved = False

    @property
    def table(self) -> RoutingTable:
        """The table in force; before the first one an empty table with epoch ``""``."""
        return self._table

    @property
    def outstanding(self) -> dict[str, int]:
        """Requests that run now, by instance, zeros left out."""
        return dict(self._outstanding)

    @property
    def counts(self) -> tuple[ModelCount, ...]:
        """Requests that ended. Models that left the table are forgotten, so that names cannot pile up."""
        return tuple(ModelCount(model, outcome, n) for (model, outcome), n in sorted(self._counts.items()))

    @property
    def has_targets(self) -> bool:
        """Whether any model can take requests."""
        return any(route.targets for route in self._table.routes)

    def replace(self, table: RoutingTable) -> bool:
        """Take `table` if it is newer: of another epoch, or of a higher version. Says whether it was taken."""
        if table.epoch == self._table.epoch and table.version <= self._table.version:
            return False
        self._table = table
        self._routes = {route.model: route for route in table.routes}
        live = {target.instance for route in table.routes for target in route.targets}
        self._last_turn = {name: turn for name, turn in self._last_turn.items() if name in live}
        self._counts = {key: n for key, n in self._counts.items() if key[0] == UNKNOWN or key[0] in self._routes}
        return True

    def route(self, model: str) -> Route:
        """The route of `model`. Raises ShoalError 404 `model_not_found` with the models that exist."""
        route = self._routes.get(model)
        if route is None:
            shown = model if len(model) <= 200 else model[:200] + "…"
            raise NotFoundError(
                f"The model {shown!r} does not exist. {self._known()}", code="model_not_found", param="model"
            )
        return route

    def find(self, model: str) -> Route | None:
        """The route of `model`, or None."""
        return self._routes.get(model)

    def pick(self, model: str, without: Collection[str] = ()) -> Target:
        """The target with the fewest outstanding requests; among equals the one that waited longest for its turn.

        `without` names instances not to use. Raises ShoalError: 404 `model_not_found`, or 503 `model_not_ready`
        if no target is left.
        """
        route = self.route(model)
        if len(route.targets) == 1 and not without:
            return route.targets[0]
        targets = [target for target in route.targets if target.instance not in without]
        if not targets:
            raise self.unavailable(route)
        target = min(targets, key=lambda t: (self._outstanding.get(t.instance, 0), self._last_turn.get(t.instance, 0)))
        self._turn += 1
        self._last_turn[target.instance] = self._turn
        return target

    def unavailable(self, route: Route) -> ShoalError:
        """The refusal of a request for a model that cannot take it now."""
        return ShoalError(
            route.detail
            or f"The model {route.model!r} cannot take requests now (state: {route.state}); load it first.",
            status=503,
            code="model_not_ready",
            param="model",
            headers={} if route.retry_after is None else {"Retry-After": str(route.retry_after)},
        )

    def __contains__(self, model: object) -> bool:
        """Whether there is such a model."""
        return model in self._routes

    @contextmanager
    def carrying(self, instance: str) -> Iterator[None]:
        """Count one outstanding request of `instance` for as long as the block runs."""
        self.begin(instance)
        self.settle()
        try:
            yield
        finally:
            self.end(instance)
            self.settle()

    def begin(self, instance: str) -> None:
        """A request goes to `instance`."""
        running = self._outstanding.get(instance, 0)
        self._outstanding[instance] = running + 1
        self._moved = True
        if not running:
            self._changed()

    def end(self, instance: str) -> None:
        """A request to `instance` has ended."""
        left = self._outstanding[instance] - 1
        self._moved = True
        if left:
            self._outstanding[instance] = left
        else:
            del self._outstanding[instance]
            self._changed()

    def settle(self) -> None:
        """To be called now and then: say that numbers have changed, which is said at once only of the first request
        at an instance and of the last."""
        if self._moved:
            self._moved = False
            self._changed()

    def count(self, model: str, outcome: Outcome) -> None:
        """Count a request that ended; a name that is in no table counts as `UNKNOWN`."""
        key = (model if model in self._routes else UNKNOWN, outcome)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._changed()

    def _known(self) -> str:
        names = sorted(self._routes)
        if not names:
            return "No model exists yet; add one with `shoal models add`."
        more = f" and {len(names) - NAMES_SHOWN} more (see /v1/models)" if len(names) > NAMES_SHOWN else ""
        return f"Known models: {', '.join(names[:NAMES_SHOWN])}{more}."
