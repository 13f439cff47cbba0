from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.forms import FormReader
from shoal.gateway.inspect import model_of
from shoal.gateway.routes import NAMES_SHOWN
from shoal.gateway.virtual import Names, check_form, rewrite, rewrite_target
from shoal.messages import Route, RoutingTable, VirtualModel
from tests.gateway.test_inspect import JSON

CHAT = "/v1/chat/completions"
FORM = "multipart/form-data; boundary=XyZ"


def names(*virtual: VirtualModel, routes: tuple[Route, ...] = ()) -> Names:
    default = (Route("base", "ready", 1, names=("adapter",)), Route("other", "ready", 1, names=("adapter", "base")))
    return Names(RoutingTable("e", 1, routes or default, virtual=virtual))


def changed(body: dict[str, Any], virtual: VirtualModel | None, path: str = CHAT) -> Any:
    return json.loads(rewrite(json.dumps(body).encode(), virtual, "real", path=path))


def refused(code: str, body: bytes, virtual: VirtualModel | None = None, **how: str) -> None:
    with pytest.raises(ShoalError) as caught:
        rewrite(body, virtual, "m", **how)
    assert (caught.value.status, caught.value.code) == (400, code)


# -- names -------------------------------------------------------------------------------------------------------------


def test_models_and_adapters_resolve_to_who_serves_them() -> None:
    all_names = names()
    for name, model in (("base", "base"), ("adapter", "base"), ("other", "other")):
        found = all_names.resolve(name)
        assert (found.name, found.model, found.engine_name, found.virtual) == (name, model, None, None)
        assert all_names.candidates(found) == (name,)
        assert all_names.route(found).model == model


def test_a_virtual_model_stands_for_a_model_or_an_adapter() -> None:
    virtual = VirtualModel("v", "adapter", fallback=("gone", "other", "adapter"))
    all_names = names(virtual)
    found = all_names.resolve("v")
    assert (found.model, found.engine_name, found.virtual) == ("base", "adapter", virtual)
    assert all_names.candidates(found) == ("adapter", "other")
    assert [all_names.resolve(name).model for name in all_names.candidates(found)] == ["base", "other"]


def test_the_first_that_exists_is_taken() -> None:
    all_names = names(VirtualModel("v", "gone", fallback=("gone too", "other", "base")))
    found = all_names.resolve("v")
    assert (found.model, found.engine_name) == ("other", "other")
    assert all_names.candidates(found) == ("other", "base")


def test_real_names_win() -> None:
    all_names = names(VirtualModel("base", "other"), VirtualModel("adapter", "other"))
    assert [all_names.resolve(name).virtual for name in ("base", "adapter")] == [None, None]
    assert all_names.known() == ["adapter", "base", "other"]


@pytest.mark.parametrize(
    ("virtual", "why"),
    [
        (VirtualModel("v", "gone"), "does not exist"),
        (VirtualModel("v", "gone", fallback=("w",)), "does not exist"),
        (VirtualModel("v", "v"), "is virtual too"),
        (VirtualModel("v", "w"), "is virtual too"),
    ],
)
def test_what_stands_for_nothing_is_unknown_by_both_names(virtual: VirtualModel, why: str) -> None:
    with pytest.raises(ShoalError) as caught:
        names(virtual, VirtualModel("w", "base")).resolve("v")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert f"'v' stands for {virtual.model!r}, which {why}" in caught.value.message


def test_chains_are_not_followed() -> None:
    all_names = names(VirtualModel("v", "w", fallback=("w", "base")), VirtualModel("w", "other"))
    assert all_names.candidates(all_names.resolve("v")) == ("base",)


def test_unknown_names() -> None:
    with pytest.raises(ShoalError, match=r"'n' does not exist\. Known models: adapter, base, other, v\."):
        names(VirtualModel("v", "gone")).resolve("n")
    with pytest.raises(ShoalError, match=r"'v' does not exist\. Known models: other\."):
        names(VirtualModel("v", "gone")).resolve("v", {"other"}.__contains__)
    with pytest.raises(ShoalError, match="add one"):
        Names(RoutingTable("", 0)).resolve("x" * 10_000)
    routes = tuple(Route(f"m{i:03}", "ready", 1) for i in range(NAMES_SHOWN + 3))
    with pytest.raises(ShoalError, match="and 3 more"):
        names(routes=routes).resolve("n\0")


# -- requests ----------------------------------------------------------------------------------------------------------


@given(body=st.dictionaries(st.text(), JSON, max_size=6), model=st.text(min_size=1))
def test_a_rename_changes_the_name_alone(body: dict[str, Any], model: str) -> None:
    new = rewrite(json.dumps(body).encode(), None, model)
    assert json.loads(new) == {**body, "model": model}
    assert list(json.loads(new)) == list({**body, "model": model})
    assert model_of("/v1/x", new) == model


@given(
    body=st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4),
    set_=st.dictionaries(st.sampled_from("abcd"), JSON, max_size=3),
    defaults=st.dictionaries(st.sampled_from("abcd"), JSON, max_size=3),
    strip=st.lists(st.sampled_from("abcd"), max_size=3),
)
def test_stripped_then_filled_in_then_set(
    body: dict[str, Any], set_: dict[str, Any], defaults: dict[str, Any], strip: list[str]
) -> None:
    virtual = VirtualModel("v", "m", set_, defaults, tuple(strip))
    left = {name: value for name, value in body.items() if name not in strip}
    assert changed(body, virtual) == {**defaults, **left, **set_, "model": "real"}


def test_values_keep_their_bytes() -> None:
    body = (
        b'\xef\xbb\xbf { "a" : [1.50,  1e999, ' + b"9" * 5000 + b"] , "
        b'"model":"v", "b":"\\u00e9\xff", "a2":{"x":1,"x":2}, "n":-0.0, "model" : "v" } \n'
    )
    assert rewrite(body, VirtualModel("v", "m", {"t": 0}), "m") == (
        b'{"a":[1.50,  1e999, ' + b"9" * 5000 + b'],"model":"m","b":"\\u00e9\xff","a2":{"x":1,"x":2},"n":-0.0,"t":0}'
    )
    assert rewrite(bytearray(b'{"x":1}'), None, "m") == b'{"x":1,"model":"m"}'


def test_a_null_is_not_missing() -> None:
    assert changed({"t": None}, VirtualModel("v", "m", defaults={"t": 1}))["t"] is None


USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be brief"}
BRIEF = VirtualModel("v", "m", system="be brief")


@pytest.mark.parametrize(
    ("path", "body", "new"),
    [
        (CHAT, {"messages": [USER]}, {"messages": [SYSTEM, USER]}),
        (CHAT, {"messages": []}, {"messages": [SYSTEM]}),
        ("/tokenize", {"messages": [USER]}, {"messages": [SYSTEM, USER]}),
        (CHAT, {"messages": [USER, {"role": "system", "content": "x"}]}, None),
        (CHAT, {"messages": [{"role": "developer", "content": "x"}, USER]}, None),
        (CHAT, {"messages": "odd"}, None),
        (CHAT, {"messages": [1]}, None),
        (CHAT, {}, None),
        ("/v1/completions", {"prompt": "x"}, None),
        ("/v1/embeddings", {"messages": [USER]}, None),
        ("/v1/messages", {"messages": [USER]}, {"messages": [USER], "system": "be brief"}),
        ("/v1/messages", {"system": None}, {"system": "be brief"}),
        ("/v1/messages/count_tokens", {}, {"system": "be brief"}),
        ("/v1/messages", {"system": [{"type": "text", "text": "x"}]}, None),
        ("/v1/responses", {"input": "hi"}, {"input": "hi", "instructions": "be brief"}),
        ("/v1/responses", {"input": [USER]}, {"input": [USER], "instructions": "be brief"}),
        ("/v1/responses", {"input": [{"role": "developer", "content": "x"}]}, None),
        ("/v1/responses", {"instructions": "x"}, None),
    ],
)
def test_system_text(path: str, body: dict[str, Any], new: dict[str, Any] | None) -> None:
    assert changed(body, BRIEF, path) == {**(body if new is None else new), "model": "real"}


def test_messages_keep_their_bytes_behind_a_system_message() -> None:
    body = b'{"messages":[ {"role":"user", "content":"\\u00e9"} ]}'
    assert rewrite(body, BRIEF, "m", path=CHAT) == (
        b'{"messages":[{"role":"system","content":"be brief"}, {"role":"user", "content":"\\u00e9"} ],"model":"m"}'
    )


def test_bodies_that_cannot_be_changed() -> None:
    refused("invalid_json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    refused("invalid_json", b'{"\xff":1}')
    refused("model_required", b"[]")
    refused("virtual_not_for_compressed", b"\x1f\x8b", content_encoding="gzip")
    assert rewrite(b"{}", None, "m", content_encoding="identity") == b'{"model":"m"}'
    assert rewrite(b"", BRIEF, "m", content_encoding="gzip") == b""


def test_forms_can_only_be_renamed() -> None:
    body = (
        b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="v"\r\n\r\nv\xff\r\n'
        b'--XyZ\r\nContent-Disposition: form-data; name="model"\r\n\r\nv\r\n--XyZ--\r\n'
    )
    expected = body.replace(b"\r\n\r\nv\r\n--XyZ--", b"\r\n\r\norg/m\r\n--XyZ--")
    soft = VirtualModel("v", "m", defaults={"temperature": 0}, system="be brief")
    for virtual in (None, soft):
        check_form(virtual)
        assert rewrite(body, virtual, "org/m", content_type=FORM) == expected
    refused("virtual_not_for_forms", body, VirtualModel("v", "m", {"temperature": 0}), content_type=FORM)
    refused("virtual_not_for_forms", body, VirtualModel("v", "m", strip=("user",)), content_type=FORM)
    refused("invalid_body", body[:-6], content_type=FORM)
    reader = FormReader(FORM)
    reader.feed(expected)
    assert reader.model == "org/m"


@pytest.mark.parametrize(
    ("target", "new"),
    [
        ("/v1/realtime?model=v", "/v1/realtime?model=org%2Fm%20%C3%BC"),
        (
            "/v1/realtime?a=%2f&model=v&b&mod%65l=w&=",
            "/v1/realtime?a=%2f&model=org%2Fm%20%C3%BC&b&model=org%2Fm%20%C3%BC&=",
        ),
        ("/v1/realtime?models=v&xmodel=1", "/v1/realtime?models=v&xmodel=1"),
        ("/v1/model", "/v1/model"),
        ("/v1/x?", "/v1/x?"),
    ],
)
def test_targets(target: str, new: str) -> None:
    assert rewrite_target(target, "org/m ü") == new
