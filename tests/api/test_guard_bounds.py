"""What the admin API takes from those who have not signed in, and what it tells them: little."""

from __future__ import annotations

import asyncio
import base64
import unicodedata
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from shoal.api.context import _controller
from shoal.errors import ShoalError
from shoal.fleet.attempts import BURST
from shoal.fleet.users import MAX_PASSWORD, MAX_USER_NAME, PasswordHash
from shoal.gateway.heads import MAX_SESSION_BODY
from shoal.sign_in import MOST_REMEMBERED, REMEMBERED, Admitted
from tests.api.guarded import BAD, ELSEWHERE, GOOD, HERE, Admin, Listener, asked, code, listening

JSON = {"content-type": "application/json"}
MARKS = "\u0323\u0307"


def noted(calls: list[object], answer: object) -> Callable[..., object]:
    """A function that notes its calls. `answer`: what it gives; None for its last argument."""

    def call(*given: object) -> object:
        calls.append(given)
        return given[-1] if answer is None else answer

    return call


# -- how much ----------------------------------------------------------------------------------------------------------


class Sent:
    """A body in pieces, and how much of it was read."""

    def __init__(self, pieces: int, size: int = 4096) -> None:
        self._left, self._size, self.read = pieces, size, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._left):
            self.read += self._size
            yield b" " * self._size


@pytest.mark.parametrize("path", ["/api/v1/session", "/", "/static/app.js"])
@pytest.mark.parametrize("users_there", [True, False])
async def test_what_anybody_may_send_is_small(admin: Admin, path: str, users_there: bool) -> None:
    if users_there:
        await admin.user()
    body = b'{"name": "ann", "password": "%b"}' % (b"x" * MAX_SESSION_BODY)
    answer = await admin.client(HERE, JSON).post(path, content=body)
    assert code(answer) == (413, "body_too_large")


async def test_a_body_without_a_length_is_read_up_to_its_bound(admin: Admin) -> None:
    await admin.user()
    sent = Sent(1000)
    answer = await admin.client(ELSEWHERE, JSON).post("/api/v1/session", content=sent)
    assert code(answer) == (413, "body_too_large")
    assert str(MAX_SESSION_BODY) in answer.json()["error"]["message"]
    assert sent.read <= MAX_SESSION_BODY + 4096
    padded = b'{"name": "ann", "password": "correct horse"}'.ljust(MAX_SESSION_BODY)
    assert (await admin.client(ELSEWHERE, JSON).post("/api/v1/session", content=padded)).status_code == 200


async def test_who_has_signed_in_may_send_more(admin: Admin) -> None:
    await admin.user()
    body = b'{"role": "admin"}'.ljust(2 * MAX_SESSION_BODY)
    answer = await (await admin.signed_in()).put("/api/v1/users/ann", content=body, headers=JSON)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("name", "password"),
    [("a" + MARKS * 10_000, GOOD), ("ann", "a" + MARKS * 10_000), ("x" * (MAX_USER_NAME + 1), GOOD),
     ("ann", "x" * (MAX_PASSWORD + 1))],
    ids=["name of marks", "password of marks", "name", "password"],
)  # fmt: skip
async def test_what_is_too_long_is_refused_before_it_is_looked_at(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, name: str, password: str
) -> None:
    """Composing letters takes time by the square of their number; and all this happens in the event loop."""
    await admin.user()
    looked: list[object] = []
    monkeypatch.setattr(unicodedata, "normalize", noted(looked, None))
    monkeypatch.setattr(PasswordHash, "matches", noted(looked, True))
    basic = {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}
    assert await asked(admin.client(ELSEWHERE, basic)) == (401, "wrong_password")
    with pytest.raises(ShoalError, match="wrong"):
        await admin.sign_in.check(name, password, "here")
    answer = await admin.client(ELSEWHERE).post("/api/v1/session", json={"name": name, "password": password})
    assert answer.status_code in (400, 413)
    assert looked == []


async def test_no_path_or_body_has_a_long_name_composed(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(unicodedata, "normalize", noted(looked, None))
    path = f"/api/v1/users/{MARKS * 1000}"
    assert await asked(admin.client(), "DELETE", path) == (404, "user_not_found")
    answer = await admin.client().put(path, json={"role": "admin"})
    assert code(answer) == (400, "invalid_settings")
    answer = await admin.client().put("/api/v1/users/ann", json={"role": "admin", "password": MARKS * 1000})
    assert answer.status_code == 400
    assert looked == []


# -- who is this machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("name", ["evil.test", "192.168.1.5:8000", "localhost.evil.test", "[::]:8000", "a]b["])
async def test_a_name_that_was_made_to_point_here_is_no_way_in(host: str, name: str) -> None:
    """Whatever Shoal listens on, a request to loopback under a name that is not loopback's is a proxy's or a page's."""
    admin = Admin(host=host)
    try:
        status, word = await asked(admin.client(HERE, {"host": name}))
        assert (status, word) in ((403, "local_only"), (403, "wrong_host"))
        assert await asked(admin.client(HERE, {"host": name}), "DELETE", "/api/v1/users/ann") == (status, word)
        assert await asked(admin.client(HERE)) == (200, "")
    finally:
        admin.sign_in.close()


@pytest.mark.parametrize(
    "said",
    [{"x-forwarded-for": "10.1.1.1"}, {"x-forwarded-for": "127.0.0.1"}, {"x-forwarded-for": ""},
     {"x-forwarded-proto": "https"}, {"x-real-ip": "10.1.1.1"}, {"forwarded": "for=10.1.1.1"}, {"via": "1.1 proxy"}],
)  # fmt: skip
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_proxy_lets_others_in_so_before_it_a_user_is_needed(host: str, said: dict[str, str]) -> None:
    admin = Admin(host=host)
    try:
        answer = await admin.client(HERE, said).get("/api/v1/users")
        assert code(answer) == (403, "local_only")
        assert "shoal users set" in answer.json()["error"]["message"]
        await admin.user()
        assert await asked(admin.client(HERE, said)) == (401, "sign_in_required")
        assert await asked(admin.client(HERE, said, auth=("ann", GOOD))) == (200, "")
        assert await asked(admin.client(said)) == (200, ""), "through the controller's own socket"
    finally:
        admin.sign_in.close()


async def test_insecure_stays_open_to_proxies_and_names() -> None:
    admin = Admin(host="0.0.0.0", insecure=True)
    try:
        for headers in ({"x-forwarded-for": "10.1.1.1"}, {"host": "shoal.example"}):
            assert await asked(admin.client(HERE, headers)) == (200, "")
    finally:
        admin.sign_in.close()


# -- a proxy with passwords of its own ---------------------------------------------------------------------------------


async def test_a_proxys_own_password_does_not_hide_a_session(admin: Admin) -> None:
    await admin.user()
    proxys = {"authorization": "Basic " + base64.b64encode(b"proxy:its own secret").decode()}
    client = await admin.signed_in(HERE, proxys)
    for _ in range(2 * BURST):
        assert await asked(client) == (200, "")
    assert (await client.put("/api/v1/users/ann", json={"role": "admin"})).status_code == 200
    bare = admin.client(HERE, proxys, cookies=client.cookies)
    assert await asked(bare, "DELETE", "/api/v1/users/ann") == (403, "page_header_missing")
    await client.delete("/api/v1/session")
    assert await asked(client) == (401, "wrong_password")
    assert await asked(admin.client(HERE, auth=("ann", GOOD), cookies={admin.sign_in.cookie: "x"})) == (200, "")


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["session", "Basic"])
@pytest.mark.parametrize("what", ["removed", "changed", "signed out"])
async def test_who_was_removed_while_a_stream_began_hears_nothing(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, by: str, what: str
) -> None:
    await admin.user()
    await admin.user("bob")
    client = await admin.signed_in()
    kept = await admin.sign_in.hash(BAD)
    basic = base64.b64encode(f"ann:{GOOD}".encode()).decode()

    async def between() -> Any:
        """What a route depends on is asked for after the guard, and before the answer begins."""
        if what == "removed":
            admin.sign_in.remove_user("ann")
        elif what == "changed":
            admin.sign_in.set_user("ann", None, kept)
        else:
            for session in list(admin.sign_in.sessions.records.values()):
                admin.sign_in.end(session)
        return admin

    admin.app.dependency_overrides[_controller] = between
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    shown = {"cookie": cookies} if by == "session" else {"authorization": f"Basic {basic}"}
    listener = Listener(admin, {**HERE, **shown})
    if (by, what) == ("Basic", "signed out"):
        async with asyncio.timeout(20):
            await listener.begun.wait()
        listener.task.cancel()
        return
    assert await listener.ended()
    assert [len(message.get("body", b"")) for message in listener.messages] == [0, 0]
    assert admin.sign_in._streams == set()


async def test_a_stream_that_began_as_the_first_user_was_made_ends(admin: Admin) -> None:
    kept = await admin.sign_in.hash(GOOD)

    async def between() -> Any:
        admin.sign_in.set_user("ann", "admin", kept)
        return admin

    admin.app.dependency_overrides[_controller] = between
    assert await Listener(admin, HERE).ended()


async def test_a_stream_of_the_last_user_ends_with_them(admin: Admin) -> None:
    """Then nobody is asked, but other machines are not let in."""
    await admin.user()
    task = asyncio.create_task(asyncio.sleep(60))
    admitted = Admitted(admin.sign_in.remove_user("ann"))
    assert admin.sign_in.open_stream(task, admitted).ended
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_who_may_listen_is_let_be(admin: Admin) -> None:
    await admin.user()
    listener = await listening(admin, await admin.signed_in())
    assert not listener.task.done()
    listener.task.cancel()


# -- probes ------------------------------------------------------------------------------------------------------------


async def test_readiness_names_things_to_those_alone_who_may_look(admin: Admin) -> None:
    secret = "the folder /srv/secret-model of acme is gone"
    cast("Any", admin).relays = SimpleNamespace(connected=True)
    told = [secret]
    cast("Any", admin).status = lambda: SimpleNamespace(warnings=list(told))

    async def degraded(client: httpx2.AsyncClient) -> Any:
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        return answer.json()["degraded"]

    counted = ["1 warning, told to who may look at this Shoal"]
    proxied = {**HERE, "x-forwarded-for": "10.1.1.1"}
    assert await degraded(admin.client(HERE)) == await degraded(admin.client()) == [secret]
    assert await degraded(admin.client(ELSEWHERE)) == await degraded(admin.client(proxied)) == counted
    await admin.user()
    await admin.user("bob", "read-only")
    for headers in (HERE, ELSEWHERE, {**ELSEWHERE, "authorization": "Basic ????"}):
        assert await degraded(admin.client(headers)) == counted
    assert await degraded(admin.client()) == [secret]
    assert await degraded(await admin.signed_in(ELSEWHERE, name="bob")) == [secret]
    told.append("another")
    assert await degraded(admin.client(ELSEWHERE)) == ["2 warnings, told to who may look at this Shoal"]
    told.clear()
    assert await degraded(admin.client(ELSEWHERE)) == []


# -- the loop ----------------------------------------------------------------------------------------------------------


async def test_a_request_takes_no_thread_to_find_the_controller(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", noted(taken, None))
    assert await asked(admin.client(HERE)) == (200, "")
    assert taken == []


# -- floods ------------------------------------------------------------------------------------------------------------


async def test_a_password_that_is_used_stays_remembered(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.user()
    client = admin.client(ELSEWHERE, auth=("ann", GOOD))
    assert await asked(client) == (200, "")
    hashes: list[object] = []
    monkeypatch.setattr(PasswordHash, "matches", noted(hashes, True))
    for _ in range(5):
        admin.clock += REMEMBERED - 1
        assert await asked(client) == (200, "")
    assert hashes == []
    admin.clock += REMEMBERED
    assert await asked(client) == (200, "")
    assert len(hashes) == 1, "what is not used is forgotten"


async def test_of_many_passwords_those_in_use_are_remembered(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.user()
    for n in range(MOST_REMEMBERED):
        await admin.user(f"u{n}")
        await admin.sign_in.check_again(f"u{n}", GOOD, f"10.0.0.{n}")
        await admin.sign_in.check_again("ann", GOOD, "10.0.1.1")
    assert len(admin.sign_in._remembered) == MOST_REMEMBERED
    hashes: list[object] = []
    monkeypatch.setattr(PasswordHash, "matches", noted(hashes, True))
    await admin.sign_in.check_again("ann", GOOD, "10.0.1.1")
    assert hashes == []
    await admin.sign_in.check_again("u0", GOOD, "10.0.1.1")
    assert len(hashes) == 1
