// The models that are compared: which, how they are, and settings of their own.

import { html, signal, useSignal } from "../lib.js";
import { COLUMNS, newSession, otherTask } from "../playground.js";
import { model as modelOf, names } from "../store.js";
import { change, changeColumn, session } from "./play_session.js";
import { stop } from "./play_run.js";
import { Fields } from "./play_settings.js";
import { Badge } from "./small.js";

/** Names that the endpoint knows beside the models: virtual models and adapters. */
export const others = signal(/** @type {string[]} */ ([]));

/** Why a model cannot be chosen; empty if it can. @param {string} name */
const against = (name) => otherTask(modelOf(name)?.value.spec.args ?? []);

/** @param {{column: PlayColumn}} props */
function Choice({ column }) {
  const known = [...new Set([...names.value, ...others.value])];
  const missing = column.model && !known.includes(column.model);
  return html`
    <select aria-label="Model" value=${column.model} onChange=${(/** @type {any} */ event) => changeColumn(column.id, { model: event.target.value })}>
      <option value="">Choose a model…</option>
      ${missing && html`<option value=${column.model}>${column.model} (not there)</option>`}
      ${known.map((name) => {
        const task = against(name);
        return html`<option key=${name} value=${name} disabled=${Boolean(task)}>${name}${task && ` (${task}: no chat)`}</option>`;
      })}
    </select>
  `;
}

/** @param {{name: string}} props */
function State({ name }) {
  const one = names.value.includes(name) ? modelOf(name)?.value : undefined;
  if (!one) return null;
  const progress = one.instances.find((each) => each.progress)?.progress;
  const failure = one.instances.find((each) => each.failure)?.failure;
  /** @type {Record<string, string>} */
  const words = {
    sleeping: "A prompt wakes it.",
    unloaded: one.spec.on_request === false ? "Prompts do not load it: load it first." : "A prompt loads it.",
    failed: failure?.message ?? "",
  };
  const text = progress ? `${progress.phase}, ${Math.round(progress.percent)} %` : (words[one.state] ?? "");
  return html`<p class="column-state"><${Badge} state=${one.state} /><span class="soft">${text}</span></p>`;
}

/** Takes a column out; asks once if it has answers. @param {{column: PlayColumn}} props */
function Remove({ column }) {
  const sure = useSignal(false);
  const name = column.model || "no model";
  const remove = () => {
    stop(column.id);
    change({ columns: session.peek().columns.filter((one) => one.id !== column.id) });
  };
  const asked = () => (Object.keys(column.answers).length ? (sure.value = true) : remove());
  if (!sure.value) return html`<button type="button" class="quiet" aria-label=${`Remove the column of ${name}`} title="Remove this column" onClick=${asked}>✕</button>`;
  return html`<p class="sure" role="group" aria-label=${`Remove the column of ${name}?`}>Its answers are lost.
    <button type="button" class="danger" onClick=${remove}>Remove it</button><button type="button" ref=${focused} onClick=${() => (sure.value = false)}>Keep it</button></p>`;
}

/** The keyboard goes on at what took the place of a button that was pressed. @param {HTMLElement | null} element */
export const focused = (element) => element && document.activeElement === document.body && element.focus();

function add() {
  const { columns } = session.peek();
  const taken = new Set(columns.map(({ model }) => model));
  const next = names.peek().find((name) => !taken.has(name) && !against(name) && modelOf(name)?.peek().state === "ready");
  const [column] = newSession("", [next ?? ""], 0).columns;
  if (column) change({ columns: [...columns, { ...column, id: `${1 + Math.max(-1, ...columns.map(({ id }) => Number(id)))}` }] });
}

export function Columns() {
  const { columns, fields } = session.value;
  return html`
    <section class="chosen" aria-labelledby="models-title">
      <h3 id="models-title" class="visually-hidden">Models</h3>
      <div class="side-by-side" data-columns=${columns.length}>
        ${columns.map((column) => html`
          <div class="play-column" key=${column.id} role="group" aria-label=${`Column: ${column.model || "no model"}`}>
            <div class="pick"><${Choice} column=${column} />${columns.length > 1 && html`<${Remove} column=${column} />`}</div>
            <${State} name=${column.model} />
            <div class="own">
              ${columns.length > 1 && html`<label class="choice"><input type="checkbox" checked=${!column.muted} onChange=${(/** @type {any} */ event) => changeColumn(column.id, { muted: !event.target.checked })} /> gets prompts</label>`}
              <details><summary>Settings of its own</summary>
                <${Fields} id=${`own-${column.id}`} fields=${column.fields} shared=${fields} onChange=${(/** @type {PlayFields} */ next) => changeColumn(column.id, { fields: next })} />
              </details>
            </div>
          </div>`)}
      </div>
      ${columns.length < COLUMNS && html`<button type="button" class="add" onClick=${add}>Compare with another model</button>`}
    </section>
  `;
}
