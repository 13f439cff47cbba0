// A model's share of the memory in numbers: floor, ceiling and priority, changed while it runs.

import { quote, say } from "../actions.js";
import { call, modelPath } from "../api.js";
import { html, signal } from "../lib.js";
import { accept, model as modelOf } from "../store.js";
import { Field, useAct } from "./forms.js";
import { sizeWord } from "./marks.js";
import { Command } from "./small.js";

/** @typedef {"floor" | "ceiling" | "priority"} Term */
/** @type {[Term, string, string, string][]} */
const TERMS = [
  ["floor", "Floor", "KV cache on each device that it can always get back.", "none"],
  ["ceiling", "Ceiling", "KV cache on each device that it may never exceed.", "none"],
  ["priority", "Priority", "Its weight when models compete for memory, 1 to 1000.", "100"],
];

/** @typedef {Partial<Record<Term, string>>} Typed */
/** What is typed and not set, by model: its line may be drawn elsewhere meanwhile. @type {Map<string, import("../vendor/signals.js").Signal<Typed>>} */
const kept = new Map();

/** @param {string} name */
function typedFor(name) {
  const found = kept.get(name) ?? signal(/** @type {Typed} */ ({}));
  kept.set(name, found);
  return found;
}

/** A term as it is now. @param {ModelSpec} spec @param {Term} term */
const now = (spec, term) => (term === "priority" ? String(spec.priority) : spec[term] ? sizeWord(/** @type {number} */ (spec[term])) : "");

/** @param {{model: ModelView}} props */
export function Terms({ model }) {
  const { spec, name } = model;
  const typed = typedFor(name);
  const elastic = spec.elastic !== "off" && spec.kv_cache_memory == null;
  const terms = TERMS.filter(([term]) => elastic || term === "priority");
  const changed = terms.flatMap(([term, , , none]) => {
    const value = typed.value[term]?.trim();
    return value === undefined || value === now(spec, term) ? [] : [{ term, value, word: value || (term === "floor" ? "0" : none) }];
  });
  const { busy, error, act } = useAct(async () => {
    const before = modelOf(name)?.peek();
    const sent = typed.peek();
    const given = changed.map(({ term, value, word }) => [term, value || (term === "ceiling" ? null : word)]);
    const { data, warning } = await call("PATCH", modelPath(name), Object.fromEntries(given));
    accept(data, before);
    // What was typed while the answer was awaited stays.
    typed.value = Object.fromEntries(Object.entries(typed.peek()).filter(([term, text]) => text !== sent[/** @type {Term} */ (term)]));
    if (warning) say("warning", warning);
  });
  const command = ["shoal models set", ...changed.map(({ term, word }) => `--${term} ${quote(word)}`), quote(name)].join(" ");
  return html`
    <form class="terms" aria-label=${`Share of the memory of ${name}`} onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); if (changed.length) void act(); }}>
      <div class="terms-fields">
        ${terms.map(([term, word, help, none]) => html`
          <${Field} key=${term} word=${word} help=${help}>${(/** @type {any} */ given) => html`
            <input ...${given} type="text" inputmode=${term === "priority" ? "numeric" : "text"} autocomplete="off" size="9" placeholder=${term === "priority" ? none : `${none}, or 2GiB`}
              value=${typed.value[term] ?? now(spec, term)} onInput=${(/** @type {any} */ event) => (typed.value = { ...typed.value, [term]: event.target.value })} />`}<//>`)}
      </div>
      <div role="alert">${error.value && html`<p class="failure">${error.value}</p>`}</div>
      ${changed.length > 0 && html`<div class="line"><button type="submit" class="primary" disabled=${busy.value}>Set</button><${Command} text=${command} />
        <button type="button" class="quiet" onClick=${() => (typed.value = {})}>Undo</button></div>`}
    </form>
  `;
}
