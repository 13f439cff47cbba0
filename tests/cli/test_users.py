"""`shoal users`, as far as it needs no Shoal, and the way of the client to a Shoal of one's own that asks who they are.
`tests/system/test_sign_in.py` has the commands against a real one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shoal.access import new_store
from shoal.client import Client
from shoal.client_local import is_ours
from shoal.config import load_settings
from shoal.errors import ShoalError
from shoal.fleet.sessions import Session
from shoal.fleet.users import User
from shoal.introduction import Introduction
from shoal.paths import find_paths, hold, make_runtime
from tests.cli.conftest import Run

GOOD = "correct horse"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in os.environ:
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: Unix sockets allow no long ones."""
    path = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "given", "status", "words"),
    [
        (["ann"], GOOD, 2, "--password-stdin"),
        (["ann", "--password-stdin", "--keep-password"], GOOD, 2, "either"),
        (["ann", "--keep-password"], None, 2, "--role"),
        (["ann", "--url", NOWHERE, "--state-dir", "/x"], None, 2, "--url"),
        (["ann", "--role", "root", "--password-stdin"], GOOD, 1, "admin and read-only"),
        (["a:b", "--role", "admin", "--password-stdin"], GOOD, 1, "colons"),
        (["ann", "--role", "admin", "--password-stdin"], "short\n", 1, "8 to 1024"),
        (["ann", "--role", "admin", "--password-stdin"], "two lines\nof it\n", 1, "line breaks"),
        (["ann", "--role", "admin", "--password-stdin"], "", 1, "8 to 1024"),
        (["ann", "--role", "admin", "--password-stdin", "--url", NOWHERE], GOOD, 3, "nothing listens"),
        (["ann", GOOD, "--role", "admin"], None, 2, ""),
    ],
)
def test_what_is_refused_before_anything_is_asked(
    run: Run, args: list[str], given: str | None, status: int, words: str
) -> None:
    done = run("users", "set", *args, input=given)
    assert (done.exit_code, words in done.stderr) == (status, True), done.stderr
    assert given is None or not given or given.strip() not in done.stderr


def stored(folder: Path) -> list[User]:
    async def read() -> list[User]:
        settings = load_settings({"state_dir": folder / "state"})
        store = new_store(settings, find_paths(settings))
        await store.open()
        saved = await store.load()
        await store.close()
        assert saved.sessions == []
        return saved.users

    return asyncio.run(read())


def test_a_user_is_made_and_changed_where_no_shoal_runs(run: Run, folder: Path) -> None:
    state = folder / "state"
    offline = ("--state-dir", str(state))
    refused = run("users", "set", "ann", "--password-stdin", *offline, input=GOOD)
    assert (refused.exit_code, "needs a role" in refused.stderr) == (1, True)
    done = run("users", "set", "ann", "--role", "admin", "--password-stdin", *offline, "--json", input=GOOD + "\n")
    assert json.loads(done.stdout)["role"] == "admin"
    assert GOOD not in done.stdout + done.stderr
    (made,) = stored(folder)
    assert made.password.matches(GOOD)

    async def sign_in() -> None:
        settings = load_settings({"state_dir": state})
        store = new_store(settings, find_paths(settings))
        await store.open()
        store.save_session(Session("00" * 32, "ann", 1.0, 1.0))
        await store.close()

    asyncio.run(sign_in())
    assert run("users", "set", "ann", "--role", "read-only", "--keep-password", *offline).exit_code == 0
    (changed,) = stored(folder)
    assert (changed.role, changed.password, changed.created_at) == ("read-only", made.password, made.created_at)


def test_a_user_is_not_made_beside_a_shoal_that_runs(run: Run, folder: Path) -> None:
    paths = find_paths(load_settings({"state_dir": folder / "state"}))
    make_runtime(paths)
    with hold(paths):
        done = run("users", "set", "ann", "--role", "admin", "--password-stdin", "--state-dir", str(paths.state),
                   input=GOOD)  # fmt: skip
    assert done.exit_code == 1
    assert "--url" in done.stderr


# -- the client's way --------------------------------------------------------------------------------------------------


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    server_name, server_port = "shoal", 0


@contextmanager
def served(socket: Path, *, told: str | None = None) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """A port that refuses everybody and names a socket, and that socket, which answers. `told`: what the port says in
    place of the words of the socket's own Shoal. What each was asked: `port` or `socket`, the path, and the header
    Authorization."""
    introduction = Introduction.of(socket)
    introduction.keep()
    asked: list[tuple[str, str, str | None]] = []

    def handler(where: str) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def address_string(self) -> str:
                return where

            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                asked.append((where, self.path, self.headers.get("authorization")))
                inside = where == "socket"
                error = {"error": {"message": "sign in first", "type": "x", "code": "sign_in_required", "param": None}}
                body = json.dumps({"users": []} if inside else error).encode()
                self.send_response(200 if inside else 401)
                if not inside:
                    self.send_header("x-shoal-socket", introduction.header if told is None else told)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        for method in ("PUT", "POST"):
            setattr(Handler, f"do_{method}", Handler.do_GET)
        return Handler

    port = ThreadingHTTPServer(("127.0.0.1", 0), handler("port"))
    own = _UnixServer(str(socket), handler("socket"))
    threads = [threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True) for one in (port, own)]
    for thread in threads:
        thread.start()
    try:
        yield f"http://127.0.0.1:{port.server_address[1]}", asked
    finally:
        for one in (port, own):
            one.shutdown()
            one.server_close()


def test_a_shoal_of_ones_own_is_reached_through_its_socket_and_stays_so(folder: Path) -> None:
    socket = folder / "controller.sock"
    with served(socket) as (url, asked), Client(url) as client:
        assert client.users() == []
        client.set_user("ann", role="admin", password=GOOD)
        assert client.users() == []
        ways = [where for where, _, _ in asked]
        assert ways == ["port", "socket", "socket", "socket"]
        asked.clear()
        with pytest.raises(ShoalError, match="sign in first"):
            next(client.chat("m", []))
        assert [where for where, _, _ in asked] == ["port"], "inference does not go to the controller"


def test_a_controller_that_went_away_is_asked_for_at_the_port(folder: Path) -> None:
    socket = folder / "controller.sock"
    with served(socket) as (url, asked), Client(url) as client:
        client.users()
        socket.unlink()
        with pytest.raises(ShoalError, match="sign in first"):
            client.users()
        assert [where for where, _, _ in asked] == ["port", "socket", "port"]


def test_a_name_that_was_said_is_shown_and_no_other_way_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_USER", "ann")
    monkeypatch.setenv("SHOAL_PASSWORD", GOOD)
    with served(folder / "controller.sock") as (url, asked), Client(url) as client:
        with pytest.raises(ShoalError, match="sign in first"):
            client.users()
        with pytest.raises(ShoalError):
            next(client.chat("m", []))
    assert [(where, (shown or "")[:6]) for where, _, shown in asked] == [("port", "Basic "), ("port", "")]


def test_a_password_that_would_go_over_the_net_in_the_clear_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_USER", "ann")
    monkeypatch.setenv("SHOAL_PASSWORD", GOOD)
    warnings = []
    for url in ("http://shoal.test:8000", "https://shoal.test", "http://127.0.0.1:8000"):
        with Client(url) as client:
            warnings.append(client.warnings)
    assert ["unencrypted" in " ".join(each) for each in warnings] == [True, False, False]
    assert GOOD not in str(warnings)


def test_a_socket_that_others_could_have_put_there_is_left_alone(folder: Path) -> None:
    private, open_to_all, file = folder / "a", folder / "b", folder / "file"
    for place in (private, open_to_all):
        place.mkdir(mode=0o700)
    file.write_text("")
    with served(private / "s") as (_, _):
        assert is_ours(private / "s")
        private.chmod(0o750)
        assert not is_ours(private / "s")
        private.chmod(0o700)
        (open_to_all / "link").symlink_to(private / "s")
        for path in (file, private, open_to_all / "link", folder / "none" / "s", Path("a\0b")):
            assert not is_ours(path), path


def test_what_a_port_names_is_looked_at_before_it_is_used(folder: Path) -> None:
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    socket = shared / "s"
    with served(socket) as (url, asked), Client(url) as client:
        with pytest.raises(ShoalError, match="sign in first"):
            client.users()
        assert [where for where, _, _ in asked] == ["port"]


def test_the_shoal_of_another_machine_is_not_taken_for_that_of_this_one(folder: Path) -> None:
    socket = folder / "controller.sock"
    elsewhere = Introduction.of(socket).header  # the same user with the same folders, behind a forwarded port
    for told in (elsewhere, str(socket), f" {socket}", "token", f"tök\xe9n {socket}", ""):
        with served(socket, told=told) as (url, asked), Client(url) as client:
            with pytest.raises(ShoalError, match="sign in first"):
                client.set_user("ann", role="admin", password=GOOD)
            assert [where for where, _, _ in asked] == ["port"], told
        socket.unlink()


@pytest.mark.parametrize("name", ["s", "with a space", "naïve-日本", "percent%20"])
def test_a_controller_is_known_by_the_token_of_its_start(folder: Path, name: str) -> None:
    first, second = (Introduction.of(folder / name / "controller.sock") for _ in range(2))
    assert not first.is_kept()
    (folder / name).mkdir()
    first.keep()
    assert first.file.stat().st_mode & 0o777 == 0o600
    told = Introduction.parse(first.header.encode("latin-1").decode("latin-1"))
    assert told == first
    assert told.is_kept()
    second.keep()
    assert (first.is_kept(), second.is_kept()) == (False, True)
    second.forget()
    second.forget()
    assert not second.is_kept()
    assert list((folder / name).iterdir()) == []


def test_what_lies_in_the_place_of_a_token_is_no_token(folder: Path) -> None:
    told = Introduction.of(folder / "controller.sock")
    (folder / "elsewhere").write_text(told.token)
    told.file.symlink_to(folder / "elsewhere")
    assert not told.is_kept()
    told.file.unlink()
    os.mkfifo(told.file)
    assert not told.is_kept()
    told.file.unlink()
    told.file.write_text("")
    assert not Introduction(told.socket, "").is_kept()
