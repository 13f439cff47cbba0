"""What `?` shows. Pure."""

from __future__ import annotations

from rich.text import Text

from shoal.cli.top_looks import WORDS, Glyphs
from shoal.cli.top_rows import ORDERS

_KEYS = (
    ("↑ ↓ or k j", "select a model; page up, page down, home, end too"),
    ("l", "load it, or try again"),
    ("u", "unload it; asks once and says what is lost"),
    ("s, w", "put it to sleep, wake it"),
    ("p", "pin it, so that it never gives way; again: unpin it"),
    ("f, c", "its floor, its ceiling: 8GiB, a part of its device as 20%, none"),
    ("/", "search in names, sources, engines, states, devices; Esc: all again"),
    ("o", "another order: " + ", ".join(ORDERS[:4])),
    ("", ", ".join(ORDERS[4:])),
    ("Esc", "takes away what is asked, typed or said"),
    ("q", "leave"),
)


def lines(glyphs: Glyphs) -> list[Text]:
    """Keys, characters and columns."""
    found = [Text.assemble((f"{key:<12}", "bold"), words) for key, words in _KEYS]
    parts = [f"{glyphs.parts[kind]} {word}" for kind, word in WORDS.items()]
    found += [
        Text(),
        Text.assemble(("Bars        ", "bold"), "  ".join(parts[:4])),
        Text(f"            {'  '.join(parts[4:])}"),
        Text(f"            {glyphs.floor} floor, {glyphs.ceiling} ceiling of a KV cache, from where it begins"),
        Text(f"            {glyphs.span} below what the selected model has"),
        Text.assemble(("Columns     ", "bold"), "rates and TTFT (time to first token, p50/p95) of the last minute;"),
        Text("            RUN and WAIT: requests; KV in use/cached; USED: last use; P: pinned"),
        Text(),
        Text("Any key goes back.", style="dim"),
    ]
    return found
