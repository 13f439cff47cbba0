"""Speech to text: uploads transcribed whole, and the events of vLLM's realtime websocket.

What is heard depends on nothing but the bytes of the audio.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4
from zlib import crc32

from shoal.engines.simulated import completions
from shoal.engines.simulated.completions import Generation, RequestError
from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.http import Request
from shoal.engines.simulated.websocket import WebSocket

SECOND = 32_000
"""Bytes of a second: 16-bit samples at 16 kHz, as vLLM wants them on its websocket."""
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb'[; ]name="([^"]*)"', re.IGNORECASE)
Run = Callable[[Generation], AbstractAsyncContextManager[list[Sequence]]]


def fields(request: Request) -> dict[str, bytes]:
    """The fields of a multipart form, files among them. Raises RequestError."""
    boundary = _BOUNDARY.search(request.header("content-type"))
    if boundary is None:
        raise completions.invalid("file", "Field required", "missing")
    found: dict[str, bytes] = {}
    for part in (b"\r\n" + request.body).split(b"\r\n--" + boundary[1].encode("latin-1"))[1:-1]:
        head, separator, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not separator or name is None:
            raise RequestError(400, "There was an error parsing the body", "Bad Request")
        found[name[1].decode("utf-8", "replace")] = content
    if "file" not in found:
        raise completions.invalid("file", "Field required", "missing")
    return found


def heard(audio: bytes, model: str, context: int) -> Generation:
    """The generation that writes down what is said in `audio`."""
    chat = {"model": model, "messages": [{"role": "user", "content": f"audio {crc32(audio):08x}"}]}
    return completions.read(chat, chat=True, context=context)


def transcription(text: str, audio: bytes) -> dict[str, Any]:
    """The answer to an upload."""
    return {"text": text, "usage": {"type": "duration", "seconds": -(-len(audio) // SECOND)}}


class Realtime:
    """A session on a websocket: `session.update` names the model, `input_audio_buffer.append` brings audio,
    `input_audio_buffer.commit` has it written down, in events `transcription.delta` and one `transcription.done`."""

    def __init__(self, socket: WebSocket, model: str, context: int, core: Core, run: Run) -> None:
        self._socket = socket
        self._model = model
        self._context = context
        self._core = core
        self._run = run
        self._audio = bytearray()
        self._named = False

    async def serve(self) -> None:
        """Serve until the client closes."""
        await self._send("session.created", id=f"sess-{uuid4().hex}")
        while (message := await self._socket.receive()) is not None:
            try:
                event = json.loads(message)
            except ValueError:
                await self._refuse("Invalid JSON", "invalid_json")
                continue
            await self._handle(event if isinstance(event, dict) else {})

    async def _handle(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "session.update":
            self._named = event.get("model") == self._model
            if not self._named:
                await self._refuse(f"The model `{event.get('model')}` does not exist.", "model_not_found")
        elif kind == "input_audio_buffer.append":
            try:
                self._audio += base64.b64decode(str(event.get("audio")), validate=True)
            except ValueError:
                await self._refuse("Invalid audio data", "invalid_audio")
        elif kind == "input_audio_buffer.commit":
            if self._named:
                await self._transcribe()
            else:
                message = "Model not validated. Make sure to validate the model by sending a session.update event."
                await self._refuse(message, "model_not_validated")
        else:
            await self._refuse(f"Unknown event type: {kind}", "unknown_event")

    async def _transcribe(self) -> None:
        generation = heard(bytes(self._audio), self._model, self._context)
        self._audio.clear()
        text, tokens = "", 0
        try:
            async with self._run(generation) as sequences:
                async for delta in completions.deltas(generation, sequences, self._core):
                    text, tokens = text + delta.text, delta.tokens
                    await self._send("transcription.delta", delta=delta.text)
        except RequestError as error:
            await self._refuse(str(error), "processing_error")
            return
        prompt = generation.prompt_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        await self._send("transcription.done", text=text, usage=usage)

    async def _refuse(self, message: str, code: str) -> None:
        await self._send("error", error=message, code=code)

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))
