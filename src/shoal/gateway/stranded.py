"""Requests whose instances take no connections although the routing table has them. Pure; the clock is passed in.

An engine dies, and the table that knows comes a moment later; or the controller is away, and none comes. Nothing of
such a request has reached an engine, so it is held like one whose model wakes: until the next table, or until an engine
takes connections again. One of a model's requests is what finds that out: it tries when `Circuits` would, and the
others follow once a connection is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Held(Protocol):
    """A request; of one model while it is here."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def arrived(self) -> float: ...
    @property
    def held_until(self) -> float: ...


R = TypeVar("R", bound=Held)


class Stranded(Generic[R]):
    """Such requests by model."""

    def __init__(self) -> None:
        self._requests: dict[str, dict[str, R]] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._requests)

    def __contains__(self, request: R) -> bool:
        """Whether it is held here."""
        return request.id in self._requests.get(request.model, ())

    def add(self, request: R) -> None:
        """Hold it."""
        self._requests.setdefault(request.model, {})[request.id] = request

    def leave(self, request: R) -> None:
        """It is held here no longer. No effect on one that is not."""
        held = self._requests.get(request.model)
        if held is not None and held.pop(request.id, None) is not None and not held:
            del self._requests[request.model]

    def count(self, model: str) -> int:
        """How many are held of a model."""
        return len(self._requests.get(model, ()))

    def counts(self) -> dict[str, int]:
        """How many are held, by model."""
        return {model: len(held) for model, held in self._requests.items()}

    def take(self, model: str | None = None) -> list[R]:
        """Those of a model, or all, in the order in which they arrived: they are held here no longer."""
        models = list(self._requests) if model is None else [model]
        found = [request for name in models for request in self._requests.pop(name, {}).values()]
        return sorted(found, key=lambda request: request.arrived)

    def trials(self, worth: Callable[[str], bool]) -> list[R]:
        """One of each model for which a try is `worth` it; they are held here no longer."""
        found = [next(iter(held.values())) for model, held in self._requests.items() if worth(model)]
        for request in found:
            self.leave(request)
        return found

    def expired(self, now: float) -> list[R]:
        """Those that were held for as long as they may; they are held here no longer."""
        found = [request for held in self._requests.values() for request in held.values() if request.held_until <= now]
        for request in found:
            self.leave(request)
        return found
