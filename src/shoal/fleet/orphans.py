"""Process groups of engines that run and that no controller has: found by the marks in their environments.

An engine outlives its controller, and so it outlives a database that was lost or put back from an older copy, and a
Shoal whose folders nobody starts again. What it takes to have it back lies beside its socket: `instance.json`, kept
by the controller that started it. Nothing here belongs to another user, and nothing to a Shoal that runs.

Everything here blocks for milliseconds: run it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.fleet.lifecycle import WITH_PROCESS
from shoal.fleet.processes import RECORD
from shoal.fleet.procfs import (
    FLEET,
    GENERATIONS,
    INSTANCE,
    environ_of,
    folder_of,
    is_shim,
    memory_of,
    parent_of,
    pids,
    shim_over,
    stat_of,
)
from shoal.fleet.state import Instance
from shoal.store.codec import UnreadableError, instance_row, read_instance

VERSION = 1
"""Of `instance.json`. A record of another version is not read: what it means is not known here."""


class RecordError(ValueError):
    """A group's record that cannot be had back, and why."""


def record_of(instance: Instance) -> str:
    """`instance.json` of an instance: its record as the store keeps it, with this format's version."""
    return json.dumps({"shoal_instance": VERSION, **instance_row(instance)})


def read_record(text: str) -> Instance:
    """The instance of a record. Raises RecordError."""
    try:
        row = json.loads(text)
        version = row.pop("shoal_instance")
        if version != VERSION:
            raise RecordError(f"its record has format {version!r} and this Shoal reads {VERSION}")
        instance, problem = read_instance(row)
    except RecordError:
        raise
    except (UnreadableError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"its record cannot be read ({error})") from None
    if instance.spec is None:
        raise RecordError(f"the settings in its record cannot be used: {problem or 'there are none'}")
    return instance


@dataclass(frozen=True, slots=True)
class Orphan:
    """A group that no controller has. `pid` is its shim's, or its oldest process' where the shim is gone; `memory` is
    in bytes by device (`host`, `cuda:0`, …), as far as it can be read; `started_at` Unix seconds."""

    instance: str
    pid: int
    model: str | None
    engine: str | None
    devices: tuple[str, ...]
    memory: dict[str, int]
    started_at: float
    why: str
    adoptable: bool
    not_adoptable_because: str
    pids: tuple[int, ...]
    fleet: str
    folder: str | None
    """Its runtime folder of an instance; None if that is gone or was never known."""


@dataclass(slots=True)
class _Group:
    """The processes with one mark and one shim. `shim` lives and stands over the others."""

    fleet: str
    instance: str
    members: list[int]
    shim: int | None = None
    folder: Path | None = None


def find_orphans(
    runtime: Path,
    fleet: str,
    claimed: Callable[[], set[str]],
    gpu_memory: Callable[[Sequence[int]], Mapping[str, int]],
) -> list[Orphan]:
    """Every orphan of this user on this machine, the oldest first.

    `runtime` and `fleet` are this Shoal's own; `claimed` gives the ids of the groups that it watches, and is asked
    again after the look, so that what was started meanwhile is none; `gpu_memory` gives bytes by device for pids.
    """
    before = claimed()
    groups = _groups()
    known = before | claimed()
    runtime = runtime.resolve()
    found = []
    for group in groups:
        if _has_controller(group, runtime, fleet, known):
            continue
        found.append(_orphan(group, runtime, fleet, gpu_memory))
    return sorted(found, key=lambda one: (one.started_at, one.pid))


def is_held(runtime: Path) -> bool:
    """Whether a Shoal runs in this runtime folder."""
    try:
        fd = os.open(runtime / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with contextlib.suppress(OSError, ValueError):
            holder = int(os.read(fd, 32))
            if not Path(f"/proc/{holder}").exists():
                return False  # without the lock being tried, which would be in the way of one that starts now
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def claim_runtime(runtime: Path) -> Iterator[bool]:
    """Keep another Shoal from starting in a runtime folder while the block runs; False if one runs there, or if that
    cannot be found out."""
    try:
        fd = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)


def end_orphan(orphan: Orphan, *, force: bool) -> bool:
    """Ask an orphan to end: by its shim, which kills what does not end within its grace, or at once if forced; where
    there is no shim, its processes are killed. False if all of it is gone already.

    Pids that were given to somebody else since the look are not hit: a process is signalled only if it still has the
    orphan's marks, or descends from one that has.
    """
    if is_shim(orphan.pid):
        return _signal(orphan, orphan.pid, signal.SIGUSR1 if force else signal.SIGTERM)
    return bool([pid for pid in orphan.pids if _signal(orphan, pid, signal.SIGKILL)])


def _signal(orphan: Orphan, pid: int, number: signal.Signals) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _still(orphan, pid):
            return False
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def _still(orphan: Orphan, pid: int) -> bool:
    for _ in range(GENERATIONS):
        environ = environ_of(pid)
        if (environ.get(FLEET), environ.get(INSTANCE)) == (orphan.fleet, orphan.instance):
            return _is_own(pid)
        pid = parent_of(pid)
        if pid <= 1:
            break
    return False


def _has_controller(group: _Group, runtime: Path, fleet: str, claimed: set[str]) -> bool:
    if group.folder is None:  # nothing but its mark says whose it is
        return group.fleet != fleet or group.instance in claimed
    there = group.folder.parent.parent
    return group.instance in claimed if there == runtime else is_held(there)


def _groups() -> list[_Group]:
    parents: dict[int, int] = {}
    groups: dict[tuple[str, str, int | None], _Group] = {}
    owner: dict[int, _Group] = {}
    for pid in sorted(pids()):
        if not _is_own(pid):
            continue
        parents[pid] = parent_of(pid)
        environ = environ_of(pid)
        fleet, instance = environ.get(FLEET), environ.get(INSTANCE)
        if not fleet or not instance:
            continue
        shim = shim_over(pid, environ)
        group = groups.setdefault((fleet, instance, shim), _Group(fleet, instance, [], shim))
        group.members.append(pid)
        owner[pid] = group
    for pid in parents:  # a process that gives itself a title writes it over its marks
        group_of = _owner(pid, parents, owner)
        if group_of is not None and pid not in owner:
            group_of.members.append(pid)
    for group in groups.values():
        group.folder = _folder(group)
    return list(groups.values())


def _owner(pid: int, parents: Mapping[int, int], owner: Mapping[int, _Group]) -> _Group | None:
    for _ in range(GENERATIONS):
        if pid in owner:
            return owner[pid]
        if pid not in parents:
            return None
        pid = parents[pid]
    return None


def _folder(group: _Group) -> Path | None:
    """Where its shim, or what is left of it, was started: RUNTIME/instances/ID."""
    for pid in [group.shim] if group.shim is not None else group.members:
        if (folder := folder_of(pid, group.instance)) is not None:
            return folder
    return None


def _orphan(
    group: _Group, runtime: Path, fleet: str, gpu_memory: Callable[[Sequence[int]], Mapping[str, int]]
) -> Orphan:
    instance, problem = None, ""
    if group.shim is None:
        problem = "its shim is gone, and its engine's first process with it"
    elif group.folder is None:
        problem = "its runtime folder, and with that its socket, is gone"
    else:
        try:
            instance = read_record((group.folder / RECORD).read_text(encoding="utf-8"))
        except RecordError as error:
            problem = str(error)
        except OSError:
            problem = "it has no record of its settings beside its socket"
        else:
            if instance.id != group.instance or instance.state not in WITH_PROCESS:
                problem = f"its record is of {instance.id}, {instance.state.value}"
    first = group.shim if group.shim is not None else min(group.members)
    gpus = gpu_memory(group.members)
    host = sum(memory_of(pid) for pid in group.members)
    return Orphan(
        instance=group.instance,
        pid=first,
        model=instance.model if instance is not None else None,
        engine=instance.engine if instance is not None else None,
        devices=instance.devices if instance is not None else tuple(gpus),
        memory={"host": host, **gpus},
        started_at=_started(first),
        why=_why(group, runtime, fleet),
        adoptable=not problem,
        not_adoptable_because=problem,
        pids=tuple(group.members),
        fleet=group.fleet,
        folder=None if group.folder is None else str(group.folder),
    )


def _why(group: _Group, runtime: Path, fleet: str) -> str:
    if group.shim is None:
        return "what an engine left behind whose shim is gone"
    if group.folder is None:
        return "its runtime folder was removed"
    there = group.folder.parent.parent
    if there == runtime:
        return "no record of this Shoal names it: its database was lost, or is an older one"
    whose = (
        "this Shoal's, from another runtime folder" if group.fleet == fleet else "another Shoal's, which does not run"
    )
    return f"{whose}: {there}"


def _is_own(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    except OSError:
        return False


def _started(pid: int) -> float:
    """When a process began, in Unix seconds."""
    fields = stat_of(pid)
    if not fields:
        return 0.0
    booted = _boot_time()
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), the third here being field 5


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "btime":
            return float(value)
    return 0.0
