"""The part of the client that makes, lists and removes users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

Json = dict[str, Any]


class Asking(Protocol):
    """What this part needs of the client."""

    def _json(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, params: Mapping[str, str] | None = None
    ) -> Json: ...

    def _send(self, method: str, path: str) -> httpx2.Response: ...


class UserCalls:
    """A part of `Client`."""

    def users(self: Asking) -> list[Json]:
        """Who may sign in, as UserView."""
        return list(self._json("GET", "/users")["users"])

    def set_user(self: Asking, name: str, *, role: str | None = None, password: str | None = None) -> Json:
        """Make a user, or change role or password of one; as UserView."""
        given = {"role": role, "password": password}
        body = {key: value for key, value in given.items() if value is not None}
        return self._json("PUT", f"/users/{quote(name, safe='')}", body=body)

    def remove_user(self: Asking, name: str) -> None:
        """Forget a user."""
        self._send("DELETE", f"/api/v1/users/{quote(name, safe='')}")
