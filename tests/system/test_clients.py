"""The official clients of OpenAI and Anthropic against a whole Shoal with the simulated engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from shoal.engines.simulated import text
from tests.system.harness import PATIENCE, Shoal, a_shoal, until

HELLO: Any = [{"role": "user", "content": "hello there"}]
PROMPT = "user: hello there"
ANSWER = text.answer(PROMPT)
LENGTH = text.natural_length(PROMPT, 0)


@pytest.fixture(scope="module")
def shoal() -> Iterator[Shoal]:
    """One that asks for no key, with a model of each kind."""
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m")
        shoal.add("e", "--task", "embed")
        shoal.add("dies", "--fail", "crash-after=1", "--tokens-per-second", "10")
        shoal.add("off", on_request=False)
        for name in ("m", "e"):
            shoal.load(name)
        yield shoal
        assert shoal.stop() == 0


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Shoal, str]]:
    """One that asks for keys, and a key for one request at a time to `m`."""
    with a_shoal() as shoal:
        shoal.start()
        for name in ("m", "n"):
            shoal.add(name, "--tokens-per-second", "20")
        shoal.load("m")
        with shoal.client as api:
            key = api.create_key({"name": "app", "models": ["m"], "concurrent": 1})["key"]
        until(lambda: shoal.chat("m").status_code == 401, "the key at the relay")
        yield shoal, key
        assert shoal.stop() == 0


@pytest.fixture
def ai(shoal: Shoal) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shoal.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(shoal: Shoal) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=shoal.url, api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


# -- openai ------------------------------------------------------------------------------------------------------------


def test_chat(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, LENGTH)


@pytest.mark.parametrize("usage", [None, False, True])
def test_chat_streams(ai: openai.OpenAI, usage: bool | None) -> None:
    options: Any = {} if usage is None else {"stream_options": {"include_usage": usage}}
    chunks = list(ai.chat.completions.create(model="m", messages=HELLO, stream=True, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert told == ([LENGTH] if usage else [])


def test_completions(ai: openai.OpenAI) -> None:
    assert ai.completions.create(model="m", prompt="a b", max_tokens=5).choices[0].text == text.answer("a b", 5)
    stream = ai.completions.create(model="m", prompt="a b", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text.answer("a b", 5)


def test_responses(ai: openai.OpenAI) -> None:
    answer = ai.responses.create(model="m", input="hello there")
    assert (answer.output_text, answer.status) == (ANSWER, "completed")
    assert answer.usage is not None
    assert answer.usage.output_tokens == LENGTH
    with ai.responses.stream(model="m", input="hello there") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == stream.get_final_response().output_text == ANSWER
    assert len(deltas) == LENGTH


def test_embeddings(ai: openai.OpenAI) -> None:
    floats = ai.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    packed = ai.embeddings.create(model="e", input=["a", "b"])  # which this client has sent in base64
    assert [one.index for one in floats.data] == [0, 1]
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-6)
    with pytest.raises(openai.NotFoundError) as caught:
        ai.embeddings.create(model="m", input="a")
    assert "model_not_found" not in str(caught.value), "it is the engine that refuses, not Shoal"


def test_models(ai: openai.OpenAI) -> None:
    assert [model.id for model in ai.models.list()] == ["dies", "e", "m", "off"]
    model = ai.models.retrieve("m")
    assert (model.id, model.object, model.owned_by) == ("m", "model", "shoal")
    assert model.model_extra is not None
    assert model.model_extra["state"] == "ready"
    with pytest.raises(openai.NotFoundError, match="nothing"):
        ai.models.retrieve("nothing")


def test_errors_are_those_that_openais_client_knows(ai: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match=r"'nothing' does not exist\. Known models: ") as unknown:
            ai.chat.completions.create(model="nothing", messages=HELLO, stream=stream)
        error = unknown.value
        assert (error.code, error.param, error.type) == ("model_not_found", "model", "not_found_error")
        assert error.request_id == error.response.headers["x-request-id"]
    with pytest.raises(openai.BadRequestError, match="max_model_len"):  # in the engine's words
        ai.chat.completions.create(model="m", messages=HELLO, max_tokens=10**6)
    with pytest.raises(openai.InternalServerError, match="off") as unready:
        ai.chat.completions.create(model="off", messages=HELLO)
    assert (unready.value.status_code, unready.value.code) == (503, "model_not_ready")


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_stream_that_breaks_off_raises_in_openais_client(ai: openai.OpenAI, api: str) -> None:
    got = 0
    with pytest.raises(openai.APIError, match="broke off while it answered") as caught:
        stream: Any = (
            ai.chat.completions.create(model="dies", messages=HELLO, stream=True)
            if api == "chat"
            else ai.responses.create(model="dies", input="hello there", stream=True)
        )
        for _ in stream:
            got += 1
    assert got
    assert caught.value.code == "engine_died"


def test_raw_headers(ai: openai.OpenAI) -> None:
    raw = ai.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    assert raw.headers["x-request-id"].startswith("req-")
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    assert int(raw.headers["x-shoal-overhead-us"]) >= 0
    own = ai.chat.completions.with_raw_response.create(
        model="m", messages=HELLO, extra_headers={"X-Request-Id": "my-own"}
    )
    assert own.headers["x-request-id"] == "my-own"


async def test_fifty_streams_at_once(shoal: Shoal) -> None:
    async with openai.AsyncOpenAI(base_url=f"{shoal.url}/v1", api_key="none", timeout=PATIENCE) as client:

        async def one(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"number {number}"}]
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*map(one, range(50)))
    assert answers == [text.answer(f"user: number {number}") for number in range(50)]


# -- anthropic ---------------------------------------------------------------------------------------------------------


def test_messages(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="m", max_tokens=99, messages=HELLO)
    assert [block.text for block in message.content if block.type == "text"] == [ANSWER]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", LENGTH)
    raw = claude.messages.with_raw_response.create(model="m", max_tokens=2, system="Be kind.", messages=HELLO)
    assert raw.headers["x-request-id"].startswith("req-")
    parsed = raw.parse()
    assert (parsed.stop_reason, parsed._request_id) == ("max_tokens", raw.headers["x-request-id"])


def test_message_streams(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="m", max_tokens=99, messages=HELLO) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == ANSWER
    assert len(pieces) == LENGTH
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, LENGTH)


def test_counting_tokens(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model="m", messages=HELLO).input_tokens == 3


async def test_fifty_message_streams_at_once(shoal: Shoal) -> None:
    async with anthropic.AsyncAnthropic(base_url=shoal.url, api_key="none", timeout=PATIENCE) as client:

        async def one(number: int) -> str:
            messages: Any = [{"role": "user", "content": f"number {number}"}]
            async with client.messages.stream(model="m", max_tokens=99, messages=messages) as stream:
                return await stream.get_final_text()

        answers = await asyncio.gather(*map(one, range(50)))
    assert answers == [text.answer(f"user: number {number}") for number in range(50)]


def said(error: anthropic.APIStatusError) -> tuple[str, str]:
    """Type and code of an error of Shoal's own, as the client has them."""
    body: Any = error.body
    assert body["type"] == "error"
    return body["error"]["type"], body["error"]["details"]["error_code"]


def test_errors_are_those_that_anthropics_client_knows(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match=r"'nothing' does not exist\. Known models: ") as unknown:
        claude.messages.create(model="nothing", max_tokens=9, messages=HELLO)
    assert said(unknown.value) == ("not_found_error", "model_not_found")
    with (
        pytest.raises(anthropic.NotFoundError, match="'nothing'"),
        claude.messages.stream(model="nothing", max_tokens=9, messages=HELLO) as stream,
    ):
        stream.get_final_text()
    with pytest.raises(anthropic.NotFoundError, match="'nothing'"):
        claude.messages.count_tokens(model="nothing", messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="max_model_len"):  # in the engine's words
        claude.messages.create(model="m", max_tokens=10**6, messages=HELLO)
    with pytest.raises(anthropic.APIStatusError, match="off") as unready:
        claude.messages.create(model="off", max_tokens=9, messages=HELLO)
    assert unready.value.status_code == 503
    assert said(unready.value) == ("overloaded_error", "model_not_ready")


def test_a_stream_that_breaks_off_raises_in_anthropics_client(claude: anthropic.Anthropic) -> None:
    pieces = []
    with (
        pytest.raises(anthropic.APIStatusError, match="broke off while it answered") as caught,
        claude.messages.stream(model="dies", max_tokens=99, messages=HELLO) as stream,
    ):
        for piece in stream.text_stream:
            pieces.append(piece)  # noqa: PERF402 - what came before the end counts
    assert pieces
    assert said(caught.value) == ("api_error", "engine_died")


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_in_openais_client(guarded: tuple[Shoal, str]) -> None:
    shoal, key = guarded
    for wrong, code in (("wrong", "invalid_key"), (key[:-1], "invalid_key")):
        with openai.OpenAI(base_url=f"{shoal.url}/v1", api_key=wrong, max_retries=0) as client:
            for ask in (client.models.list, lambda: client.chat.completions.create(model="m", messages=HELLO)):
                with pytest.raises(openai.AuthenticationError, match="not valid here") as caught:
                    ask()
                assert caught.value.code == code
    with openai.OpenAI(base_url=f"{shoal.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["m"]
        assert client.chat.completions.create(model="m", messages=HELLO, max_tokens=2).choices
        with pytest.raises(openai.PermissionDeniedError, match="is for m") as forbidden:
            client.chat.completions.create(model="n", messages=HELLO)
        assert forbidden.value.code == "model_not_allowed"


def test_keys_in_anthropics_client(guarded: tuple[Shoal, str]) -> None:
    shoal, key = guarded
    with anthropic.Anthropic(base_url=shoal.url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError, match="not valid here") as unauthorized:
            client.messages.create(model="m", max_tokens=2, messages=HELLO)
        assert said(unauthorized.value) == ("authentication_error", "invalid_key")
    with anthropic.Anthropic(base_url=shoal.url, api_key=key, max_retries=0) as client:
        assert client.messages.create(model="m", max_tokens=2, messages=HELLO).usage.output_tokens == 2
        with pytest.raises(anthropic.PermissionDeniedError, match="is for m") as forbidden:
            client.messages.create(model="n", max_tokens=2, messages=HELLO)
        assert said(forbidden.value) == ("permission_error", "model_not_allowed")


class Attempts:
    """What a client's attempts were answered, and when."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str | None, float]] = []

    def __call__(self, response: httpx2.Response) -> None:
        self.answers.append((response.status_code, response.headers.get("retry-after"), time.monotonic()))

    def check(self) -> None:
        """Refused, and come back, each time not before it was told to; then answered."""
        *refused, (status, _, _) = self.answers
        assert status == 200
        assert refused
        assert {(status, after) for status, after, _ in refused} == {(429, "1")}
        times = [at for _, _, at in self.answers]
        assert all(later - at >= 1 for at, later in pairwise(times))


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_who_is_refused_comes_back_when_told_to(guarded: tuple[Shoal, str], kind: str) -> None:
    shoal, key = guarded
    attempts = Attempts()
    with (
        openai.OpenAI(base_url=f"{shoal.url}/v1", api_key=key, max_retries=0) as busy,
        httpx2.Client(trust_env=False, timeout=PATIENCE, event_hooks={"response": [attempts]}) as http,
        ThreadPoolExecutor() as pool,
    ):
        stream = busy.chat.completions.create(
            model="m", messages=HELLO, stream=True, max_tokens=10_000, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="1 at once") as caught:
            busy.chat.completions.create(model="m", messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("rate_limited", "concurrent")
        assert caught.value.response.headers["retry-after"] == "1"

        def insist() -> object:
            if kind == "openai":
                one = openai.OpenAI(base_url=f"{shoal.url}/v1", api_key=key, max_retries=20, http_client=http)
                return one.chat.completions.create(model="m", messages=HELLO, max_tokens=2).choices[0].message.content
            other = anthropic.Anthropic(base_url=shoal.url, api_key=key, max_retries=20, http_client=http)
            (block,) = other.messages.create(model="m", messages=HELLO, max_tokens=2).content
            return block.text if block.type == "text" else block

        answer = pool.submit(insist)
        until(lambda: attempts.answers, "a refusal")
        stream.close()
        assert answer.result() == text.answer(PROMPT, 2)
    attempts.check()
