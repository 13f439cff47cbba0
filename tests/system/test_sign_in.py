"""Signing in to a real Shoal: by port and socket, by command line and by hand, through restarts and a broken store."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.client import Client
from shoal.errors import ShoalError
from tests.system.harness import PATIENCE, Shoal, a_shoal, until

Run = Callable[..., Any]
GOOD, BAD = "correct horse", "battery staple"
PAGE = {"x-shoal-page": "1"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in os.environ:
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `shoal …`."""
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*args: str, given: str | None = None) -> Any:
        return CliRunner().invoke(app, list(args), input=given, prog_name="shoal")

    return invoke


def set_user(run: Run, shoal: Shoal, name: str = "ann", role: str = "admin", password: str = GOOD) -> None:
    done = run("users", "set", name, "--role", role, "--password-stdin", "--url", shoal.url, given=f"{password}\n")
    assert done.exit_code == 0, done.stderr
    assert password not in done.stdout + done.stderr


@contextlib.contextmanager
def signed_in(shoal: Shoal, name: str = "ann", password: str = GOOD) -> Iterator[httpx2.Client]:
    """A browser, as far as the API can tell."""
    with shoal.http(headers=PAGE) as http:
        answer = http.post("/api/v1/session", json={"name": name, "password": password})
        assert answer.status_code == 200, answer.text
        yield http


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


@pytest.mark.parametrize("relay", ["native", "aiohttp"])
def test_from_the_first_user_to_the_last(run: Run, relay: str) -> None:
    with a_shoal(relay=relay) as shoal, shoal.start().http() as http:
        shoal.add("m")
        shoal.load("m")
        listening = threading.Event()
        ended = threading.Event()

        def listen() -> None:
            with shoal.http() as other, other.stream("GET", "/api/v1/events") as answer:
                for _ in answer.iter_lines():
                    listening.set()
            ended.set()

        threading.Thread(target=listen, daemon=True).start()
        assert listening.wait(PATIENCE)
        set_user(run, shoal)
        assert ended.wait(PATIENCE), "a stream from before goes on"
        for headers in ({}, {"X-Shoal-Peer": ""}, {"Connection": "x-shoal-peer"}):
            assert code(http.get("/api/v1/models", headers=headers)) == (401, "sign_in_required")
            assert code(http.get("/metrics", headers=headers)) == (401, "sign_in_required")
        assert http.get("/").status_code == http.get("/health/ready").status_code == 200
        assert shoal.chat("m").status_code == 200, "inference asks for keys, not for users"
        assert run("ps", "--url", shoal.url).exit_code == 0, "whoever runs Shoal is not asked"

        set_user(run, shoal, "bob", "read-only", BAD)
        for name, password, status in (("ann", GOOD, 200), ("bob", BAD, 403)):
            with shoal.http(auth=(name, password)) as program, signed_in(shoal, name, password) as browser:
                for one in (program, browser):
                    assert one.get("/api/v1/models").status_code == one.get("/metrics").status_code == 200
                    assert one.patch("/api/v1/models/m", json={"pin": True}).status_code == status
                bare = browser.patch("/api/v1/models/m", json={"pin": True}, headers={"x-shoal-page": ""})
                assert bare.status_code == 403
        removed = [run("users", "rm", name, "--url", shoal.url).exit_code for name in ("ann", "bob", "eve")]
        assert removed == [0, 0, 4]
        assert http.get("/api/v1/models").status_code == 200
        kinds = [event["kind"] for event in http.get("/api/v1/events/history").json()["events"]]
        assert [kind for kind in kinds if kind.startswith("user_")] == ["user_made"] * 2 + ["user_removed"] * 2
        shoal.stop()
        everything = shoal.text + (shoal.state / "shoal.db").read_bytes().decode("latin-1")
        assert GOOD not in everything
        assert BAD not in everything


def test_a_session_outlives_the_controller_and_attempts_are_limited(run: Run) -> None:
    with a_shoal() as shoal:
        shoal.start()
        set_user(run, shoal)
        with signed_in(shoal) as http:
            os.kill(shoal.pid("shoal.controller"), signal.SIGKILL)

            def back() -> bool:
                answer = http.get("/api/v1/session")
                assert answer.status_code in (200, 502, 503), answer.text
                return answer.status_code == 200

            until(back, "the controller")
            assert http.get("/api/v1/session").json()["name"] == "ann"
            assert http.get("/api/v1/models").status_code == 200
            with shoal.http() as other:
                answers = [other.post("/api/v1/session", json={"name": "ann", "password": BAD}) for _ in range(40)]
                refused = [answer for answer in answers if answer.status_code == 429]
                assert {answer.status_code for answer in answers} == {401, 429}
                assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
                assert code(other.get("/api/v1/models", headers={"X-Forwarded-For": "1.2.3.4"}))[0] == 401
            assert http.get("/api/v1/models").status_code == 200, "who is in stays in"
            assert http.delete("/api/v1/session").status_code == 204
            assert http.get("/api/v1/models").status_code == 401
        shoal.stop()


def test_users_are_made_where_none_runs_and_a_broken_store_lets_nobody_in(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_shoal() as shoal:
        shoal.write_config()
        offline = ("users", "set", "ann", "--config", str(shoal.config))
        done = run(*offline, "--role", "admin", "--password-stdin", given=GOOD)
        assert done.exit_code == 0, done.stderr
        assert "for the next shoal serve" in done.stderr
        shoal.start()
        assert run(*offline, "--role", "read-only", "--keep-password").exit_code == 1, "the one that runs has to do it"
        with signed_in(shoal) as http:
            assert http.get("/api/v1/models").status_code == 200
        monkeypatch.setenv("SHOAL_USER", "ann")
        monkeypatch.setenv("SHOAL_PASSWORD", BAD)
        with Client(shoal.url) as client, pytest.raises(ShoalError, match="name or the password is wrong"):
            client.status()  # what was said counts, though the socket would let it in
        monkeypatch.setenv("SHOAL_PASSWORD", GOOD)
        with Client(shoal.url) as client:
            assert client.users()[0]["name"] == "ann"
        monkeypatch.delenv("SHOAL_USER")
        shoal.stop()

        (shoal.state / "shoal.db").write_bytes(b"no database at all" * 500)
        shoal.start()
        with shoal.http() as http:
            assert code(http.get("/api/v1/models")) == (401, "sign_in_required")
            lost = http.post("/api/v1/session", json={"name": "ann", "password": GOOD})
            assert code(lost) == (401, "wrong_password")
        with shoal.client as client:
            assert any("users that could not be read" in warning for warning in client.status()["warnings"])
        set_user(run, shoal, "eve")
        with signed_in(shoal, "eve") as http:
            assert http.get("/api/v1/models").status_code == 200
        shoal.stop()
