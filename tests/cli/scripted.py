"""A server that answers like the admin API, by a script: what the command line and the page are tested against."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from shoal.api.page import CONTENT_SECURITY_POLICY
from shoal.dashboard import STATIC
from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec

View = dict[str, Any]
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
GIB = 2**30


def instance(id_: str, model: str, state: str, **fields: Any) -> View:
    """An InstanceView."""
    now = time.time()
    view: View = {
        "id": id_, "model": model, "engine": "simulated", "state": state, "reason": "", "devices": ["cuda:0"],
        "created_at": now, "changed_at": now, "ready_at": None, "pid": 4242, "address": f"unix:/run/{id_}.sock",
        "environment": "simulated", "restarts": 0, "restart_at": None, "progress": None, "failure": None,
        "memory": memory(), "outdated": False, "can_sleep": True, "sleepless_because": "", "sleep_level": None,
        "wanted_awake": False,
    }  # fmt: skip
    return view | fields


def pool(**fields: Any) -> View:
    """A PoolView."""
    view: View = dict.fromkeys(("headroom", "others", "leased", "owed", "held_back", "backed", "used", "cached"), 0)
    return view | {"budget": 130 * GIB, "limit": None} | fields


def memory(**fields: Any) -> View:
    """A MemoryView; of an instance that leases something, where `lease` is given."""
    view: View = {
        "mode": "elastic", "reason": "", "held": {}, "weights": None, "leases": [], "floor": None, "ceiling": None,
        "priority": None, "lease": None, "backed": None, "used": None, "cached": None, "missing": None, "waiting": None,
    }  # fmt: skip
    if "lease" in fields:
        none = dict.fromkeys(("floor", "backed", "used", "cached", "missing", "waiting"), 0)
        view |= none | {"priority": 100}
    return view | fields


def device(id_: str, **fields: Any) -> View:
    """A DeviceView."""
    view: View = {
        "id": id_, "kind": "cuda", "name": "NVIDIA H200", "memory_total": 140 * GIB, "memory_used": 60 * GIB,
        "utilization": 0.42, "temperature": 51.0, "power": 388.0, "error": None, "instances": [],
        "pool": None,
    }  # fmt: skip
    return view | fields


class ScriptedShoal:
    """State that tests set, and the requests that came. `stages` are what an instance goes through on a load."""

    def __init__(self) -> None:
        self.url = ""
        self.models: dict[str, View] = {}
        self.stopped: list[View] = []
        self.devices: list[View] = [device("cuda:0"), device("cuda:1", memory_used=2 * GIB, utilization=None)]
        self.history: list[View] = []
        self.logs: dict[str, list[str]] = {}
        self.stages: list[View] = [
            {"state": "queued", "reason": "waits for cuda:0"},
            {"state": "starting", "progress": {"phase": "loading weights", "percent": 40, "seconds_left": 3.0}},
            {"state": "ready"},
        ]
        self.naps: dict[str, list[View]] = {
            "sleep": [{"state": "draining"}, {"state": "sleeping", "reason": "slept after 0.3 s, 4.1 GiB came back"}],
            "wake": [{"state": "waking"}, {"state": "ready", "reason": "awake after 0.5 s and answers as before"}],
        }
        self.requests: list[tuple[str, str, Any]] = []
        self.answer: list[str] = ["Hel", "lo ", "[b]you[/b]"]
        self.warning = ""
        self.answer_delay = 0.0
        self.hang = threading.Event()
        self.drop_events_after: int | None = None
        self.event_connections = 0
        self.lock = threading.RLock()
        self._watchers: list[queue.Queue[tuple[str, Any]]] = []
        self._count = 0

    def add(self, name: str, *instances: View, desired: int | None = None, **spec: Any) -> View:
        """Put a model there."""
        full = ModelSpec(**{"name": name, "source": "toy", "engine": "simulated", **spec}).model_dump(mode="json")
        view = {
            "name": name, "origin": "api", "created_at": time.time(), "state": "unloaded", "spec": full,
            "desired": len(instances) if desired is None else desired, "instances": list(instances),
        }  # fmt: skip
        with self.lock:
            self.models[name] = view
        self.publish(name)
        return view

    def publish(self, name: str) -> None:
        """Tell every watcher how a model is now."""
        with self.lock:
            model = self.models[name]
            order = ["ready", "waking", "starting", "queued", "sleeping", "draining", "stopping", "failed"]
            states = [one["state"] for one in model["instances"]]
            model["state"] = next((state for state in order if state in states), "unloaded")
            self.tell("model", json.loads(json.dumps(model)))

    def tell(self, kind: str, data: Any) -> None:
        """Send an event to every watcher."""
        with self.lock:
            for watcher in self._watchers:
                watcher.put((kind, data))

    def snapshot(self) -> View:
        return {"version": 1, "status": self.status(), "models": list(self.models.values()), "devices": self.devices}

    def status(self) -> View:
        counts: dict[str, int] = {}
        for model in self.models.values():
            for one in model["instances"]:
                counts[one["state"]] = counts.get(one["state"], 0) + 1
        return {
            "version": "9.9", "started_at": time.time() - 75, "instances": counts, "models": len(self.models),
            "relays": 1, "store": {"ok": True, "problem": None, "unsaved": 0},
            "memory": {"ok": True, "problem": None, "socket": "/run/memory.sock"}, "config_file": None, "warnings": [],
        }  # fmt: skip

    def load(self, name: str, wanted: int | None) -> tuple[int, View]:
        with self.lock:
            model = self.models[name]
            if any(one["state"] == "ready" for one in model["instances"]):
                return 200, model
            self._count += 1
            model["desired"] = wanted or 1
            model["instances"] = [instance(f"i-{self._count}", name, **self.stages[0])]
            self.publish(name)
            threading.Thread(target=self._walk, args=(name, self.stages[1:]), daemon=True).start()
            return 202, model

    def unload(self, name: str) -> tuple[int, View]:
        with self.lock:
            model = self.models[name]
            model["desired"] = 0
            live = [one for one in model["instances"] if one["state"] not in ("failed", "stopped")]
            if not live:
                model["instances"] = []
                return 200, model
            stages = [{"state": "stopping"}, {"state": "stopped"}]
            threading.Thread(target=self._walk, args=(name, stages), daemon=True).start()
            for one in live:
                one["state"] = "draining"
            return 202, model

    def nap(self, name: str, stages: list[View]) -> tuple[int, View]:
        """Have a model's instances go through `stages`; nothing changes without any."""
        with self.lock:
            model = self.models[name]
            if not stages:
                return 200, model
            for one in model["instances"]:
                one |= stages[0]
            self.publish(name)
            threading.Thread(target=self._walk, args=(name, stages[1:]), daemon=True).start()
            return 202, model

    def _walk(self, name: str, stages: list[View]) -> None:
        for stage in stages:
            time.sleep(0.1)
            with self.lock:
                model = self.models[name]
                for one in model["instances"]:
                    one |= {"progress": None, "reason": ""} | stage
                self.stopped += [one for one in model["instances"] if one["state"] == "stopped"]
                model["instances"] = [one for one in model["instances"] if one["state"] != "stopped"]
                self.publish(name)

    def watch(self) -> queue.Queue[tuple[str, Any]]:
        with self.lock:
            watcher: queue.Queue[tuple[str, Any]] = queue.Queue()
            watcher.put(("snapshot", json.loads(json.dumps(self.snapshot()))))
            self._watchers.append(watcher)
            self.event_connections += 1
            return watcher

    def unwatch(self, watcher: queue.Queue[tuple[str, Any]]) -> None:
        with self.lock:
            self._watchers.remove(watcher)

    def instances(self) -> list[View]:
        with self.lock:
            return [one for model in self.models.values() for one in model["instances"]]


def _handler(shoal: ScriptedShoal) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            self._handle("GET")

        def do_POST(self) -> None:
            self._handle("POST")

        def do_DELETE(self) -> None:
            self._handle("DELETE")

        def do_PATCH(self) -> None:
            self._handle("PATCH")

        def _handle(self, method: str) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            shoal.requests.append((method, self.path, body))
            try:
                if shoal.answer_delay:
                    shoal.hang.wait(shoal.answer_delay)
                self._route(method, parts.path, query, body)
            except ShoalError as error:
                self._json(error.body(), error.status)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
            if path == "/v1/chat/completions":
                self._chat(body)
                return
            if not path.startswith("/api/v1/"):
                self._static(path)
                return
            words = [unquote(word) for word in path.removeprefix("/api/v1/").split("/")]
            match (method, *words):
                case ("GET", "status"):
                    self._json(shoal.status())
                case ("GET", "models"):
                    self._json({"models": list(shoal.models.values())})
                case ("POST", "models"):
                    self._add(body)
                case ("GET", "models", name):
                    self._json(self._model(name))
                case ("PATCH", "models", name):
                    self._model(name)["spec"] |= body
                    self._json(self._model(name))
                case ("DELETE", "models", name):
                    if self._model(name)["instances"] and "unload" not in query:
                        raise ShoalError(f"{name} is loaded; unload it first", status=409, code="loaded")
                    del shoal.models[name]
                    shoal.tell("model_removed", {"name": name})
                    self._json(None, 204)
                case ("POST", "models", name, "load"):
                    self._model(name)
                    status, view = shoal.load(name, (body or {}).get("instances"))
                    self._json(view, status)
                case ("POST", "models", name, "unload"):
                    self._model(name)
                    status, view = shoal.unload(name)
                    self._json(view, status)
                case ("POST", "models", name, ("sleep" | "wake") as what):
                    self._model(name)
                    status, view = shoal.nap(name, shoal.naps[what])
                    self._json(view, status)
                case ("GET", "instances"):
                    self._json({"instances": shoal.instances() + (shoal.stopped if "all" in query else [])})
                case ("GET", "instances", id_):
                    self._json(self._instance(id_))
                case ("GET", "instances", id_, "logs"):
                    self._instance(id_)
                    lines = shoal.logs.get(id_, [])[-int(query["tail"]) :]
                    self._send("".join(f"{line}\n" for line in lines).encode(), "text/plain; charset=utf-8")
                case ("GET", "instances", id_, "logs", "stream"):
                    one = self._instance(id_)
                    self._stream()
                    for line in shoal.logs.get(id_, []):
                        self._event("line", {"text": line})
                    if one["state"] in ("failed", "stopped"):
                        self._event("end", {"state": one["state"]})
                    else:
                        shoal.hang.wait(60)
                case ("GET", "devices"):
                    self._json({"devices": shoal.devices})
                case ("GET", "events"):
                    self._events()
                case ("GET", "events", "history"):
                    kept = [one for one in shoal.history if query.get("model") in (None, one["model"])]
                    kinds = parse_qs(urlsplit(self.path).query).get("kind")
                    kept = [one for one in kept if kinds is None or one["kind"] in kinds]
                    kept = [one for one in kept if one["at"] >= float(query.get("since", 0))]
                    self._json({"events": kept[-int(query["limit"]) :]})
                case ("GET", "traffic"):
                    self._json({"at": time.time(), "bounds": [], "models": []})
                case ("GET", "usage"):
                    self._json({"usage": [], "total": None})
                case ("GET", "settings"):
                    self._json({"settings": {"port": 8000, "database_url": None}, "file": None})
                case ("POST", "settings", "reload"):
                    self._json({"added": ["new"], "changed": [], "removed": [], "restart_needed": ["port"]})
                case _:
                    raise ShoalError(f"there is no {path}", status=404, code="not_found")

        def _model(self, name: str) -> View:
            if name not in shoal.models:
                raise ShoalError(f"there is no model {name}", status=404, code="model_not_found", param="model")
            return shoal.models[name]

        def _instance(self, id_: str) -> View:
            found = [one for one in shoal.instances() + shoal.stopped if one["id"] == id_]
            if not found:
                raise ShoalError(f"there is no instance {id_}", status=404, code="not_found")
            return found[0]

        def _add(self, body: Any) -> None:
            if body["name"] in shoal.models:
                if shoal.models[body["name"]]["spec"]["source"] != body["source"]:
                    raise ShoalError(f"{body['name']} is there with other settings", status=409, code="conflict")
                self._json(shoal.models[body["name"]])
                return
            try:
                view = shoal.add(desired=0, **body)
            except ValueError as error:
                raise ShoalError(str(error), status=400, code="invalid_settings") from None
            self._json(view, 201)

        def _events(self) -> None:
            watcher = shoal.watch()
            try:
                self._stream()
                sent = 0
                while not shoal.hang.is_set():
                    try:
                        kind, data = watcher.get(timeout=0.1)
                    except queue.Empty:
                        self.wfile.write(b": still here\n\n")
                        continue
                    self._event(kind, data)
                    sent += 1
                    if sent == shoal.drop_events_after:
                        shoal.drop_events_after = None
                        return
            finally:
                shoal.unwatch(watcher)

        def _chat(self, body: Any) -> None:
            self._model(body["model"])
            self._stream()
            for part in shoal.answer:
                if part == "ERROR":
                    error = {"error": {"message": "the engine died", "type": "server_error", "code": "engine_gone"}}
                    self.wfile.write(f"data: {json.dumps(error)}\n\n".encode())
                    return
                if part == "HANG":
                    shoal.hang.wait(60)
                    return
                chunk = {"choices": [{"delta": {"content": part}, "finish_reason": None}]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
            self.wfile.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())

        def _static(self, path: str) -> None:
            file = STATIC / ("index.html" if path == "/" else path.removeprefix("/static/"))
            if not file.is_file():
                raise ShoalError(f"there is no {path}", status=404, code="not_found")
            self._send(file.read_bytes(), TYPES[file.suffix])

        def _json(self, data: Any, status: int = 200) -> None:
            with shoal.lock:
                body = b"" if status == 204 else json.dumps(data).encode()
            self._send(body, "application/json", status)

        def _send(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.send_header("content-security-policy", CONTENT_SECURITY_POLICY)
            if shoal.warning and self.command != "GET":
                self.send_header("x-shoal-warning", shoal.warning)
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()

        def _event(self, kind: str, data: Any) -> None:
            self.wfile.write(f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode())

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no news."""


@contextmanager
def scripted(port: int = 0) -> Iterator[ScriptedShoal]:
    """A scripted Shoal on a loopback port."""
    shoal = ScriptedShoal()
    server = _Server(("127.0.0.1", port), _handler(shoal))
    shoal.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield shoal
    finally:
        shoal.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()
