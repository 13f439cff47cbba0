"""curl and a websocket client against a whole Shoal with the simulated engine."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from shoal.engines.simulated import text
from tests.system.harness import PATIENCE, Shoal, a_shoal, until

PROMPT = "user: hello there"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
ENDLESS = {**BODY, "stream": True, "max_tokens": 30_000, "ignore_eos": True}
CHAT = "/v1/chat/completions"
AUDIO = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def shoal() -> Iterator[Shoal]:
    """One that asks for no key, with a model that writes and one that listens."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.add("s", "--task", "transcription", "--tokens-per-second", "50")
        shoal.load("m")
        shoal.load("s")
        yield shoal
        assert shoal.stop() == 0


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Shoal, str]]:
    """One that asks for keys, and a key."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("s", "--task", "transcription", "--start-seconds", "0.5")
        with shoal.client as api:
            key = api.create_key({"name": "app"})["key"]
        until(lambda: shoal.chat("s").status_code == 401, "the key at the relay")
        yield shoal, key
        assert shoal.stop() == 0


def command(*arguments: str) -> list[str]:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return [program, "--silent", "--show-error", "--max-time", str(PATIENCE), "--noproxy", "*", *arguments]


def curl(*arguments: str) -> str:
    """What curl prints; it has to succeed."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def posts(body: dict[str, Any]) -> tuple[str, ...]:
    return ("-H", "Content-Type: application/json", "-d", json.dumps(body))


def content(answer: str) -> str:
    """The text of a chat's answer, in one piece or in a stream."""
    if answer.startswith("{"):
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    *events, last = answer.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


def under_way(shoal: Shoal) -> list[dict[str, Any]]:
    with shoal.client as client:
        found: list[dict[str, Any]] = client.requests()["requests"]
        return found


# -- curl --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [(), ("--compressed",), ("--http1.0",), ("-H", "Expect: 100-continue")])
@pytest.mark.parametrize("stream", [False, True])
def test_chat(shoal: Shoal, how: tuple[str, ...], stream: bool) -> None:
    assert content(curl(f"{shoal.url}{CHAT}", *how, *posts({**BODY, "stream": stream}))) == text.answer(PROMPT)


def test_what_curl_asks_for_arrives(shoal: Shoal) -> None:
    seen = json.loads(curl(f"{shoal.url}/v1/echo?model=m&a=%20b", "--compressed", "-H", "X-Thing: é", *posts({"x": 1})))
    headers = dict(seen["headers"])
    assert "gzip" in headers["Accept-Encoding"]
    assert headers["User-Agent"].startswith("curl/")
    assert headers["X-Thing"].encode("latin-1").decode() == "é"
    assert (seen["path"], base64.b64decode(seen["body"])) == ("/v1/echo?model=m&a=%20b", b'{"x": 1}')


def test_a_stream_is_seen_as_it_comes_and_ends_with_its_reader(shoal: Shoal) -> None:
    with subprocess.Popen(command("-N", f"{shoal.url}{CHAT}", *posts(ENDLESS)), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(10)]
            assert all(line.startswith(b"data: {") for line in lines[::2])
            assert process.poll() is None
            assert [one["phase"] for one in under_way(shoal)] == ["answering"]
        finally:
            process.kill()
    until(lambda: not under_way(shoal), "the end of the request")


@pytest.mark.parametrize("first", ["model", "file"])
def test_uploads(shoal: Shoal, tmp_path: Path, first: str) -> None:
    file = tmp_path / "speech.wav"
    file.write_bytes(AUDIO * 40)  # 4 MiB, for which curl waits to be told to go on
    fields = {"model": ("-F", "model={}"), "file": ("-F", f"file=@{file};type=audio/wav")}

    def upload(model: str, *how: str) -> Any:
        parts = [part.format(model) for name in sorted(fields, key=lambda name: name != first) for part in fields[name]]
        return json.loads(curl(f"{shoal.url}/v1/audio/transcriptions", *how, *parts, "-F", "language=en"))

    heard = upload("s")
    assert heard["usage"]["seconds"] == 128
    assert heard == upload("s", "--http1.0") == upload("s", "-H", "Expect:", "-H", "Transfer-Encoding: chunked")
    assert upload("m") == {"detail": "Not Found"}, "what an engine lacks it refuses itself"
    assert upload("nothing")["error"]["code"] == "model_not_found"


def test_a_large_body_is_sent_once_it_is_wanted(shoal: Shoal, guarded: tuple[Shoal, str], tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps({**BODY, "padding": "x" * 8 * 2**20}))
    is_json = ("-H", "Content-Type: application/json")
    expects = ("-H", "Expect: 100-continue", "--expect100-timeout", str(PATIENCE))
    sends = (*is_json, *expects, "--data-binary", f"@{file}")
    said = tmp_path / "head"
    answer = curl(f"{shoal.url}{CHAT}", *sends, "-D", str(said), "-w", "\n%{size_upload}")
    body, _, sent = answer.rpartition("\n")
    assert content(body) == text.answer(PROMPT)
    assert int(sent) == file.stat().st_size
    assert said.read_text().startswith("HTTP/1.1 100 Continue")
    answer = curl(f"{guarded[0].url}{CHAT}", *sends, "-w", "\n%{http_code} %{size_upload}")
    body, _, ended = answer.rpartition("\n")
    assert ended == "401 0"
    assert json.loads(body)["error"]["code"] == "key_required"


def test_one_connection_for_several_requests(shoal: Shoal) -> None:
    url = f"{shoal.url}{CHAT}"
    streams = posts({**BODY, "stream": True})
    told = ("-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n")
    answers = curl(
        *(*told, f"{shoal.url}/v1/models", "--next"),
        *(*told, url, *streams, "--next"),
        *(*told, url, *posts({**BODY, "model": "nothing"}), "--next"),
        *(*told, url, *posts(BODY), "--next"),
        *(*told, f"{shoal.url}/health/ready"),
    )
    assert answers.splitlines() == ["200 1", "200 0", "404 0", "200 0", "200 0"]


# -- websockets --------------------------------------------------------------------------------------------------------


def session(shoal: Shoal, model: str = "s", **headers: str) -> ClientConnection:
    url = shoal.url.replace("http:", "ws:")
    return connect(
        f"{url}/v1/realtime?model={model}", additional_headers=headers, open_timeout=PATIENCE, proxy=None, max_size=None
    )


def receive(socket: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(socket.recv(PATIENCE))
    return event


def transcribe(socket: ClientConnection, audio: bytes, model: str = "s") -> str:
    """What is heard in `audio`, in pieces that have to come to the whole."""
    socket.send(json.dumps({"type": "session.update", "model": model}))
    data = base64.b64encode(audio).decode()
    socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": data}))
    socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    heard = ""
    while (event := receive(socket))["type"] == "transcription.delta":
        heard += event["delta"]
    assert (event["type"], event["text"]) == ("transcription.done", heard)
    return heard


def test_realtime_sessions(shoal: Shoal, tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    file.write_bytes(AUDIO)
    upload = curl(f"{shoal.url}/v1/audio/transcriptions", "-F", "model=s", "-F", f"file=@{file}")

    def one(_: int) -> str:
        with session(shoal) as socket:
            assert receive(socket)["type"] == "session.created"
            assert socket.ping().wait(PATIENCE)
            socket.send('{"type":"nonsense"}')
            assert receive(socket)["code"] == "unknown_event"
            return transcribe(socket, AUDIO)

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(one, range(10))) == {json.loads(upload)["text"]}
    until(lambda: not under_way(shoal), "the end of the sessions")


def test_large_messages_and_many(shoal: Shoal) -> None:
    with session(shoal) as socket:
        receive(socket)
        assert transcribe(socket, AUDIO * 80)  # 10 MiB in one message
        for number in range(500):
            socket.send(json.dumps({"type": f"x{number}"}))
        assert [receive(socket)["error"] for _ in range(500)] == [f"Unknown event type: x{n}" for n in range(500)]


def test_a_session_is_listed_and_cancelled(shoal: Shoal) -> None:
    with session(shoal, **{"x-request-id": "talk"}) as socket:
        receive(socket)
        (one,) = under_way(shoal)
        assert (one["id"], one["model"], one["path"]) == ("talk", "s", "/v1/realtime")
        with shoal.client as client:
            client.cancel_request("talk")
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE)
    until(lambda: not under_way(shoal), "its end")


def test_handshakes_that_are_refused(shoal: Shoal) -> None:
    for model, status, named in (("nothing", 404, b"model_not_found"), ("m", 404, b"Not Found")):
        with pytest.raises(InvalidStatus) as caught, session(shoal, model):
            pass
        assert (caught.value.response.status_code, named in (caught.value.response.body or b"")) == (status, True)


def test_a_key_and_a_model_that_is_loaded_for_a_session(guarded: tuple[Shoal, str]) -> None:
    shoal, key = guarded
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": key + "x"}):
        with pytest.raises(InvalidStatus) as caught, session(shoal, **headers):
            pass
        assert caught.value.response.status_code == 401
    assert not shoal.model("s")["instances"]
    with session(shoal, Authorization=f"Bearer {key}") as socket:
        assert receive(socket)["type"] == "session.created"
        assert transcribe(socket, AUDIO)
    with httpx2.Client(trust_env=False) as http:
        seen = http.get(f"{shoal.url}/v1/models", headers={"x-api-key": key}).json()
    assert [model["state"] for model in seen["data"]] == ["ready"]
