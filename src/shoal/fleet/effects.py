"""All that the manager has done outside itself. `live.py` does it; tests and the policy simulator put theirs in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shoal.engines.base import Engine
from shoal.fleet.memory import Terms
from shoal.fleet.moves import Move
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.state import Device, Instance, Model
from shoal.messages import RoutingTable


class Effects(Protocol):
    """Every call returns at once; what comes of it arrives as a fact."""

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Every kind of engine, to be asked about settings."""
        ...

    def now(self) -> float:
        """Unix seconds."""
        ...

    def token(self) -> str:
        """Eight hex digits that were not given before."""
        ...

    def prepare(self, instance: Instance) -> None:
        """Look at the model's files → Prepared."""
        ...

    def spawn(self, instance: Instance, devices: tuple[Device, ...], needs: int | None) -> None:
        """Start the process group and watch it → Spawned, Progressed, Healthy, Overdue, Hung, Measured, Exited.

        `needs` bytes of each device are held back for it, and waited for, before it is started (None: unknown).
        """
        ...

    def let_go(self, instance: str) -> None:
        """Hold nothing back for it any more: it has started, or will not."""
        ...

    def set_terms(self, instance: str, terms: Terms) -> None:
        """Tell the memory broker an instance's new terms → TermsRefused, if they cannot be."""
        ...

    def weigh(self, instance: Instance) -> None:
        """See what an instance holds that is to sleep, and what it answers to the canary → Weighed, NotAsleep."""
        ...

    def suspend(self, instance: Instance) -> None:
        """Put it to sleep at its level, and see that its memory comes back → Asleep, NotAsleep."""
        ...

    def resume(self, instance: Instance) -> None:
        """Wake it if it sleeps, and see that it answers the canary as before → Awake, NoRoom, NotAwake."""
        ...

    def look(self, instance: Instance) -> None:
        """See whether an instance that was taken back sleeps, and watch it if it is not ready → LookedAt."""
        ...

    def ask(self, instance: Instance) -> None:
        """Ask an instance the canary → CanaryAnswered."""
        ...

    def terminate(self, instance: str) -> None:
        """End the process group with grace → Exited."""
        ...

    def kill(self, instance: str) -> None:
        """End the process group at once → Exited."""
        ...

    def discard(self, instance: str) -> None:
        """Remove what an instance left behind: its log and its folder."""
        ...

    def read_devices(self) -> None:
        """Read the devices at once, because something gave memory back that others may wait for → DevicesRead."""
        ...

    def wake_at(self, when: float) -> None:
        """Send a Tick at `when` (Unix seconds)."""
        ...

    def route(self, table: RoutingTable) -> None:
        """Give the routing table to every relay."""
        ...

    def publish(self, event: str, data: object) -> None:
        """Tell everyone who watches."""
        ...

    def save_model(self, model: Model) -> None: ...

    def delete_model(self, name: str) -> None: ...

    def save_instance(self, instance: Instance) -> None: ...

    def delete_instance(self, instance: str) -> None: ...

    def save_move(self, move: Move) -> None: ...

    def delete_move(self, id: str) -> None: ...

    def add_event(self, event: Event) -> None: ...

    def add_load(self, load: LoadRecord) -> None: ...

    def save_profile(self, profile: Profile) -> None: ...
