"""Keys, usage and virtual models of a real Shoal, by API and command line, and after a restart."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.errors import ShoalError
from shoal.fleet.keys import digest_of
from shoal.messages import RelayReport, RoutingTable, Usage, UsageReport, UsageStored
from tests.system.harness import Shoal, a_shoal, until

Run = Callable[..., Any]


@pytest.fixture
def run(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `shoal …` against the test's Shoal."""
    monkeypatch.setenv("SHOAL_URL", shoal.url)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*args: str) -> Any:
        return CliRunner().invoke(app, list(args), prog_name="shoal")

    return invoke


def table(shoal: Shoal) -> RoutingTable:
    """The routing table that the relay has now."""
    return msgspec.json.decode((shoal.runtime / "routes.json").read_bytes(), type=RoutingTable)


class Relay:
    """One more relay, which only reports what was used."""

    def __init__(self, shoal: Shoal, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(40)
        self._socket.connect(str(shoal.runtime / "relay.sock"))
        self._lines = self._socket.makefile("rb")
        self.name = name
        self._send(RelayReport(name, "", 0, {}))

    def _send(self, message: msgspec.Struct) -> None:
        self._socket.sendall(msgspec.json.encode(message) + b"\n")

    def report(self, seq: int, *items: Usage) -> None:
        """Send usage, and wait until it is safe."""
        self._send(UsageReport(self.name, seq, items))
        for line in self._lines:
            message = json.loads(line)
            if message["type"] == "stored":
                assert msgspec.convert(message, UsageStored).seq == seq
                return
        raise AssertionError("the controller closed the connection")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def relay(shoal: Shoal) -> Iterator[Relay]:
    relay = Relay(shoal, "another")
    yield relay
    relay.close()


def used(key: str, model: str = "m", day: str = "2026-01-31", requests: int = 1) -> Usage:
    return Usage(key, model, day, requests, 10 * requests, 5 * requests, 1_750_000_000.0)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_from_its_making_to_its_end(shoal: Shoal) -> None:
    assert not table(shoal).keys_required
    with shoal.http() as http:
        made = http.post("/api/v1/keys", json={"name": "me/mine", "models": ["m"], "requests_per_minute": 60})
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        view = made.json()
        key, id = view.pop("key"), view["id"]
        assert key.startswith(f"sk-shoal-{id}-")
        until(lambda: table(shoal).keys, "the key at the relay")
        assert table(shoal).keys_required
        assert [(one.digest, one.models, one.requests_per_minute) for one in table(shoal).keys] == [
            (digest_of(key), ("m",), 60)
        ]
        for path in ("/api/v1/keys", f"/api/v1/keys/{id}", "/api/v1/keys/me%2Fmine", "/api/v1/events/history"):
            shown = http.get(path).text
            assert "me/mine" in shown
            assert key not in shown
            assert digest_of(key) not in shown
        assert http.get("/api/v1/keys/me%2Fmine").json() == view
        again = http.post("/api/v1/keys", json={"name": "me/mine"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "key_exists")

        changed = http.patch(f"/api/v1/keys/{id}", json={"name": "mine", "requests_per_minute": None})
        assert (changed.json()["name"], changed.json()["requests_per_minute"]) == ("mine", None)
        until(lambda: table(shoal).keys[0].name == "mine", "the change at the relay")

        rotated = http.post("/api/v1/keys/mine/rotate", json={"grace": 600}).json()
        assert rotated["id"] == id
        assert rotated["former_until"] > time.time() + 500
        until(lambda: len(table(shoal).keys) == 2, "both secrets at the relay")
        assert {one.digest for one in table(shoal).keys} == {digest_of(key), digest_of(rotated["key"])}
        third = http.post(f"/api/v1/keys/{id}/rotate").json()
        until(lambda: [one.digest for one in table(shoal).keys] == [digest_of(third["key"])], "only the newest")

        ended = http.delete(f"/api/v1/keys/{id}")
        assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
        until(lambda: not table(shoal).keys, "the end at the relay")
        assert not table(shoal).keys_required
        assert http.get("/api/v1/keys").json() == {"keys": []}
        assert [one["id"] for one in http.get("/api/v1/keys?all=true").json()["keys"]] == [id]
        assert http.delete(f"/api/v1/keys/{id}").status_code == 200
        assert http.patch(f"/api/v1/keys/{id}", json={"weight": 2}).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/keys", {}, 400),
        ("POST", "/keys", {"name": "me", "rpm": 5}, 400),
        ("POST", "/keys", {"name": "me", "expires_at": 5}, 400),
        ("POST", "/keys", ["me"], 400),
        ("GET", "/keys/nobody", None, 404),
        ("PATCH", "/keys/nobody", {}, 404),
        ("DELETE", "/keys/nobody", None, 404),
        ("POST", "/keys/nobody/rotate", {}, 404),
        ("POST", "/keys/nobody/rotate", {"grace": -1}, 400),
        ("POST", "/keys/nobody/rotate", {"secret": "mine"}, 400),
        ("GET", "/usage?from=yesterday", None, 400),
        ("GET", "/usage?by=week", None, 400),
        ("GET", "/usage?key=nobody", None, 404),
        ("PUT", "/virtual-models/v", {}, 400),
        ("PUT", "/virtual-models/v", {"model": "v"}, 400),
        ("PUT", "/virtual-models/v", {"model": "m", "name": "w"}, 400),
        ("PUT", "/virtual-models/%20v", {"model": "m"}, 400),
        ("DELETE", "/virtual-models/v", None, 404),
        ("GET", "/virtual-models/v", None, 404),
    ],
)
def test_what_is_refused(one_shoal: Shoal, method: str, path: str, body: Any, status: int) -> None:
    with one_shoal.http() as http:
        answer = http.request(method, f"/api/v1{path}", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def one_shoal() -> Iterator[Shoal]:
    """A Shoal that several tests only look at."""
    with a_shoal() as shoal:
        yield shoal.start()


def test_keys_and_virtual_models_outlive_a_restart_and_a_crash(shoal: Shoal) -> None:
    with shoal.client as client:
        kept = client.create_key({"name": "kept", "priority": "high"})
        gone = client.create_key({"name": "gone"})
        client.revoke_key("gone")
        client.put_virtual_model("fast", {"model": "m", "set": {"temperature": 0}, "fallback": ["n"]})
        before = (client.keys(all_=True), client.virtual_models())
    assert shoal.stop() == 0
    shoal.start()
    with shoal.client as client:
        assert (client.keys(all_=True), client.virtual_models()) == before
        rotated = client.rotate_key(kept["id"])
        until(lambda: digest_of(rotated["key"]) in {one.digest for one in table(shoal).keys}, "the key at the relay")
    assert shoal.process is not None
    shoal.process.kill()
    shoal.process.wait()
    shoal.start()
    until(lambda: table(shoal).keys, "the keys at the relay")
    assert [one.digest for one in table(shoal).keys] == [digest_of(rotated["key"])]
    assert [one.name for one in table(shoal).virtual] == ["fast"]
    assert table(shoal).keys_required
    with shoal.client as client:
        assert client.key(gone["id"])["state"] == "revoked"


def test_without_a_key_it_does_not_listen_for_other_machines() -> None:
    with a_shoal(host="0.0.0.0") as shoal:
        process = shoal.launch()
        output, _ = process.communicate(timeout=40)
        assert process.returncode == 1
        assert f"shoal keys create NAME --config {shoal.config}" in output
        assert not shoal.state.exists()
        assert not shoal.runtime.exists()


def test_a_key_that_was_made_before_the_start_is_known() -> None:
    with a_shoal() as shoal:
        shoal.write_config()
        made = CliRunner().invoke(app, ["keys", "create", "me", "--config", str(shoal.config)])
        assert made.exit_code == 0, made.stderr
        shoal.start()
        until(lambda: table(shoal).keys, "the key at the relay")
        assert table(shoal).keys[0].digest == digest_of(made.stdout.strip())
        beside = CliRunner().invoke(app, ["keys", "create", "you", "--config", str(shoal.config)])
        assert beside.exit_code == 1
        assert shoal.stop() == 0


def test_keys_on_the_command_line(run: Run) -> None:
    assert "No keys yet" in run("keys", "ls").stdout
    options = ["--model", "a", "--model", "b", "--priority", "low", "--weight", "2", "--rpm", "60", "--tpm", "9000"]
    made = run("keys", "create", "me", *options, "--concurrent", "3", "--expires", "2099-12-31", "--json")
    assert made.exit_code == 0, made.stderr
    view = json.loads(made.stdout)
    assert (view["models"], view["priority"], view["weight"]) == (["a", "b"], "low", 2.0)
    assert (view["requests_per_minute"], view["tokens_per_minute"], view["concurrent"]) == (60, 9000, 3)
    assert view["expires_at"] == 4_102_444_800
    listed = run("keys", "ls").stdout
    assert view["id"] in listed
    assert view["key"] not in listed
    assert "60" in run("keys", "show", "me").stdout
    edited = run("keys", "edit", view["id"], "--rpm", "none", "--expires", "none", "--all-models", "--json")
    assert edited.exit_code == 0, edited.stderr
    assert json.loads(edited.stdout)["requests_per_minute"] is None
    assert json.loads(edited.stdout)["expires_at"] is None
    assert json.loads(edited.stdout)["models"] == []
    assert json.loads(edited.stdout)["tokens_per_minute"] == 9000
    rotated = run("keys", "rotate", "me", "--grace", "1h")
    assert rotated.stdout.startswith(f"sk-shoal-{view['id']}-")
    assert rotated.stdout.strip() != view["key"]
    assert "The former one works until" in rotated.stderr
    assert run("keys", "create", "me").exit_code == 5
    assert run("keys", "revoke", "me").exit_code == 0
    assert "revoked" in run("keys", "ls", "--all").stdout
    assert run("keys", "show", "nobody").exit_code == 4


# -- usage -------------------------------------------------------------------------------------------------------------


def test_usage_is_counted_once_and_added_up(shoal: Shoal, relay: Relay, run: Run) -> None:
    with shoal.client as client:
        key = client.create_key({"name": "me"})
        relay.report(1, used(key["id"]), used(key["id"], "n", requests=2), used("", day="2026-02-01", requests=4))
        relay.report(1, used(key["id"]), used(key["id"], "n", requests=2), used("", day="2026-02-01", requests=4))
        relay.report(2, used(key["id"]))
        by_day = client.usage(since="2026-01-01")
        assert [(row["day"], row["requests"]) for row in by_day["usage"]] == [("2026-01-31", 4), ("2026-02-01", 4)]
        assert by_day["total"]["prompt_tokens"] == 80
        rows = client.usage(("key", "model"))["usage"]
        assert [(row["key_name"], row["model"], row["requests"]) for row in rows] == [
            (None, "m", 4), ("me", "m", 2), ("me", "n", 2),
        ]  # fmt: skip
        assert [row["requests"] for row in client.usage(key="me", model="n")["usage"]] == [2]
        assert [row["requests"] for row in client.usage(key="")["usage"]] == [4]
        assert client.usage(until="2026-01-30") == {"usage": [], "total": None}
        view = client.key("me")
        assert view["used"] == {"requests": 4, "prompt_tokens": 40, "completion_tokens": 20}
        assert view["last_used_at"] == 1_750_000_000.0
        with pytest.raises(ShoalError, match="no key nobody"):
            client.usage(key="nobody")
    shown = run("usage", "--by", "key,model", "--from", "2026-01-01")
    assert shown.exit_code == 0, shown.stderr
    assert "(no key)" in shown.stdout
    assert "in all" in shown.stdout
    assert "Nothing was used" in run("usage", "--from", "2026-01-01", "--model", "other").stdout
    assert json.loads(run("usage", "--from", "2026-02-01", "--json").stdout)["total"]["requests"] == 4
    assert shoal.stop() == 0
    shoal.start()
    with shoal.client as client:
        assert client.usage()["total"]["requests"] == 8
        again = Relay(shoal, "another")
        again.report(2, used(key["id"]))  # the answer to it was lost with the controller
        again.close()
        assert client.usage()["total"]["requests"] == 8


# -- virtual models ----------------------------------------------------------------------------------------------------


def test_virtual_models_of_the_api_and_the_command_line(shoal: Shoal, run: Run) -> None:
    shoal.add("real")
    changes = ["--set", "temperature=0", "--default", 'stop=["x"]', "--default", "user=me", "--strip", "seed"]
    added = run("virtual", "set", "org/fast", "--model", "real", *changes, "--system", "Be brief.", "--fallback", "n")
    assert added.exit_code == 0, added.stderr
    until(lambda: table(shoal).virtual, "the virtual model at the relay")
    (told,) = table(shoal).virtual
    assert (told.name, told.model, told.set, told.defaults, told.strip, told.system, told.fallback) == (
        "org/fast", "real", {"temperature": 0}, {"stop": ["x"], "user": "me"}, ("seed",), "Be brief.", ("n",),
    )  # fmt: skip
    assert "real → n" in run("virtual", "ls").stdout
    assert "Replaced" in run("virtual", "set", "org/fast", "--model", "real").stdout
    taken = run("virtual", "set", "real", "--model", "m", "--json")
    assert taken.exit_code == 5
    assert json.loads(taken.stderr)["error"]["code"] == "model_exists"
    with shoal.client as client, pytest.raises(ShoalError, match="there is a virtual model org/fast") as caught:
        client.add_model({"name": "org/fast", "source": "x"})
    assert caught.value.code == "model_exists"
    assert run("virtual", "rm", "org/fast").exit_code == 0
    assert run("virtual", "rm", "org/fast").exit_code == 4
    until(lambda: not table(shoal).virtual, "its end at the relay")


def test_virtual_models_of_the_file_follow_it() -> None:
    with a_shoal(models={"m": {"source": "x"}}, virtual_models={"a": {"model": "m"}, "b": {"model": "m"}}) as shoal:
        shoal.start()
        with shoal.client as client:
            assert [(one["name"], one["origin"]) for one in client.virtual_models()] == [("a", "file"), ("b", "file")]
            for change in (
                lambda: client.put_virtual_model("a", {"model": "n"}),
                lambda: client.remove_virtual_model("a"),
            ):
                with pytest.raises(ShoalError, match="shoal reload") as caught:
                    change()
                assert (caught.value.status, caught.value.code) == (409, "declared_in_file")
            client.put_virtual_model("mine", {"model": "m"})
            shoal.settings["virtual_models"] = {"a": {"model": "m", "set": {"seed": 1}}, "c": {"model": "m"}}
            shoal.write_config()
            assert client.reload_settings() == {
                "added": ["c"],
                "changed": ["a"],
                "removed": ["b"],
                "restart_needed": [],
            }
            assert [one["name"] for one in client.virtual_models()] == ["a", "c", "mine"]
            until(lambda: [one.name for one in table(shoal).virtual] == ["a", "c", "mine"], "them at the relay")
            assert table(shoal).virtual[0].set == {"seed": 1}
            shoal.settings["models"]["mine"] = {"source": "x"}
            shoal.write_config()
            client.reload_settings()
            assert any("mine is hidden by the model" in warning for warning in client.status()["warnings"])
            client.load("mine")
            shoal.wait("mine", "ready")
            assert shoal.chat("mine").json()["model"] == "mine"
            del shoal.settings["models"]["mine"]
            shoal.write_config()
            client.reload_settings()  # it serves somebody, so it stays until it is removed by hand
            assert any("mine is hidden" in warning for warning in client.status()["warnings"])
            client.remove_model("mine", unload=True)
            assert not any("mine is hidden" in warning for warning in client.status()["warnings"])
            assert shoal.chat("mine").json()["model"] == "m"  # the virtual one is back at once
            shoal.settings["virtual_models"]["c"] = {"model": "a"}
            shoal.write_config()
            with pytest.raises(ShoalError, match="c names a, which is virtual too"):
                client.reload_settings()
            assert len(client.virtual_models()) == 3
        assert shoal.stop() == 0
