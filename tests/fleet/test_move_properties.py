"""Whatever happens during moves, every table has one copy, and every move ends."""

from __future__ import annotations

from hypothesis import given, settings

from shoal.fleet.state import InstanceState as S
from tests.fleet.moving import HAPPENS, a_world, happen


@settings(max_examples=150, deadline=None)
@given(HAPPENS)
def test_whatever_happens_every_table_has_one_copy_and_every_move_ends(happens: list[tuple[str, int]]) -> None:
    world, _ = a_world()
    before = len(world.effects.tables)
    for what, n in happens:
        happen(world, what, n)
    for _ in range(60):  # everything that is on its way arrives
        for what in ("prepare", "spawn", "healthy", "answer", "report", "end", "tick"):
            happen(world, what, 0)
    assert all(m.ended for m in world.manager.moves.records.values())
    assert world.only().state is S.READY
    assert world.effects.alive == {world.only().id}, "nothing is left behind"
    assert world.manager.fleet.models["m"].desired == 1
    assert not world.manager.fleet.model_view("m").instances[0].outdated
    assert not world.manager.fleet.apart
    assert not world.manager._life.residing.held
    for table in world.effects.tables[before:]:
        assert len(table.routes[0].targets) == 1
