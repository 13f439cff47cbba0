"""The part of the client that moves models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.client_http import HttpClient, Json, quoted


class MoveCalls(HttpClient):
    """A part of `Client`."""

    def moves(self) -> list[Json]:
        """Moves that wait or are under way, and the last that have ended, as MoveView."""
        return list(self._json("GET", "/moves")["moves"])

    def move(self, id_: str) -> Json:
        """One move, as MoveView."""
        return self._json("GET", f"/moves/{quoted(id_)}")

    def begin_move(
        self,
        model: str,
        *,
        to: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
        instance: str | None = None,
        stop_first: bool = False,
        drain: float | None = None,
    ) -> Json:
        """Have other instances take the place of a model's, on the devices `to` or with the settings `changes`; `drain`
        is how many seconds requests of the old ones get."""
        body = {
            "to": list(to),
            "set": dict(changes or {}),
            "instance": instance,
            "stop_first": stop_first,
            "drain": drain,
        }
        return self._json("POST", "/moves", body={"model": model, **body})

    def cancel_move(self, id_: str) -> Json:
        """Undo a move: the new instance ends, the old one serves on."""
        return self._json("DELETE", f"/moves/{quoted(id_)}")
