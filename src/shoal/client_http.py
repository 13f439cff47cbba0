"""What a client of Shoal asks and is answered over HTTP, and what it says where nothing does.

Every refusal is raised as `ShoalError` with the status, code and message that Shoal sent; where nothing answers,
`UnreachableError` says what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from shoal.client_local import LocalTransport
from shoal.errors import ShoalError

Json = dict[str, Any]
DEFAULT_URL = "http://127.0.0.1:8000"
WARNING_HEADER = "x-shoal-warning"
API = "/api/v1"
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


class HttpClient:
    """The connection to the Shoal at `url`, and what all parts of `Client` ask it with."""

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

    def _json(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, params: Mapping[str, str] | None = None
    ) -> Json:
        return self._read(self._send(method, API + path, body=body, params=params))

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
        data = _content(response)
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
        return httpx2.BasicAuth(self._user, self._password) if self._user and path.startswith(API) else None

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
        if response.status_code >= 300:
            raise error_of(_content(response), response.status_code, self.url)


def quoted(name: str) -> str:
    """As a part of a path. Slashes too: a name such as `a/../b` is to arrive as it is, not as the path that it looks
    like."""
    return quote(name, safe="")


def error_of(data: Any, status: int, url: str) -> ShoalError:
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


def _content(response: httpx2.Response) -> Any:
    """The JSON of an answer; None if it is none."""
    try:
        return response.json()
    except ValueError:
        return None


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
