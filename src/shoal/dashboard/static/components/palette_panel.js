// The palette: any view, any model's page, any action of any model, by a few letters. And the keys that the page knows.

import { actionsOf, begin } from "../actions.js";
import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../lib.js";
import { find } from "../palette.js";
import { modelAddress } from "../router.js";
import { ROUTES } from "../routes.js";
import { all, model as modelOf } from "../store.js";
import { theme } from "../theme_choice.js";
import { Name } from "./small.js";

const SHOWN = 50;

/** `more` is found too, and shown beside the title. @typedef {{id: string, title: string, kind: string, more: string, act: () => void}} Choice */

/** @param {string} hash */
const go = (hash) => () => void (location.hash = hash);

/** All that can be chosen now. @returns {Choice[]} */
function choices() {
  /** @type {Choice[]} */
  const found = ROUTES.filter((route) => !route.path.endsWith("/") || route.path === "/").map((route) => ({
    id: `view ${route.path}`, title: route.title, kind: "page", more: "", act: go(`#${route.path}`),
  }));
  const pages = ROUTES.some((route) => route.path === "/models/");
  for (const model of all.value) {
    const { name, state } = model;
    if (pages) found.push({ id: `model ${name}`, title: name, kind: state, more: "model", act: go(modelAddress(name)) });
  }
  for (const model of all.value) {
    for (const action of actionsOf(model)) {
      const { id } = action;
      found.push({
        id: `${id} ${model.name}`, title: `${action.label.replace(/…$/, "")} ${model.name}`, kind: "", more: action.command,
        act: () => {
          const now = modelOf(model.name)?.peek();
          const still = now && actionsOf(now).find((one) => one.id === id); // it may have changed while one chose
          if (still) begin(model.name, still);
        },
      });
    }
  }
  for (const name of ["system", "light", "dark"]) {
    found.push({ id: `theme ${name}`, title: `Theme: ${name}`, kind: theme.value === name ? "chosen" : "", more: "colours", act: () => (theme.value = name) });
  }
  return found;
}

/** @param {() => void} onClose */
function useDialog(onClose) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useLayoutEffect(() => {
    const element = dialog.current;
    element?.showModal();
    return () => element?.close(); // which gives the focus back
  }, []);
  const outside = (/** @type {MouseEvent} */ event) => {
    if (event.target === dialog.current) onClose();
  };
  return { dialog, outside };
}

/** `onReady` gives what was typed before. @param {{onClose: () => void, onReady: () => string}} props */
export function Panel({ onClose, onReady }) {
  const { dialog, outside } = useDialog(onClose);
  const typed = useSignal("");
  useLayoutEffect(() => void (typed.value = onReady()), []);
  const at = useSignal(0);
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const found = find(choices(), typed.value);
  const shown = found.slice(0, SHOWN);
  const chosen = Math.min(at.value, shown.length - 1);
  useEffect(() => list.current?.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" }), [chosen, typed.value]);
  const choose = (/** @type {Choice | undefined} */ one) => {
    if (!one) return;
    dialog.current?.close(); // the focus is back before the act takes it elsewhere
    one.act();
  };
  const key = (/** @type {KeyboardEvent} */ event) => {
    if (event.isComposing) return;
    const steps = /** @type {Record<string, number>} */ ({ ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 });
    const step = steps[event.key];
    if (step && shown.length) {
      event.preventDefault();
      const next = chosen + step;
      at.value = Math.abs(step) === 1 ? (next + shown.length) % shown.length : Math.max(0, Math.min(shown.length - 1, next));
    } else if (event.key === "Enter") {
      event.preventDefault();
      choose(shown[chosen]);
    }
  };
  const input = (/** @type {any} */ event) => {
    typed.value = event.target.value;
    at.value = 0;
  };
  return html`
    <dialog ref=${dialog} class="palette" aria-label="Go anywhere, do anything" onClose=${onClose} onClick=${outside}>
      <input type="text" role="combobox" aria-label="Go to a page or a model, or act on one" aria-expanded="true" aria-autocomplete="list" aria-controls="palette-list" autocomplete="off" spellcheck=${false} autofocus
        aria-activedescendant=${shown.length ? `palette-${chosen}` : undefined} placeholder="Type a page, a model, or what to do: load qwen" value=${typed.value} onInput=${input} onKeyDown=${key} />
      <ul id="palette-list" role="listbox" aria-label="What is found" ref=${list}>
        ${shown.map((one, n) => html`
          <li key=${one.id} id=${`palette-${n}`} role="option" aria-selected=${String(n === chosen)} onMouseMove=${() => (at.value = n)} onClick=${() => choose(one)}>
            <span class="clip"><${Name} text=${one.title} /></span>${one.more.startsWith("shoal ") && html`<code class="clip" dir="ltr">${one.more}</code>`}<span class="soft">${one.kind}</span></li>`)}
      </ul>
      <p class="soft" role="status">${found.length ? `${found.length > SHOWN ? `${SHOWN} of ${found.length}` : found.length} found` : "Nothing is called so."}<span aria-hidden="true"> · ↑ ↓ choose · Enter does it · Esc closes · ? all keys</span></p>
    </dialog>
  `;
}

const KEYS = [
  ["Ctrl K", "go to any page or model, or act on one (on a Mac also ⌘ K)"],
  ["/", "search in the list that is shown"],
  ["?", "these keys"],
  ["Tab, Shift Tab", "to the next or the former control; the first one skips to the content"],
  ["Enter, Space", "press what has the focus"],
  ["↑ ↓, Page ↑ ↓", "choose, in the palette"],
  ["← →, Page ↑ ↓", "move the mark of a floor or a ceiling that has the focus; Enter sets it, Esc gives it up"],
  ["Enter, Shift Enter", "to the next or the former match, in the search of a log"],
  ["Esc", "close what is open, and nothing is done; in the playground, stop the answers"],
];

/** @param {{onClose: () => void}} props */
export function Keys({ onClose }) {
  const { dialog, outside } = useDialog(onClose);
  return html`
    <dialog ref=${dialog} aria-labelledby="keys-known" onClose=${onClose} onClick=${outside}>
      <form method="dialog">
        <h2 id="keys-known">Keys</h2>
        <dl class="keys">${KEYS.map(([key, words]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${words}</dd></div>`)}</dl>
        <div class="buttons"><button autofocus>Close</button></div>
      </form>
    </dialog>
  `;
}
