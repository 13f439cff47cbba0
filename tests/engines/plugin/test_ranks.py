"""Ranks in this process and in others: real processes, real sockets, memory of the host."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.engines.vllm.plugin import messages as m
from shoal.engines.vllm.plugin import rank as here
from shoal.engines.vllm.plugin import ranks as ranks_module
from shoal.engines.vllm.plugin.rank import RankMemory
from shoal.engines.vllm.plugin.ranks import RankError, Ranks, find_ranks
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm.host import HostVmm

PAGE = HostVmm().page_size
_numbers = itertools.count()


class Worker:
    """A far worker's process."""

    def __init__(self, engine: str, rank: int, blocks: int = 100, limit: int = 100) -> None:
        argv = [engine, str(rank), str(os.getpid()), str(blocks), str(limit)]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("far_worker.py")), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.hear() == "serves"

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def say(self, word: str) -> str:
        self.tell(word)
        return self.hear()

    @property
    def backed(self) -> int:
        return int(self.say("backed").removeprefix("done "))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Engine:
    """Far workers and the ranks that reach them; nothing outlives the test."""

    def __init__(self) -> None:
        self.name = f"engine-{os.getpid()}-{next(_numbers)}"
        self.workers: list[Worker] = []
        self.opened: list[Ranks] = []

    def start(self, *limits: int, blocks: int = 100) -> Ranks:
        self.workers = [Worker(self.name, rank, blocks, limit) for rank, limit in enumerate(limits)]
        return self.ranks(len(limits))

    def ranks(self, count: int) -> Ranks:
        ranks = find_ranks(self.name, count)
        self.opened.append(ranks)
        return ranks

    def knock(self, rank: int = 0) -> socket.socket:
        """A connection of one's own to a worker."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(30)
        channel.connect(m.address(self.name, os.getpid(), rank))
        return channel


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    for ranks in engine.opened:
        ranks.close()
    for worker in engine.workers:
        worker.end()


def near(name: str, rank: int, blocks: int = 100, limit: int = 100) -> RankMemory:
    memory = RankMemory(name, rank, "device", 1 << 30)
    memory.arena = Arena(HostVmm(limit=limit * PAGE), Geometry.contiguous(blocks, PAGE, PAGE))
    return memory


def test_a_far_rank_describes_itself_backs_and_unbacks(engine: Engine) -> None:
    ranks = engine.start(100)
    (worker,) = engine.workers
    assert ranks.reason == ""
    assert ranks.geometry() == Geometry.contiguous(100, PAGE, PAGE)
    assert [(d.device, d.device_size) for d in ranks.descriptions] == [("device-0", 1 << 30)]
    assert ranks.back([5, 3, 99]) == 3
    assert worker.backed == 3
    ranks.unback([3])
    assert worker.backed == 2
    assert ranks.back([]) == 0


def test_a_limit_that_is_reached_is_a_count_and_no_error(engine: Engine) -> None:
    ranks = engine.start(10)
    assert ranks.back(range(4)) == 4
    assert ranks.back(range(4, 50)) == 6
    assert ranks.back([60]) == 0
    ranks.unback([0, 1])
    assert ranks.back([60, 61, 62]) == 2
    assert engine.workers[0].backed == 10


def test_a_block_is_backed_on_all_ranks_or_on_none(engine: Engine) -> None:
    ranks = engine.start(100, 7, 30)
    assert ranks.back(range(20)) == 7
    assert [worker.backed for worker in engine.workers] == [7, 7, 7]
    ranks.unback(range(3))
    assert ranks.back([50, 51, 52, 53]) == 3
    assert [worker.backed for worker in engine.workers] == [7, 7, 7]


def test_a_near_and_a_far_rank_do_as_one(engine: Engine) -> None:
    engine.workers = [Worker(engine.name, 1, limit=5)]
    memory = near(engine.name, 0)
    try:
        ranks = engine.ranks(2)
        assert ranks.back(range(9)) == 5
        assert memory.arena is not None
        assert memory.arena.backed_blocks == engine.workers[0].backed == 5
        ranks.unback(range(5))
        assert memory.arena.backed_blocks == engine.workers[0].backed == 0
    finally:
        memory.close()
    assert here.find(engine.name, 0) is None


def test_more_blocks_than_a_message_holds_go_in_parts(engine: Engine) -> None:
    blocks = 5 * m.MAX_IDS + 3
    ranks = engine.start(4 * m.MAX_IDS + 5, blocks=blocks)
    done = ranks.back(range(blocks))
    assert done == 4 * m.MAX_IDS + 5
    assert engine.workers[0].backed == done
    ranks.unback(range(done))
    assert engine.workers[0].backed == 0


def test_the_largest_message_fits_a_packet() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        message = m.Unback([2**31 - 1] * m.MAX_IDS)
        m.send(one, message)
        assert m.receive(other) == message


def test_what_a_rank_refuses_comes_back_as_text(engine: Engine) -> None:
    ranks = engine.start(100)
    assert ranks.back([1]) == 1
    with pytest.raises(RankError, match=r"BlockError: block 1 is backed already"):
        ranks.back([1])
    with pytest.raises(RankError, match=r"there is no block 100"):
        ranks.unback([100])
    assert ranks.back([2]) == 1, "the connection is as good as before"


def test_a_worker_killed_with_9_is_gone_and_that_is_said(engine: Engine) -> None:
    ranks = engine.start(100, 100)
    assert ranks.back([1]) == 1
    engine.workers[1].kill()
    with pytest.raises(m.ChannelError, match="gone"):
        ranks.back([2])
    with pytest.raises(m.ChannelError, match="gone"):
        ranks.unback([1])


def test_garbage_ends_its_own_connection_and_hurts_nobody(engine: Engine) -> None:
    ranks = engine.start(100)
    chance = random.Random(5)
    for size in (1, 2, 3, 10, 1000, 60000):
        with engine.knock() as channel:
            channel.send(chance.randbytes(size))
            try:
                heard = channel.recv(m.MAX_PACKET)
            except ConnectionResetError:
                heard = b""
            assert heard == b""
    with engine.knock() as channel:
        m.send(channel, m.Done(3))
        answer = m.receive(channel)
        assert isinstance(answer, m.Done)
        assert answer.error == "a worker has no answer to Done"
        m.send(channel, m.Back([7]))
        assert m.receive(channel) == m.Done(1)
    assert ranks.back([8]) == 1
    assert engine.workers[0].backed == 2


@pytest.mark.parametrize("packet", [b"\x00", b"\x81", b"\x91" * 5000, m._ENCODER.encode({"type": "back", "ids": "x"})])
def test_what_is_no_message_is_refused_by_either_end(packet: bytes) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.send(packet)
        with pytest.raises(m.ChannelError, match="no message"):
            m.receive(other)
        one.close()
        assert m.receive(other) is None
        with pytest.raises(m.ChannelError, match="gone"):
            m.send(other, m.Describe())


def test_another_users_worker_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.start(100)
    monkeypatch.setattr(m, "is_ours", lambda _: False)
    with pytest.raises(RankError, match="another user's process"):
        find_ranks(engine.name, 1)


def test_another_users_pager_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = near(engine.name, 0)
    try:
        memory.serve(os.getpid())
        monkeypatch.setattr(m, "is_ours", lambda _: False)
        with engine.knock() as channel:
            try:
                channel.send(m._ENCODER.encode(m.Back([1])))
                heard = channel.recv(100)
            except OSError:
                heard = b""
            assert heard == b""
        assert memory.arena is not None
        assert memory.arena.backed_blocks == 0
    finally:
        memory.close()


def test_this_users_own_socket_is_ours() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert m.is_ours(one)


def test_an_engine_without_a_worker_is_said_to_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "CONNECT_TIMEOUT", 0.1)
    with pytest.raises(RankError, match="--worker-cls and --scheduler-cls"):
        find_ranks("nobody", 1)


def test_a_rank_without_an_arena_says_why(engine: Engine) -> None:
    assert engine.start(100, blocks=0).reason == "its cache is of another kind"


def test_ranks_of_different_shape_are_refused(engine: Engine) -> None:
    engine.workers = [Worker(engine.name, 0, blocks=100), Worker(engine.name, 1, blocks=90)]
    with pytest.raises(RankError, match="laid out differently"):
        engine.ranks(2).geometry()


def test_sleep_and_wake_come_through_once_for_each_rank(engine: Engine) -> None:
    ranks = engine.start(100, 100)
    calls: list[str] = []
    ranks.watch(lambda: calls.append("suspend"), lambda: calls.append("resume"), lambda: calls.append("close"))
    assert [worker.say("suspend") for worker in engine.workers] == ["done 0", "done 0"]
    assert calls == ["suspend", "suspend"]
    assert engine.workers[1].say("resume") == "done 0"
    assert calls[2:] == ["resume"]


def test_an_error_in_the_pager_reaches_the_worker_as_text(engine: Engine) -> None:
    def refuse() -> None:
        raise ValueError("requests still hold 3 blocks")

    ranks = engine.start(100)
    ranks.watch(refuse, lambda: None, lambda: None)
    assert engine.workers[0].say("suspend") == "ChannelError: requests still hold 3 blocks"
    assert engine.workers[0].say("resume") == "done 0"


def test_a_worker_that_nobody_watches_says_so(engine: Engine) -> None:
    ranks = engine.start(100)
    assert engine.workers[0].say("suspend") == "ChannelError: no pager is connected to this worker"
    ranks.watch(lambda: None, lambda: None, lambda: None)
    ranks.close()
    assert "gone" in engine.workers[0].say("suspend")


def test_memory_may_be_asked_for_while_a_worker_waits_for_its_sleep(engine: Engine) -> None:
    ranks = engine.start(100)
    ranks.back(range(10))
    ranks.watch(lambda: ranks.unback(range(10)), lambda: None, lambda: None)
    assert engine.workers[0].say("suspend") == "done 0"


def test_a_closed_worker_is_gone_for_its_pager(engine: Engine) -> None:
    ranks = engine.start(100)
    assert engine.workers[0].say("close") == "closed"
    with pytest.raises(m.ChannelError):
        ranks.back([1])


def test_a_near_rank_calls_its_pager_and_is_ended_by_it_first(engine: Engine) -> None:
    memory = near(engine.name, 0)
    calls: list[str] = []
    with pytest.raises(m.ChannelError, match="no pager is there yet"):
        memory.suspended()
    ranks = engine.ranks(1)
    ranks.watch(
        lambda: calls.append("suspend"),
        lambda: calls.append("resume"),
        lambda: calls.append(f"close {memory.arena is not None and memory.arena.backed_blocks}"),
    )
    memory.suspended()
    memory.resumed()
    ranks.back([1, 2])
    memory.close()
    assert calls == ["suspend", "resume", "close 2"]


def test_a_rank_of_a_process_that_was_copied_is_not_near(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = near(engine.name, 0)
    try:
        assert here.find(engine.name, 0) is memory
        monkeypatch.setattr(os, "getpid", lambda: 1)
        assert here.find(engine.name, 0) is None
    finally:
        monkeypatch.undo()
        memory.close()
