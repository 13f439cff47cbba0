"""Real process groups under real shims: nothing is leaked, nothing that is not ours is touched."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.engines.base import Launch
from shoal.fleet.logs import older, tail
from shoal.fleet.processes import Processes, scrubbed
from shoal.fleet.procfs import FLEET, INSTANCE
from shoal.fleet.shim import BEGIN
from shoal.fleet.state import Exit

# Prints, starts a child in a session of its own that cannot be asked to end, and stays.
STUBBORN = """
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""


# Has a child without an environment hold 50 MB, and that one's child as much.
NAMELESS = """
import subprocess, sys, time
deep = "import time; held = bytearray(50 << 20); print('deep', flush=True); time.sleep(600)"
child = "import subprocess, sys, time; held = bytearray(50 << 20); "
child += f"subprocess.Popen([sys.executable, '-c', {deep!r}], env={{}}); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], env={})
time.sleep(600)
"""


class Groups:
    """Processes in a folder of their own, and the exits that they told."""

    def __init__(self, folder: Path, fleet: str = "") -> None:
        self.folder = folder
        self.fleet = fleet or f"test-{os.getpid()}-{time.monotonic_ns()}"
        self.exits: asyncio.Queue[tuple[str, Exit]] = asyncio.Queue()
        self.processes = self.again()

    def again(self) -> Processes:
        """What the next controller has."""
        return Processes(
            self.folder,
            self.fleet,
            log_bytes=16_384,
            grace=1.0,
            on_exit=lambda instance, exit: self.exits.put_nowait((instance, exit)),
        )

    def log(self, instance: str) -> Path:
        return self.folder / "logs" / f"{instance}.log"

    def spawn(self, instance: str, code: str) -> int:
        return self.processes.spawn(instance, Launch((sys.executable, "-u", "-c", code)), self.log(instance))

    async def exit(self) -> tuple[str, Exit]:
        return await asyncio.wait_for(self.exits.get(), 30)

    def left(self) -> list[int]:
        """Pids that carry this fleet's mark."""
        mark = f"{FLEET}={self.fleet}".encode()
        pids = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    pids.append(int(entry.name))
            except OSError:
                continue
        return pids


@pytest.fixture
def groups() -> Iterator[Groups]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Groups(folder)
    yield made
    for pid in made.left():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


async def test_the_exit_of_an_engine_is_told_with_its_code(groups: Groups) -> None:
    groups.spawn("a", "print('hello'); raise SystemExit(3)")
    assert await groups.exit() == ("a", Exit(code=3))
    assert tail(groups.log("a"), 5) == [BEGIN, "hello"]
    await until(lambda: not groups.left())


async def test_ending_a_group_leaves_no_process_however_stubborn(groups: Groups) -> None:
    groups.spawn("a", STUBBORN)
    await until(lambda: tail(groups.log("a"), 1) == ["up"])
    assert len(groups.left()) == 3
    assert groups.processes.terminate("a")
    assert await groups.exit() == ("a", Exit(signal=15))
    assert not groups.left()
    assert not groups.processes.terminate("a"), "it is gone"


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(groups: Groups) -> None:
    groups.spawn("a", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)")
    await until(lambda: tail(groups.log("a"), 1) == ["up"])
    groups.processes.terminate("a")
    assert await groups.exit() == ("a", Exit(signal=9))
    assert not groups.left()


async def test_a_program_that_does_not_exist(groups: Groups) -> None:
    groups.processes.spawn("a", Launch(("/no/such/program",)), groups.log("a"))
    assert await groups.exit() == ("a", Exit(code=127))
    assert "/no/such/program cannot be started: No such file" in tail(groups.log("a"), 1)[0]


async def test_a_shim_that_is_killed_takes_its_engine_along(groups: Groups) -> None:
    shim = groups.spawn("a", STUBBORN)
    await until(lambda: tail(groups.log("a"), 1) == ["up"])
    os.kill(shim, signal.SIGKILL)
    assert await groups.exit() == ("a", Exit())
    await until(lambda: not groups.left())


async def test_groups_outlive_their_controller_and_are_found_again(groups: Groups) -> None:
    groups.spawn("a", "import time; print('up'); time.sleep(600)")
    await until(lambda: groups.processes.engine_pid("a"))
    engine = groups.processes.engine_pid("a")
    groups.processes.close()
    successor = groups.again()
    (found,) = successor.find()
    assert found.instance == "a"
    assert successor.adopt(found)
    assert successor.engine_pid("a") == engine
    successor.terminate("a")
    assert await groups.exit() == ("a", Exit(signal=15))


async def test_how_a_group_ended_while_nobody_looked_is_known(groups: Groups) -> None:
    groups.spawn("a", "import time; time.sleep(0.2); raise SystemExit(7)")
    groups.processes.close()
    successor = groups.again()
    await until(lambda: not groups.left())
    assert successor.find() == []
    assert successor.last_exit("a") == Exit(code=7)


async def test_only_what_is_provably_ours_is_swept(groups: Groups) -> None:
    environ = {**os.environ, FLEET: groups.fleet, INSTANCE: "lost"}
    ours = subprocess.Popen(["sleep", "600"], env=environ)
    other_fleet = subprocess.Popen(["sleep", "600"], env={**environ, FLEET: groups.fleet + "x"})
    known = subprocess.Popen(["sleep", "600"], env={**environ, INSTANCE: "known"})
    try:
        await until(lambda: {ours.pid, known.pid} <= set(groups.left()))
        assert ours.pid in groups.processes.sweep({"known"})
        assert ours.wait(10) == -signal.SIGKILL
        assert other_fleet.poll() is None
        assert known.poll() is None
    finally:
        for process in (ours, other_fleet, known):
            process.kill()
            process.wait()


async def test_the_log_is_bounded_and_its_end_is_kept(groups: Groups) -> None:
    groups.spawn("a", "for i in range(20000): print('line', i)")
    await groups.exit()
    size = groups.log("a").stat().st_size + older(groups.log("a")).stat().st_size
    assert size <= 16_384 + 2 * 65_536, "two halves, each over by at most one write"
    assert tail(groups.log("a"), 1) == ["line 19999"]


async def test_a_log_that_cannot_be_written_does_not_hurt_the_engine(groups: Groups) -> None:
    groups.log("a").parent.mkdir()
    groups.log("a").symlink_to("/dev/full")
    groups.spawn("a", "for i in range(20000): print('line', i)\nraise SystemExit(0)")
    assert await groups.exit() == ("a", Exit(code=0))


async def test_memory_of_processes_that_lost_their_mark_counts(groups: Groups) -> None:
    """A title (setproctitle) is written over the environment; grandchildren of such a one are an engine's too."""
    groups.spawn("a", NAMELESS)
    await until(lambda: tail(groups.log("a"), 1) == ["deep"])
    assert 100 << 20 <= groups.processes.memory()["a"] < 200 << 20
    groups.processes.kill("a")
    assert await groups.exit() == ("a", Exit(signal=9))


async def test_memory_is_read_by_instance(groups: Groups) -> None:
    groups.spawn("a", "import time; data = bytearray(50 << 20); print('up'); time.sleep(600)")
    await until(lambda: tail(groups.log("a"), 1) == ["up"])
    assert 50 << 20 <= groups.processes.memory()["a"] < 120 << 20
    groups.processes.kill("a")
    assert await groups.exit() == ("a", Exit(signal=9))


async def test_many_starts_and_ends_leak_no_descriptor(groups: Groups) -> None:
    async def cycle(count: int) -> int:
        for _ in range(count):
            groups.spawn("a", "pass")
            await groups.exit()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = await cycle(2)
    assert await cycle(10) == before


def test_secrets_stay_with_shoal() -> None:
    environ = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "SHOAL_DATABASE_URL": "y", "HF_TOKEN": "z"}
    assert scrubbed(environ) == {"PATH": "/bin", "HF_TOKEN": "z"}
