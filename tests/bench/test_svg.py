"""The plots are well-formed, whatever is drawn."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.recording import Sample, plot
from shoal.bench.svg import MOST_POINTS, Band, Line, stacked

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e12), st.floats(0, 1e12)), max_size=20),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
    st.floats(0, 1e12),
)
def test_any_series_gives_well_formed_xml(rows: list[tuple[float, float, float]], title: str, mark: float) -> None:
    times = sorted(row[0] for row in rows)
    bands = [Band(f"a{title}", [row[1] for row in rows]), Band("b", [row[2] for row in rows])]
    text = stacked(title, "GiB", times, bands, Line("rate", [(0, 1), (2, 3)]), mark)
    root = ET.fromstring(text)
    assert len(root.findall(f"{SVG}polygon")) == (2 if rows else 0)
    assert "nan" not in text.replace(title, "")


def test_bands_are_stacked_and_long_series_thinned() -> None:
    times = [float(t) for t in range(10 * MOST_POINTS)]
    root = ET.fromstring(stacked("t", "B", times, [Band("x", [1.0] * len(times)), Band("y", [1.0] * len(times))]))
    lower, upper = (polygon.get("points", "").split() for polygon in root.findall(f"{SVG}polygon"))
    assert len(lower) <= 2 * MOST_POINTS
    assert float(upper[0].split(",")[1]) < float(lower[0].split(",")[1])
    assert upper[-1] == lower[0]


def test_a_band_without_a_value_for_each_time_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 1 values for 2 times"):
        stacked("t", "B", [0, 1], [Band("x", [1])])


def test_memory_over_time() -> None:
    samples = [Sample(100 + t, 10 << 30, {"m": (2 << 30) * t}) for t in range(3)]
    for fixed in (None, 1 << 30):
        root = ET.fromstring(plot("t", samples, ["m"], fixed=fixed, base=1 << 30, budget=12 << 30, rate=[(0, 2)]))
        assert len(root.findall(f"{SVG}polygon")) == 2
    ET.fromstring(plot("nothing yet", [], ["m"]))
