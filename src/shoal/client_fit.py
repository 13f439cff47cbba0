"""The part of the client that asks whether models fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.client_http import HttpClient, Json


class Fitting(HttpClient):
    """A part of `Client`."""

    def fit(
        self,
        models: Sequence[str | Mapping[str, Any]],
        *,
        devices: Sequence[str] | None = None,
        load: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Json:
        """Whether models fit: names, folders, hub ids, or settings to be tried. Nothing is loaded.

        `load` by model, or `*`: `concurrency`, `tokens`, and `spread` of what it is asked for at once.
        """
        body: Json = {"models": list(models), "load": dict(load or {})}
        return self._json("POST", "/fit", body=body if devices is None else {**body, "devices": list(devices)})
