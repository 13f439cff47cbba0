"""Who gets through to the admin API, by what the relay says of them and by what they show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.errors import ShoalError
from shoal.fleet.attempts import BURST
from shoal.fleet.sessions import digest_of
from shoal.fleet.users import PasswordHash
from shoal.sign_in import WAITING
from shoal.store import Saved
from tests.api.guarded import BAD, CHEAP, ELSEWHERE, GOOD, HERE, PAGE, Admin, asked, code

# -- names -------------------------------------------------------------------------------------------------------------


async def test_under_a_published_name_one_has_to_sign_in() -> None:
    admin = Admin(hosts=("Shoal.example",))
    try:
        named, other = {"host": "shoal.example:8443"}, {"host": "elsewhere.example"}
        assert await asked(admin.client(HERE, other)) == (403, "wrong_host")
        assert await asked(admin.client(HERE, named)) == (403, "local_only")
        assert await asked(admin.client(HERE)) == (200, "")
        await admin.user()
        assert await asked(admin.client(HERE, other)) == (403, "wrong_host")
        assert await asked(admin.client(HERE, named)) == (401, "sign_in_required")
        signed = await admin.signed_in(HERE, named, {"origin": "https://shoal.example:8443"})
        assert await asked(signed) == (200, "")
        assert await asked(admin.client(named)) == (200, ""), "through the controller's own socket"
    finally:
        admin.sign_in.close()


# -- without users -----------------------------------------------------------------------------------------------------


async def test_without_users_this_machine_and_the_socket_are_asked_for_nothing(admin: Admin) -> None:
    for headers in (HERE, {"x-shoal-peer": "::1"}, {**HERE, "host": "[::1]:8000"}, {**HERE, "host": "localhost"}, {}):
        client = admin.client(headers)
        assert await asked(client) == (200, "")
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/api/v1/session")).json() == {"needed": False, "name": None, "role": "admin"}
    assert await asked(admin.client(HERE), "POST", "/api/v1/session") == (400, "invalid_request")
    answer = await admin.client(HERE).post("/api/v1/session", json={"name": "ann", "password": GOOD})
    assert code(answer) == (409, "no_users")


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/v1/users", "/api/v1/session", "/metrics", "/api/docs"])
async def test_without_users_other_machines_get_nothing_but_probes(admin: Admin, path: str) -> None:
    client = admin.client(ELSEWHERE)
    answer = await client.get(path)
    assert code(answer) == (403, "local_only")
    assert "shoal users set" in answer.json()["error"]["message"]
    assert (await client.get("/health/none")).status_code == 404, "probes are not guarded"


async def test_a_shoal_that_is_told_insecure_answers_everybody_until_there_is_a_user() -> None:
    admin = Admin(host="0.0.0.0", insecure=True)
    client = admin.client(ELSEWHERE)
    assert await asked(client) == (200, "")
    await admin.user()
    assert await asked(client) == (401, "sign_in_required")
    admin.sign_in.close()


@pytest.mark.parametrize("said", ["", "unknown", "127.0.0.1, 10.0.0.1", "localhost", "::"])
async def test_what_is_no_address_of_this_machine_is_another(admin: Admin, said: str) -> None:
    assert await asked(admin.client({"x-shoal-peer": said})) == (403, "local_only")


# -- with users --------------------------------------------------------------------------------------------------------


async def test_with_a_user_everybody_signs_in_but_who_has_the_socket(admin: Admin) -> None:
    await admin.user()
    assert await asked(admin.client()) == (200, "")
    assert (await admin.client().get("/api/v1/session")).json() == {"needed": False, "name": None, "role": "admin"}
    for headers in (HERE, ELSEWHERE):
        client = admin.client(headers)
        for path in ("/api/v1/users", "/metrics", "/api/docs", "/api/openapi.json", "/no/such"):
            assert await asked(client, path=path) == (401, "sign_in_required")
        for path in ("/", "/static/app.js"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/api/v1/session")).json() == {"needed": True, "name": None, "role": None}
        assert (await client.get("/health/none")).status_code == 404


async def test_only_a_client_of_this_machine_is_told_of_the_socket(admin: Admin) -> None:
    await admin.user()
    asking = (HERE, ELSEWHERE, {**HERE, "x-forwarded-for": "10.1.1.1"})
    told = [(await admin.client(headers).get("/api/v1/users")).headers.get("x-shoal-socket") for headers in asking]
    assert told == ["token /run/shoal/controller.sock", None, None]


async def test_a_session_from_sign_in_to_sign_out(admin: Admin) -> None:
    await admin.user()
    client = admin.client(ELSEWHERE, PAGE)
    wrong = await client.post("/api/v1/session", json={"name": "ann", "password": BAD})
    nobody = await client.post("/api/v1/session", json={"name": "eve", "password": GOOD})
    assert code(wrong) == code(nobody) == (401, "wrong_password")
    assert wrong.json() == nobody.json(), "an answer does not tell whether there is such a user"
    assert await asked(client) == (401, "sign_in_required")
    answer = await client.post("/api/v1/session", json={"name": "ann", "password": GOOD})
    assert answer.json() == {"needed": True, "name": "ann", "role": "admin"}
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} < set(cookie.split("; "))
    assert "Secure" not in cookie
    token = cookie.partition("=")[2].partition(";")[0]
    assert len(token) >= 43, "256 bits"
    assert list(admin.store.sessions) == [digest_of(token)]
    assert token not in repr(vars(admin.store)) + repr(admin.sign_in.sessions.records)
    assert await asked(client) == (200, "")
    assert (await client.get("/api/v1/session")).json()["name"] == "ann"
    assert (await client.delete("/api/v1/session")).status_code == 204
    assert admin.store.sessions == {}
    for cookies in ({}, {admin.sign_in.cookie: token}):
        again = admin.client(ELSEWHERE, cookies=cookies)
        assert await asked(again) == (401, "sign_in_required")


async def test_signing_in_again_leaves_no_session_behind(admin: Admin) -> None:
    await admin.user()
    client = await admin.signed_in()
    await client.post("/api/v1/session", json={"name": "ann", "password": GOOD})
    assert len(admin.store.sessions) == 1
    assert await asked(client) == (200, "")


@pytest.mark.parametrize(
    ("headers", "path", "attributes"),
    [
        ({**HERE, "x-forwarded-proto": "https"}, "/shoal/", {"Secure", "Path=/shoal/"}),
        ({**HERE, "x-forwarded-proto": "http, HTTPS"}, "/", {"Secure", "Path=/"}),
        ({**HERE, "x-forwarded-proto": "https, http"}, "/", {"Path=/"}),
        ({**ELSEWHERE, "x-forwarded-proto": "https"}, "/", {"Path=/"}),
        (HERE, "/a; Domain=evil.test", {"Path=/"}),
        (HERE, "elsewhere", {"Path=/"}),
        (HERE, "/a\r\nX-Evil: 1", {"Path=/"}),
    ],
)
async def test_where_and_how_the_cookie_is_kept(
    admin: Admin, headers: dict[str, str], path: str, attributes: set[str]
) -> None:
    await admin.user()
    given = {"name": "ann", "password": GOOD}
    answer = await admin.client(headers).post("/api/v1/session", json=given, params={"path": path})
    found = {part for part in answer.headers["set-cookie"].split("; ") if part[:4] in ("Secu", "Path", "Doma")}
    assert found == attributes
    assert "x-evil" not in answer.headers


async def test_who_may_only_look_changes_nothing(admin: Admin) -> None:
    await admin.user("ann")
    await admin.user("bob", "read-only")
    client = await admin.signed_in(name="bob")
    assert (await client.get("/api/v1/session")).json()["role"] == "read-only"
    assert await asked(client) == (200, "")
    assert (await client.head("/")).status_code in (200, 405)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert await asked(client, method, "/api/v1/users/bob") == (403, "read_only")
    assert admin.sign_in.users.find("bob").role == "read-only"
    assert (await client.delete("/api/v1/session")).status_code == 204, "signing out is not a change"


async def test_another_web_page_cannot_act_through_a_session(admin: Admin) -> None:
    """SameSite does not tell ports of one host apart: what is left are the header and the origin."""
    await admin.user()
    client = await admin.signed_in()
    bare = admin.client(HERE, cookies=client.cookies)
    assert await asked(bare) == (200, ""), "looking needs no header"
    for method, path in (("PUT", "/api/v1/users/eve"), ("DELETE", "/api/v1/users/ann"), ("DELETE", "/api/v1/session")):
        assert await asked(bare, method, path) == (403, "page_header_missing")
    elsewhere = admin.client(HERE, PAGE, {"origin": "http://127.0.0.1:3000"}, cookies=client.cookies)
    assert await asked(elsewhere, "DELETE", "/api/v1/users/ann") == (403, "wrong_origin")
    given = {"name": "ann", "password": GOOD}
    assert code(await elsewhere.post("/api/v1/session", json=given)) == (403, "wrong_origin")
    own = admin.client(HERE, PAGE, {"origin": "http://127.0.0.1"}, cookies=client.cookies)
    assert (await own.delete("/api/v1/users/ann")).status_code == 204


async def test_a_form_of_another_page_does_not_sign_anybody_in(admin: Admin) -> None:
    await admin.user()
    body = b'{"name": "ann", "password": "correct horse"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await admin.client(HERE).post("/api/v1/session", content=body, headers={"content-type": kind})
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers


async def test_a_program_shows_name_and_password_each_time(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.user("änn")
    await admin.user("bob", "read-only")
    client = admin.client(ELSEWHERE, auth=("änn", GOOD))
    assert await asked(client) == (200, "")
    assert (await client.put("/api/v1/users/bob", json={"role": "admin"})).status_code == 200, "no header is needed"
    hashes = 0

    def counted(*_: Any) -> bool:
        nonlocal hashes
        hashes += 1
        return True

    monkeypatch.setattr(PasswordHash, "matches", counted)
    for _ in range(50):
        assert await asked(client) == (200, "")
    assert hashes == 0, "one that was right is not computed again"
    assert repr(admin.sign_in._remembered).find(GOOD) < 0


@pytest.mark.parametrize("value", ["Basic", "Basic ????", "Basic bm8gY29sb24=", "Basic /w=="])
async def test_a_header_that_holds_no_password(admin: Admin, value: str) -> None:
    await admin.user()
    answer = await admin.client(HERE, {"authorization": value}).get("/api/v1/users")
    assert code(answer) == (400, "invalid_header")


async def test_a_password_that_was_changed_ends_what_it_opened(admin: Admin) -> None:
    await admin.user()
    basic = admin.client(HERE, auth=("ann", GOOD))
    assert await asked(basic) == (200, "")
    client = await admin.signed_in()
    answer = await client.put("/api/v1/users/ann", json={"password": BAD})
    assert answer.status_code == 200, "the request that ends its own session is answered"
    assert await asked(client) == (401, "sign_in_required")
    assert await asked(basic) == (401, "wrong_password")
    assert admin.store.sessions == {}


async def test_no_answer_and_no_event_has_a_password(admin: Admin) -> None:
    await admin.user()
    client = await admin.signed_in()
    answers = [
        await client.put("/api/v1/users/bob", json={"role": "admin", "password": GOOD}),
        await client.put("/api/v1/users/bob", json={"password": GOOD + "\n"}),
        await client.put("/api/v1/users/bob", json={"password": GOOD * 200}),
        await client.put("/api/v1/users/bob", json={"password": [GOOD]}),
        await client.post("/api/v1/session", json={"name": "bob", "password": [GOOD]}),
        await client.get("/api/v1/users"),
    ]
    kept = admin.sign_in.users.find("bob").password
    for text in [*(answer.text for answer in answers), *(event.message for event in admin.store.events)]:
        assert GOOD not in text
        assert kept.digest not in text
        assert kept.salt not in text
    assert [event.kind for event in admin.store.events] == ["user_made", "user_made"]


# -- attempts ----------------------------------------------------------------------------------------------------------


async def test_after_too_many_attempts_even_the_right_password_waits(admin: Admin) -> None:
    await admin.user()
    client = admin.client(ELSEWHERE)
    for _ in range(10):
        assert code(await client.post("/api/v1/session", json={"name": "ann", "password": BAD}))[0] == 401
    for _ in range(3):
        refused = await client.post("/api/v1/session", json={"name": "ann", "password": GOOD})
        assert code(refused) == (429, "too_many_attempts")
    assert refused.headers["retry-after"] == "20"
    assert await asked(admin.client(HERE, auth=("ann", GOOD))) == (429, "too_many_attempts"), "Basic is no way around"
    (event,) = [event for event in admin.store.events if event.kind == "sign_in_refused"]
    assert "'ann' from 10.0.0.9" in event.message
    assert BAD not in event.message
    assert await asked(admin.client()) == (200, ""), "the owner is not locked out"
    admin.clock += 20
    answer = await client.post("/api/v1/session", json={"name": "ann", "password": GOOD})
    assert answer.status_code == 200


async def test_a_flood_waits_in_a_short_line_and_not_in_the_event_loop(admin: Admin) -> None:
    await admin.user()
    admin.sign_in._checking = WAITING + 2
    for _ in range(2 * BURST):
        answer = await admin.client(HERE).post("/api/v1/session", json={"name": "ann", "password": GOOD})
        assert (*code(answer), answer.headers["retry-after"]) == (429, "too_many_attempts", "2")
    assert (await admin.client().put("/api/v1/users/bob", json={"role": "admin", "password": GOOD})).status_code == 201
    admin.sign_in._checking = 0
    await admin.signed_in()  # what was refused did not count
    admin.sign_in._attempts = cast("Any", SimpleNamespace(begin=lambda *_: 0.0, succeeded=lambda *_: None))
    client = admin.client(HERE)
    answers = await asyncio.gather(
        *(client.post("/api/v1/session", json={"name": f"u{n}", "password": GOOD}) for n in range(200))
    )
    assert {answer.status_code for answer in answers} <= {401, 429}
    assert admin.sign_in._checking == 0


async def test_a_name_that_nobody_has_costs_a_hash_too(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.user()
    costs = []

    def noted(self: Any, password: str) -> bool:
        costs.append(self.cost)
        return False

    monkeypatch.setattr(PasswordHash, "matches", noted)
    for name in ("ann", "nobody"):
        await admin.client(HERE).post("/api/v1/session", json={"name": name, "password": GOOD})
    assert costs == [CHEAP, CHEAP]


# -- restarts ----------------------------------------------------------------------------------------------------------


async def test_sessions_outlive_the_controller_and_lost_users_let_nobody_in(admin: Admin) -> None:
    await admin.user()
    client = await admin.signed_in()
    after = Admin()
    after.sign_in.restore(admin.store.saved())
    assert await asked(after.client(HERE, cookies=client.cookies)) == (200, "")
    lost = Admin()
    lost.sign_in.restore(Saved(users_lost=True))
    assert await asked(lost.client(HERE, cookies=client.cookies)) == (401, "sign_in_required")
    assert await asked(lost.client(ELSEWHERE)) == (401, "sign_in_required")
    assert "could not be read" in lost.sign_in.faults[0]
    assert await asked(lost.client()) == (200, "")
    await lost.user()
    assert lost.sign_in.faults == []
    assert await asked(await lost.signed_in()) == (200, "")
    for one in (after, lost):
        one.sign_in.close()


async def test_who_was_changed_while_the_password_was_checked_is_not_let_in(admin: Admin) -> None:
    await admin.user()
    user = await admin.sign_in.check("ann", GOOD, "here")
    await admin.user(password=BAD)
    with pytest.raises(ShoalError, match="changed meanwhile"):
        admin.sign_in.start(user)
