"""What is an orphan and what is not, and what becomes of it, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.engines.base import Launch
from shoal.errors import ConflictError
from shoal.fleet.orphans import (
    Orphan,
    claim_runtime,
    end_orphan,
    find_orphans,
    is_held,
    record_of,
)
from shoal.fleet.processes import Processes
from shoal.fleet.procfs import FLEET, INSTANCE
from shoal.fleet.state import Exit, Instance
from shoal.orphans import OrphanControl, lead, link_log
from tests.fleet.orphaned import INSTANCE_RECORD

# -- processes --------------------------------------------------------------------------------------------------------


class Two:
    """Two fleets' runtime folders, and one engine in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleets = {name: f"{name}-{os.getpid()}-{time.monotonic_ns()}" for name in ("mine", "theirs")}
        self.processes = {name: self.again(name) for name in self.fleets}

    def runtime(self, name: str) -> Path:
        return self.folder / name

    def again(self, name: str) -> Processes:
        """What the next controller of a fleet has."""
        return Processes(
            self.runtime(name) / "instances",
            self.fleets[name],
            log_bytes=4096,
            grace=1.0,
            on_exit=lambda _instance, _exit: None,
        )

    def spawn(self, name: str, instance: str, code: str = "import time; time.sleep(600)") -> int:
        log = self.folder / f"{instance}.log"
        launch = Launch((sys.executable, "-c", code))
        made = dataclasses.replace(INSTANCE_RECORD, id=instance)
        return self.processes[name].spawn(instance, launch, log, record_of(made))

    def orphans(self) -> list[Orphan]:
        """As the controller of `mine` sees them; of these two fleets only."""
        mine = self.processes["mine"]
        found = find_orphans(self.runtime("mine"), self.fleets["mine"], lambda: mine.watched, lambda _: {"cuda:0": 5})
        return [one for one in found if one.fleet in self.fleets.values()]

    def left(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                environ = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if any(f"{FLEET}={fleet}".encode() in environ for fleet in self.fleets.values()):
                found.append(int(entry.name))
        return found


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Two(folder)
    yield made
    for processes in made.processes.values():
        processes.close()
    for pid in made.left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


async def until_engine(two: Two, name: str, instance: str) -> None:
    await until(lambda: two.processes[name].engine_pid(instance) is not None)


async def test_what_a_controller_watches_is_no_orphan_and_what_it_does_not_know_is_one(two: Two) -> None:
    pid = two.spawn("mine", "m-1")
    await until_engine(two, "mine", "m-1")
    assert two.orphans() == []
    two.processes["mine"].close()
    two.processes["mine"] = two.again("mine")
    (orphan,) = two.orphans()
    assert (orphan.instance, orphan.pid, orphan.model, orphan.devices) == ("m-1", pid, "m", ("cuda:0",))
    assert orphan.adoptable
    assert orphan.memory["cuda:0"] == 5
    assert orphan.memory["host"] > 0
    assert abs(orphan.started_at - time.time()) < 120
    assert {pid, two.processes["mine"].engine_pid("m-1")} == set(orphan.pids)
    assert two.processes["mine"].sweep(()) == [], "its shim lives: it is not swept away"
    moved = Processes(
        two.folder / "else" / "instances", two.fleets["mine"], log_bytes=4096, grace=1.0, on_exit=lambda *_: None
    )
    assert moved.sweep((), gone={"m-1"}) == [], "what is said of an instance is not said of a group in another folder"
    assert two.processes["mine"].sweep((), gone={"m-1"}), "unless somebody knows that it was given up"


async def test_a_group_of_a_shoal_that_runs_is_nobody_elses(two: Two) -> None:
    two.spawn("theirs", "m-2")
    await until_engine(two, "theirs", "m-2")
    lock = os.open(two.runtime("theirs") / "lock", os.O_RDWR | os.O_CREAT)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    assert not is_held(two.runtime("theirs")), "the holder's number alone says nothing"
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert is_held(two.runtime("theirs"))
    assert two.orphans() == []
    with claim_runtime(two.runtime("theirs")) as free:
        assert not free
    os.close(lock)
    (orphan,) = two.orphans()
    assert "which does not run" in orphan.why
    with claim_runtime(two.folder / "nowhere") as free:
        assert not free
    with claim_runtime(two.runtime("theirs")) as free:
        assert free
        assert is_held(two.runtime("theirs")), "no Shoal can start there meanwhile"


async def test_a_group_that_was_taken_over_is_found_again_and_its_end_is_seen(two: Two) -> None:
    pid = two.spawn("theirs", "m-3", "import time; time.sleep(600)")
    await until_engine(two, "theirs", "m-3")
    two.processes["theirs"].close()
    mine = two.processes["mine"]
    found = mine.take_over(two.runtime("theirs") / "instances" / "m-3", two.fleets["theirs"])
    assert found.pid == pid
    assert [one.instance for one in mine.find()] == ["m-3"]
    assert two.again("theirs").find() == []
    assert two.again("mine").find() == [found], "a later controller finds it too"
    assert two.again("theirs").sweep(()) == [], "and the former owner leaves it alone"
    assert mine.adopt(found)
    assert two.orphans() == []
    assert mine.memory()["m-3"] > 0
    assert mine.terminate("m-3")
    await until(lambda: not two.left())
    assert mine.last_exit("m-3") != Exit(), "its shim knows where its folder is now"


async def test_one_that_was_taken_over_and_one_of_its_id_and_marks_are_two(two: Two) -> None:
    """The Shoal that it came from starts again: its database still names it, so it is loaded anew under its id."""
    first = two.spawn("theirs", "m-8")
    await until_engine(two, "theirs", "m-8")
    two.processes["theirs"].close()
    mine = two.processes["mine"]
    taken = mine.take_over(two.runtime("theirs") / "instances" / "m-8", two.fleets["theirs"])
    assert mine.adopt(taken)
    held = {first, mine.engine_pid("m-8")}

    exits: list[str] = []
    theirs = two.processes["theirs"] = Processes(
        two.runtime("theirs") / "instances",
        two.fleets["theirs"],
        log_bytes=4096,
        grace=1.0,
        on_exit=lambda instance, _: exits.append(instance),
    )
    assert theirs.find() == []
    assert theirs.sweep((), gone={"m-8"}) == [], "its database knows of the instance, and not of this group"
    assert "m-8" not in theirs.memory(), "nor does what it holds count as theirs"
    second = two.spawn("theirs", "m-8", "import time; held = bytearray(50 << 20); time.sleep(600)")
    await until_engine(two, "theirs", "m-8")
    await until(lambda: theirs.memory().get("m-8", 0) > 50 << 20)
    assert mine.memory()["m-8"] < 50 << 20
    assert theirs.sweep({"m-8"}) == []

    assert theirs.kill("m-8")
    await until(lambda: exits == ["m-8"])
    assert set(two.left()) == held, "the end of one is not the other's"
    again = two.spawn("theirs", "m-8")
    await until_engine(two, "theirs", "m-8")
    assert again != second
    seen = find_orphans(two.folder / "third", "third", set, lambda _: {})
    assert sorted(one.pid for one in seen if one.fleet == two.fleets["theirs"]) == sorted([first, again])
    assert not any(held & set(one.pids) and again in one.pids for one in seen)
    assert mine.kill("m-8")
    await until(lambda: not held & set(two.left()))
    assert set(two.left()) == {again, theirs.engine_pid("m-8")}


async def test_what_is_in_another_runtime_folder_is_told_with_whose_it_is(two: Two) -> None:
    pid = two.spawn("mine", "m-10")
    await until_engine(two, "mine", "m-10")
    before = two.runtime("mine") / "instances" / "m-10"
    assert two.processes["mine"].elsewhere() == []
    two.processes["mine"].close()
    moved = Processes(
        two.folder / "new" / "instances", two.fleets["mine"], log_bytes=4096, grace=1.0, on_exit=lambda *_: None
    )
    assert moved.elsewhere() == [(before, two.fleets["mine"])]
    assert two.processes["theirs"].elsewhere() == [], "it is none of theirs"

    theirs = two.processes["theirs"]
    taken = theirs.take_over(before, two.fleets["mine"])
    assert moved.elsewhere() == [], "another has it now, whatever its mark says"
    later = Processes(
        two.folder / "later" / "instances", two.fleets["theirs"], log_bytes=4096, grace=1.0, on_exit=lambda *_: None
    )
    now = two.runtime("theirs") / "instances" / "m-10"
    assert later.elsewhere() == [(now, two.fleets["mine"])]
    assert taken.pid == pid

    assert moved.take_over(now, two.fleets["mine"]).pid == pid
    assert not (two.folder / "new" / "instances" / "m-10" / "claim.json").exists(), "it is its first owner's again"
    assert two.again("mine").elsewhere() == [(two.folder / "new" / "instances" / "m-10", two.fleets["mine"])]


class Taking:
    """What orphans need of a controller of `mine`, which has something else to do before it adopts."""

    def __init__(self, two: Two, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self.paths = SimpleNamespace(
            runtime=two.runtime("mine"),
            state=two.runtime("mine"),
            instances=two.runtime("mine") / "instances",
            log=lambda instance: two.folder / "logs" / instance,
        )
        (two.runtime("mine") / "instances").mkdir(parents=True)
        self.engines = {"simulated": None}
        self.devices = SimpleNamespace(held_by=lambda _: {})
        self.told: list[str] = []
        processes = two.processes["mine"] = Processes(
            self.paths.instances,
            two.fleets["mine"],
            log_bytes=4096,
            grace=1.0,
            on_exit=lambda instance, _: self.told.append(f"{instance} has ended"),
        )
        self.effects = SimpleNamespace(
            processes=processes, remember=lambda _: None, address=str, broker=SimpleNamespace(path=two.folder / "b")
        )
        self.access = SimpleNamespace(refuse_model=lambda _: None)
        self.manager = SimpleNamespace(
            fleet=SimpleNamespace(instances={}, models={}, instance_view=lambda one: one), adopt=self._adopt
        )
        self._meanwhile = meanwhile

    def _adopt(self, instance: Instance) -> None:
        self.told.append(f"{instance.id} is adopted")
        self.manager.fleet.instances[instance.id] = instance

    async def do(self, command: Callable[[], object]) -> object:
        await self._meanwhile()
        return command()

    def look_after(self, _: Instance) -> None: ...


@pytest.mark.parametrize("reaped", [True, False])
async def test_one_that_ends_while_it_is_adopted_is_refused_or_its_end_is_told_afterwards(
    two: Two, reaped: bool
) -> None:
    """An end that is told before the manager knows the instance is told in vain: it would seem to run for ever."""
    pid = two.spawn("theirs", "m-9")
    await until_engine(two, "theirs", "m-9")
    two.processes["theirs"].close()

    async def ends() -> None:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | (0 if reaped else os.WNOWAIT)))
        await asyncio.sleep(0.05)  # whoever watches it has heard of it

    controller = Taking(two, ends)
    control = OrphanControl(cast("Any", controller))
    if reaped:
        with pytest.raises(ConflictError, match="it has just ended"):
            await control.adopt(str(pid))
        assert controller.told == []
    else:
        await control.adopt(str(pid))
        await until(lambda: len(controller.told) == 2)
        assert controller.told == ["m-9 is adopted", "m-9 has ended"]


async def test_a_folder_that_is_taken_or_empty_is_refused(two: Two) -> None:
    two.spawn("theirs", "m-4")
    await until_engine(two, "theirs", "m-4")
    (two.runtime("mine") / "instances" / "m-4").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        two.processes["mine"].take_over(two.runtime("theirs") / "instances" / "m-4", two.fleets["theirs"])
    empty = two.runtime("theirs") / "instances" / "nobody"
    empty.mkdir()
    with pytest.raises(ProcessLookupError):
        two.processes["mine"].take_over(empty, two.fleets["theirs"])


async def test_an_orphan_is_ended_with_all_that_it_started(two: Two) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    two.spawn("theirs", "m-5", code + "env={}); time.sleep(600)")
    await until_engine(two, "theirs", "m-5")
    await until(lambda: len(two.orphans()[0].pids) >= 3)
    (orphan,) = two.orphans()
    assert end_orphan(orphan, force=False)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphan.pids if pid != orphan.pid))


def marked(two: Two, instance: str, **options: object) -> subprocess.Popen[bytes]:
    env = {FLEET: two.fleets["mine"], INSTANCE: instance}
    return subprocess.Popen(["/bin/sleep", "600"], env=env, **options)  # type: ignore[call-overload, no-any-return]


async def test_what_is_left_without_a_shim_can_be_ended_and_nothing_else(two: Two) -> None:
    stray = marked(two, "m-6")
    await until(two.orphans)
    (orphan,) = two.orphans()
    assert (orphan.pid, orphan.adoptable, orphan.model, orphan.folder) == (stray.pid, False, None, None)
    assert "shim is gone" in orphan.not_adoptable_because
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    recycled = dataclasses.replace(orphan, pid=other.pid, pids=(other.pid,))
    assert not end_orphan(recycled, force=True), "a pid that somebody else has now is not hit"
    assert other.poll() is None
    other.kill()
    other.wait()
    assert end_orphan(orphan, force=False)
    assert stray.wait(20) == -9
    assert not end_orphan(orphan, force=True), "it is gone"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process as somebody else")
async def test_a_process_of_another_user_is_never_seen(two: Two) -> None:
    strangers = marked(two, "m-7", user=65534)
    try:
        await until(lambda: Path(f"/proc/{strangers.pid}/environ").read_bytes())
        assert two.orphans() == []
    finally:
        strangers.kill()
        strangers.wait()


def test_logs_and_brokers_of_elsewhere_are_led_here(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs.log", tmp_path / "logs" / "m" / "engine.log"
    theirs.write_text("one")
    link_log(mine, theirs)
    link_log(mine, theirs)
    assert mine.read_text() == "one"
    link_log(mine, None)
    plain = tmp_path / "memory.sock"
    plain.write_text("no socket")
    lead(plain, mine)
    assert plain.read_text() == "no socket", "what is no socket is not touched"
    lead(tmp_path / "missing", mine)
    assert not (tmp_path / "missing").is_symlink()
