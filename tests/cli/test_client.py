"""The client's edges: addresses, other servers, streams that break."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from shoal.client import DEFAULT_URL, Client, UnreachableError
from shoal.errors import ShoalError
from tests.cli.scripted import ScriptedShoal, instance


def answering(status: int, text: str, kind: str = "application/json") -> Client:
    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, text=text, headers={"content-type": kind})

    return Client(DEFAULT_URL, transport=httpx2.MockTransport(handle))


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://x:99999", "unix:/a"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ShoalError) as caught:
        Client(url)
    assert caught.value.code == "invalid_url"
    assert DEFAULT_URL in caught.value.message


def test_the_address_comes_from_the_argument_then_the_variable_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SHOAL_URL", raising=False)
    assert Client().url == DEFAULT_URL
    monkeypatch.setenv("SHOAL_URL", "http://there:1/")
    assert Client().url == "http://there:1"
    assert Client("http://here:2").url == "http://here:2"


@pytest.mark.parametrize(
    ("status", "text"), [(200, "<html>"), (404, "<html>"), (200, "[]"), (500, "{}"), (302, ""), (404, '{"error": "x"}')]
)
def test_another_server_is_not_taken_for_shoal(status: int, text: str) -> None:
    with answering(status, text) as client, pytest.raises(UnreachableError) as caught:
        client.status()
    assert "does not answer as Shoal does" in caught.value.message


def test_an_error_body_becomes_an_error() -> None:
    body = json.dumps({"error": {"message": "no", "type": "t", "code": "queue_full", "param": "model"}})
    with answering(429, body) as client, pytest.raises(ShoalError) as caught:
        client.load("m")
    error = caught.value
    assert (error.message, error.status, error.code, error.param) == ("no", 429, "queue_full", "model")


def test_a_proxy_is_not_asked_for_this_machine(shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client(shoal.url) as client:
        assert client.status()["version"] == "9.9"


def test_silence_ends_in_time(shoal: ScriptedShoal) -> None:
    shoal.answer_delay = 30
    with Client(shoal.url, timeout=0.2) as client, pytest.raises(UnreachableError, match="in time"):
        client.status()


def test_names_arrive_as_they_are(shoal: ScriptedShoal) -> None:
    for name in ("a/../b", "a?b#c%20", "🐟 [x]", "org/model"):
        shoal.add(name)
        with Client(shoal.url) as client:
            assert client.model(name)["name"] == name


def test_an_event_stream_that_ends_without_patience_is_an_error(shoal: ScriptedShoal) -> None:
    shoal.drop_events_after = 1
    with Client(shoal.url) as client:
        events = client.events()
        assert next(events).kind == "snapshot"
        with pytest.raises(UnreachableError):
            next(events)


def test_patience_has_an_end() -> None:
    with Client("http://127.0.0.1:9") as client:
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            next(iter(client.events(patience=0.5)))
        assert time.monotonic() - began < 30


def test_text_of_any_kind_survives_the_stream(shoal: ScriptedShoal) -> None:
    lines = ["one\u2028still one", "\x85 next line", "", "data: x", "\U0001f41f", "[/b]", "\r"]
    shoal.add("m", instance("m-1", "m", "failed"))
    shoal.logs["m-1"] = lines
    with Client(shoal.url) as client:
        events = list(client.follow_logs("m-1"))
    assert [event.data["text"] for event in events if event.kind == "line"] == lines
    assert events[-1].kind == "end"


def test_resuming_names_the_last_event() -> None:
    asked: list[str | None] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers.get("last-event-id"))
        text = f'id: e-{len(asked)}\nevent: snapshot\ndata: {{"n": {len(asked)}}}\n\n'
        return httpx2.Response(200, text=text, headers={"content-type": "text/event-stream"})

    with Client(DEFAULT_URL, transport=httpx2.MockTransport(handle)) as client:
        events = client.events(patience=10)
        assert [next(events).data["n"] for _ in range(3)] == [1, 2, 3]
    assert asked == [None, "e-1", "e-2"]


def test_what_a_relay_says_when_it_stops_is_no_event() -> None:
    frames = ['id: e-1\nevent: snapshot\ndata: {}\n\ndata: {"error": {"message": "Shoal is stopping"}}\n\n',
              'id: e-2\nevent: snapshot\ndata: {}\n\n']  # fmt: skip

    def handle(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, text=frames.pop(0), headers={"content-type": "text/event-stream"})

    with Client(DEFAULT_URL, transport=httpx2.MockTransport(handle)) as client:
        events = client.events(patience=10)
        assert [next(events).id for _ in range(2)] == ["e-1", "e-2"]
        frames.append('data: {"error": {"message": "Shoal is stopping"}}\n\n')
        with pytest.raises(UnreachableError, match="is stopping"):
            next(client.events())


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that answers one byte at a time and never comes to an end."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            while not stop.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop.set()
    thread.join(5)
    listener.close()


def test_completion_never_hangs(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.cli.shell import model_names

    monkeypatch.setenv("SHOAL_URL", dripping)
    began = time.monotonic()
    assert model_names("") == []
    assert time.monotonic() - began < 10  # without a limit it would take hours


def test_completion_offers_names_and_survives_their_absence(
    shoal: ScriptedShoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.cli.shell import model_names

    shoal.add("apple")
    shoal.add("pear")
    deadline = time.monotonic() + 20
    while (found := model_names("a")) != ["apple"] and time.monotonic() < deadline:
        pass  # half a second may be too short on a busy machine
    assert found == ["apple"]
    for url in ("http://127.0.0.1:9", "nonsense"):
        monkeypatch.setenv("SHOAL_URL", url)
        assert model_names("") == []
