"""Anthropic's Messages API: requests read as chats, answers written in the shapes that vLLM gives them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from shoal.engines.simulated import completions
from shoal.engines.simulated.completions import Delta, Generation, RequestError, named_event
from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.http import Reply


def read(data: dict[str, Any], context: int) -> Generation:
    """A generation from a JSON body. `context`: the longest context in tokens. Raises RequestError."""
    if data.get("max_tokens") is None:
        raise completions.invalid("max_tokens", "Field required", "missing")
    generation = completions.read(_chat(data), chat=True, context=context)
    generation.id = f"msg_{uuid4().hex[:16]}"
    return generation


def count(data: dict[str, Any], context: int) -> dict[str, int]:
    """The answer to a question how many tokens a request has. Raises RequestError."""
    return {"input_tokens": completions.read(_chat(data), chat=True, context=context).prompt_tokens}


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in Anthropic's shape, with vLLM's words."""
    said = error.body["error"]
    return {"type": "error", "error": {"type": said["type"], "message": said["message"]}}


async def answer_whole(generation: Generation, sequences: list[Sequence], core: Core) -> dict[str, Any]:
    """The answer as one object."""
    text, end = await completions.whole_text(generation, sequences, core)
    return {
        **_message(generation),
        "content": [{"type": "text", "text": text}],
        **_end(end),
        "usage": _usage(generation, end.tokens),
    }


async def answer_stream(generation: Generation, sequences: list[Sequence], core: Core, reply: Reply) -> None:
    """Write server-sent events: the message's start, one block of text in pieces, why it ended, and its end.

    A request that the engine gives up ends with an event `error`.
    """

    async def send(kind: str, **fields: Any) -> None:
        await reply.write(named_event({"type": kind, **fields}))

    reply.start(200, "text/event-stream; charset=utf-8")
    begun = False
    try:
        async for delta in completions.deltas(generation, sequences, core):
            if not begun:
                begun = True
                message = {**_message(generation), "content": [], **_end(None), "usage": _usage(generation, 0)}
                await send("message_start", message=message)
                await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
            if delta.text:
                await send("content_block_delta", index=0, delta={"type": "text_delta", "text": delta.text})
            if delta.finish is not None:
                await send("content_block_stop", index=0)
                await send("message_delta", delta=_end(delta), usage=_usage(generation, delta.tokens))
                await send("message_stop")
    except RequestError as error:
        await reply.write(named_event(error_body(error)))
    reply.end()


def _chat(data: dict[str, Any]) -> dict[str, Any]:
    """The chat that a request comes to."""
    messages = data.get("messages")
    system = data.get("system")
    if system and isinstance(messages, list):
        messages = [{"role": "system", "content": system}, *messages]
    chat = {"model": data["model"], "messages": messages, "stop": data.get("stop_sequences")}
    return chat | {name: data[name] for name in ("max_tokens", "stream") if name in data}


def _message(generation: Generation) -> dict[str, Any]:
    return {"id": generation.id, "type": "message", "role": "assistant", "model": generation.model}


def _end(delta: Delta | None) -> dict[str, str | None]:
    if delta is None:
        return {"stop_reason": None, "stop_sequence": None}
    reason = "max_tokens" if delta.finish == "length" else "end_turn" if delta.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": delta.stop}


def _usage(generation: Generation, output: int) -> dict[str, int]:
    return {"input_tokens": generation.prompt_tokens, "output_tokens": output}
