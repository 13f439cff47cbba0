"""The life of an instance as one table: state x event -> next state and effects. What is not in it is refused.

Pure. The manager looks a transition up, writes the new state down, and has the effects carried out in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shoal.errors import ConflictError
from shoal.fleet.residency import Rules
from shoal.fleet.state import InstanceState as S
from shoal.memory.sizes import Amount


class Event(StrEnum):
    """What happens to an instance."""

    START = "start"  # its turn on its devices has come
    REFUSE = "refuse"  # it cannot be started at all
    HEALTHY = "healthy"  # the engine answers
    GIVE_UP = "give_up"  # the start took too long
    HANG = "hang"  # the engine no longer answers, or makes no step
    UNLOAD = "unload"  # somebody wants it gone
    DRAINED = "drained"  # no request runs any more, or the limit has passed
    RETRY = "retry"  # a failed one is asked for again
    SLEEP = "sleep"  # somebody wants it asleep
    QUIET = "quiet"  # no request runs any more, or the limit has passed, on the way to sleep
    WEIGHED = "weighed"  # what it holds is known, and what it answers to the canary
    ASLEEP = "asleep"  # it sleeps, and its memory has come back
    NOT_ASLEEP = "not_asleep"  # it would not sleep, or kept its memory
    WAKE = "wake"  # it is wanted awake, or was found to be
    AWAKE = "awake"  # it is awake and answers as it did, or has not slept yet
    NO_ROOM = "no_room"  # it sleeps on: what it would take of its devices did not come free
    NOT_AWAKE = "not_awake"  # it would not wake, or answers otherwise than before
    # The process has ended; which of these it is depends on what was meant to happen next:
    CRASH = "crash"  # by itself, and may be restarted
    EXHAUST = "exhaust"  # by itself, and has used up its restarts, or never served
    END = "end"  # as told
    END_RESTART = "end_restart"  # told so in order to start again
    END_FAILED = "end_failed"  # told so because it failed


class Effect(StrEnum):
    """What the manager has done outside, in the order given."""

    SPAWN = "spawn"  # start the process group
    ROUTE = "route"  # publish the routing table anew
    WEIGH = "weigh"  # see what it holds, and what it answers to the canary
    SUSPEND = "suspend"  # put the engine to sleep, and see that its memory comes back
    RESUME = "resume"  # wake the engine if it sleeps, and see that it answers as before
    TERMINATE = "terminate"  # end the process group: SIGTERM, then SIGKILL
    KILL = "kill"  # end the process group at once


@dataclass(frozen=True, slots=True)
class Transition:
    """Where an event leads, and what has to be done on the way."""

    state: S
    effects: tuple[Effect, ...] = ()


TABLE: dict[tuple[S, Event], Transition] = {
    (S.QUEUED, Event.START): Transition(S.STARTING, (Effect.SPAWN, Effect.ROUTE)),
    (S.QUEUED, Event.REFUSE): Transition(S.FAILED, (Effect.ROUTE,)),
    (S.QUEUED, Event.UNLOAD): Transition(S.STOPPED, (Effect.ROUTE,)),
    (S.STARTING, Event.HEALTHY): Transition(S.READY, (Effect.ROUTE,)),
    (S.STARTING, Event.REFUSE): Transition(S.FAILED, (Effect.ROUTE,)),
    (S.STARTING, Event.GIVE_UP): Transition(S.STOPPING, (Effect.KILL,)),
    (S.STARTING, Event.UNLOAD): Transition(S.STOPPING, (Effect.TERMINATE, Effect.ROUTE)),
    (S.STARTING, Event.CRASH): Transition(S.QUEUED, (Effect.ROUTE,)),
    (S.STARTING, Event.EXHAUST): Transition(S.FAILED, (Effect.ROUTE,)),
    (S.READY, Event.UNLOAD): Transition(S.DRAINING, (Effect.ROUTE,)),
    (S.READY, Event.HANG): Transition(S.STOPPING, (Effect.ROUTE, Effect.KILL)),
    (S.READY, Event.CRASH): Transition(S.QUEUED, (Effect.ROUTE,)),
    (S.READY, Event.EXHAUST): Transition(S.FAILED, (Effect.ROUTE,)),
    (S.DRAINING, Event.DRAINED): Transition(S.STOPPING, (Effect.TERMINATE,)),
    (S.DRAINING, Event.END): Transition(S.STOPPED, (Effect.ROUTE,)),
    (S.STOPPING, Event.END): Transition(S.STOPPED, (Effect.ROUTE,)),
    (S.STOPPING, Event.END_RESTART): Transition(S.QUEUED, (Effect.ROUTE,)),
    (S.STOPPING, Event.END_FAILED): Transition(S.FAILED, (Effect.ROUTE,)),
    (S.FAILED, Event.RETRY): Transition(S.QUEUED, (Effect.ROUTE,)),
    (S.FAILED, Event.UNLOAD): Transition(S.STOPPED, (Effect.ROUTE,)),
    # Sleep. Until it sleeps, an instance that is to drains; its `rest.level` says that it does so in order to sleep.
    (S.READY, Event.SLEEP): Transition(S.DRAINING, (Effect.ROUTE,)),
    (S.DRAINING, Event.QUIET): Transition(S.DRAINING, (Effect.WEIGH,)),
    (S.DRAINING, Event.WEIGHED): Transition(S.DRAINING, (Effect.SUSPEND,)),
    (S.DRAINING, Event.ASLEEP): Transition(S.SLEEPING, (Effect.ROUTE,)),
    (S.DRAINING, Event.NOT_ASLEEP): Transition(S.WAKING, (Effect.RESUME, Effect.ROUTE)),
    (S.DRAINING, Event.AWAKE): Transition(S.READY, (Effect.ROUTE,)),
    (S.DRAINING, Event.HANG): Transition(S.STOPPING, (Effect.ROUTE, Effect.KILL)),
    (S.SLEEPING, Event.WAKE): Transition(S.WAKING, (Effect.RESUME, Effect.ROUTE)),
    (S.SLEEPING, Event.HANG): Transition(S.STOPPING, (Effect.ROUTE, Effect.KILL)),
    (S.SLEEPING, Event.UNLOAD): Transition(S.STOPPING, (Effect.TERMINATE, Effect.ROUTE)),
    # Nobody needs one that sleeps now: it is not started again, but loaded when it is asked for.
    (S.SLEEPING, Event.END): Transition(S.STOPPED, (Effect.ROUTE,)),
    (S.READY, Event.WAKE): Transition(S.WAKING, (Effect.RESUME, Effect.ROUTE)),  # found asleep
    (S.WAKING, Event.AWAKE): Transition(S.READY, (Effect.ROUTE,)),
    (S.WAKING, Event.NO_ROOM): Transition(S.SLEEPING, (Effect.ROUTE,)),
    (S.WAKING, Event.NOT_AWAKE): Transition(S.STOPPING, (Effect.ROUTE, Effect.KILL)),
    (S.WAKING, Event.HANG): Transition(S.STOPPING, (Effect.ROUTE, Effect.KILL)),
    (S.WAKING, Event.UNLOAD): Transition(S.STOPPING, (Effect.TERMINATE, Effect.ROUTE)),
    (S.WAKING, Event.CRASH): Transition(S.QUEUED, (Effect.ROUTE,)),
    (S.WAKING, Event.EXHAUST): Transition(S.FAILED, (Effect.ROUTE,)),
    # Asked twice is asked once:
    (S.SLEEPING, Event.SLEEP): Transition(S.SLEEPING, (Effect.ROUTE,)),  # it may have been about to wake
    (S.WAKING, Event.WAKE): Transition(S.WAKING),
    (S.DRAINING, Event.UNLOAD): Transition(S.DRAINING),
    (S.STOPPING, Event.UNLOAD): Transition(S.STOPPING),
    (S.STOPPED, Event.UNLOAD): Transition(S.STOPPED),
}

WITH_PROCESS = frozenset({S.STARTING, S.READY, S.DRAINING, S.SLEEPING, S.WAKING, S.STOPPING})
"""States in which a process group exists, or may."""


def step(state: S, event: Event) -> Transition:
    """Where `event` leads from `state`. Raises ConflictError, naming both, if the table has no such row."""
    transition = TABLE.get((state, event))
    if transition is None:
        raise ConflictError(
            f"an instance that is {state.value} cannot {event.value.replace('_', ' ')}", code="wrong_state"
        )
    return transition


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a crashed instance again. Seconds."""

    limit: int = 5
    delay: float = 1.0
    delay_max: float = 60.0
    reset: float = 300.0

    def after_crash(self, restarts: int, served_for: float | None) -> tuple[int, float] | None:
        """Restarts counted anew and the wait before the next one; None to give up.

        `served_for` is how long it was ready before the crash, None if it never was. Long service clears the count.
        An instance that never served on its first start is not tried again: it would fail the same way.
        """
        if served_for is not None and served_for >= self.reset:
            restarts = 0
        if restarts >= self.limit or (served_for is None and restarts == 0):
            return None
        return restarts + 1, min(self.delay_max, self.delay * 2.0**restarts)


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that the fleet keeps to. Seconds, a count of ended instances kept, what weights of models that sleep
    may take of the host's memory, and how many relays there are."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    drain: float = 30.0
    history: int = 200
    rules: Rules = field(default_factory=Rules)
    host_memory: Amount = field(default_factory=lambda: Amount(share=0.5))
    relays: int = 1
