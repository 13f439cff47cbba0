"""Readings over time in columns, of as many things and moments as there is room for. Pure.

A table has one ring of times and for each thing one ring a column, all of the same length, so that its size is known: 8
bytes a value. Things of which nothing is to be told take no room: where there is no value, or no thing, a reader gets
the `blank` row.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

Row = Sequence[float]


class Table:
    """`length` moments of at most `limit` things, each with a value for each of `blank`. NaN stands for no value."""

    def __init__(self, length: int, blank: Row, limit: int) -> None:
        self._length = length
        self._blank = tuple(blank)
        self._limit = limit
        self._count = 0
        self._times = array("d", bytes(8 * length))
        self._things: dict[str, list[array[float]]] = {}
        self._told: dict[str, int] = {}
        """Which moment was the last of which something was to be told, of each thing."""

    @property
    def size(self) -> int:
        """Bytes that the values take."""
        return 8 * self._length * (1 + len(self._blank) * len(self._things))

    def add(self, at: float, rows: Mapping[str, Row]) -> None:
        """Add a moment, `at` in seconds. Things without a row are blank in it."""
        slot = self._count % self._length
        self._times[slot] = at
        told = {name: row for name, row in rows.items() if not _same(row, self._blank)}
        for name in told:
            self._told[name] = self._count
        self._count += 1
        self._forget()
        for name in told.keys() & self._told.keys() - self._things.keys():
            self._things[name] = [array("d", [value]) * self._length for value in self._blank]
        for name, columns in self._things.items():
            for column, value in zip(columns, told.get(name, self._blank), strict=True):
                column[slot] = value

    def times(self) -> list[float]:
        """The moments, the oldest first."""
        return self._in_order(self._times)

    def columns(self, name: str) -> list[list[float]]:
        """A thing's values, column by column, for each of `times`."""
        known = self._things.get(name)
        if known is None:
            return [[value] * min(self._count, self._length) for value in self._blank]
        return [self._in_order(column) for column in known]

    def _in_order(self, ring: array[float]) -> list[float]:
        if self._count <= self._length:
            return ring[: self._count].tolist()
        slot = self._count % self._length
        return (ring[slot:] + ring[:slot]).tolist()

    def _forget(self) -> None:
        """Things of which nothing is left, and beyond the limit those of which nothing was told for the longest."""
        for name in [name for name, last in self._told.items() if self._count - last > self._length]:
            self._drop(name)
        if len(self._told) > self._limit:
            # Of things that are as old as each other the later ones go, so that it is not others at every moment.
            for name in sorted(self._told, key=lambda name: self._told[name], reverse=True)[self._limit :]:
                self._drop(name)

    def _drop(self, name: str) -> None:
        del self._told[name]
        self._things.pop(name, None)


def _same(row: Row, other: Row) -> bool:
    return all(a == b or (a != a and b != b) for a, b in zip(row, other, strict=True))
