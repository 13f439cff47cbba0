from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway import heads

TOKEN = st.text("abcXYZ-", min_size=1, max_size=8).map(str.encode)
HEADERS = st.lists(st.tuples(TOKEN, st.binary(max_size=8)), max_size=10)


@given(HEADERS)
def test_end_to_end_headers_keep_order_case_and_duplicates(given_headers: list[tuple[bytes, bytes]]) -> None:
    hop = [(b"TE", b"x"), (b"Connection", b"close, X-Named"), (b"x-named", b"1"), (b"Transfer-Encoding", b"chunked")]
    assert heads.end_to_end([*hop, *given_headers, *hop]) == given_headers


def test_connection_cannot_remove_what_frames_the_message() -> None:
    kept = [(b"Host", b"h"), (b"Content-Length", b"3"), (b"Content-Type", b"text/plain")]
    named = (b"Connection", b"host, content-length,content-type , authorization")
    assert heads.end_to_end([named, *kept, (b"Authorization", b"k")]) == kept


def test_request_headers_frame_the_body() -> None:
    assert heads.request_headers([(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")], 5) == [
        ("Host", "h"),
        ("Content-Length", "5"),
    ]
    assert heads.request_headers([], None) == [("Host", "localhost")]
    with pytest.raises(ShoalError, match="UTF-8"):
        heads.request_headers([(b"x", b"\xff")], None)


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        ("/a?b#c", "/a?b#c"),
        ("http://h", "/"),
        ("HTTP://h:80/a?b", "/a?b"),
        ("https://h?b/c", "/?b/c"),
        ("//h/a", "//h/a"),
    ],
)
def test_origin_form(target: str, origin: str) -> None:
    assert heads.origin_form(target) == origin


@pytest.mark.parametrize("target", ["*", "h:443", "", "/\udcff"])
def test_targets_that_are_refused(target: str) -> None:
    with pytest.raises(ShoalError) as caught:
        heads.origin_form(target)
    assert caught.value.code == "invalid_target"


def test_paths() -> None:
    assert all(map(heads.is_inference, ("/v1/chat/completions", "/tokenize", "/v2/rerank", "/v1/")))
    assert not any(map(heads.is_inference, ("/", "/v1", "/v10/x", "/api/v1/models", "//v1/x", "/tokenize/", "/sleep")))
    assert heads.model_in_path("/v1/models/org%2Fm/x") == "org/m/x"
    assert heads.model_in_path("/v1/models/") is None
    assert heads.model_in_path("/v1/modelsx") is None
