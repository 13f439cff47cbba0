// Small things that forms and tables are made of: labelled fields, copying, saving to a file, asking the API.

import { quote } from "../actions.js";
import { ApiError, call } from "../api.js";
import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../lib.js";
import { told } from "../store.js";
import { useCopy } from "./small.js";

/** @template T @typedef {import("../vendor/signals.js").Signal<T>} Signal */
/** @typedef {{id: string, "aria-describedby": string | undefined, "aria-invalid": "true" | undefined}} FieldAttributes */

let count = 0;

/** An id that no other element of the page has. @param {string} word */
export function useId(word) {
  const id = useRef("");
  if (!id.current) id.current = `${word}-${++count}`;
  return id.current;
}

/** A labelled field with its help and what is wrong with it; `wide` takes the whole line, or as "half" two columns. `children` draws the control with the attributes it is given.
 * @param {{word: string, help?: any, error?: string, wide?: boolean | "half", children?: any}} props */
export function Field({ word, help, error, wide, children }) {
  const id = useId("field");
  const about = [help && `${id}-help`, error && `${id}-error`].filter(Boolean).join(" ");
  /** @type {FieldAttributes} */
  const attributes = { id, "aria-describedby": about || undefined, "aria-invalid": error ? "true" : undefined };
  return html`
    <div class=${`field ${wide === true ? "wide" : wide || ""}`}>
      <label for=${id}>${word}</label>
      ${children(attributes)}
      ${help && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
      ${error && html`<p class="wrong" id=${`${id}-error`}>${error}</p>`}
    </div>
  `;
}

/** A line of text that a signal keeps; what else is given goes to the input (`type`, `placeholder`, `required`, …).
 * @param {{word: string, value: Signal<string>, help?: any, error?: string, wide?: boolean | "half", [more: string]: any}} props */
export const TextField = ({ word, value, help, error, wide, ...more }) => html`
  <${Field} word=${word} help=${help} error=${error} wide=${wide}>${(/** @type {FieldAttributes} */ given) => html`
    <input type="text" autocomplete="off" ...${more} ...${given} value=${value.value} onInput=${(/** @type {any} */ event) => (value.value = event.target.value)} />`}<//>
`;

/** Several lines of text. @param {{word: string, value: Signal<string>, help?: any, error?: string, wide?: boolean | "half", [more: string]: any}} props */
export const TextArea = ({ word, value, help, error, wide = true, ...more }) => html`
  <${Field} word=${word} help=${help} error=${error} wide=${wide}>${(/** @type {FieldAttributes} */ given) => html`
    <textarea rows="4" spellcheck=${false} ...${more} ...${given} value=${value.value} onInput=${(/** @type {any} */ event) => (value.value = event.target.value)}></textarea>`}<//>
`;

/** One of several, each with its value and its words.
 * @param {{word: string, value: Signal<string>, options: [string, string][], help?: any, error?: string}} props */
export const SelectField = ({ word, value, options, help, error }) => html`
  <${Field} word=${word} help=${help} error=${error}>${(/** @type {FieldAttributes} */ given) => html`
    <select ...${given} value=${value.value} onChange=${(/** @type {any} */ event) => (value.value = event.target.value)}>
      ${options.map(([name, words]) => html`<option key=${name} value=${name}>${words}</option>`)}
    </select>`}<//>
`;

/** Yes or no. @param {{word: string, value: Signal<boolean>, help?: any}} props */
export function Check({ word, value, help }) {
  const id = useId("check");
  return html`
    <div class="check">
      <input type="checkbox" id=${id} aria-describedby=${help ? `${id}-help` : undefined} checked=${value.value} onChange=${(/** @type {any} */ event) => (value.value = event.target.checked)} />
      <label for=${id}>${word}</label>
      ${help && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
    </div>
  `;
}

/** A form that opens in the page: the keyboard goes to its first field, and back where it came from when it closes.
 * `error` is what the API said against it, `ends` the buttons below.
 * @param {{title: string, onSubmit: () => unknown, error?: string, ends: any, children?: any}} props */
export function Panel({ title, onSubmit, error, ends, children }) {
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  useLayoutEffect(() => {
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    /** @type {HTMLElement | null | undefined} */ (form.current?.querySelector("input, textarea, select, button"))?.focus();
    return () => void (before?.isConnected && before.focus({ preventScroll: true }));
  }, []);
  const submit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    void onSubmit();
  };
  return html`
    <form ref=${form} class="card panel" aria-label=${title} onSubmit=${submit}>
      <h3>${title}</h3>
      ${children}
      <div role="alert">${error && html`<p class="failure">${error}</p>`}</div>
      <div class="ends">${ends}</div>
    </form>
  `;
}

/** Several names, each put there by Enter or by choosing one that is known.
 * @param {{word: string, value: Signal<string[]>, known: string[], none: string, help?: any, wide?: boolean | "half"}} props */
export function Several({ word, value, known, none, help, wide = true }) {
  const typed = useSignal("");
  const id = useId("known");
  const add = (/** @type {string} */ name) => {
    if (name.trim() && !value.peek().includes(name.trim())) value.value = [...value.peek(), name.trim()];
    typed.value = "";
  };
  const input = (/** @type {any} */ event) => {
    typed.value = event.target.value;
    // A choice from the list comes without a key.
    if (!(event instanceof InputEvent) || event.inputType === "insertReplacementText") if (known.includes(event.target.value)) add(event.target.value);
  };
  const key = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || !typed.value.trim()) return;
    event.preventDefault(); // it adds the name and does not send the form
    add(typed.value);
  };
  return html`
    <${Field} word=${word} help=${help} wide=${wide}>${(/** @type {FieldAttributes} */ given) => html`
      <div class="several">
        ${value.value.length ? value.value.map((name) => html`<span key=${name} class="chip"><bdi>${name}</bdi>
          <button type="button" class="quiet" aria-label=${`Take out ${name}`} onClick=${() => (value.value = value.value.filter((one) => one !== name))}>×</button></span>`) : html`<span class="soft">${none}</span>`}
        <input type="text" autocomplete="off" list=${id} placeholder="Add one" ...${given} value=${typed.value} onInput=${input} onKeyDown=${key} onBlur=${() => add(typed.value)} />
        <datalist id=${id}>${known.filter((name) => !value.value.includes(name)).map((name) => html`<option key=${name} value=${name}></option>`)}</datalist>
      </div>`}<//>
  `;
}

/** Copies a text. @param {{text: string, word?: string, label?: string}} props */
export function CopyButton({ text, word = "Copy", label }) {
  const { said, copy } = useCopy(text);
  return html`<button type="button" aria-label=${label} onClick=${copy}>${word}</button><span class="soft" role="status">${said}</span>`;
}

/** Have the browser save a text as a file. @param {string} name @param {string} text @param {string} [type] */
export function download(name, text, type = "text/plain") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // the browser takes it after the click
}

/** A table that becomes a list of cards where there is no room. A cell is text or an element; `numbers` are the columns
 * that are read from the right; one without a word holds what can be done. The roles are said because cards are no table to a browser.
 * @param {{label: string, columns: string[], rows: {key: string, cells: any[], attributes?: Record<string, any>}[], numbers?: number[], kind?: string}} props */
export const Table = ({ label, columns, rows, numbers = [], kind = "" }) => html`
  <table class=${`list ${kind}`} role="table" aria-label=${label}>
    <thead role="rowgroup"><tr role="row">${columns.map((word, n) => html`<th key=${n} role="columnheader" scope="col" class=${numbers.includes(n) ? "number" : ""}>${word || html`<span class="visually-hidden">what can be done</span>`}</th>`)}</tr></thead>
    <tbody role="rowgroup">
      ${rows.map(({ key, cells, attributes }) => html`
        <tr key=${key} role="row" ...${attributes}>
          ${cells.map((cell, n) => html`<td key=${n} role="cell" class=${numbers.includes(n) ? "number" : ""} data-word=${columns[n]}>${cell}</td>`)}
        </tr>`)}
    </tbody>
  </table>
`;

/** A word for a POSIX shell that stands behind an option. @param {string} name @param {string} value */
export const option = (name, value) => `${name}${value.startsWith("-") ? "=" : " "}${quote(value).replace(/^-- /, "")}`;

/** What the API says to GET `path`, asked again by `load` and whenever the connection comes back. `error` says why the
 * last attempt failed; `data` stays what was known. A `path` of "" asks nothing.
 * @param {string} path */
export function useAnswer(path) {
  const data = useSignal(/** @type {any} */ (null));
  const error = useSignal("");
  const turn = useRef(0);
  const load = async () => {
    if (!path) return;
    const mine = ++turn.current;
    try {
      const answer = await call("GET", path);
      if (mine !== turn.current) return; // a later one was asked for
      data.value = answer.data;
      error.value = "";
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      if (mine === turn.current) error.value = fault.message;
    }
  };
  const live = told.value;
  useEffect(() => {
    if (live) void load();
    return () => void turn.current++;
  }, [path, live]);
  return { data, error, load };
}

/** Do something by the API, with a word for what is under way and what went wrong. `act` answers whether it was done.
 * @template T @param {(...given: T[]) => Promise<unknown>} what */
export function useAct(what) {
  const busy = useSignal(false);
  const error = useSignal("");
  /** @param {...T} given */
  const act = async (...given) => {
    if (busy.peek()) return false;
    busy.value = true;
    error.value = "";
    try {
      await what(...given);
      return true;
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      error.value = fault.message;
      return false;
    } finally {
      busy.value = false;
    }
  };
  return { busy, error, act };
}
