"""The paths of the simulated engine, each as vLLM answers it, and `/v1/echo` for tests."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal import __version__
from shoal.engines.simulated import completions, messages, responses, text
from shoal.engines.simulated.completions import Generation, RequestError
from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.http import Reply, Request
from shoal.engines.simulated.metrics import Metrics
from shoal.engines.simulated.options import Options
from shoal.engines.simulated.slumber import Slumber

if TYPE_CHECKING:
    from shoal.engines.simulated.elastic import Elastic
    from shoal.memory.elastic import ElasticTerms

_EMBEDDING_SIZE = 64
_QUIET = frozenset({"/health", "/metrics"})
_NOT_FOUND = "NotFoundError"
Endpoint = Callable[[Request, Reply], Awaitable[None]]


class _Dialect(NamedTuple):
    """How one API asks for text and is answered."""

    read: Callable[[dict[str, Any], int], Generation]
    whole: Callable[[Generation, list[Sequence], Core], Awaitable[dict[str, Any]]]
    stream: Callable[[Generation, list[Sequence], Core, Reply], Awaitable[None]]


_DIALECTS = {
    "/v1/chat/completions": _Dialect(completions.read_chat, completions.answer_whole, completions.answer_stream),
    "/v1/completions": _Dialect(completions.read_prompt, completions.answer_whole, completions.answer_stream),
    "/v1/messages": _Dialect(messages.read, messages.answer_whole, messages.answer_stream),
    "/v1/responses": _Dialect(responses.read, responses.answer_whole, responses.answer_stream),
}
_ANTHROPICS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})


class Api:
    """Answers requests. Made before the start, so that it can already hold memory."""

    def __init__(self, options: Options, crash: Callable[[], None], elastic: ElasticTerms | None = None) -> None:
        self._options = options
        self._crash = crash
        self.metrics = Metrics()
        self.core = Core(options, self.metrics)
        self.core.on_first_token = self._after_first_token
        self.elastic: Elastic | None = None
        if elastic is not None:
            # Only here: an engine with a fixed KV cache starts faster without.
            from shoal.engines.simulated.elastic import Elastic

            self.elastic = Elastic(elastic, options, self.core)
        self._vocabulary = text.Vocabulary()
        self._adapters: dict[str, str] = {}
        self._created = int(time.time())
        self._requests = 0
        self._active = 0
        self._hung = False
        self._slumber = Slumber(options, self.core, crash, log)
        if self.elastic is not None:
            self._slumber.on_sleep, self._slumber.on_wake = self.elastic.sleep, self.elastic.wake
        self._routes = self._table()

    def _table(self) -> dict[str, dict[str, Endpoint]]:
        routes: dict[str, dict[str, Endpoint]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._show_metrics},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/v1/echo": dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), self._echo),
        }
        # Like vLLM, a server has only the routes of its task; the others are 404.
        if self._options.task == "embed":
            routes["/v1/embeddings"] = {"POST": self._embeddings}
        elif self._options.task == "transcription":
            routes["/v1/audio/transcriptions"] = {"POST": self._transcribe}
            routes["/v1/realtime"] = {"GET": self._realtime}
        else:
            routes |= {path: {"POST": partial(self._generate, dialect)} for path, dialect in _DIALECTS.items()}
            routes["/v1/messages/count_tokens"] = {"POST": self._count_tokens}
        if self._options.enable_sleep_mode or os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            routes |= {
                "/sleep": {"POST": self._sleep},
                "/wake_up": {"POST": self._wake_up},
                "/is_sleeping": {"GET": self._is_sleeping},
                "/collective_rpc": {"POST": self._collective_rpc},
            }
        if self._options.enable_lora:
            routes |= {
                "/v1/load_lora_adapter": {"POST": self._load_adapter},
                "/v1/unload_lora_adapter": {"POST": self._unload_adapter},
            }
        return routes

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request; never returns while the engine hangs."""
        if self._hung:
            await asyncio.Event().wait()
        try:
            methods = self._routes.get(request.path)
            if methods is None:
                _json(reply, 404, {"detail": "Not Found"})
            elif request.method not in methods:
                allow = {"allow": ", ".join(methods)}
                _json(reply, 405, {"detail": "Method Not Allowed"}, allow)
            else:
                await methods[request.method](request, reply)
        except RequestError as error:
            body = messages.error_body(error) if request.path in _ANTHROPICS else error.body
            _json(reply, error.status, body)
        finally:
            if self._options.access_log and request.path not in _QUIET:
                line = f"{request.method} {request.target} HTTP/1.{request.minor}"
                log(f'INFO:     "{line}" {reply.status or "cancelled"}')

    async def _health(self, _: Request, reply: Reply) -> None:
        reply.send(200, b"", "text/plain; charset=utf-8")

    async def _version(self, _: Request, reply: Reply) -> None:
        _json(reply, 200, {"version": __version__})

    async def _load(self, _: Request, reply: Reply) -> None:
        _json(reply, 200, {"server_load": self._active})

    async def _show_metrics(self, _: Request, reply: Reply) -> None:
        gauges = {
            "vllm:num_requests_running": self.core.running,
            "vllm:num_requests_waiting": self.core.waiting,
            "vllm:kv_cache_usage_perc": self.core.kv_usage,
            "simulated:device_memory_bytes": self._device_memory(),
            "simulated:sleep_level": self._slumber.level or 0,
        }
        if self.elastic is not None:
            gauges |= {
                "simulated:kv_lease_bytes": self.elastic.lease,
                "simulated:kv_backed_bytes": self.elastic.backed,
                "simulated:kv_cached_bytes": self.elastic.cached,
            }
        page = self.metrics.render(self._options.served_model_name, gauges)
        reply.send(200, page.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _device_memory(self) -> int:
        """What it pretends to hold: its weights, and the KV cache unless that is really there."""
        cache = self.elastic.backed if self.elastic is not None and not self._options.simulated_resident else 0
        return self._slumber.device_memory + cache

    async def _models(self, _: Request, reply: Reply) -> None:
        name = self._options.served_model_name
        card = {"object": "model", "created": self._created, "owned_by": "simulated"}
        base = {"id": name, **card, "root": self._options.model, "parent": None}
        data = [{**base, "max_model_len": self._options.max_model_len}]
        data += [{"id": key, **card, "root": path, "parent": name} for key, path in self._adapters.items()]
        _json(reply, 200, {"object": "list", "data": data})

    async def _generate(self, dialect: _Dialect, request: Request, reply: Reply) -> None:
        generation = dialect.read(self._read(request), self._options.max_model_len)
        generation.seed += self._slumber.spoiled
        async with self._running(generation) as sequences:
            if generation.stream:
                await dialect.stream(generation, sequences, self.core, reply)
            else:
                _json(reply, 200, await dialect.whole(generation, sequences, self.core))

    async def _count_tokens(self, request: Request, reply: Reply) -> None:
        _json(reply, 200, messages.count(self._read(request), self._options.max_model_len))

    async def _transcribe(self, request: Request, reply: Reply) -> None:
        from shoal.engines.simulated import speech  # only here: most engines start faster without

        fields = speech.fields(request)
        self._check_model(fields.get("model", b"").decode("utf-8", "replace"))
        audio = fields["file"]
        generation = speech.heard(audio, self._options.served_model_name, self._options.max_model_len)
        async with self._running(generation) as sequences:
            said, _ = await completions.whole_text(generation, sequences, self.core)
        _json(reply, 200, speech.transcription(said, audio))

    async def _realtime(self, request: Request, reply: Reply) -> None:
        from shoal.engines.simulated import speech
        from shoal.engines.simulated.websocket import WebSocket, is_asked

        if not is_asked(request):
            _json(reply, 404, {"detail": "Not Found"})  # as where a path has none but a websocket
            return
        socket, name = WebSocket(request, reply), self._options.served_model_name
        await speech.Realtime(socket, name, self._options.max_model_len, self.core, self._running).serve()

    @asynccontextmanager
    async def _running(self, generation: Generation) -> AsyncIterator[list[Sequence]]:
        """The sequences of a request, which run for as long as the block."""
        await self._count()
        sequences = generation.sequences(self._requests, self._options.max_model_len)
        self._active += 1
        self.core.add(sequences)
        try:
            yield sequences
        except asyncio.CancelledError:
            self.metrics.cancelled += 1
            raise
        finally:
            self._active -= 1
            self.core.end(sequences, "abort")

    async def _count(self) -> None:
        """Number a request, and begin to hang if its number says so."""
        self._requests += 1
        hang, stall = self._options.fails_after("hang-after"), self._options.fails_after("hang-steps")
        if stall is not None and self._requests > stall:
            self.core.stall()
        if hang is not None and self._requests > hang:
            self._hung = True
            self.core.pause()
            await asyncio.Event().wait()

    def _after_first_token(self, request: int) -> None:
        if request == self._options.fails_after("crash-after"):
            # The token is on its way to the client first: a crash in the middle of an answer.
            asyncio.get_running_loop().call_later(0.05, self._crash)

    async def _embeddings(self, request: Request, reply: Reply) -> None:
        data = self._read(request)
        if "input" not in data:
            raise completions.invalid("input", "Field required", "missing")
        inputs = data["input"] if isinstance(data["input"], list) else [data["input"]]
        if inputs and all(isinstance(item, int) for item in inputs):
            inputs = [inputs]
        texts = [" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in inputs]
        tokens = sum(map(text.count, texts))
        vectors = []
        for index, item in enumerate(texts):
            vector = text.embedding(item, _EMBEDDING_SIZE)
            vectors.append({"index": index, "object": "embedding", "embedding": _encode(vector, data)})
        self.metrics.prompt_tokens += tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        head = {"id": f"embd-{os.urandom(8).hex()}", "object": "list", "created": int(time.time())}
        _json(reply, 200, {**head, "model": data["model"], "data": vectors, "usage": usage})

    async def _tokenize(self, request: Request, reply: Reply) -> None:
        data = self._read(request, named=False)
        prompt = data.get("prompt")
        if prompt is None:
            prompt = "\n".join(str(message.get("content", "")) for message in data.get("messages") or [])
        tokens = self._vocabulary.encode(str(prompt))
        size = {"count": len(tokens), "max_model_len": self._options.max_model_len}
        _json(reply, 200, {**size, "tokens": tokens, "token_strs": None})

    async def _detokenize(self, request: Request, reply: Reply) -> None:
        tokens = self._read(request, named=False).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise completions.invalid("tokens", "Field required", "missing")
        _json(reply, 200, {"prompt": self._vocabulary.decode(tokens)})

    async def _sleep(self, request: Request, reply: Reply) -> None:
        _json(reply, 200, await self._slumber.sleep(request))

    async def _wake_up(self, request: Request, reply: Reply) -> None:
        _json(reply, 200, await self._slumber.wake_up(request))

    async def _collective_rpc(self, request: Request, reply: Reply) -> None:
        asked = self._read(request, named=False)
        _json(reply, 200, {"results": [self._slumber.call(asked.get("method"), asked.get("args"))]})

    async def _is_sleeping(self, _: Request, reply: Reply) -> None:
        _json(reply, 200, {"is_sleeping": self._slumber.level is not None})

    async def _load_adapter(self, request: Request, reply: Reply) -> None:
        data = self._read(request, named=False)
        name, path = str(data.get("lora_name") or ""), str(data.get("lora_path") or "")
        if not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            raise RequestError(400, message, "InvalidUserInput")
        if name in self._adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            raise RequestError(400, message, "InvalidUserInput")
        self._adapters[name] = path
        reply.send(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), "text/plain; charset=utf-8")

    async def _unload_adapter(self, request: Request, reply: Reply) -> None:
        name = str(self._read(request, named=False).get("lora_name") or "")
        if not name:
            raise RequestError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
        if self._adapters.pop(name, None) is None:
            raise RequestError(404, f"The lora adapter '{name}' cannot be found.", _NOT_FOUND)
        reply.send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), "text/plain; charset=utf-8")

    async def _echo(self, request: Request, reply: Reply) -> None:
        """What arrived, untouched: method, target as `path`, headers in order and case, body in base64."""
        body = base64.b64encode(request.body).decode()
        _json(reply, 200, {"method": request.method, "path": request.target, "headers": request.headers, "body": body})

    def _read(self, request: Request, *, named: bool = True) -> dict[str, Any]:
        """The JSON object of a request; if `named`, for a model that is served here. Raises RequestError."""
        kind = request.header("content-type").split(";")[0].strip().lower()
        if kind != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise RequestError(400, message, "Bad Request")
        try:
            data = json.loads(request.body)
        except json.JSONDecodeError as error:
            message = "JSON decode error"
            raise completions.invalid(str(error.pos), f"{message}: {error.msg}", "json_invalid") from None
        except (UnicodeDecodeError, RecursionError):
            raise RequestError(400, "There was an error parsing the body", "Bad Request") from None
        if not isinstance(data, dict):
            raise RequestError(400, "1 validation error:\n  Input should be a valid dictionary", "Bad Request")
        if not named:
            return data
        # vLLM takes a request that names no model as one for the model that it serves.
        model = data.setdefault("model", self._options.served_model_name)
        if not isinstance(model, str):
            raise completions.invalid("model", "Input should be a valid string", "string_type")
        self._check_model(model)
        return data

    def _check_model(self, model: str) -> None:
        """Raise RequestError for a model that is not served here."""
        if model != self._options.served_model_name and model not in self._adapters:
            aliases = ", ".join([self._options.served_model_name, *self._adapters])
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
            raise RequestError(404, message, _NOT_FOUND, "model")


def log(line: str) -> None:
    """Print a line. A log that nobody reads any more must not end a request."""
    try:
        print(line, flush=True)  # noqa: T201 - standard output is this process's log
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - kept for the rest of the process


def _json(reply: Reply, status: int, data: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    reply.send(status, body, "application/json", headers)


def _encode(vector: list[float], data: dict[str, Any]) -> list[float] | str:
    if data.get("encoding_format") != "base64":
        return vector
    from array import array

    return base64.b64encode(array("f", vector).tobytes()).decode()
