"""Hostile and clumsy input to the admin API: each is refused in the one error shape, and the fleet goes on."""

from __future__ import annotations

import pytest

from tests.system.harness import Shoal, a_shoal

POISON = [
    ("half a character in an argument", b'{"name": "m", "source": "x", "args": ["\\ud800"]}'),
    ("half a character in a variable", b'{"name": "m", "source": "x", "env": {"A": "\\udfff"}}'),
    ("NUL in the source", b'{"name": "m", "source": "a\\u0000b"}'),
    ("infinite seconds", b'{"name": "m", "source": "x", "start_timeout": 1e999}'),
    ("no number", b'{"name": "m", "source": "x", "start_timeout": NaN}'),
    ("a number that no JSON library takes back", b'{"name": "m", "source": "x", "context_length": %d}' % 2**70),
    ("a size beyond every number", b'{"name": "m", "source": "x", "kv_cache_memory": "' + b"9" * 400 + b'TiB"}'),
    (
        "more than a process can be given",
        b'{"name": "m", "source": "x", "args": ["' + b"x" * 200_000 + b'"]}',
    ),
    ("deep", b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
]


def test_what_could_poison_the_fleet_is_refused_and_the_fleet_goes_on(shoal: Shoal) -> None:
    with shoal.http() as http:
        for what, body in POISON:
            answer = http.post("/api/v1/models", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, f"{what}: {answer.status_code} {answer.text[:200]}"
            assert answer.json()["error"]["message"], what
        assert http.get("/health/live").status_code == 200
        assert http.get("/api/v1/models").json() == {"models": []}
    assert "Traceback" not in shoal.text


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api/v1/models", {"host": "["}, 403),
        ("POST", "/api/v1/models", {"origin": "http://["}, 403),
        ("GET", "/api/v1/events/history?before=99999999999999999999999", {}, 400),
        ("GET", "/api/v1/instances/..%2F..%2Fetc%2Fpasswd", {}, 404),
        ("GET", "/api/v1/instances/..%2F..%2Fetc/logs", {}, 404),
        ("DELETE", "/api/v1/instances/..", {}, 404),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_a_sentence(
    shoal: Shoal, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with shoal.http() as http:
        answer = http.request(method, path, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
    assert "Traceback" not in shoal.text


NAMES = ["50%", "what?", "a#b", "org/model/load", "🦈", "שלום", "x" * 200, "a b", "..a", "café", "%2F", "a;b&c=d"]


def test_names_of_every_kind_go_through_api_and_relay(shoal: Shoal) -> None:
    for name in NAMES:
        shoal.add(name, on_request=False)
    with shoal.client as client:
        assert {model["name"] for model in client.models()} == set(NAMES)
        for name in NAMES:
            assert client.model(name)["name"] == name
            assert shoal.chat(name).status_code == 503, "known, but not loaded"
    for name in NAMES[:6]:
        shoal.load(name)
        assert shoal.chat(name).json()["model"] == name
    with shoal.client as client:
        for name in NAMES[:6]:
            client.unload(name)


def test_a_name_typed_in_another_unicode_form_is_the_same_name(shoal: Shoal) -> None:
    shoal.add("cafe\u0301")  # kept as caf\u00e9
    with shoal.http() as http:
        for name in ("cafe%CC%81", "caf%C3%A9"):
            assert http.get(f"/api/v1/models/{name}").status_code == 200
        assert http.delete("/api/v1/models/cafe%CC%81").status_code == 204


def test_a_fleet_without_history_answers_for_what_it_ended() -> None:
    with a_shoal(history=0) as shoal:
        shoal.start()
        shoal.add("m", "--fail", "start-exit")
        with shoal.client as client:
            client.load("m")
        (failed,) = shoal.wait("m", "failed")
        with shoal.http() as http:
            answer = http.delete(f"/api/v1/instances/{failed['id']}")
            assert answer.status_code == 202, answer.text
            assert answer.json()["state"] == "stopped"
            assert http.get(f"/api/v1/instances/{failed['id']}").status_code == 404
