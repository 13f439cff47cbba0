"""When a request that nothing but memory holds up has waited long enough. Pure."""

from __future__ import annotations


class Patience:
    """Follows the one request that has the engine to itself and cannot get on, for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.lost: list[str] = []
        """Requests to end with an error."""
        self._who: str | None = None
        self._tokens = 0
        self._since = 0.0

    def notice(self, who: str, tokens: int, now: float, *, never: bool = False, served: bool = False) -> bool:
        """Request `who`, alone and with `tokens` tokens so far, waits at `now`; `never`: what it needs cannot come.

        `served`: its memory has just come, which is progress only if it grows with it; one that is let in and thrown
        out again for ever does not. Returns whether it is lost, and says so once.
        """
        if who in self.lost:
            return False
        if who != self._who or tokens > self._tokens:
            self._who, self._tokens, self._since = who, tokens, now
        if never or (not served and now - self._since >= self.seconds):
            self.lost.append(who)
            self._who = None
            return True
        return False

    def take_lost(self) -> list[str]:
        """The lost ones, once."""
        lost, self.lost = self.lost, []
        return lost
