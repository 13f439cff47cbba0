"""`shoal top` on a terminal: keys in, the pictures of `top_view` out."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input, Static

from shoal.cli import top_acts, top_help, top_view
from shoal.cli.top_acts import Act, Limit
from shoal.cli.top_feed import Feed
from shoal.cli.top_looks import ASCII, SHAPES
from shoal.cli.top_rows import ORDERS, Looking, arranged, beside
from shoal.cli.top_state import Fleet, View
from shoal.cli.top_words import label

_EVERY = 0.25  # seconds between two pictures, at least
_FAR = 1_000_000
_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10, "home": -_FAR, "end": _FAR}
_ACTS: dict[str, Callable[[View], Act]] = {
    "l": top_acts.load,
    "u": top_acts.unload,
    "s": top_acts.sleep,
    "w": top_acts.wake,
    "p": top_acts.pin,
}
_LIMITS: dict[str, Limit] = {"f": "floor", "c": "ceiling"}
_HINTS = {"floor": "8GiB, or 20% of its device", "ceiling": "8GiB, 20% of its device, or none"}


class Picture(Widget):
    """Lines of text that are made for its size, each time anew."""

    DEFAULT_CSS = "Picture { height: 1fr; text-wrap: nowrap; }"

    def __init__(self, draw: Callable[[int, int], list[Text]]) -> None:
        super().__init__()
        self._draw_lines = draw

    def render(self) -> Text:
        """The lines, as text: what is in names is never read as markup."""
        return Text("\n", no_wrap=True).join(self._draw_lines(*self.size))


class Top(App[None]):
    """The overview of the Shoal at `url`."""

    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #head, #notice, #keys { height: auto; text-wrap: nowrap; }
    #notice { text-wrap: wrap; max-height: 5; }
    #prompt { height: 1; }
    #what { width: auto; }
    #typed { border: none; height: 1; padding: 0; width: 1fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""  # keys are the field's only while something is typed
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", show=False, priority=True)]

    def __init__(self, url: str, *, ascii_only: bool = False, feed: Feed | None = None) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, and none with NO_COLOR
        self.fleet = Fleet()
        self.looking = Looking(glyphs=ASCII if ascii_only else SHAPES)
        self.asking: Act | None = None
        self.typing: Literal["search", "floor", "ceiling"] | None = None
        self.helping = False
        self.notice = ""
        self._level = ""
        self._limited = ""
        """The model whose limit is typed."""
        self._limit: Act | None = None
        """What was made of that, and is not answered yet."""
        self._feed = feed or Feed(url)
        self._drawn_at = 0

    def compose(self) -> ComposeResult:
        """Head, picture, what is said, what is typed, keys."""
        yield Static(id="head")
        yield Picture(self._lines)
        yield Static(id="notice")
        with Horizontal(id="prompt"):
            yield Static(id="what")
            yield Input(id="typed", compact=True)
        yield Static(id="keys")

    def on_mount(self) -> None:
        """Begin to follow."""
        self._close_prompt()
        self._feed.start()
        self.set_interval(_EVERY, self._tick)
        if not self.is_headless:
            for number in (signal.SIGTERM, signal.SIGHUP):  # so that the terminal is left as it was
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self._draw()

    def on_unmount(self) -> None:
        """Listen no more."""
        self._feed.stop()

    def on_resize(self) -> None:
        """Fit to the new size."""
        self._draw()

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        news = False
        while not self._feed.inbox.empty():
            self._take(*self._feed.inbox.get())
            news = True
        if news:
            names = [one["name"] for one in arranged(self.fleet, self.looking)]
            self._look(selected=beside(names, self.looking.selected, 0))
        if news or int(time.time()) != self._drawn_at:
            self._draw()

    def _take(self, kind: str, data: Any) -> None:
        if kind == "done":
            act, answer, before, warnings = data
            self.fleet.accept(answer, before)
            self._say("; ".join([f"done: {act.command}", *(f"warning: {one}" for one in warnings)]))
            if act is self._limit:
                self._close_prompt()
        elif kind == "refused":
            act, reason = data
            self._say(f"refused: {reason} ({act.command})", "bold red")
        else:
            self.fleet.take(kind, data, time.time())

    # -- what is typed -------------------------------------------------------------------------------------------------

    async def on_event(self, event: events.Event) -> None:
        """Take keys here, in the order in which they were typed: widgets would get what is typed fast too late."""
        if isinstance(event, events.Key) and not event.is_forwarded and not event.key.startswith("ctrl+"):
            key = event.character if event.is_printable and event.character else event.key
            if self._press(key):
                self._draw()
                return
        await super().on_event(event)

    def _press(self, key: str) -> bool:
        """What a key does; False if it is the field's."""
        if self.helping:
            self.helping = False
        elif self.asking is not None:
            act, self.asking = self.asking, None
            if key in ("y", "Y"):
                self._do(act)
            else:
                self._say(f"{act.model} is left as it is")
        elif key == "escape":
            self._back()
        elif self.typing is not None and key not in ("up", "down"):
            return False
        elif key in _MOVES:
            self._select(_MOVES[key])
        else:
            self._command(key)
        return True

    def _command(self, key: str) -> None:
        if key == "q":
            self.exit()
        elif key == "?":
            self.helping = True
        elif key == "o":
            at = ORDERS.index(self.looking.order)
            self._look(order=ORDERS[(at + 1) % len(ORDERS)])
        elif key == "/":
            self._open_prompt("search", "search: ", self.looking.search)
        elif (model := self.fleet.models.get(self.looking.selected)) is None:
            if key in _ACTS or key in _LIMITS:
                self._say("no model is selected")
        elif key in _ACTS:
            act = _ACTS[key](model)
            if act.ask:
                self.asking = act
            else:
                self._do(act)
        elif key in _LIMITS:
            which = _LIMITS[key]
            self._limited = model["name"]
            self._open_prompt(which, f"{which} of {model['name']} ({_HINTS[which]}): ")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while it is typed."""
        if self.typing == "search":
            self._look(search=event.value)
            self._select(0)
            self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the search, or set the limit. What was typed stays until it has been taken."""
        if self.typing == "search":
            self._close_prompt()
        elif self.typing is not None:
            model = self.fleet.models.get(self._limited)
            if model is None:
                self._say(f"{self._limited} was removed meanwhile", "bold red")
            else:
                try:
                    self._limit = top_acts.limit(model, self.typing, event.value, self.fleet.devices)
                    self._do(self._limit)
                except ValueError as error:
                    self._say(f"refused: {error}", "bold red")
        self._draw()

    def _back(self) -> None:
        if self.typing is not None or self.looking.search:
            if self.typing in (None, "search"):
                self._look(search="")
            self._close_prompt()
            self._select(0)
        self._say("")

    def _open_prompt(self, typing: Literal["search", "floor", "ceiling"], words: str, value: str = "") -> None:
        self.typing = typing
        text = Text(label(words) + " ", style="bold")
        text.truncate(max(8, self.size.width - 12), overflow="ellipsis")
        self.query_one("#what", Static).update(text)
        self.query_one("#prompt").display = True
        field = self.query_one("#typed", Input)
        field.disabled = False
        field.value = value
        self.screen.set_focus(field)  # at once: what is typed next is for it

    def _close_prompt(self) -> None:
        self.typing = self._limit = None
        self.query_one("#prompt").display = False
        self.query_one("#typed", Input).disabled = True
        self.screen.set_focus(None)

    def _do(self, act: Act) -> None:
        self._say(f"asked: {act.command}")
        self._feed.do(act, self.fleet.models.get(act.model))

    def _select(self, step: int) -> None:
        names = [one["name"] for one in arranged(self.fleet, self.looking)]
        self._look(selected=beside(names, self.looking.selected, step))

    def _look(self, **chosen: str) -> None:
        self.looking = dataclasses.replace(self.looking, **chosen)  # type: ignore[arg-type]

    def _say(self, text: str, level: str = "") -> None:
        self.notice, self._level = label(text), level

    # -- what is drawn -------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if not self.query("#keys"):  # it ends, and what it was drawn on has gone before it
            return
        now = time.time()
        self._drawn_at = int(now)
        width = self.size.width
        self.query_one("#head", Static).update(
            Text("\n", no_wrap=True).join(top_view.head(self.fleet, self._feed.url, width, now))
        )
        text, level = self.notice, self._level
        if self.asking is not None:
            question = f"{self.asking.ask} y: yes, any other key: no. ({self.asking.command})"
            text, level = label(question), "bold yellow"
        notice = self.query_one("#notice", Static)
        notice.display = bool(text)
        notice.update(Text(text, style=level))
        self.query_one("#keys", Static).update(top_view.keys(width))
        self.query_one(Picture).refresh()

    def _lines(self, width: int, height: int) -> list[Text]:
        if self.helping:
            lines = top_help.lines(self.looking.glyphs)[:height]
            for line in lines:
                line.truncate(width)
            return lines
        return top_view.body(self.fleet, self.looking, width, height, time.time())
