"""The checksums by which a copy of weights is known to be right, with the real torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shoal.engines.base import Environment
from shoal.engines.pythonpath import python_path

SCRIPT = """
import torch
from shoal.engines.vllm.plugin.checksum import ROW, marks, marks_of_all

torch.manual_seed(1)
places = [torch.randint(0, 256, (8 * ROW * rows,), dtype=torch.uint8) for rows in (1, 2, 7, 64, 3)]
apart = torch.stack([marks(place) for place in places])
assert torch.equal(marks_of_all(places), apart), "at once as one by one"
assert marks_of_all([]).shape == (0, 2)

of_parts = sum(marks(places[3][8 * ROW * at : 8 * ROW * (at + 16)], at) for at in range(0, 64, 16))
assert torch.equal(of_parts, apart[3]), "of parts as of the whole"

for changed in (0, 5, 8 * ROW * 64 - 1):
    other = [place.clone() for place in places]
    other[3][changed] ^= 1
    differs = marks_of_all(other) != apart
    assert differs[3].all() and differs.sum() == 2, "both numbers of that place, and no other"

words = places[2].view(torch.int64)
for one, two in ((0, 1), (0, ROW), (3, 5 * ROW + 9)):
    swapped = words.clone()
    swapped[[one, two]] = words[[two, one]]
    assert (marks(swapped.view(torch.uint8)) != apart[2]).any(), "words that change places"
print("as it should be")
"""


def test_a_change_of_any_byte_is_seen_and_where_it_is(environment: Environment, tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(python_path(tmp_path / "path"))}
    done = subprocess.run(
        [environment.python, "-c", SCRIPT], env=path, capture_output=True, text=True, timeout=300, check=False
    )
    assert "as it should be" in done.stdout, done.stderr
