// The live log of one instance. It follows the end unless the reader has scrolled up.

import { followLog } from "./api.js";
import { el } from "./dom.js";

const KEPT = 2000;
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?/g;

export class LogPanel {
  /** @param {string} instance */
  constructor(instance) {
    this.lines = el("pre", { class: "lines", tabindex: "0", role: "log", "aria-live": "off", "aria-label": `Log of ${instance}` });
    this.note = el("p", { class: "log-note", role: "status" }, "Waiting for the log…");
    this.again = el("button", { type: "button", hidden: true, on: { click: () => this.start() } }, "Read it again");
    this.element = el(
      "div",
      { class: "log" },
      this.lines,
      el("div", { class: "log-foot" }, this.note, this.again,
        el("a", { href: `api/v1/instances/${encodeURIComponent(instance)}/logs?download=true`, download: `${instance}.log` }, "Download the whole log")),
    );
    this.instance = instance;
    /** @type {string[]} */
    this.pending = [];
    this.stop = () => {};
    this.start();
  }

  start() {
    this.lines.replaceChildren();
    this.again.hidden = true;
    this.stop = followLog(this.instance, {
      onLine: (text) => this.add(text),
      onEnd: (state) => this.say(`The instance has ended: ${state}.`),
      onLost: () => {
        this.say("The connection to the log was lost; what is shown is old.");
        this.again.hidden = false;
      },
    });
  }

  /** @param {string} text */
  say(text) {
    this.note.textContent = text;
  }

  /** @param {string} text */
  add(text) {
    this.pending.push(text.replace(ESCAPES, ""));
    if (this.pending.length === 1) setTimeout(() => this.flush(), 50);
  }

  flush() {
    const atEnd = this.lines.scrollHeight - this.lines.scrollTop - this.lines.clientHeight < 24;
    this.lines.append(...this.pending.map((line) => el("span", {}, `${line}\n`)));
    this.pending = [];
    while (this.lines.childElementCount > KEPT) this.lines.firstElementChild.remove();
    if (!this.note.textContent.startsWith("The ")) this.say("Live.");
    if (atEnd) this.lines.scrollTop = this.lines.scrollHeight;
  }

  close() {
    this.stop();
    this.element.remove();
  }
}
