// What of a list the address keeps: a choice and a search.

import { html, useLayoutEffect, useRef } from "../lib.js";
import { query, setQuery } from "../router.js";

/** A choice that the address keeps. @param {{word: string, name: string, options: [string, string][], kept?: string}} props */
export const QueryChoice = ({ word, name, options, kept = "" }) => html`
  <label class="choice"><span>${word}</span>
    <select aria-label=${word} value=${query.value.get(name) ?? kept} onChange=${(/** @type {any} */ event) => setQuery(name, event.target.value === kept ? "" : event.target.value)}>
      ${options.map(([value, title]) => html`<option key=${value} value=${value}>${title}</option>`)}
    </select>
  </label>
`;

/** A search that the address keeps; `/` goes to it. @param {{label: string, name?: string}} props */
export function QuerySearch({ label, name = "q" }) {
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  useLayoutEffect(() => {
    const typed = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.key !== "/" || event.ctrlKey || event.metaKey || target.closest("input, textarea, select, dialog")) return;
      event.preventDefault();
      field.current?.focus();
    };
    addEventListener("keydown", typed);
    return () => removeEventListener("keydown", typed);
  }, []);
  return html`<input ref=${field} type="search" aria-label=${label} placeholder="Search  ( / )" value=${query.value.get(name) ?? ""} onInput=${(/** @type {any} */ event) => setQuery(name, event.target.value)} />`;
}
