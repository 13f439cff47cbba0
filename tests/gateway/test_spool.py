"""What waits comes out as it went in, whether in memory or in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.gateway.spool import Spool

PARTS = st.lists(st.binary(max_size=20), max_size=20)


def drain(spool: Spool, most: int) -> bytes:
    pieces = []
    while spool.left:
        pieces.append(spool.take(most))
        assert pieces[-1]
    assert spool.take(most) == b""
    return b"".join(pieces)


@given(PARTS, st.integers(0, 100), st.integers(1, 30))
def test_out_comes_what_went_in(parts: list[bytes], limit: int, most: int) -> None:
    spool = Spool(limit)
    for part in parts:
        spool.add(part)
    assert spool.left == sum(map(len, parts))
    assert drain(spool, most) == b"".join(parts)
    spool.close()


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 12)), max_size=30), st.integers(0, 40))
def test_what_is_added_in_between_comes_after_the_rest(steps: list[tuple[bytes, int]], limit: int) -> None:
    spool, put, got = Spool(limit), b"", b""
    for part, most in steps:
        spool.add(part)
        put += part
        got += spool.take(most)
        assert len(put) - len(got) == spool.left
    assert got + drain(spool, 7) == put
    spool.close()


@given(
    st.binary(max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
    st.binary(min_size=1, max_size=9),
    st.integers(0, 60),
)
def test_replaced_spans(content: bytes, bounds: list[int], new: bytes, limit: int) -> None:
    bounds = sorted({min(bound, len(content)) for bound in bounds})
    spans = list(zip(bounds[::2], bounds[1::2], strict=False))
    expected, at = b"", 0
    for start, end in spans:
        expected += content[at:start] + new
        at = end
    expected += content[at:]
    spool = Spool(limit)
    spool.add(content)
    spool.replace(spans, new)
    assert spool.left == len(expected)
    assert drain(spool, 4) == expected
    spool.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_is_used_beyond_the_limit_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descriptors()
    spool = Spool(100)
    spool.add(b"x" * 100)
    assert descriptors() == before
    spool.add(b"y")
    assert descriptors() == before + 1
    assert list(tmp_path.iterdir()) == []  # it has no name that anybody could find, or that could stay behind
    assert drain(spool, 1000) == b"x" * 100 + b"y"
    assert descriptors() == before
    spool.add(b"z" * 200)
    spool.close()
    assert (spool.left, descriptors()) == (0, before)


def full(**_: Any) -> Any:
    return Path("/dev/full").open("r+b", buffering=0)


def missing(**_: Any) -> Any:
    raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.parametrize("opens", [full, missing])
def test_a_disk_that_takes_nothing_is_a_clear_refusal(
    monkeypatch: pytest.MonkeyPatch, opens: Callable[..., Any]
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", opens)
    spool = Spool(100)
    spool.add(b"x" * 100)
    with pytest.raises(ShoalError, match="put the field `model` first") as caught:
        spool.add(b"y")
    assert (caught.value.status, caught.value.code) == (507, "no_room")
    spool.close()


def test_short_writes_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes(data)[:7], at))
    spool = Spool(10)
    spool.add(bytes(range(10)))
    spool.add(bytes(range(10, 100)))
    assert drain(spool, 1000) == bytes(range(100))
