"""Sizes and parts of a device, from text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.memory.sizes import Amount

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("8GiB", 8 * GIB, "8.0 GiB"),
        ("1.5g", 3 * GIB // 2, "1.5 GiB"),
        ("0", 0, "0 B"),
        ("80%", 64 * GIB, "80%"),
        (" 12.5 % ", 10 * GIB, "12.5%"),
        ("100%", 80 * GIB, "100%"),
        ("0%", 0, "0%"),
    ],
)
def test_an_amount_is_bytes_or_part_of_a_device(text: str, size: int, shown: str) -> None:
    assert Amount.parse(text).of(80 * GIB) == size
    assert str(Amount.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "8 parsecs", "-1", "-5%", "%", "101%", "1e3", "8GiB 2", "none", "1.2.3%", "nan%"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"1\.5GiB or 80%|at most 100%"):
        Amount.parse(text)


@given(st.text(max_size=20), st.integers(0, 2**50))
def test_an_amount_is_never_negative_and_a_part_never_more_than_the_whole(text: str, whole: int) -> None:
    try:
        amount = Amount.parse(text)
    except ValueError:
        return
    assert amount.of(whole) >= 0
    assert amount.share is None or amount.of(whole) <= whole


def test_it_stands_alone() -> None:
    code = (
        "import sys, shoal.memory.sizes, shoal.memory.tools, shoal.memory.nvml\n"
        "print([n for n in sys.modules if n.startswith(('pydantic', 'shoal.')) and not n.startswith('shoal.memory')])"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
