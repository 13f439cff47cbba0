"""Chat completions and completions: requests read, answers written, in vLLM's shapes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from shoal.engines.simulated import text
from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.http import Reply

FINGERPRINT = "simulated"
_MAX_CHOICES = 16


class RequestError(Exception):
    """What vLLM refuses, in its words and its error shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def invalid(field_name: str, message: str, kind: str = "value_error") -> RequestError:
    """A field that vLLM's validation refuses."""
    where = f"body.{field_name}"
    detail = {"type": kind, "loc": where, "msg": message}
    return RequestError(400, f"1 validation error:\n  {detail}", "Bad Request", where)


@dataclass(slots=True)
class Generation:
    """A request for text, read."""

    chat: bool
    model: str
    prompts: list[str]
    max_tokens: int | None
    n: int
    stop: list[str]
    stream: bool
    usage: bool
    continuous_usage: bool
    seed: int
    exact: bool
    id: str
    created: int

    @property
    def prompt_tokens(self) -> int:
        return sum(text.count(prompt) for prompt in self.prompts)

    def sequences(self, request: int, context: int) -> list[Sequence]:
        """One sequence per prompt and choice."""
        tokens: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()
        sequences: list[Sequence] = []
        for prompt in self.prompts:
            count = text.count(prompt)
            room = context - count if self.max_tokens is None else min(self.max_tokens, context - count)
            for choice in range(self.n):
                seed = self.seed + choice
                natural = room + 1 if self.exact else text.natural_length(prompt, seed)
                finish = "stop" if natural <= room else "length"
                length = min(natural, room)
                sequences.append(Sequence(len(sequences), prompt, count, seed, length, finish, request, tokens))
        return sequences


def read_chat(data: dict[str, Any], context: int) -> Generation:
    """A chat from a JSON body; see `read`."""
    return read(data, chat=True, context=context)


def read_prompt(data: dict[str, Any], context: int) -> Generation:
    """A completion from a JSON body; see `read`."""
    return read(data, chat=False, context=context)


def read(data: dict[str, Any], *, chat: bool, context: int) -> Generation:
    """A generation from a JSON body. `context`: the longest context in tokens. Raises RequestError."""
    prompts = [_chat_prompt(data)] if chat else _prompts(data)
    max_tokens = data.get("max_completion_tokens", data.get("max_tokens")) if chat else data.get("max_tokens", 16)
    if max_tokens is not None:
        _integer("max_tokens", max_tokens, 1)
        if max_tokens > context:
            message = f"max_tokens={max_tokens} cannot be greater than max_model_len={context}. Please request fewer"
            detail = f"{message} output tokens. (parameter=max_tokens, value={max_tokens})"
            raise RequestError(400, detail, param="max_tokens")
    for prompt in prompts:
        if text.count(prompt) >= context:
            raise RequestError(
                400,
                f"This model's maximum context length is {context} tokens. However, your request has "
                f"{text.count(prompt)} input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
    stop = data.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        raise invalid("stop", "Input should be a valid string or list of strings", "string_type")
    options = data.get("stream_options") or {}
    if options and not data.get("stream"):
        raise invalid("stream_options", "Stream options can only be defined when `stream=True`.")
    if not isinstance(options, dict):
        raise invalid("stream_options", "Input should be a valid dictionary", "dict_type")
    return Generation(
        chat=chat,
        model=data["model"],
        prompts=prompts,
        max_tokens=max_tokens,
        n=_integer("n", data.get("n") or 1, 1, _MAX_CHOICES),
        stop=[item for item in stop if item],
        stream=bool(data.get("stream")),
        usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        seed=_integer("seed", data.get("seed") or 0, None),
        exact=bool(data.get("ignore_eos")),
        id=("chatcmpl-" if chat else "cmpl-") + uuid4().hex[:16],
        created=int(time.time()),
    )


def _integer(name: str, value: object, low: int | None, high: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(name, "Input should be a valid integer", "int_type")
    if low is not None and value < low:
        raise RequestError(400, f"{name} must be at least {low}, got {value}.", param=name)
    if high is not None and value > high:
        raise RequestError(400, f"{name} must be at most {high}, got {value}.", param=name)
    return value


def _chat_prompt(data: dict[str, Any]) -> str:
    messages = data.get("messages")
    if messages is None:
        raise invalid("messages", "Field required", "missing")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise invalid("messages", "Input should be a valid list of messages", "list_type")
    lines = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        lines.append(f"{message.get('role', '')}: {content or ''}")
    return "\n".join(lines)


def _prompts(data: dict[str, Any]) -> list[str]:
    prompt = data.get("prompt")
    if prompt is None:
        raise invalid("prompt", "Field required", "missing")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return prompt
        if all(isinstance(item, int) for item in prompt):
            return [" ".join(map(str, prompt))]
        if all(isinstance(item, list) and all(isinstance(token, int) for token in item) for item in prompt):
            return [" ".join(map(str, item)) for item in prompt]
    raise invalid("prompt", "Input should be a string, a list of strings, or lists of token ids")


@dataclass(slots=True)
class Delta:
    """A piece of one choice. `tokens`: how many the choice has so far."""

    index: int
    text: str
    tokens: int
    finish: str | None = None
    stop: str | None = None


class Stops:
    """Finds stop strings in one choice's text, and holds back what may yet become one."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self._hold = max(map(len, stop), default=1) - 1
        self._held = ""

    def feed(self, piece: str, last: bool) -> tuple[str, str | None]:
        """What may be shown, and the stop string that ended the text, if one did."""
        self._held += piece
        found = [(at, item) for item in self._stop if (at := self._held.find(item)) >= 0]
        if found:
            at, item = min(found)
            return self._held[:at], item
        cut = len(self._held) if last else max(0, len(self._held) - self._hold)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, None


async def deltas(generation: Generation, sequences: list[Sequence], core: Core) -> AsyncIterator[Delta]:
    """The pieces of all choices as they come, each to its end. Raises RequestError if the engine gives one up."""
    stops = [Stops(generation.stop) for _ in sequences]
    produced = [0] * len(sequences)
    left = {sequence.index for sequence in sequences}
    while left:
        index, token, finish = await sequences[0].tokens.get()
        if index not in left:
            continue  # made before its sequence was stopped
        if finish == "error":
            raise RequestError(500, token, "InternalServerError")
        produced[index] += finish != "abort"
        shown, stop = stops[index].feed(token, finish is not None)
        if stop is not None:
            finish = "stop"
            core.end([sequences[index]], "stop")
        if finish is not None:
            left.discard(index)
        yield Delta(index, shown, produced[index], finish, stop)


async def whole_text(generation: Generation, sequences: list[Sequence], core: Core) -> tuple[str, Delta]:
    """The text of the only choice, and its last piece. Raises RequestError if the engine gives it up."""
    pieces = [delta async for delta in deltas(generation, sequences, core)]
    return "".join(piece.text for piece in pieces), pieces[-1]


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _line(data: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def named_event(data: dict[str, Any]) -> bytes:
    """A server-sent event that has its `type` for its name."""
    return b"event: %b\n%b" % (data["type"].encode(), _line(data))


async def answer_stream(generation: Generation, sequences: list[Sequence], core: Core, reply: Reply) -> None:
    """Write server-sent events: a role chunk first (chat), the pieces, the usage if asked for, `[DONE]`.

    A request that the engine gives up ends with an event that holds the error.
    """
    kind = "chat.completion.chunk" if generation.chat else "text_completion"
    base = {"id": generation.id, "object": kind, "created": generation.created, "model": generation.model}
    prompt_tokens = generation.prompt_tokens
    produced = [0] * len(sequences)

    async def chunk(choice: dict[str, Any]) -> None:
        data = {**base, "choices": [choice]}
        if generation.continuous_usage:
            data["usage"] = _usage(prompt_tokens, sum(produced))
        await reply.write(_line(data))

    reply.start(200, "text/event-stream; charset=utf-8")
    begun = False
    try:
        async for delta in deltas(generation, sequences, core):
            if not begun:
                begun = True
                for sequence in sequences if generation.chat else []:
                    role = {"role": "assistant", "content": ""}
                    await chunk({"index": sequence.index, "delta": role, "logprobs": None, "finish_reason": None})
            produced[delta.index] = delta.tokens
            if not delta.text and delta.finish is None:
                continue
            choice: dict[str, Any] = {"index": delta.index}
            choice |= {"delta": {"content": delta.text}} if generation.chat else {"text": delta.text}
            choice |= {"logprobs": None, "finish_reason": delta.finish}
            if delta.finish is not None or not generation.chat:
                choice["stop_reason"] = delta.stop
            await chunk({**choice, "token_ids": None})
    except RequestError as error:
        await reply.write(_line(error.body))
        await reply.write(b"data: [DONE]\n\n")
        reply.end()
        return
    if generation.usage:
        usage = _usage(prompt_tokens, sum(produced))
        await reply.write(_line({**base, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}))
    await reply.write(b"data: [DONE]\n\n")
    reply.end()


async def answer_whole(generation: Generation, sequences: list[Sequence], core: Core) -> dict[str, Any]:
    """The answer as one object."""
    texts = [""] * len(sequences)
    ends: dict[int, Delta] = {}
    async for delta in deltas(generation, sequences, core):
        texts[delta.index] += delta.text
        if delta.finish is not None:
            ends[delta.index] = delta
    choices = []
    for index, content in enumerate(texts):
        choice: dict[str, Any] = {"index": index}
        if generation.chat:
            choice["message"] = {"role": "assistant", "content": content, "refusal": None, "reasoning": None}
        else:
            choice["text"] = content
        choice |= {"logprobs": None, "finish_reason": ends[index].finish, "stop_reason": ends[index].stop}
        choices.append({**choice, "token_ids": None})
    return {
        "id": generation.id,
        "object": "chat.completion" if generation.chat else "text_completion",
        "created": generation.created,
        "model": generation.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {
            **_usage(generation.prompt_tokens, sum(end.tokens for end in ends.values())),
            "prompt_tokens_details": None,
        },
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }
