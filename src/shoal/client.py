"""A thin client of the admin API. Answers are the API's own JSON objects, as plain dictionaries.

Every refusal is raised as `ShoalError` with the status, code and message that Shoal sent; where nothing answers,
`UnreachableError` says what to do. One client serves one thread at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import httpx2

from shoal.client_fit import Fitting
from shoal.client_local import LocalTransport
from shoal.client_moves import MoveCalls
from shoal.client_orphans import OrphanCalls
from shoal.client_presets import Json, PresetCalls
from shoal.client_users import UserCalls
from shoal.errors import ShoalError

DEFAULT_URL = "http://127.0.0.1:8000"
WARNING_HEADER = "x-shoal-warning"
_API = "/api/v1"
_MAX_EVENT = 64 * 2**20  # the snapshot of a large fleet is the largest event


class UnreachableError(ShoalError):
    """Shoal does not answer at the address in use, or something else does."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503, code="unreachable")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: its kind, its JSON data, and the id to resume after."""

    kind: str
    data: Json
    id: str = ""


class Client(Fitting, MoveCalls, OrphanCalls, PresetCalls, UserCalls):
    """Talks to a running Shoal at `url`; default: `SHOAL_URL`, then http://127.0.0.1:8000.

    Where that asks for a sign-in, `SHOAL_USER` and `SHOAL_PASSWORD` are it; without them a Shoal of this user's own, on
    this machine, is asked through its controller's socket.
    `timeout` bounds, in seconds, how long an answer may keep one waiting; streams may be silent for longer.
    `warnings` collects what Shoal did but wants known, such as a change that could not be saved.
    """

    def __init__(
        self, url: str | None = None, *, timeout: float = 30.0, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url = _check_url(url or os.environ.get("SHOAL_URL") or DEFAULT_URL)
        self.warnings: list[str] = []
        self._timeout = httpx2.Timeout(timeout, connect=min(5.0, timeout))
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        if local and transport is None:
            transport = LocalTransport(httpx2.HTTPTransport(trust_env=False))
        # A proxy from the environment can never reach this machine's own loopback.
        self._http = httpx2.Client(timeout=self._timeout, transport=transport, trust_env=not local)
        self._user, self._password = os.environ.get("SHOAL_USER"), os.environ.get("SHOAL_PASSWORD", "")
        if self._user and not local and self.url.startswith("http://"):
            self.warnings.append(f"the password of {self._user} goes to {self.url} unencrypted; use an https address")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- the fleet --------------------------------------------------------------------------------------------------

    def status(self) -> Json:
        """Version, counts of instances by state, and what is not well."""
        return self._json("GET", "/status")

    def models(self) -> list[Json]:
        """Every model, as ModelView."""
        return list(self._json("GET", "/models")["models"])

    def model(self, name: str) -> Json:
        """One model, as ModelView."""
        return self._json("GET", f"/models/{_quoted(name)}")

    def add_model(self, spec: Mapping[str, Any]) -> tuple[Json, bool]:
        """Declare a model. Returns its view, and False if it was there already with these settings."""
        response = self._send("POST", f"{_API}/models", body=spec)
        return self._read(response), response.status_code == 201

    def change_model(self, name: str, changes: Mapping[str, Any]) -> Json:
        """Change some settings of a model."""
        return self._json("PATCH", f"/models/{_quoted(name)}", body=changes)

    def remove_model(self, name: str, *, unload: bool = False) -> None:
        """Forget a model; `unload` ends its instances first, and then the answer takes as long as that does."""
        path = f"{_API}/models/{_quoted(name)}"
        self._send("DELETE", path, params={"unload": "true"} if unload else None, patient=unload)

    def load(self, name: str, *, instances: int | None = None) -> Json:
        """Start instances up to the number wanted. Answers at once; `events` tells how it goes on."""
        body = {} if instances is None else {"instances": instances}
        return self._json("POST", f"/models/{_quoted(name)}/load", body=body)

    def unload(self, name: str, *, force: bool = False) -> Json:
        """End a model's instances: after their running requests, or at once with `force`."""
        return self._json("POST", f"/models/{_quoted(name)}/unload", body={"force": force})

    def sleep(self, name: str, *, level: int = 1, force: bool = False) -> Json:
        """Put a model's instances to sleep: after their running requests, or at once with `force`."""
        return self._json("POST", f"/models/{_quoted(name)}/sleep", body={"level": level, "force": force})

    def wake(self, name: str) -> Json:
        """Wake a model's instances."""
        return self._json("POST", f"/models/{_quoted(name)}/wake", body={})

    def instances(self, *, all_: bool = False) -> list[Json]:
        """The instances that live, or with `all_` also those that ended, as InstanceView."""
        return list(self._json("GET", "/instances", params={"all": "true"} if all_ else None)["instances"])

    def instance(self, instance: str) -> Json:
        """One instance, as InstanceView."""
        return self._json("GET", f"/instances/{_quoted(instance)}")

    def stop_instance(self, instance: str, *, force: bool = False) -> Json:
        """End one instance."""
        return self._json("DELETE", f"/instances/{_quoted(instance)}", params={"force": "true"} if force else None)

    def requests(self, *, model: str | None = None, phase: str | None = None) -> Json:
        """The requests that wait or run, and under `silent` the relays that did not say in time what they have."""
        given = {"model": model, "phase": phase}
        return self._json("GET", "/requests", params={key: value for key, value in given.items() if value is not None})

    def cancel_request(self, id_: str) -> None:
        """End a request that waits or runs."""
        self._send("DELETE", f"{_API}/requests/{_quoted(id_)}")

    def devices(self) -> list[Json]:
        """The devices, with what their memory holds."""
        return list(self._json("GET", "/devices")["devices"])

    def history(
        self, *, limit: int = 100, model: str | None = None, kinds: Sequence[str] = (), since: float | None = None
    ) -> list[Json]:
        """Past messages, newest last; of these kinds, and from `since` (Unix seconds) on, if given."""
        params = [("limit", str(limit)), *(("kind", kind) for kind in kinds)]
        params += [] if model is None else [("model", model)]
        params += [] if since is None else [("since", repr(since))]
        return list(self._json("GET", f"/events/history?{urlencode(params)}")["events"])

    def loads(self, *, limit: int = 100, model: str | None = None) -> list[Json]:
        """Past loads with the seconds of each phase."""
        params = {"limit": str(limit)} | ({} if model is None else {"model": model})
        return list(self._json("GET", "/loads", params=params)["loads"])

    def settings(self) -> Json:
        """The settings in force, and the file that they came from."""
        return self._json("GET", "/settings")

    def reload_settings(self) -> Json:
        """Read the settings file again. Returns what was added, changed, removed, and what needs a restart."""
        return self._json("POST", "/settings/reload", body={})

    # -- keys, usage, virtual models --------------------------------------------------------------------------------

    def keys(self, *, all_: bool = False) -> list[Json]:
        """The keys, or with `all_` also those that were revoked, as KeyView."""
        return list(self._json("GET", "/keys", params={"all": "true"} if all_ else None)["keys"])

    def key(self, key: str) -> Json:
        """One key by id or name, as KeyView."""
        return self._json("GET", f"/keys/{_quoted(key)}")

    def create_key(self, settings: Mapping[str, Any]) -> Json:
        """Make a key: a KeyView with the key itself as `key`, which is never shown again."""
        return self._json("POST", "/keys", body=settings)

    def edit_key(self, key: str, changes: Mapping[str, Any]) -> Json:
        """Change some settings of a key."""
        return self._json("PATCH", f"/keys/{_quoted(key)}", body=changes)

    def rotate_key(self, key: str, *, grace: float = 0.0) -> Json:
        """Give a key another secret, as `create_key`; the former one works for `grace` seconds more."""
        return self._json("POST", f"/keys/{_quoted(key)}/rotate", body={"grace": grace})

    def revoke_key(self, key: str) -> Json:
        """End a key for good."""
        return self._json("DELETE", f"/keys/{_quoted(key)}")

    def usage(
        self,
        by: Sequence[str] = ("day",),
        *,
        since: str | None = None,
        until: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> Json:
        """What was used, added up by day, key and model: `usage` and its `total`. Days such as `2026-01-31`, in UTC."""
        given = {"from": since, "to": until, "key": key, "model": model}
        params = [(name, value) for name, value in given.items() if value is not None]
        return self._json("GET", f"/usage?{urlencode([*params, *(('by', name) for name in by)])}")

    def virtual_models(self) -> list[Json]:
        """Every virtual model, as VirtualView."""
        return list(self._json("GET", "/virtual-models")["virtual_models"])

    def put_virtual_model(self, name: str, spec: Mapping[str, Any]) -> tuple[Json, bool]:
        """Add or replace a virtual model. Returns its view, and whether it is new."""
        response = self._send("PUT", f"{_API}/virtual-models/{_quoted(name)}", body=spec)
        return self._read(response), response.status_code == 201

    def remove_virtual_model(self, name: str) -> None:
        """Forget a virtual model."""
        self._send("DELETE", f"{_API}/virtual-models/{_quoted(name)}")

    # -- logs and streams -------------------------------------------------------------------------------------------

    def logs(self, instance: str, *, tail: int = 200) -> str:
        """The last lines of an instance's log."""
        return self._send("GET", f"{_API}/instances/{_quoted(instance)}/logs", params={"tail": str(tail)}).text

    def follow_logs(self, instance: str, *, tail: int = 200) -> Iterator[Event]:
        """The log as it grows: `line` events, then one `end` event when the instance has ended."""
        path = f"{_API}/instances/{_quoted(instance)}/logs/stream"
        yield from self._events("GET", path, params={"tail": str(tail)}, read_timeout=None)

    def events(self, *, patience: float = 0.0) -> Iterator[Event]:
        """What happens in the fleet: a `snapshot`, then changes; see the API's documentation for the kinds.

        A lost connection is taken up again where it broke off, for up to `patience` seconds without success.
        """
        last_id = ""
        deadline = time.monotonic() + patience
        pause = 0.1
        while True:
            problem = UnreachableError(f"{self.url} closed the event stream; is Shoal stopping?")
            try:
                for event in self._events(
                    "GET", f"{_API}/events", headers={"last-event-id": last_id} if last_id else None, read_timeout=90
                ):
                    last_id = event.id or last_id
                    if event.kind == "message" and isinstance(event.data.get("error"), dict):
                        # So a relay that stops ends the streams that go through it.
                        raise UnreachableError(str(event.data["error"].get("message")))
                    deadline = time.monotonic() + patience
                    pause = 0.1
                    yield event
            except UnreachableError as error:
                problem = error
            if time.monotonic() + pause > deadline:
                raise problem
            time.sleep(pause)
            pause = min(2.0, 2 * pause)

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[Json]:
        """Stream an answer as OpenAI chat completion chunks. Closing the iterator ends the request."""
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        for event in self._events("POST", "/v1/chat/completions", body=body, read_timeout=None):
            if isinstance(event.data.get("error"), dict):
                raise _error_of(event.data, 502, self.url)
            yield event.data

    # -- HTTP -------------------------------------------------------------------------------------------------------

    def _json(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, params: Mapping[str, str] | None = None
    ) -> Json:
        return self._read(self._send(method, _API + path, body=body, params=params))

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        patient: bool = False,
    ) -> httpx2.Response:
        timeout = self._streaming(None) if patient else self._timeout
        with self._reached():
            response = self._http.request(
                method, self.url + path, json=body, params=params, timeout=timeout, auth=self._auth(path)
            )
        self._check(response)
        return response

    def _read(self, response: httpx2.Response) -> Json:
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise _not_shoal(self.url)
        return data

    def _events(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None,
    ) -> Iterator[Event]:
        with (
            self._reached(),
            self._http.stream(
                method,
                self.url + path,
                json=body,
                params=params,
                headers=headers,
                timeout=self._streaming(read_timeout),
                auth=self._auth(path),
            ) as response,
        ):
            if response.status_code >= 400:
                response.read()
            self._check(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise _not_shoal(self.url)
            for sse in httpx2.EventSource(response, max_event_size=_MAX_EVENT):
                if sse.data == "[DONE]":
                    return
                if not sse.data:
                    continue
                try:
                    data = json.loads(sse.data)
                except ValueError:
                    raise _not_shoal(self.url) from None
                if isinstance(data, dict):
                    yield Event(sse.event, data, sse.id)

    def _auth(self, path: str) -> httpx2.Auth | None:
        """What the admin side is shown. Never an engine."""
        return httpx2.BasicAuth(self._user, self._password) if self._user and path.startswith(_API) else None

    def _streaming(self, read: float | None) -> httpx2.Timeout:
        """Limits for an answer that may be silent for `read` seconds (None: without end)."""
        return httpx2.Timeout(connect=self._timeout.connect, read=read, write=self._timeout.write, pool=None)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise UnreachableError(
                f"nothing listens at {self.url}; start Shoal with `shoal serve`, "
                "or say where it is with --url or SHOAL_URL"
            ) from None
        except httpx2.TimeoutException:
            raise UnreachableError(
                f"Shoal at {self.url} does not answer in time; look at its own output, or try again"
            ) from None
        except httpx2.TransportError as error:
            raise UnreachableError(f"the connection to {self.url} broke: {error}; try again") from None

    def _check(self, response: httpx2.Response) -> None:
        if warning := response.headers.get(WARNING_HEADER):
            self.warnings.append(warning)
        if response.status_code < 300:
            return
        try:
            data = response.json()
        except ValueError:
            data = None
        raise _error_of(data, response.status_code, self.url)


def _error_of(data: Any, status: int, url: str) -> ShoalError:
    """The error that a body in OpenAI's shape tells of; any other body did not come from Shoal."""
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return _not_shoal(url, f" (it answered {status})")
    code, param = error.get("code"), error.get("param")
    return ShoalError(
        error["message"],
        status=status,
        code=str(code) if code is not None else "error",
        param=param if isinstance(param, str) else None,
    )


def _not_shoal(url: str, detail: str = "") -> UnreachableError:
    return UnreachableError(
        f"what listens at {url} does not answer as Shoal does{detail}; say where Shoal is with --url or SHOAL_URL"
    )


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ShoalError(
            f"{url!r} is not an address; give one such as {DEFAULT_URL} with --url or SHOAL_URL",
            code="invalid_url",
            param="url",
        )
    return url.rstrip("/")


def _quoted(name: str) -> str:
    # Slashes too: a name such as `a/../b` must arrive as it is, not as the path that it looks like.
    return quote(name, safe="")
