// The live log of one instance. Only the lines that are seen are drawn, so that a million of them cost no more than a few.

import { followLog } from "./api.js";
import { el } from "./dom.js";
import { computed, effect } from "./lib.js";
import { DRAWN, Joint, Lines, LONGEST, parts } from "./log_lines.js";
import { connection, told } from "./store.js";

const EVERY = 100; // milliseconds between drawings
const BEYOND = 8; // lines drawn above and below what is seen
/** Lines that wait to be drawn; of more, the first would be gone again at once. */
const WAITING = 25_000;
/** Lines with which each connection begins. */
const TAIL = 500;
const MISSING = "⋯ Lines may be missing here: nobody read them while there was no connection. The download has them. ⋯";

/** How it is with the log, and what is said of it. */
const WORDS = {
  waiting: "Waiting for the log…",
  live: "Live.",
  again: "Connecting to the log again; what is shown may be old.",
  lost: "The connection to the log was lost; it is tried again. What is shown is old.",
  over: "The instance has ended",
};

/** How the page hears of Shoal. Logs are streams of their own: one that died silently says nothing, but when the page has to
 * connect anew, so have they. */
const page = computed(() => (told.value ? "told" : connection.value === "lost" ? "lost" : "resting"));

export class LogPanel {
  /** @param {string} instance */
  constructor(instance) {
    this.instance = instance;
    this.lines = new Lines();
    /** @type {string[]} */
    this.pending = [];
    this.timer = 0;
    this.follows = true;
    this.only = false;
    this.current = -1; // the match that was gone to, by the number of its line
    this.held = false;
    this.state = /** @type {keyof typeof WORDS} */ ("waiting");
    this.end = ""; // the state in which the instance has ended
    this.joint = new Joint([], TAIL);
    this.unseen = 0;
    this.height = 0;
    this.skipped = 0;
    this.stop = () => {};
    this.build();
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.pane);
    this.unwatch = effect(() => this.hears(page.value));
  }

  build() {
    const { instance } = this;
    const click = (/** @type {() => void} */ act) => ({ click: act });
    this.pane = el("div", { class: "lines", tabindex: "0", role: "log", "aria-live": "off", "aria-label": `Log of ${instance}`, on: { scroll: () => this.scrolled() } });
    this.space = el("div", { class: "log-space" });
    this.page = el("pre", { class: "log-page" });
    this.space.append(this.page);
    this.pane.append(this.space);
    this.field = el("input", { type: "search", placeholder: "Search the log", "aria-label": `Search the log of ${instance}`, on: { input: () => this.search(), keydown: (/** @type {KeyboardEvent} */ event) => this.typed(event) } });
    this.count = el("span", { class: "soft log-count", role: "status" });
    this.before = el("button", { type: "button", "aria-label": "Previous match", on: click(() => this.go(-1)) }, "↑");
    this.after = el("button", { type: "button", "aria-label": "Next match", on: click(() => this.go(1)) }, "↓");
    this.filter = el("input", { type: "checkbox", on: { change: () => this.search() } });
    this.toggle = el("button", { type: "button", on: click(() => this.follow(!this.follows)) }, "Pause");
    this.note = el("p", { class: "log-note", role: "status" });
    this.again = el("button", { type: "button", hidden: true, on: click(() => {
      this.pane.focus(); // this button goes
      this.start();
    }) }, "Read it again");
    this.whole = el("div", { class: "log-whole", hidden: true });
    this.element = el(
      "div", { class: "log" },
      el("div", { class: "log-head" }, this.field, this.before, this.after, this.count, el("label", { class: "log-only" }, this.filter, " only matches"), this.toggle),
      this.pane, this.whole,
      el("div", { class: "log-foot" }, this.note, this.again,
        el("a", { href: `api/v1/instances/${encodeURIComponent(instance)}/logs?download=true`, download: `${instance}.log` }, "Download the whole log")),
    );
  }

  /** The page's connection has changed. What was searched, the place and the pause stay. @param {"told" | "lost" | "resting"} page */
  hears(page) {
    if (this.state === "over") return;
    if (page === "told") this.start();
    else if (page === "lost") {
      this.stop();
      this.turn("lost");
    } else this.turn("again");
  }

  /** Read the log, or read on after what is shown. */
  start() {
    this.stop();
    if (this.state === "over") this.turn("waiting");
    this.stop = followLog(this.instance, TAIL, {
      onOpen: () => {
        this.flush();
        this.joint = new Joint(this.lines.kept, TAIL);
        this.turn(this.lines.kept.length ? "live" : "waiting");
      },
      onLine: (text) => this.add(text),
      onEnd: (state) => {
        this.end = state;
        this.turn("over");
      },
      onLost: () => this.turn("lost"),
    });
    this.draw();
  }

  /** The instance runs again: what it writes from now on comes with a new stream. */
  revived() {
    if (this.state === "over") this.start();
  }

  /** @param {keyof typeof WORDS} state */
  turn(state) {
    this.flush();
    this.state = state;
    this.tell();
  }

  /** @param {string} text */
  add(text) {
    const found = this.joint.found;
    const news = this.joint.take(text);
    if (!found && this.joint.gap) this.pending.push(MISSING);
    this.pending.push(...news);
    if (this.pending.length > WAITING) this.skipped += this.pending.splice(0, 5000).length;
    if (!this.timer) this.timer = setTimeout(() => this.flush(), EVERY);
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (!this.pending.length) return;
    const before = this.rows();
    this.lines.add(this.pending);
    if (!this.follows) this.unseen += this.pending.length;
    this.pending = [];
    if (this.state === "waiting") this.state = "live";
    this.draw(this.follows ? 0 : this.gone(before));
  }

  /** How many of the rows that were there before have gone: what is read stays where it is. @param {{length: number, first: number}} before */
  gone(before) {
    return this.only ? Math.max(0, before.length - this.rows().length) : Math.max(0, this.lines.first - before.first);
  }

  /** The rows that can be drawn: all lines, or those that match. */
  rows() {
    const { lines } = this;
    const matching = this.only && lines.needle;
    return {
      length: matching ? lines.found.length : lines.kept.length,
      first: lines.first,
      number: (/** @type {number} */ row) => (matching ? (lines.found[row] ?? 0) : lines.first + row),
    };
  }

  /** Draw the rows that are seen. @param {number} gone rows that went above */
  draw(gone = 0) {
    const rows = this.rows();
    const height = this.height || this.measure();
    this.space.style.height = `${rows.length * height}px`;
    if (this.follows) this.pane.scrollTop = rows.length * height;
    else if (gone) this.pane.scrollTop = Math.max(0, this.pane.scrollTop - gone * height);
    const top = Math.floor(this.pane.scrollTop / height);
    const from = Math.max(0, Math.min(top, rows.length) - BEYOND);
    const to = Math.min(rows.length, top + Math.ceil(this.pane.clientHeight / height) + BEYOND);
    this.page.style.transform = `translateY(${from * height}px)`;
    const drawn = [];
    for (let row = from; row < to; row++) drawn.push(this.row(rows.number(row)));
    this.page.replaceChildren(...drawn);
    this.tell();
  }

  /** @param {number} number */
  row(number) {
    const text = this.lines.line(number);
    const cut = text.length > DRAWN;
    const marked = parts(cut ? text.slice(0, DRAWN) : text, this.lines.needle).map((part, at) => (at % 2 ? el("mark", {}, part) : part));
    const line = el("span", { class: number === this.current ? "log-line current" : "log-line" }, ...marked);
    if (cut) line.append(el("button", { type: "button", class: "quiet", on: { click: () => this.show(number) } }, "… show all"));
    line.append("\n");
    return line;
  }

  /** Show the whole of one line. @param {number} number */
  show(number) {
    const text = this.lines.line(number);
    const close = el("button", { type: "button", on: { click: () => {
      this.whole.hidden = true;
      this.pane.focus();
    } } }, "Close");
    const more = text.length > LONGEST ? " Its rest is in the download." : "";
    this.whole.replaceChildren(el("div", { class: "log-head" }, el("strong", {}, `Line of ${text.length.toLocaleString()} characters.${more}`), close), el("pre", { tabindex: "0", "aria-label": "The whole line" }, text));
    this.whole.hidden = false;
    close.focus();
  }

  measure() {
    const probe = el("span", { class: "log-line" }, "x\n");
    this.page.append(probe);
    const found = probe.getBoundingClientRect().height;
    probe.remove();
    if (found) this.height = found;
    return found || 18;
  }

  /** Words about where we are, and the controls that fit it. */
  tell() {
    const { lines, state } = this;
    this.again.hidden = state !== "over";
    this.pane.classList.toggle("old", state === "again" || state === "lost");
    const words = state === "over" ? `${WORDS.over}: ${this.end}.` : WORDS[state];
    const old = lines.first + this.skipped ? ` The last ${lines.kept.length.toLocaleString()} lines; older ones are in the download.` : "";
    const late = !this.follows && this.unseen ? ` Paused: ${this.unseen.toLocaleString()} new.` : this.follows ? "" : " Paused.";
    const note = `${words}${late}${old}`;
    if (this.note.textContent !== note) this.note.textContent = note;
    const word = this.follows ? "Pause" : "Follow";
    if (this.toggle.textContent !== word) this.toggle.textContent = word;
    const [at, of] = [lines.found.indexOf(this.current), lines.found.length.toLocaleString()];
    const count = !lines.needle ? "" : at < 0 ? `${of} ${lines.found.length === 1 ? "line" : "lines"}` : `${(at + 1).toLocaleString()} of ${of}`;
    if (this.count.textContent !== count) this.count.textContent = count;
    this.before.disabled = this.after.disabled = !lines.found.length;
  }

  /** @param {boolean} follows */
  follow(follows) {
    this.follows = follows;
    if (follows) this.unseen = 0;
    this.draw();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.pane;
    const atEnd = scrollHeight - scrollTop - clientHeight < 4;
    if (!atEnd && this.follows && this.moved(scrollTop)) this.follows = false;
    else if (atEnd && !this.follows && !this.held) this.follow(true);
    this.draw();
  }

  /** Whether somebody scrolled up, and it was not the end that moved away. @param {number} top */
  moved(top) {
    return top < this.rows().length * (this.height || 18) - this.pane.clientHeight - 24;
  }

  search() {
    this.lines.search(this.field.value.trim());
    this.only = this.filter.checked;
    this.current = -1;
    if (this.lines.needle && !this.only) this.go(-1);
    else this.draw();
  }

  /** @param {KeyboardEvent} event */
  typed(event) {
    if (event.key === "Enter") this.go(event.shiftKey ? -1 : 1);
  }

  /** Go to the next match or the one before. @param {number} way */
  go(way) {
    const { found, first } = this.lines;
    if (!found.length) {
      this.draw();
      return;
    }
    const was = found.indexOf(this.current);
    const at = was < 0 ? (way < 0 ? found.length - 1 : 0) : (was + way + found.length) % found.length;
    this.current = found[at] ?? -1;
    const row = this.only ? at : this.current - first;
    this.follows = false;
    this.held = true; // the end may be seen from here, and it is not to run away
    this.pane.scrollTop = Math.max(0, (row + 0.5) * (this.height || 18) - this.pane.clientHeight / 2);
    this.draw();
    requestAnimationFrame(() => requestAnimationFrame(() => (this.held = false)));
  }

  close() {
    clearTimeout(this.timer);
    this.unwatch();
    this.resized.disconnect();
    this.stop();
    this.element.remove();
  }
}
