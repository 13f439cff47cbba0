"""How often one may try to sign in: token buckets by name and by address, in bounded memory. Pure; the clock comes from
outside.

By name, so that many machines together cannot guess one password; by address, so that one machine cannot try many
names. Who signs in with the right password gets the attempt back.
"""

from __future__ import annotations

BURST = 10
"""Attempts that may come at once."""
PERIOD_OF_NAME = 20.0
"""Seconds after which a name has one more: at most 4,320 guesses a day."""
PERIOD_OF_ADDRESS = 6.0
MOST = 4096
"""Buckets of each kind that are kept."""
LONGEST_KEY = 128


class Buckets:
    """Token buckets by key: each holds `burst` attempts and gets one more every `period` seconds."""

    def __init__(self, period: float, burst: int = BURST, most: int = MOST) -> None:
        self._period = period
        self._burst = float(burst)
        self._most = most
        self._levels: dict[str, tuple[float, float]] = {}  # what was left, and when; a full one is not kept

    def __len__(self) -> int:
        return len(self._levels)

    def wait(self, key: str, now: float) -> float:
        """Seconds until this key may try; 0 if it may now."""
        return max(0.0, 1.0 - self._level(key, now)) * self._period

    def take(self, key: str, now: float) -> None:
        """Count an attempt."""
        self._put(key, self._level(key, now) - 1.0, now)

    def give(self, key: str, now: float) -> None:
        """Take an attempt back."""
        self._put(key, self._level(key, now) + 1.0, now)

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key[:LONGEST_KEY], (self._burst, now))
        return min(self._burst, level + max(0.0, now - at) / self._period)

    def _put(self, key: str, level: float, now: float) -> None:
        key = key[:LONGEST_KEY]
        self._levels.pop(key, None)
        if level >= self._burst:
            return
        if len(self._levels) >= self._most:
            self._make_room(now)
        self._levels[key] = level, now

    def _make_room(self, now: float) -> None:
        """Forget those that are full again; if none is, the fullest: what is nearly used up is what must be kept."""
        levels = {key: self._level(key, now) for key in self._levels}
        fullest = max(levels.values())
        for key, level in levels.items():
            if level >= min(self._burst, fullest):
                del self._levels[key]
                if level < self._burst:
                    return


class Attempts:
    """Attempts to sign in, by name and by address."""

    def __init__(self) -> None:
        self._names = Buckets(PERIOD_OF_NAME)
        self._addresses = Buckets(PERIOD_OF_ADDRESS)

    def begin(self, name: str, address: str, now: float) -> float:
        """Count an attempt, or refuse it: the seconds until it may be made, 0 if it may now. A refused one does not
        count, so that trying on does not make it last."""
        wait = max(self._names.wait(name, now), self._addresses.wait(address, now))
        if wait <= 0:
            self._names.take(name, now)
            self._addresses.take(address, now)
        return wait

    def succeeded(self, name: str, address: str, now: float) -> None:
        """The password was right."""
        self._names.give(name, now)
        self._addresses.give(address, now)
