"""Models that relays ask for, in a whole Shoal to which one more relay connects that holds requests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from shoal.errors import ShoalError
from shoal.gateway.measures import BOUNDS
from shoal.messages import (
    Distribution,
    RelayReport,
    Route,
    RoutingTable,
    ToController,
    ToRelay,
    Waiting,
    Wanted,
)
from tests.system.harness import PATIENCE, Shoal, until

DECODER: msgspec.json.Decoder[ToRelay] = msgspec.json.Decoder(ToRelay)


class Holding:
    """A relay that holds one request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def say(self, message: ToController) -> None:
        self._connection.sendall(msgspec.json.encode(message) + b"\n")

    def route(self, name: str, state: str) -> Route:
        """The route of a model, once it is in a state."""
        while True:
            message = DECODER.decode(self._lines.readline())
            if isinstance(message, RoutingTable):
                # Drains wait for relays that do not say that they have the table.
                self.report(message)
                for route in message.routes:
                    if (route.model, route.state) == (name, state):
                        return route

    def report(self, table: RoutingTable) -> None:
        counts = (0,) * len(BOUNDS["queue"]) + (1,)
        self.say(
            RelayReport(
                "holding", table.epoch, table.version, {}, waiting=(Waiting("m", held=1),),
                distributions=(Distribution("m", "normal", "queue", counts, 700.0),),
            )
        )  # fmt: skip


@contextmanager
def holding(shoal: Shoal) -> Iterator[Holding]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(shoal.runtime / "relay.sock"))
        yield Holding(connection)


def events(shoal: Shoal, kind: str) -> list[dict[str, Any]]:
    with shoal.client as client:
        return [event for event in client.history() if event["kind"] == kind]


def test_a_model_is_loaded_when_a_relay_asks_and_again_after_an_unload(shoal: Shoal) -> None:
    shoal.add("m", "--max-num-seqs", "7", max_concurrency=5)
    with holding(shoal) as relay:
        assert relay.route("m", "unloaded").comes
        relay.say(Wanted("m"))
        route = relay.route("m", "ready")
        assert [target.capacity for target in route.targets] == [7]
        assert route.limit == 5
        assert shoal.chat("m").status_code == 200
        with shoal.client as client:
            client.unload("m")
        assert relay.route("m", "unloaded").comes
        relay.say(Wanted("m"))
        relay.route("m", "ready")
        assert len(events(shoal, "load_on_request")) == 2
        with shoal.client as client:
            client.change_model("m", {"on_request": False})
            client.unload("m")
        assert not relay.route("m", "unloaded").comes
        relay.say(Wanted("m"))
        with shoal.http() as http:
            text = until(lambda: _with(http.get("/metrics").text, 'relay="holding"'), "its metrics")
        assert 'shoal_relay_waiting{model="m",phase="held"} 1.0' in text
        assert 'shoal_request_queue_seconds_count{model="m",priority="normal",relay="holding"} 1.0' in text
        assert shoal.model("m")["state"] == "unloaded"


def test_what_cannot_start_is_not_tried_by_every_request(shoal: Shoal) -> None:
    shoal.add("m", "--fail", "start-exit")
    with holding(shoal) as relay:
        relay.route("m", "unloaded")
        relay.say(Wanted("m"))
        route = relay.route("m", "failed")
        assert not route.comes
        assert "could not be run" in route.detail
        relay.say(Wanted("m"))
        shoal.add("n")
        relay.route("n", "unloaded")  # it was taken in after the wish
        assert shoal.model("m")["state"] == "failed"
        assert len(events(shoal, "load_on_request")) == 1


def test_a_relay_that_says_nothing_is_named_in_the_list_and_no_request_is_thought_gone(shoal: Shoal) -> None:
    with holding(shoal) as relay, shoal.client as client:
        shoal.add("m")
        relay.route("m", "unloaded")  # by which it has said its name
        until(lambda: client.requests()["silent"] == ["holding"], "its name")
        with pytest.raises(ShoalError, match="did not say in time"):
            client.cancel_request("held-1")


def _with(text: str, wanted: str) -> str:
    return text if wanted in text else ""
