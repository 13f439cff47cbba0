"""Clients of all kinds with a real engine: the official ones of OpenAI and Anthropic, curl, and a websocket's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.system.harness import Shoal, until

MODEL = "smollm2"
FRANCE: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
TIMEOUT = 300


@pytest.fixture
def ai(real: Shoal) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", timeout=TIMEOUT, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(real: Shoal) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=real.url, api_key="none", timeout=TIMEOUT, max_retries=0) as client:
        yield client


@pytest.fixture
def key(real: Shoal) -> Iterator[str]:
    """A key, which everybody needs while it exists."""
    with real.client as api:
        made = api.create_key({"name": "clients", "models": [MODEL]})
        try:
            until(lambda: real.chat(MODEL).status_code == 401, "the key at the relay")
            yield made["key"]
        finally:
            api.revoke_key("clients")
            until(lambda: real.chat(MODEL).status_code == 200, "its end at the relay")


def test_openais_responses(ai: openai.OpenAI) -> None:
    whole = ai.responses.create(model=MODEL, input=FRANCE, max_output_tokens=32, temperature=0)
    assert "Paris" in whole.output_text
    assert whole.usage is not None
    assert whole.usage.input_tokens > 10
    events = list(ai.responses.create(model=MODEL, input=FRANCE, max_output_tokens=32, temperature=0, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 1


def test_anthropics_messages(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model=MODEL, max_tokens=32, messages=FRANCE, extra_body={"temperature": 0})
    words = "".join(block.text for block in whole.content if block.type == "text")
    assert "Paris" in words
    with claude.messages.stream(model=MODEL, max_tokens=32, messages=FRANCE, extra_body={"temperature": 0}) as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert "".join(pieces) == words
    assert len(pieces) > 1
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert claude.messages.count_tokens(model=MODEL, messages=FRANCE).input_tokens == whole.usage.input_tokens


def test_errors_reach_anthropics_client(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="Known models: smollm2"):
        claude.messages.create(model="nothing", max_tokens=8, messages=FRANCE)
    with pytest.raises(anthropic.BadRequestError):  # in the engine's words
        claude.messages.create(model=MODEL, max_tokens=10**6, messages=FRANCE)


def test_tokens_there_and_back(real: Shoal) -> None:
    with real.http() as http:
        tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "The sea is calm."}).json()
        assert tokens["count"] == len(tokens["tokens"]) > 3
        back = http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()
    assert back["prompt"].endswith("The sea is calm.")


@pytest.mark.parametrize("how", [(), ("--compressed",), ("--http1.0",), ("-H", "Expect: 100-continue")])
def test_curl(real: Shoal, how: tuple[str, ...]) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    texts = []
    for stream in (False, True):
        body = {"model": MODEL, "messages": FRANCE, "max_tokens": 32, "temperature": 0, "stream": stream}
        sends = ("-H", "Content-Type: application/json", "-d", json.dumps(body))
        command = [curl, "-sS", "--noproxy", "*", "-m", str(TIMEOUT), *how, *sends, f"{real.url}/v1/chat/completions"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout
        if stream:
            *events, last = answer.removesuffix("\n\n").split("\n\n")
            assert last == "data: [DONE]"
            chunks = [json.loads(event.removeprefix("data: ")) for event in events]
            texts.append("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks))
        else:
            texts.append(json.loads(answer)["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]


def test_a_websocket_that_the_engine_does_not_offer(real: Shoal) -> None:
    url = f"{real.url.replace('http:', 'ws:')}/v1/realtime?model={MODEL}"
    with pytest.raises(InvalidStatus) as caught, connect(url, proxy=None, open_timeout=TIMEOUT):
        pass
    response = caught.value.response
    assert response.status_code in (403, 404), "it is the engine that refuses, not Shoal"
    assert b"model_not_found" not in (response.body or b"")
    assert response.headers["x-request-id"]


def test_keys(real: Shoal, key: str, ai: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.AuthenticationError, match="not valid here"):
        ai.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=2)
    with pytest.raises(anthropic.AuthenticationError, match="not valid here"):
        claude.messages.create(model=MODEL, messages=FRANCE, max_tokens=2)
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key=key, timeout=TIMEOUT) as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=8, stream=True))
        assert all(chunk.usage is None for chunk in chunks), "usage was asked for by the relay alone"
        assert chunks[-1].choices[0].finish_reason
    with anthropic.Anthropic(base_url=real.url, api_key=key, timeout=TIMEOUT) as client_of_anthropic:
        message = client_of_anthropic.messages.create(model=MODEL, messages=FRANCE, max_tokens=8)
    assert message.usage.output_tokens == 8

    def counted() -> Any:
        with real.http() as http:
            rows = http.get("/api/v1/usage", params={"by": "key", "key": "clients"}).json()["usage"]
        return rows[0] if rows and rows[0]["requests"] == 2 else None

    assert until(counted, "the usage")["completion_tokens"] == 16
