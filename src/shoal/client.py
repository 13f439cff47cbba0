"""A thin client of the admin API. Answers are the API's own JSON objects, as plain dictionaries.

Refusals, and where nothing answers, are raised as errors (`client_http.py`). One client serves one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from shoal.client_fit import Fitting
from shoal.client_http import API, DEFAULT_URL, Event, Json, UnreachableError, error_of, quoted
from shoal.client_moves import MoveCalls
from shoal.client_orphans import OrphanCalls
from shoal.client_presets import PresetCalls
from shoal.client_users import UserCalls

__all__ = ["DEFAULT_URL", "Client", "Event", "UnreachableError"]


class Client(Fitting, MoveCalls, OrphanCalls, PresetCalls, UserCalls):
    """Talks to a running Shoal at `url`; default: `SHOAL_URL`, then http://127.0.0.1:8000.

    Where that asks for a sign-in, `SHOAL_USER` and `SHOAL_PASSWORD` are it; without them a Shoal of this user's own, on
    this machine, is asked through its controller's socket.
    `timeout` bounds, in seconds, how long an answer may keep one waiting; streams may be silent for longer.
    `warnings` collects what Shoal did but wants known, such as a change that could not be saved.
    """

    # -- the fleet --------------------------------------------------------------------------------------------------

    def status(self) -> Json:
        """Version, counts of instances by state, and what is not well."""
        return self._json("GET", "/status")

    def models(self) -> list[Json]:
        """Every model, as ModelView."""
        return list(self._json("GET", "/models")["models"])

    def model(self, name: str) -> Json:
        """One model, as ModelView."""
        return self._json("GET", f"/models/{quoted(name)}")

    def add_model(self, spec: Mapping[str, Any]) -> tuple[Json, bool]:
        """Declare a model. Returns its view, and False if it was there already with these settings."""
        response = self._send("POST", f"{API}/models", body=spec)
        return self._read(response), response.status_code == 201

    def change_model(self, name: str, changes: Mapping[str, Any]) -> Json:
        """Change some settings of a model."""
        return self._json("PATCH", f"/models/{quoted(name)}", body=changes)

    def remove_model(self, name: str, *, unload: bool = False) -> None:
        """Forget a model; `unload` ends its instances first, and then the answer takes as long as that does."""
        path = f"{API}/models/{quoted(name)}"
        self._send("DELETE", path, params={"unload": "true"} if unload else None, patient=unload)

    def load(self, name: str, *, instances: int | None = None) -> Json:
        """Start instances up to the number wanted. Answers at once; `events` tells how it goes on."""
        body = {} if instances is None else {"instances": instances}
        return self._json("POST", f"/models/{quoted(name)}/load", body=body)

    def unload(self, name: str, *, force: bool = False) -> Json:
        """End a model's instances: after their running requests, or at once with `force`."""
        return self._json("POST", f"/models/{quoted(name)}/unload", body={"force": force})

    def sleep(self, name: str, *, level: int = 1, force: bool = False) -> Json:
        """Put a model's instances to sleep: after their running requests, or at once with `force`."""
        return self._json("POST", f"/models/{quoted(name)}/sleep", body={"level": level, "force": force})

    def wake(self, name: str) -> Json:
        """Wake a model's instances."""
        return self._json("POST", f"/models/{quoted(name)}/wake", body={})

    def instances(self, *, all_: bool = False) -> list[Json]:
        """The instances that live, or with `all_` also those that ended, as InstanceView."""
        return list(self._json("GET", "/instances", params={"all": "true"} if all_ else None)["instances"])

    def instance(self, instance: str) -> Json:
        """One instance, as InstanceView."""
        return self._json("GET", f"/instances/{quoted(instance)}")

    def stop_instance(self, instance: str, *, force: bool = False) -> Json:
        """End one instance."""
        return self._json("DELETE", f"/instances/{quoted(instance)}", params={"force": "true"} if force else None)

    def requests(self, *, model: str | None = None, phase: str | None = None) -> Json:
        """The requests that wait or run, and under `silent` the relays that did not say in time what they have."""
        given = {"model": model, "phase": phase}
        return self._json("GET", "/requests", params={key: value for key, value in given.items() if value is not None})

    def cancel_request(self, id_: str) -> None:
        """End a request that waits or runs."""
        self._send("DELETE", f"{API}/requests/{quoted(id_)}")

    def traffic(self) -> Json:
        """What models are asked and answer, in counts that grow, as Traffic."""
        return self._json("GET", "/traffic")

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
        return self._json("GET", f"/keys/{quoted(key)}")

    def create_key(self, settings: Mapping[str, Any]) -> Json:
        """Make a key: a KeyView with the key itself as `key`, which is never shown again."""
        return self._json("POST", "/keys", body=settings)

    def edit_key(self, key: str, changes: Mapping[str, Any]) -> Json:
        """Change some settings of a key."""
        return self._json("PATCH", f"/keys/{quoted(key)}", body=changes)

    def rotate_key(self, key: str, *, grace: float = 0.0) -> Json:
        """Give a key another secret, as `create_key`; the former one works for `grace` seconds more."""
        return self._json("POST", f"/keys/{quoted(key)}/rotate", body={"grace": grace})

    def revoke_key(self, key: str) -> Json:
        """End a key for good."""
        return self._json("DELETE", f"/keys/{quoted(key)}")

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
        response = self._send("PUT", f"{API}/virtual-models/{quoted(name)}", body=spec)
        return self._read(response), response.status_code == 201

    def remove_virtual_model(self, name: str) -> None:
        """Forget a virtual model."""
        self._send("DELETE", f"{API}/virtual-models/{quoted(name)}")

    # -- logs and streams -------------------------------------------------------------------------------------------

    def logs(self, instance: str, *, tail: int = 200) -> str:
        """The last lines of an instance's log."""
        return self._send("GET", f"{API}/instances/{quoted(instance)}/logs", params={"tail": str(tail)}).text

    def follow_logs(self, instance: str, *, tail: int = 200) -> Iterator[Event]:
        """The log as it grows: `line` events, then one `end` event when the instance has ended."""
        path = f"{API}/instances/{quoted(instance)}/logs/stream"
        yield from self._events("GET", path, params={"tail": str(tail)}, read_timeout=None)

    def events(self, *, patience: float = 0.0) -> Iterator[Event]:
        """What happens in the fleet: a `snapshot`, then changes; see the API's documentation for the kinds.

        A lost connection is taken up again where it broke off, for up to `patience` seconds without success.
        """
        last_id = ""
        deadline = time.monotonic() + patience
        pause = 0.1
        while True:
            try:
                for event in self.events_until_lost(last_id):
                    last_id = event.id or last_id
                    deadline = time.monotonic() + patience
                    pause = 0.1
                    yield event
            except UnreachableError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2.0, 2 * pause)

    def events_until_lost(self, after: str = "", *, silence: float = 90.0) -> Iterator[Event]:
        """The same over one connection: from a `snapshot` on, or from behind the event with the id `after`. Raises
        UnreachableError when the connection ends, or nothing is heard for `silence` seconds."""
        headers = {"last-event-id": after} if after else None
        for event in self._events("GET", f"{API}/events", headers=headers, read_timeout=silence):
            if event.kind == "message" and isinstance(event.data.get("error"), dict):
                # So a relay that stops ends the streams that go through it.
                raise UnreachableError(str(event.data["error"].get("message")))
            yield event
        raise UnreachableError(f"{self.url} closed the event stream; is Shoal stopping?")

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[Json]:
        """Stream an answer as OpenAI chat completion chunks. Closing the iterator ends the request."""
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        for event in self._events("POST", "/v1/chat/completions", body=body, read_timeout=None):
            if isinstance(event.data.get("error"), dict):
                raise error_of(event.data, 502, self.url)
            yield event.data
