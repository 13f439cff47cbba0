// What opens below a model's line: its instances, what can be done, and the commands that do the same.

import { actionsOf, begin, busy, stuckBecause } from "../actions.js";
import { html, signal, useEffect, useRef } from "../lib.js";
import { LogPanel } from "../log.js";
import { mayAct } from "../session.js";
import { now } from "../store.js";
import { bytes, seconds } from "../units.js";
import { Terms } from "./marks_terms.js";
import { Badge, Command, Name } from "./small.js";

const ENDED = new Set(["failed", "stopped"]);

/** The log of one instance; one that is started anew under the same id is read on. @param {{id: string, state?: string}} props */
export function Log({ id, state }) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const panel = useRef(/** @type {LogPanel | null} */ (null));
  useEffect(() => {
    const made = (panel.current = new LogPanel(id));
    place.current?.append(made.element);
    return () => made.close();
  }, [id]);
  const over = ENDED.has(state ?? "");
  useEffect(() => {
    if (!over) panel.current?.revived();
  }, [over]);
  return html`<div ref=${place}></div>`;
}

/** @param {MemoryView} memory @returns {[string, string][]} */
function facts(memory) {
  /** @type {[string, string | null][]} */
  const list = [
    ["weights", memory.weights === null ? null : bytes(memory.weights)],
    ...Object.entries(memory.held).map(([where, size]) => /** @type {[string, string]} */ ([`held on ${where}`, bytes(size)])),
  ];
  if (memory.lease !== null) {
    list.push(
      ["KV in use", bytes(memory.used ?? 0)],
      ["KV cached", bytes(memory.cached ?? 0)],
      ["lease", bytes(memory.lease)],
      ["floor", bytes(memory.floor ?? 0)],
      ["ceiling", memory.ceiling === null ? "none" : bytes(memory.ceiling)],
      ["priority", String(memory.priority)],
    );
  }
  return list.flatMap(([word, text]) => (text === null ? [] : [[word, text]]));
}

/** Instances whose log is open; their model's line may be drawn elsewhere meanwhile. */
const shown = signal(/** @type {ReadonlySet<string>} */ (new Set()));

/** @param {string} id */
function toggle(id) {
  const next = new Set(shown.peek());
  if (!next.delete(id)) next.add(id);
  shown.value = next;
}

/** @param {{instance: InstanceView}} props */
function Instance({ instance }) {
  const open = shown.value.has(instance.id);
  const { memory, failure } = instance;
  return html`
    <li class="instance">
      <div class="line">
        <${Badge} state=${instance.state} /><code>${instance.id}</code>
        <span class="soft">${instance.devices.join(", ")} · for ${seconds(Math.max(0, now.value - instance.changed_at))}${instance.restarts ? ` · restarted ${instance.restarts}×` : ""}</span>
        <button type="button" class="quiet" aria-expanded=${String(open)} aria-label=${`Log of ${instance.id}`} onClick=${() => toggle(instance.id)}>${open ? "Hide log" : "Log"}</button>
      </div>
      ${failure && html`<p class="failure"><strong>${failure.message}</strong> ${failure.hint}</p>`}
      ${!failure && instance.reason && html`<p class="soft">${instance.reason}</p>`}
      ${instance.restart_at && html`<p class="soft">Starts again in ${seconds(Math.max(0, instance.restart_at - now.value))}.</p>`}
      ${instance.outdated && html`<p class="soft">Runs with older settings: rolling out the new ones replaces it while it serves.</p>`}
      ${instance.sleepless_because && html`<p class="soft">It cannot sleep: ${instance.sleepless_because}.</p>`}
      ${memory.mode === "fixed" && memory.reason && html`<p class="soft">KV cache of fixed size: ${memory.reason}.</p>`}
      <dl class="facts">${facts(memory).map(([word, text]) => html`<div key=${word}><dt>${word}</dt><dd>${text}</dd></div>`)}</dl>
      ${memory.waiting ? html`<p class="short">${memory.waiting} ${memory.waiting === 1 ? "request waits" : "requests wait"} for memory: ${bytes(memory.missing ?? 0)} short</p>` : null}
      ${open && html`<${Log} id=${instance.id} state=${instance.state} />`}
    </li>
  `;
}

/** @param {{model: ModelView, id: string}} props */
export function Details({ model, id }) {
  const actions = actionsOf(model);
  const stuck = stuckBecause(model);
  return html`
    <div class="details" id=${id}>
      <p class="soft">Source <code class="source"><${Name} text=${model.spec.source} /></code></p>
      ${model.instances.length > 0 && html`<ul class="instances">${model.instances.map((one) => html`<${Instance} key=${one.id} instance=${one} />`)}</ul>`}
      ${mayAct.value && html`<${Terms} model=${model} />`}
      <ul class="actions" aria-label=${`What can be done with ${model.name}`}>
        ${actions.map((action) => html`
          <li key=${action.id}>
            <button type="button" disabled=${busy.value.has(model.name)} onClick=${() => begin(model.name, action)}>${action.label}</button>
            <${Command} text=${action.command} />
          </li>`)}
        ${stuck && html`<li key="stuck"><button type="button" disabled aria-describedby=${`${id}-stuck`}>Move…</button><span class="soft" id=${`${id}-stuck`}>${stuck}</span></li>`}
      </ul>
    </div>
  `;
}
