"""The part of the client that makes, lists and removes users."""

from __future__ import annotations

from shoal.client_http import API, HttpClient, Json, quoted


class UserCalls(HttpClient):
    """A part of `Client`."""

    def users(self) -> list[Json]:
        """Who may sign in, as UserView."""
        return list(self._json("GET", "/users")["users"])

    def set_user(self, name: str, *, role: str | None = None, password: str | None = None) -> Json:
        """Make a user, or change role or password of one; as UserView."""
        given = {"role": role, "password": password}
        body = {key: value for key, value in given.items() if value is not None}
        return self._json("PUT", f"/users/{quoted(name)}", body=body)

    def remove_user(self, name: str) -> None:
        """Forget a user."""
        self._send("DELETE", f"{API}/users/{quoted(name)}")
