from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.inspect import model_of

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


def refusal(body: bytes, **given: str) -> str:
    with pytest.raises(ShoalError) as caught:
        model_of("/v1/x", body, **given)
    assert caught.value.status == 400
    return caught.value.code


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


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


@given(st.lists(st.tuples(st.sampled_from(["model", "prompt"]), st.binary(max_size=30)), max_size=6))
def test_forms(fields: list[tuple[str, bytes]]) -> None:
    fields = [(name, value.replace(b"--XyZ", b"")) for name, value in fields]
    fields = [(name, value.hex().encode() if name == "model" else value) for name, value in fields]
    body = b"".join(part(name, value) for name, value in fields) + b"--XyZ--\r\n"
    models = [value.decode() for name, value in fields if name == "model"]
    if models and models[-1]:
        assert model_of("/v1/x", body, content_type=FORM) == models[-1]
    else:
        assert refusal(body, content_type=FORM) == "model_required"


def test_forms_with_files_preambles_and_quotes() -> None:
    file = part("model", b"\x00model\r\n--Xy\r\n", '; filename="m.bin"\r\nContent-Type: application/octet-stream')
    body = b"preamble\r\n" + file + part("model", "münchen".encode()) + b"--XyZ--"
    assert model_of("/v1/x", body, content_type='Multipart/Form-Data; charset=utf-8; boundary="XyZ"') == "münchen"


def test_broken_forms() -> None:
    assert refusal(part("model", b"m"), content_type="multipart/form-data") == "invalid_body"
    assert refusal(b"nothing of the kind", content_type=FORM) == "invalid_body"
    assert refusal(part("model", b"m"), content_type=FORM) == "invalid_body"  # no closing boundary
    assert refusal(part("model", b"\xff") + b"--XyZ--", content_type=FORM) == "invalid_model"


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
