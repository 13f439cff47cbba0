"""One rank's memory, in the process of its worker.

Where the scheduler lives in the same process (one GPU), the pager calls it; else it serves the pager's requests on a
thread of its own, which never waits for vLLM's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shoal.memory.arena import Arena
from shoal.memory.vmm import Vmm

from . import messages as m
from .layout import Layout

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SLICE_BYTES = 128 << 20
"""How much is backed at a time: the device's answers take as long for 32 MiB of it as for all."""

_here: dict[tuple[str, int], RankMemory] = {}
"""The ranks in this process, by engine and rank."""


def find(engine: str, rank: int) -> RankMemory | None:
    """The memory of `rank`, if its worker lives in this process."""
    found = _here.get((engine, rank))
    return found if found is not None and found.pid == os.getpid() else None


class RankMemory:
    """An arena, or why there is none. `device` is its key at the broker, `device_size` in bytes."""

    def __init__(self, engine: str, rank: int, device: str, device_size: int) -> None:
        self.engine, self.rank = engine, rank
        self.device, self.device_size = device, device_size
        self.pid = os.getpid()
        self.reason = ""
        self.arena: Arena | None = None
        self.suspend: Callable[[], None] | None = None
        """Set by the pager: takes all memory away, for sleep."""
        self.resume: Callable[[], None] | None = None
        self.closing: Callable[[], None] | None = None
        """Set by a pager in this process: ends it, before its arena goes."""
        self._server: _Server | None = None
        _here[engine, rank] = self

    def place(self, vmm: Vmm, layout: Layout) -> torch.Tensor:
        """Reserve addresses for `layout`; answers the tensor over them."""
        self.arena = Arena(vmm, layout.geometry, slice_bytes=SLICE_BYTES)
        return self.arena.tensor(layout.size)

    def describe(self) -> m.Description:
        """What the pager has to know."""
        if self.arena is None:
            return m.Description(self.device, self.device_size, reason=self.reason or "it is not initialised yet")
        geometry = self.arena.geometry
        runs = tuple(m.Run(*run) for run in geometry.runs)
        return m.Description(self.device, self.device_size, geometry.page_size, geometry.blocks, runs)

    def back(self, ids: Sequence[int]) -> int:
        """Back `ids` in order as far as memory goes, and say how many."""
        assert self.arena is not None
        return self.arena.back_up_to(ids)

    def unback(self, ids: Sequence[int]) -> None:
        """Unback `ids`."""
        assert self.arena is not None
        self.arena.unback(ids)

    def serve(self, parent: int) -> None:
        """Answer the pager in process `parent` from now on."""
        self._server = _Server(self, m.address(self.engine, parent, self.rank))

    def suspended(self) -> None:
        """Have the pager take all memory away. Raises ChannelError if it does not."""
        self._tell(self.suspend, m.Suspend())

    def resumed(self) -> None:
        """Have the pager back what must always be. Raises ChannelError if it does not."""
        self._tell(self.resume, m.Resume())

    def close(self) -> None:
        """Give everything back."""
        _here.pop((self.engine, self.rank), None)
        if self.closing is not None:
            self.closing()
        if self._server is not None:
            self._server.close()
        if self.arena is not None:
            self.arena.close()

    def _tell(self, call: Callable[[], None] | None, message: m.Message) -> None:
        if self.arena is None:
            return
        if call is not None:
            call()
        elif self._server is not None:
            self._server.tell(message)
        else:
            raise m.ChannelError("no pager is there yet")


class _Server:
    """Listens for the pager; a thread for each of its connections."""

    def __init__(self, memory: RankMemory, address: str) -> None:
        self._memory = memory
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listening.bind(address)
        self._listening.listen(4)
        self._open: set[socket.socket] = {self._listening}
        self._calls: socket.socket | None = None
        self._calling = threading.Lock()
        threading.Thread(target=self._accept, name="shoal-rank", daemon=True).start()

    def close(self) -> None:
        for channel in list(self._open):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
        self._open.clear()

    def tell(self, message: m.Message) -> None:
        with self._calling:
            if self._calls is None:
                raise m.ChannelError("no pager is connected to this worker")
            m.send(self._calls, message)
            answer = m.receive(self._calls)
        if not isinstance(answer, m.Done) or answer.error is not None:
            raise m.ChannelError(answer.error if isinstance(answer, m.Done) and answer.error else "the pager is gone")

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listening.accept()
            except OSError:
                return
            if not m.is_ours(channel):
                channel.close()
                continue
            self._open.add(channel)
            threading.Thread(target=self._serve, args=(channel,), name="shoal-rank-call", daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        try:
            while (message := m.receive(channel)) is not None:
                if isinstance(message, m.Listen):
                    self._calls = channel
                    m.send(channel, m.Done())
                    return
                m.send(channel, self._answer(message))
        except m.ChannelError as error:
            log.debug("%s", error)
        self._open.discard(channel)
        channel.close()

    def _answer(self, message: m.Message) -> m.Message:
        try:
            if isinstance(message, m.Back):
                return m.Done(self._memory.back(message.ids))
            if isinstance(message, m.Unback):
                self._memory.unback(message.ids)
                return m.Done(len(message.ids))
            if isinstance(message, m.Describe):
                return self._memory.describe()
        except Exception as error:
            log.exception("a request of the pager failed")
            return m.Done(error=f"{type(error).__name__}: {error}")
        return m.Done(error=f"a worker has no answer to {type(message).__name__}")
