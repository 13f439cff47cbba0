"""What an engine is told, on its way through the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.memory.elastic import ElasticTerms

SIZES = st.integers(1, 2**50)


@given(
    st.builds(
        ElasticTerms,
        st.just(Path("/run/memory.sock")),
        st.sampled_from(["", "a", "model-1"]),
        floor=st.integers(0, 2**50),
        ceiling=st.none() | SIZES,
        priority=st.integers(1, 1000),
        mode=st.sampled_from(["auto", "required"]),
        fixed=SIZES,
        patience=st.sampled_from([0.5, 60.0, 300.0]),
        page=st.none() | SIZES,
    )
)
def test_it_is_read_as_it_was_written(terms: ElasticTerms) -> None:
    assert ElasticTerms.read(terms.environment()) == terms


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOCKET", ""),
        ("FLOOR", "-1"),
        ("CEILING", "1 GiB"),
        ("PRIORITY", "high"),
        ("ELASTIC", "yes"),
        ("PATIENCE", "0"),
        ("PATIENCE", "nan"),
        ("PAGE", "8MiB"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(name: str, value: str) -> None:
    environ = ElasticTerms(Path("/run/memory.sock"), "a").environment() | {f"SHOAL_MEMORY_{name}": value}
    with pytest.raises(ValueError, match=f"SHOAL_MEMORY_{name} is"):
        ElasticTerms.read(environ)
