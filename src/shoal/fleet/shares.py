"""The instances' shares of memory: terms that follow their models' settings, and who turns out to have none.

No I/O and no clock of its own, as in `life.py`, of which it is a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from shoal.fleet import facts
from shoal.fleet.effects import Effects
from shoal.fleet.memory import LEASE_PATIENCE, Terms
from shoal.fleet.snapshot import LEASELESS, Fleet
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S


class TakeNote(Protocol):
    """Keep an event about an instance."""

    def __call__(self, instance: Instance, kind: str, message: str, level: str = "info") -> None: ...


class Shares:
    """What instances may lease. `put` keeps an instance that has changed."""

    def __init__(self, fleet: Fleet, effects: Effects, put: Callable[[Instance], None], note: TakeNote) -> None:
        self._fleet = fleet
        self._effects = effects
        self._put = put
        self._note = note
        self._leased: set[str] = set()  # those that have leased something since they were started

    def on_books(self, fact: facts.BooksRead) -> None:
        """The memory broker's books. An engine that comes anew may know terms that were changed meanwhile."""
        for instance_id in sorted(self._fleet.ledger.read(fact.books)):
            instance = self._fleet.instances.get(instance_id)
            if instance is None or instance.spec is None or instance.state.ended:
                continue
            self._leased.add(instance_id)
            wanted = Terms.of(instance.spec)
            if self._fleet.ledger.terms(instance_id) != wanted:
                self._effects.set_terms(instance_id, wanted)

    def on_refused(self, fact: facts.TermsRefused) -> None:
        """An instance keeps other terms than its model's settings say."""
        instance = self._fleet.instances.get(fact.instance)
        if instance is not None:
            self._note(instance, "terms_refused", f"{instance.id} keeps its share of memory: {fact.reason}", "warning")

    def set_terms(self, model: str, terms: Terms) -> None:
        """Give the running instances of a model other terms."""
        for instance in self._fleet.of_model(model):
            if instance.state.ended or instance.spec is None or Terms.of(instance.spec) == terms:
                continue
            self._put(dataclasses.replace(instance, spec=terms.put_into(instance.spec)))
            if self._fleet.ledger.leases(instance.id):
                self._effects.set_terms(instance.id, terms)

    def judge(self, now: float) -> None:
        """See which instances were started elastic and are not: the engine itself may have found that it cannot be."""
        if self._fleet.ledger.books is None:
            return
        for instance in list(self._fleet.instances.values()):
            if self._fleet.ledger.leases(instance.id):
                self._fleet.leaseless.discard(instance.id)
            elif instance.elastic and instance.state is S.READY and instance.id not in self._leased:
                late = now - (instance.ready_at or now) > LEASE_PATIENCE
                if late and instance.id not in self._fleet.leaseless:
                    self._fleet.leaseless.add(instance.id)
                    self._put(instance)
                    self.note_fixed(instance, LEASELESS)

    def note_fixed(self, instance: Instance, reason: str) -> None:
        """Tell that an instance has no elastic memory although its settings would let it."""
        self._note(instance, "fixed_memory", f"{instance.model} has a KV cache of fixed size: {reason}", "warning")

    def ended(self, instance: Instance) -> None:
        """Its process group is gone, and with it its lease."""
        self._leased.discard(instance.id)
        self._fleet.leaseless.discard(instance.id)
