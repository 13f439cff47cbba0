"""How instances are asked about host copies of their weights: a call of each worker, by vLLM's own `/collective_rpc`.

vLLM has that path wherever it has `/sleep`. The worker's side is `vllm/plugin/copying.py`; the simulated engine has a
likeness.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shoal.engines.base import CopyAction, HostCopy

METHOD = "shoal_copies"


class _Rank(msgspec.Struct):
    """What one worker says. Bytes."""

    size: int
    held: int
    reserved: int
    taking: bool
    reason: str


class _Answer(msgspec.Struct):
    results: list[_Rank]


class CopiesByCall:
    """The `KeepsCopies` of engines that speak vLLM's HTTP."""

    def copy_request(self, action: CopyAction) -> tuple[str, str, Mapping[str, object]]:
        """The call of every worker."""
        return "POST", "/collective_rpc", {"method": METHOD, "args": [action]}

    def read_copy(self, text: str) -> HostCopy:
        """Over all workers. Raises ValueError if that is not what they say."""
        try:
            ranks = msgspec.json.decode(text, type=_Answer).results
        except msgspec.MsgspecError as error:
            raise ValueError(f"this is no answer about copies: {error}") from error
        return HostCopy(
            size=sum(rank.size for rank in ranks) if all(rank.size for rank in ranks) else 0,
            held=sum(rank.held for rank in ranks),
            taken=sum(rank.reserved for rank in ranks),
            taking=any(rank.taking for rank in ranks),
            reason=next((rank.reason for rank in ranks if rank.reason), ""),
        )
