"""Words in, words out: what stands in for a tokenizer and for a model. Deterministic."""

from __future__ import annotations

import re
from collections import OrderedDict
from zlib import crc32

WORDS = re.findall(
    r"\w+",
    "the water moves and a small fish turns with the others toward light where tide current reef sand "
    "wave shore deep calm bright green silver over under along beside every some many one they follow "
    "drift gather part rise fall wait",
)
_REMEMBERED = 65_536


def count(text: str) -> int:
    """Tokens of a text: its words, and never none."""
    return max(1, len(text.split()))


def word(prompt: str, seed: int, position: int) -> str:
    """The token that follows `prompt` at a position; all but the first carry the blank before them."""
    choice = WORDS[crc32(f"{position} {seed} ".encode(), crc32(prompt.encode("utf-8", "replace"))) % len(WORDS)]
    return f" {choice}" if position else choice.capitalize()


def natural_length(prompt: str, seed: int) -> int:
    """Tokens after which the answer to `prompt` ends by itself: 12 to 43."""
    return 12 + crc32(f"length {seed}".encode(), crc32(prompt.encode("utf-8", "replace"))) % 32


def answer(prompt: str, length: int | None = None, seed: int = 0) -> str:
    """The whole answer to `prompt`, or its first `length` tokens."""
    length = natural_length(prompt, seed) if length is None else length
    return "".join(word(prompt, seed, position) for position in range(length))


def embedding(text: str, size: int) -> list[float]:
    """A unit vector that depends on nothing but the text."""
    raw = [crc32(f"{position} {text}".encode("utf-8", "replace")) / 2**31 - 1 for position in range(size)]
    norm = sum(x * x for x in raw) ** 0.5 or 1.0
    return [x / norm for x in raw]


class Vocabulary:
    """Token ids for words, and back for the words seen lately."""

    def __init__(self) -> None:
        self._words: OrderedDict[int, str] = OrderedDict()

    def encode(self, text: str) -> list[int]:
        """Ids of a text's words."""
        ids = []
        for item in text.split():
            token = crc32(item.encode("utf-8", "replace")) & 0x7FFFFFFF
            self._words[token] = item
            self._words.move_to_end(token)
            ids.append(token)
        while len(self._words) > _REMEMBERED:
            self._words.popitem(last=False)
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Words of ids; one never seen is written `<id>`."""
        return " ".join(self._words.get(token, f"<{token}>") for token in tokens)
