"""What runs is found again when a controller starts: its predecessor may have been killed at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Sequence

from shoal.fleet import facts
from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.live import LiveEffects
from shoal.fleet.manager import Manager
from shoal.fleet.state import Instance, Model
from shoal.orphans import OrphanControl
from shoal.store.saved import Saved

ENDING = 10.0
"""Seconds that a start waits, at most, for processes that were not to run to end."""
_log = logging.getLogger("shoal.controller")


async def recover(saved: Saved, effects: LiveEffects, manager: Manager, orphans: OrphanControl) -> list[Instance]:
    """Find process groups again: take back those that are known, end those that are known and were not to run. Those
    that were taken back.

    Those that nothing knows of are left, for people to take back or to end: what is not in a database that was lost
    may serve somebody.
    """
    processes = effects.processes
    instances = [_completed(instance, saved.models, effects) for instance in saved.instances]
    known = {instance.id: instance for instance in instances}
    orphans.bring_along(known)
    found = {item.instance: item for item in processes.find()}
    running = {
        id for id, item in found.items() if id in known and known[id].state in WITH_PROCESS and processes.adopt(item)
    }
    killed = set()
    for id, item in found.items():
        if id not in known:
            orphans.leave(item)
        elif id not in running and processes.adopt(item):
            _log.warning("ending %s (process %d): it is ours, and was not to run", id, item.pid)
            processes.kill(id)
            killed.add(id)
    for instance in instances:
        if instance.id not in killed:
            effects.remember(instance)  # one may end while the others are looked at
    # An instance that was not known to run may start anew at once: never beside its own former self.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENDING):
            while killed & {item.instance for item in processes.find()}:
                await asyncio.sleep(0.02)
    if saved.complete and (ended := processes.sweep({*running, *found}, gone=known)):
        _log.warning("ended processes %s: an engine that is gone left them", ended)
    exits = []
    for instance in instances:
        if instance.state in WITH_PROCESS and instance.id not in running:
            how = processes.last_exit(instance.id)
            exits.append(facts.Exited(instance.id, how, await effects.failure_of(instance, how)))
    manager.handle(lambda: manager.recover(saved.models, instances, running, exits))
    return [known[id] for id in running]


def _completed(instance: Instance, models: Sequence[Model], effects: LiveEffects) -> Instance:
    """Settings that this version could not read are replaced by the model's present ones; an instance that was
    being started when the last controller was killed has no address in the store yet, and where sockets are
    follows the runtime folder."""
    if instance.address.startswith("unix:"):
        instance = dataclasses.replace(instance, address=effects.address(instance))
    if instance.spec is None:
        spec = next((model.spec for model in models if model.spec.name == instance.model), None)
        instance = dataclasses.replace(instance, spec=spec)
    return dataclasses.replace(instance, address=instance.address or effects.address(instance))
