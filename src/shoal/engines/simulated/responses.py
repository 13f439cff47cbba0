"""OpenAI's Responses API: requests read as chats, answers written as its events. Nothing is stored."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from shoal.engines.simulated import completions
from shoal.engines.simulated.completions import Delta, Generation, RequestError, named_event
from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.http import Reply


def read(data: dict[str, Any], context: int) -> Generation:
    """A generation from a JSON body. `context`: the longest context in tokens. Raises RequestError."""
    given = data.get("input")
    if given is None:
        raise completions.invalid("input", "Field required", "missing")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if isinstance(messages, list) and data.get("instructions"):
        messages = [{"role": "system", "content": data["instructions"]}, *messages]
    chat = {"model": data["model"], "messages": messages, "stream": data.get("stream")}
    if data.get("max_output_tokens") is not None:
        chat["max_tokens"] = data["max_output_tokens"]
    generation = completions.read(chat, chat=True, context=context)
    generation.id = f"resp_{uuid4().hex[:16]}"
    return generation


async def answer_whole(generation: Generation, sequences: list[Sequence], core: Core) -> dict[str, Any]:
    """The answer as one object."""
    return _response(generation, *await completions.whole_text(generation, sequences, core))


async def answer_stream(generation: Generation, sequences: list[Sequence], core: Core, reply: Reply) -> None:
    """Write server-sent events: the response's start, one message with one part in pieces, and the whole response.

    A request that the engine gives up ends with an event `error`.
    """
    number = 0

    async def send(kind: str, **fields: Any) -> None:
        nonlocal number
        await reply.write(named_event({"type": kind, "sequence_number": number, **fields}))
        number += 1

    reply.start(200, "text/event-stream; charset=utf-8")
    text = ""
    place = {"item_id": _item_id(generation), "output_index": 0, "content_index": 0}
    try:
        await send("response.created", response=_response(generation))
        await send("response.in_progress", response=_response(generation))
        await send("response.output_item.added", output_index=0, item=_item(generation, None, "in_progress"))
        await send("response.content_part.added", **place, part=_part(""))
        async for delta in completions.deltas(generation, sequences, core):
            if delta.text:
                text += delta.text
                await send("response.output_text.delta", **place, delta=delta.text, logprobs=[])
            if delta.finish is not None:
                whole = _response(generation, text, delta)
                await send("response.output_text.done", **place, text=text, logprobs=[])
                await send("response.content_part.done", **place, part=_part(text))
                await send("response.output_item.done", output_index=0, item=whole["output"][0])
                await send(f"response.{whole['status']}", response=whole)
    except RequestError as error:
        said = error.body["error"]
        await send("error", code=said["type"], message=said["message"], param=said["param"])
    reply.end()


def _response(generation: Generation, text: str = "", end: Delta | None = None) -> dict[str, Any]:
    status = "in_progress" if end is None else "incomplete" if end.finish == "length" else "completed"
    prompt, output = generation.prompt_tokens, 0 if end is None else end.tokens
    return {
        "id": generation.id,
        "object": "response",
        "created_at": generation.created,
        "status": status,
        "model": generation.model,
        "output": [] if end is None else [_item(generation, text, status)],
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None
        if end is None
        else {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + output,
        },
    }


def _item(generation: Generation, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    head = {"id": _item_id(generation), "type": "message", "role": "assistant"}
    return {**head, "status": status, "content": content}


def _item_id(generation: Generation) -> str:
    return generation.id.replace("resp_", "msg_")


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
