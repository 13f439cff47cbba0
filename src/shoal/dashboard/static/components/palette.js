// The palette's button and keys. What it draws is fetched when it is opened for the first time.

import { say } from "../actions.js";
import { html, signal, useEffect } from "../lib.js";
import { style } from "../style.js";

/** @typedef {{Panel: (props: {onClose: () => void, onReady: () => string}) => any, Keys: (props: {onClose: () => void}) => any}} Drawn */

/** `palette`, `keys`, or nothing is open. */
const open = signal("");
const narrow = matchMedia("(max-width: 760px)");
const small = signal(narrow.matches);
narrow.addEventListener("change", () => (small.value = narrow.matches));
const drawn = signal(/** @type {Drawn | null} */ (null));

/** What was typed since the palette was asked for and before it was there: quick fingers do not wait for it. */
let early = "";

/** @param {KeyboardEvent} event */
function gather(event) {
  if (event.key.length !== 1 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  early += event.key;
}

function gathered() {
  removeEventListener("keydown", gather, true);
  const typed = early;
  early = "";
  return typed;
}

/** @param {"palette" | "keys"} what */
async function show(what) {
  if (document.querySelector("dialog[open]")) return; // one question at a time
  if (what === "palette") addEventListener("keydown", gather, true);
  try {
    const [module] = await Promise.all([import("./palette_panel.js"), style("manage.css")]);
    drawn.value = module;
    open.value = what;
  } catch {
    gathered();
    say("error", "The palette could not be fetched: Shoal does not answer.");
  }
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
    event.preventDefault(); // browsers go to their search field
    if (open.peek()) open.value = "";
    else void show("palette");
  } else if (event.key === "?" && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (/** @type {HTMLElement} */ (event.target).closest?.("input, textarea, select, dialog, [contenteditable]")) return;
    event.preventDefault();
    void show("keys");
  }
}

export function Palette() {
  useEffect(() => {
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  const close = () => (open.value = "");
  const view = drawn.value;
  return html`
    <button type="button" class="quiet" aria-label=${small.value ? "Find" : undefined} aria-haspopup="dialog" aria-keyshortcuts="Control+K" title="Go anywhere, do anything (Ctrl-K)" onClick=${() => void show("palette")}>
      ${small.value ? html`<span aria-hidden="true">⌕</span>` : html`Find <span class="soft" aria-hidden="true">Ctrl K</span>`}</button>
    ${view && open.value === "palette" && html`<${view.Panel} onClose=${close} onReady=${gathered} />`}
    ${view && open.value === "keys" && html`<${view.Keys} onClose=${close} />`}
  `;
}
