"""What the end of an instance's process means: it was told to, it is started again, or it is given up. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shoal.fleet.lifecycle import Event, RestartPolicy
from shoal.fleet.state import Exit, Failure, Instance
from shoal.fleet.state import InstanceState as S

OUT_OF_MEMORY = "out_of_memory"
STARTS_WITH_MORE = 2
"""How often a start that ran out of memory is tried again with more room."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What happens to an instance whose process is gone: the event of its lifecycle, and why."""

    instance: Instance
    event: Event
    reason: str
    level: str = "info"


def ending(
    instance: Instance, failure: Failure, exit: Exit, after: Event, restarts: RestartPolicy, now: float
) -> Ending:
    """What the end of `instance` means, at `now`. `after` is what was decided before that it will mean."""
    served_for = now - instance.ready_at if instance.ready_at is not None else None
    if served_for is None and exit == Exit():
        # Its shim was killed, or the whole machine went: an end that nobody saw is not the model's fault, so the
        # start is worth another try.
        served_for = 0.0
    instance = dataclasses.replace(instance, pid=None, memory={}, ready_at=None)
    if instance.sleeps:
        text = f"ended while it slept: {failure.message}; it is loaded when it is asked for"
        return Ending(instance, Event.END, text, "warning")
    if instance.state is S.DRAINING or (instance.state is S.STOPPING and after is Event.END):
        return Ending(instance, Event.END, "unloaded")
    instance = dataclasses.replace(instance, failure=failure)
    if instance.state is S.STOPPING and after is Event.END_FAILED:
        return Ending(instance, after, failure.message)
    restart = restarts.after_crash(instance.restarts, served_for)
    if restart is None or instance.spec is None:  # without its settings it cannot be started again
        event = Event.END_FAILED if instance.state is S.STOPPING else Event.EXHAUST
        tries = f" after {instance.restarts} restart(s)" if instance.restarts else ""
        return Ending(instance, event, f"{failure.message}{tries}", "error")
    count, delay = restart
    event = Event.END_RESTART if instance.state is S.STOPPING else Event.CRASH
    again = dataclasses.replace(instance, restarts=count, restart_at=now + delay)
    return Ending(again, event, f"{exit}; restart {count} of {restarts.limit} in {delay:.0f} s", "warning")


def needs_more_room(instance: Instance, failure: Failure) -> bool:
    """Whether a start ended for want of memory and is worth another one with more of it: what a model needs is an
    estimate before its first load, and at a start engines take more for moments than they hold afterwards."""
    starts = instance.state is S.STARTING
    return starts and failure.code == OUT_OF_MEMORY and instance.restarts < STARTS_WITH_MORE


def with_more_room(instance: Instance, failure: Failure) -> Ending:
    """It is queued again, and has its devices once there is more room on them."""
    again = dataclasses.replace(
        instance, pid=None, memory={}, devices=(), failure=failure, restarts=instance.restarts + 1, restart_at=None
    )
    return Ending(again, Event.CRASH, "ran out of memory at its start; it is started again with more room", "warning")
