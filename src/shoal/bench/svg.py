"""A plot as SVG text: areas stacked on each other over time, and one line on an axis of its own. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 56, 44
FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#9aa5b1", "#2f6db3", "#e08e2b", "#3f9e6b", "#8e5bb5", "#c4504f", "#5fb5c9", "#7a6a53")
MOST_POINTS = 1500
"""Points drawn of each series; more cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Band:
    """One area of the stack: its thickness at each time of the plot."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Line:
    """A line on the right-hand axis, with times of its own."""

    name: str
    points: Sequence[tuple[float, float]]


def stacked(
    title: str, unit: str, times: Sequence[float], bands: Sequence[Band], line: Line | None = None, mark: float = 0.0
) -> str:
    """An SVG document. `mark` draws a dashed level on the left axis, such as a budget.

    Raises ValueError if a band has not one value for each of `times`.
    """
    for band in bands:
        if len(band.values) != len(times):
            raise ValueError(f"{band.name} has {len(band.values)} values for {len(times)} times")
    every = max(1, math.ceil(len(times) / MOST_POINTS))
    times = list(times[::every])
    values = [list(band.values[::every]) for band in bands]
    end = max([*times, *(x for x, _ in (line.points if line else ()))], default=1.0) or 1.0
    tops = [sum(band[number] for band in values) for number in range(len(times))]
    top = _nice(max([*tops, mark, 1e-9]))

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * time / end

    def y(value: float, most: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
    ]
    below = [0.0] * len(times)
    for number, thickness in enumerate(values):
        above = [low + value for low, value in zip(below, thickness, strict=True)]
        edge = [(x(t), y(v, top)) for t, v in zip(times, above, strict=True)]
        base = [(x(t), y(v, top)) for t, v in zip(times, below, strict=True)]
        if edge:
            parts.append(f'<polygon fill="{_colour(number)}" points="{_points([*edge, *base[::-1]])}"/>')
        below = above
    parts += _axes(end, top, unit, x, y)
    if mark:
        level = y(mark, top)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#c02020" '
            'stroke-dasharray="6 4"/>'
        )
    if line and line.points:
        most = _nice(max(value for _, value in line.points))
        path = _points([(x(t), y(v, most)) for t, v in line.points])
        parts.append(f'<polyline fill="none" stroke="#111111" stroke-width="1.5" points="{path}"/>')
        parts += [_text(WIDTH - RIGHT + 8, y(most * k / 4, most) + 4, f"{most * k / 4:g}") for k in range(5)]
        parts.append(_text(WIDTH - RIGHT, TOP - 8, line.name))
    at = LEFT
    for number, one in enumerate(bands):
        parts.append(f'<rect x="{at}" y="28" width="10" height="10" fill="{_colour(number)}"/>')
        parts.append(_text(at + 14, 37, one.name))
        at += 30 + 7 * len(one.name)
    return "\n".join([*parts, "</svg>", ""])


def _axes(end: float, top: float, unit: str, x: object, y: object) -> list[str]:
    assert callable(x) and callable(y)
    parts = []
    for k in range(5):
        level = y(top * k / 4, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#00000022"/>')
        parts.append(_text(8, level + 4, f"{top * k / 4:g} {unit}"))
    step = _nice(end / 8)
    parts += [_text(x(k * step) - 6, HEIGHT - BOTTOM + 18, f"{k * step:g}") for k in range(int(end / step) + 1)]
    parts.append(_text(WIDTH // 2, HEIGHT - 8, "seconds"))
    return parts


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _nice(value: float) -> float:
    """The next round number that is not below `value`: 1, 2, 4, 5 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 5, 8, 10, 20) if step * power >= value * (1 - 1e-9))
