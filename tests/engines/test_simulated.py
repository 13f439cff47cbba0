"""What the simulated engine answers, as a real process."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import openai
import pytest

from shoal.engines.simulated import text
from tests.engines.simulated_process import CHAT, DEADLINE, Process

PROMPT = "user: hello there"
COMPLETION = {"model": "fish", "prompt": "once upon a time"}


@pytest.fixture(scope="module")
def shared() -> object:
    with Process() as engine:
        asyncio.run(engine.ready())
        yield engine


async def test_chat() -> None:
    with Process() as engine:
        await engine.ready()
        first, second = [(await engine.post("/v1/chat/completions", CHAT)).json for _ in range(2)]
        assert first["object"] == "chat.completion"
        assert first["model"] == "fish"
        [choice] = first["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == text.answer(PROMPT) == second["choices"][0]["message"]["content"]
        assert choice["finish_reason"] == "stop"
        usage = first["usage"]
        assert usage["prompt_tokens"] == 3
        assert usage["completion_tokens"] == text.natural_length(PROMPT, 0)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_chat_stream_has_a_role_then_the_pieces_then_the_usage() -> None:
    with Process() as engine:
        await engine.ready()
        body = {**CHAT, "max_tokens": 4, "stream_options": {"include_usage": True}}
        role, *pieces, usage = await engine.stream("/v1/chat/completions", body)
        assert role["object"] == "chat.completion.chunk"
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == text.answer(PROMPT, 4)
        assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, None, None, "length"]
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert len({event["id"] for event in (role, *pieces, usage)}) == 1
        assert all("usage" not in piece for piece in pieces)


async def test_completions_in_all_forms() -> None:
    with Process() as engine:
        await engine.ready()
        answer = (await engine.post("/v1/completions", COMPLETION)).json
        assert answer["object"] == "text_completion"
        assert answer["usage"]["completion_tokens"] <= 16, "vLLM's default"
        assert text.answer(COMPLETION["prompt"]).startswith(answer["choices"][0]["text"])
        pieces = await engine.stream("/v1/completions", {**COMPLETION, "max_tokens": 3})
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == text.answer(COMPLETION["prompt"], 3)
        several = (await engine.post("/v1/completions", {**COMPLETION, "prompt": ["a b", "c"], "n": 2})).json
        assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
        assert len({choice["text"] for choice in several["choices"]}) == 4
        assert several["usage"]["prompt_tokens"] == 3
        assert (await engine.post("/v1/completions", {**COMPLETION, "prompt": [1, 2, 3]})).status == 200
        long = (await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 99, "ignore_eos": True})).json
        assert long["usage"]["completion_tokens"] == 99
        assert long["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_an_answer_even_across_tokens(stream: bool) -> None:
    whole = text.answer(PROMPT)
    stop = whole[20:29]
    with Process() as engine:
        await engine.ready()
        body = {**CHAT, "stop": [stop, "never"]}
        if stream:
            _, *pieces = [event["choices"][0] for event in await engine.stream("/v1/chat/completions", body)]
            got, last = "".join(piece["delta"]["content"] for piece in pieces), pieces[-1]
        else:
            last = (await engine.post("/v1/chat/completions", body)).json["choices"][0]
            got = last["message"]["content"]
        assert got == whole[: whole.index(stop)]
        assert last["finish_reason"] == "stop"
        assert last["stop_reason"] == stop
        assert await engine.sample("vllm:num_requests_running") == 0


async def test_the_official_client_over_tcp() -> None:
    argv = [sys.executable, "-m", "shoal.engines.simulated", "--served-model-name", "a/b", "--port", "0"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while not (match := re.search(rb"http://127\.0\.0\.1:(\d+)", await process.stdout.readline())):
                pass
            await process.stdout.readline()
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{int(match[1])}/v1", api_key="none") as client:
            assert [model.id async for model in client.models.list()] == ["a/b"]
            chat = await client.chat.completions.create(model="a/b", messages=[{"role": "user", "content": "hi"}])
            assert chat.choices[0].message.content == text.answer("user: hi")
            stream = await client.chat.completions.create(
                model="a/b",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(pieces) == text.answer("user: hi")
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == len(pieces) - 1
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.completions.create(model="other", prompt="x")
            with pytest.raises(openai.NotFoundError):
                await client.embeddings.create(model="a/b", input="x")
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_embeddings_where_the_task_is_embed() -> None:
    with Process(("--task", "embed")) as engine:
        await engine.ready()
        answer = (await engine.post("/v1/embeddings", {"model": "fish", "input": ["a b", "c", "a b"]})).json
        first, other, again = [item["embedding"] for item in answer["data"]]
        assert first == again != other
        assert sum(x * x for x in first) == pytest.approx(1)
        assert answer["usage"]["prompt_tokens"] == 5
        refused = await engine.post("/v1/chat/completions", CHAT)
        assert refused.status == 404


async def test_small_endpoints() -> None:
    with Process(context_length=2048) as engine:
        await engine.ready()
        assert (await engine.get("/ping")).status == 200
        assert "version" in (await engine.get("/version")).json
        assert (await engine.get("/load")).json == {"server_load": 0}
        [model] = (await engine.get("/v1/models")).json["data"]
        assert (model["id"], model["root"], model["max_model_len"]) == ("fish", "any", 2048)
        tokens = (await engine.post("/tokenize", {"model": "fish", "prompt": "one two one"})).json
        assert tokens["count"] == 3
        assert tokens["tokens"][0] == tokens["tokens"][2]
        assert (await engine.post("/detokenize", {"tokens": tokens["tokens"]})).json == {"prompt": "one two one"}
        assert (await engine.get("/nothing")).json == {"detail": "Not Found"}
        assert (await engine.get("/v1/completions")).status == 405
        assert (await engine.post("/sleep")).status == 404, "only where it was asked for"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"model":', 400, "JSON decode error"),
        (b"[]", 400, "valid dictionary"),
        (b"\xff", 400, "pars"),
        (b'{"model": "fish"}', 400, "Field required"),
        (b'{"model": "shark", "messages": []}', 404, "The model `shark` does not exist. Valid aliases: fish."),
        (b'{"model": {}, "messages": []}', 400, "valid string"),
        (b'{"model": "fish", "messages": "x"}', 400, "list of messages"),
        (b'{"model": "fish", "messages": [], "max_tokens": 0}', 400, "at least 1"),
        (b'{"model": "fish", "messages": [], "max_tokens": 9999999}', 400, "cannot be greater than max_model_len"),
        (b'{"model": "fish", "messages": [], "n": "x"}', 400, "valid integer"),
        (b'{"model": "fish", "messages": [], "stop": [1]}', 400, "list of strings"),
        (b'{"model": "fish", "messages": [], "stream_options": {}}', 200, "choices"),
        (b'{"model": "fish", "messages": [], "stream_options": {"include_usage": true}}', 400, "stream=True"),
        (b'{"model": "fish", "messages": [{"content": "' + b"x " * 40000 + b'"}]}', 400, "maximum context length"),
    ],
)
async def test_bad_requests(shared: Process, body: bytes, status: int, words: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await shared.request("POST", "/v1/chat/completions", data=body, headers=headers)
    assert answer.status == status, answer.text
    if status == 200:
        assert words in answer.json
    else:
        assert words in answer.json["error"]["message"]
        assert answer.json["error"]["code"] == status


async def test_other_content_types_are_refused(shared: Process) -> None:
    answer = await shared.request("POST", "/v1/completions", data=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status, "Unsupported Media Type" in answer.text) == (400, True)
