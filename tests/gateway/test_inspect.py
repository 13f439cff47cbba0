from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.forms import FormReader
from shoal.gateway.inspect import MAX_TOKENS, TOKENS_UNSAID, Named, model_of, read_form, read_request

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FORM = "multipart/form-data; boundary=XyZ"
CHAT = "/v1/chat/completions"


def refusal(body: bytes, **given: str) -> str:
    with pytest.raises(ShoalError) as caught:
        model_of("/v1/x", body, **given)
    assert caught.value.status == 400
    return caught.value.code


def read(body: dict[str, Any] | bytes, target: str = CHAT) -> Named:
    return read_request(target, body if isinstance(body, bytes) else json.dumps(body).encode())


@given(model=st.text(min_size=1), rest=st.dictionaries(st.text().filter(lambda k: k != "model"), JSON, max_size=6))
def test_model_of_any_json_object(model: str, rest: dict[str, Any]) -> None:
    for ascii_only in (True, False):
        body = json.dumps({**rest, "model": model}, ensure_ascii=ascii_only).encode()
        assert model_of("/v1/x", body) == model


@given(st.binary(max_size=200))
def test_no_body_is_a_crash(body: bytes) -> None:
    for content_type in ("application/json", FORM, "multipart/form-data", "text/plain"):
        try:
            assert isinstance(model_of("/v1/x", body, content_type=content_type), str)
        except ShoalError as error:
            assert error.status == 400  # noqa: PT017


def test_the_last_of_two_models_wins() -> None:
    body = b'{"model": "a", "nested": {"model": "x"}, "model": "b"}'
    assert model_of("/v1/x", body) == json.loads(body)["model"] == "b"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"model", "invalid_json"),
        (b'{"model": "m"} {}', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": "m", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model": 5}', "invalid_model"),
        (b'{"model": ["m"]}', "invalid_model"),
        (b'{"model": null}', "model_required"),
        (b'{"model": ""}', "model_required"),
        (b'{"Model": "m"}', "model_required"),
        (b'"model"', "model_required"),
        (b"", "model_required"),
        (b"\xef\xbb\xbf", "invalid_json"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "invalid_json"),
        ('{"model": "m"}'.encode("utf-16"), "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"model": "m", "half a character": "\\ud83d of two"}', "invalid_json"),
        (b'{"model": "m", "x": NaN}', "invalid_json"),
        (b'{"model": "m", "x": 01}', "invalid_json"),
        (b'{"model": 5, "model": "m"}', "invalid_model"),
    ],
)
def test_refusals(body: bytes, code: str) -> None:
    assert refusal(body) == code


def test_query_and_header_stand_in() -> None:
    assert model_of("/v1/x?model=a%2Fb+c&x=1", b"") == "a/b c"
    assert model_of("/v1/x?model=a&model=b", b"{}") == "b"
    assert model_of("/v1/x", b"", model_header="h") == "h"
    assert model_of("/v1/x?model=q", b'{"model": "body"}', model_header="h") == "body"
    assert model_of("/v1/x?model=q", b"", model_header="h") == "q"
    assert model_of("/v1/x", b"\x1f\x8b", content_encoding="gzip", model_header="h") == "h"
    assert refusal(b'{"model": "m"}', content_encoding="gzip") == "model_required"
    assert model_of("/v1/x", b'{"model": "m"}', content_encoding="Identity") == "m"


def test_everything_that_is_read() -> None:
    body = {
        "model": "m",
        "stream": True,
        "priority": "low",
        "user": "ann",
        "keep_alive": "5m",
        "max_tokens": 100,
        "stream_options": {"include_usage": True},
    }
    size = len(json.dumps(body)) / 4
    assert read(body) == Named(
        "m", True, "low", "ann", "5m", size + 100, include_usage=True, streams_usage=True, options=True
    )
    assert read({"model": "m"}) == Named("m", cost=len('{"model": "m"}') / 4 + TOKENS_UNSAID)


def test_the_model_may_come_first_last_or_escaped_or_after_a_byte_order_mark() -> None:
    assert read(b'{"mod\\u0065l": "a", "x": "model"}').model == "a"
    assert read(b'{"model": "a", "mod\\u0065l": "b"}').model == "b"
    assert read(b'\xef\xbb\xbf{"model": "m"}').model == "m"
    assert read(b' \r\n\t{"model":"m"}\n').model == "m"


def test_a_name_may_hold_any_character() -> None:
    assert read({"model": "a\0b"}).model == "a\0b"
    assert read({"model": "\n\U0001f41f"}).model == "\n\U0001f41f"


@pytest.mark.parametrize(
    "value",
    [
        b'"yes"',
        b"1",
        b"null",
        b"{}",
        b"[true]",
        b"-1e999",
        b"9" * 6000,
        b'"\xff"',
        b"[" * 400 + b"]" * 400,
        b'"' + b"x" * 100_000 + b'"',
    ],
)
def test_odd_values_are_left_to_the_engine(value: bytes) -> None:
    names = (
        "stream",
        "priority",
        "user",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "stream_options",
    )
    for name in names:
        found = read(b'{"model": "m", "%s": %s}' % (name.encode(), value))
        assert (found.model, found.stream, found.priority) == ("m", False, None)
        assert found.cost >= 1
        assert not found.include_usage
        assert not found.streams_usage
    usage = read(b'{"model": "m", "stream_options": {"include_usage": null, "x": %s}}' % value)
    assert not usage.include_usage


@given(rest=st.dictionaries(st.sampled_from(sorted(Named.__struct_fields__)), JSON, max_size=8))
def test_only_the_model_can_be_wrong(rest: dict[str, Any]) -> None:
    found = read({**rest, "model": "m"})
    assert found.stream is (rest.get("stream") is True)
    assert found.user is None or found.user == rest["user"]
    assert found.keep_alive is None or found.keep_alive == rest["keep_alive"]


def test_the_engines_own_priority_is_not_ours() -> None:
    for number in (0, 7, -3, 1.5):
        assert read({"model": "m", "priority": number}).priority is None
    assert read({"model": "m", "priority": "urgent"}).priority is None
    assert [read({"model": "m", "priority": p}).priority for p in ("high", "normal", "low")] == [
        "high",
        "normal",
        "low",
    ]


@pytest.mark.parametrize("value", ["5m", "-1", 0, -1, 300, 1.5])
def test_keep_alive(value: str | float) -> None:
    assert read({"model": "m", "keep_alive": value}).keep_alive == value


@pytest.mark.parametrize("value", [None, True, {}, [1], "x" * 1000, 10**400])
def test_no_keep_alive(value: object) -> None:
    assert read({"model": "m", "keep_alive": value}).keep_alive is None


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({}, TOKENS_UNSAID),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 10.0}, 10),
        ({"max_completion_tokens": 5, "max_tokens": 10}, 5),
        ({"max_completion_tokens": None, "max_tokens": 10}, 10),
        ({"max_completion_tokens": "x", "max_tokens": -1, "max_output_tokens": 7}, 7),
        ({"max_tokens": MAX_TOKENS}, MAX_TOKENS),
        ({"max_tokens": MAX_TOKENS + 1}, TOKENS_UNSAID),
        ({"max_tokens": True}, TOKENS_UNSAID),
        ({"max_tokens": 10, "n": 4}, 40),
        ({"max_tokens": 10, "n": 0}, 10),
        ({"max_tokens": 10, "n": 10**9}, 10),
    ],
)
def test_cost(limits: dict[str, Any], tokens: float) -> None:
    body = json.dumps({"model": "m", **limits})
    for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages?beta=true"):
        assert read(body.encode(), path).cost == len(body) / 4 + tokens
    for path in ("/v1/embeddings", "/v2/rerank", "/tokenize", "/v1/messages/count_tokens?x=/y", "/score"):
        assert read(body.encode(), path).cost == len(body) / 4


def test_who_tells_usage_only_if_asked() -> None:
    for path, streams in ((CHAT, True), (CHAT + "?x", True), ("/v1/completions", True), ("/v1/responses", False)):
        assert read({"model": "m", "stream": True}, path).streams_usage is streams
        assert not read({"model": "m"}, path).streams_usage
    asked = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert read(asked).include_usage
    assert not read({**asked, "stream_options": {"include_usage": False}}).include_usage


def test_forms_are_read_the_same_whole_or_as_they_come() -> None:
    fields = {"model": "whisper", "stream": "true", "user": "ann", "priority": "high", "keep_alive": "1h"}
    body = b"".join(
        f'--XyZ\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    reader = FormReader(FORM)
    reader.feed(body + b"--XyZ")
    path = "/v1/audio/transcriptions"
    whole = read_request(path, body + b"--XyZ--", content_type=FORM)
    assert read_form(path, reader) == whole == Named("whisper", True, "high", "ann", "1h", TOKENS_UNSAID)
    assert refusal(body, content_type=FORM) == "invalid_body"
    assert refusal(b"--XyZ--", content_type=FORM) == "model_required"
    assert read_form(path + "?model=q", FormReader(FORM)).model == "q"
    assert read_form(path, FormReader(FORM), model_header="h").model == "h"


def test_a_websockets_model_is_in_its_query() -> None:
    found = read(b"", "/v1/realtime?x=1&model=org%2Fm:adapter")
    assert found == Named("org/m:adapter", cost=TOKENS_UNSAID)
    with pytest.raises(ShoalError) as caught:
        read(b"", "/v1/realtime?model=m&" + "x=1&" * 1000)
    assert caught.value.code == "invalid_query"
