"""How far a `pip install --progress-bar raw` has come, from the lines that it prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_RAW = re.compile(r"Progress (\d+) of (\d+)")
_DOWNLOADING = re.compile(
    r"\s*(?:Downloading|Using cached) (?:.*/)?([^\s/]+?)(?:\.metadata)? \(([\d.]+) (kB|MB|GB|bytes)\)"
)
_TAKING = re.compile(r"(?:Collecting|Processing|Requirement already satisfied:?) (?:.*/)?([A-Za-z0-9._-]+)")
_UNITS = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_DOWNLOAD_SHARE = (3, 65)  # percent of the whole at the begin and the end of downloads


@dataclass(frozen=True, slots=True)
class InstallProgress:
    """Where an install stands: `phase` is a word or two, `detail` what it works on, `percent` 0…100 of the whole."""

    phase: str
    percent: int
    detail: str = ""


class PipProgress:
    """Turns pip's lines into progress. `expected` is about how many bytes pip has to fetch in all.

    Nobody can know what a resolver will fetch, so downloads approach the end of their share and never pass it.
    """

    def __init__(self, expected: int, report: Callable[[InstallProgress], None]) -> None:
        self._expected = max(1, expected)
        self._report = report
        self._done = 0
        self._file = 0
        self._file_total = 0
        self._name = ""
        self._percent = 0
        self._installing = False

    def feed(self, line: str) -> None:
        """Take in one line of pip's output."""
        if match := _RAW.fullmatch(line.strip()):
            self._file = int(match[1])
            self._file_total = int(match[2])
            self._downloading()
        elif match := _DOWNLOADING.match(line):
            self._finish_file()
            if line.rstrip().endswith(".metadata") or ".metadata (" in line:
                return
            self._name = match[1]
            self._file_total = int(float(match[2]) * _UNITS[match[3]])
            self._downloading()
        elif match := _TAKING.match(line):
            self._finish_file()
            self._name = match[1]
            self._downloading()
        elif line.startswith("Installing collected packages"):
            self._finish_file()
            self._installing = True
            count = line.count(",") + 1
            self._emit("unpacking", _DOWNLOAD_SHARE[1], f"{count} packages")
        elif line.startswith("Successfully installed"):
            self._emit("unpacked", 90, "")

    def _finish_file(self) -> None:
        self._done += self._file_total
        self._file = self._file_total = 0

    def _downloading(self) -> None:
        if self._installing:
            return
        begin, end = _DOWNLOAD_SHARE
        share = min(1.0, (self._done + self._file) / self._expected)
        self._emit("downloading", begin + int(share * (end - begin)), self._name)

    def _emit(self, phase: str, percent: int, detail: str) -> None:
        self._percent = max(self._percent, percent)
        self._report(InstallProgress(phase, self._percent, detail))
