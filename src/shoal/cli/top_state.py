"""The fleet as the event stream and the readings tell it. Pure: what comes goes in, and the clock is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.cli.top_rates import NONE, Rates, Traffic, keep, rates

View = Mapping[str, Any]
EVENTS_KEPT = 50
READINGS = ("status", "history", "traffic", "usage")
MESSAGES = ("snapshot", "model", "model_removed", "devices", "memory", "message", *READINGS)
"""What `Fleet.take` takes in: events of the stream, and what was asked for besides."""


@dataclass(slots=True)
class Fleet:
    """What is known. Times in Unix seconds."""

    status: View = field(default_factory=dict)
    devices: Sequence[View] = ()
    models: dict[str, View] = field(default_factory=dict)
    events: list[View] = field(default_factory=list)
    """The newest last."""
    rates: dict[str, Rates] = field(default_factory=dict)
    last_use: dict[str, float] = field(default_factory=dict)
    known: bool = False
    """There was a snapshot."""
    heard_at: float = 0.0
    lost: str = ""
    """Why nothing is heard any more; empty while the stream runs and readings are answered."""
    _stream: str = ""
    _reading: str = ""
    _traffic: list[Traffic] = field(default_factory=list)

    def take(self, kind: str, data: Any, now: float) -> None:
        """Take in a message: one of `MESSAGES`, `lost` (the stream broke) or `unread` (a reading was not answered),
        each of these two with the reason. Others say nothing that is shown."""
        match kind:
            case "snapshot":
                self.status, self.devices, self.known = data["status"], data["devices"], True
                self.models = {one["name"]: one for one in data["models"]}
            case "status":
                self.status = data
            case "model":
                self.models[data["name"]] = data
            case "model_removed":
                self.models.pop(data["name"], None)
            case "devices":
                self.devices = data["devices"]
            case "memory":
                self._take_memory(data)
            case "message":
                self._remember([data])
            case "history":
                self._remember(data)
            case "traffic":
                self._take_traffic(data, now)
            case "usage":
                for row in data:
                    if row["model"] is not None:
                        self._use(row["model"], row["last_used"])
            case "lost":
                self._stream = data
            case "unread":
                self._reading = data
        if kind in MESSAGES:
            if kind in READINGS:
                self._reading = ""
            else:
                self._stream = ""
            if not self._stream:  # what a reading tells makes models of a lost stream no younger
                self.heard_at = now
        self.lost = self._stream or self._reading

    def accept(self, answer: View, before: View | None) -> None:
        """Take in what an action was answered, unless the stream has told of the model since: that may be newer."""
        name = answer.get("name")
        if name is not None and before is not None and self.models.get(name) is before:
            self.models[name] = answer

    def rates_of(self, model: str) -> Rates:
        """The rates of the last minute; of a model that nothing is known of, none."""
        return self.rates.get(model, NONE)

    def _take_memory(self, data: View) -> None:
        self.devices = data["devices"]
        fresh = data["instances"]
        for name, model in self.models.items():
            if any(one["id"] in fresh for one in model["instances"]):
                instances = [{**one, "memory": fresh.get(one["id"], one["memory"])} for one in model["instances"]]
                self.models[name] = {**model, "instances": instances}

    def _take_traffic(self, data: Traffic, now: float) -> None:
        self._traffic = keep(self._traffic, data)
        self.rates = rates(self._traffic)
        for name, found in self.rates.items():
            if found.running or found.waiting:
                self._use(name, now)

    def _use(self, model: str, at: float) -> None:
        self.last_use[model] = max(at, self.last_use.get(model, 0.0))

    def _remember(self, messages: Sequence[View]) -> None:
        kept = {_key(one): one for one in (*self.events, *messages)}
        self.events = sorted(kept.values(), key=lambda one: float(one["at"]))[-EVENTS_KEPT:]


def _key(message: View) -> object:
    # Not by its id: what the stream tells has none until it is saved.
    return message["at"], message.get("kind"), message.get("message")
