// A model in the list. It is drawn again when the model or its rates change, and at no other time.

import { actionsOf, begin, busy } from "../actions.js";
import { computed, html, signal } from "../lib.js";
import { modelAddress } from "../router.js";
import { model as modelOf, now } from "../store.js";
import { lastUseOf, ratesOf } from "../traffic.js";
import { ago, brief, bytes, rate, seconds } from "../units.js";
import { Details } from "./details.js";
import { Badge, Name } from "./small.js";
import { colourOf, pointed } from "./tin.js";

/** Names of models whose details are open; they stay so when the list is sorted anew. */
const open = signal(/** @type {ReadonlySet<string>} */ (new Set()));
/** A clock that ticks every ten seconds: "3 min ago" needs no more. */
const slow = computed(() => Math.floor(now.value / 10) * 10);
let count = 0;
/** @type {Map<string, string>} */
const ids = new Map();

/** @param {string} name */
function idOf(name) {
  if (!ids.has(name)) ids.set(name, `details-${++count}`);
  return /** @type {string} */ (ids.get(name));
}

/** What a model waits for or suffers from, in one line; empty if it serves. @param {ModelView} model */
export function noteOf(model) {
  const one = model.instances.find((instance) => instance.state === model.state) ?? model.instances[0];
  if (!one || one.state === "ready") {
    const waiting = model.instances.reduce((sum, instance) => sum + (instance.memory.waiting ?? 0), 0);
    return waiting ? `${waiting} ${waiting === 1 ? "request waits" : "requests wait"} for memory` : "";
  }
  if (one.failure) return one.failure.message;
  if (one.progress && one.state === "starting") {
    const { phase, percent, seconds_left: left } = one.progress;
    return `${phase}, ${percent} %${left === null ? "" : `, about ${seconds(left)} left`}`;
  }
  return one.reason;
}

/** A number with its word; a dash without one. No component: a hundred rows have six hundred of them.
 * @param {string} word @param {any} [children] */
const cell = (word, children) => html`<span class=${children ? "cell" : "cell none"}><span class="word">${word} </span>${children || "–"}</span>`;

/** @param {{name: string}} props */
function Numbers({ name }) {
  const found = ratesOf(name).value;
  const used = lastUseOf(name).value;
  const since = slow.value;
  return html`
    ${cell("requests/s", found?.requests && rate(found.requests))}
    ${cell("tokens/s", found?.tokens && rate(found.tokens))}
    ${cell("running, waiting", found && (found.running || found.waiting) && html`<span>${found.running}${found.waiting > 0 && html` <b class="waiting">+${found.waiting}</b>`}</span>`)}
    ${cell("first token, p95", found?.p50 != null && html`<span>${brief(found.p50)} <small>${brief(found.p95 ?? 0)}</small></span>`)}
    ${cell("last use", used && ago(Math.max(0, since - used)))}
  `;
}

/** @param {ModelView} model */
function kvOf(model) {
  const sum = { used: 0, backed: 0, leases: false };
  for (const { memory } of model.instances) {
    if (memory.lease === null || !memory.backed) continue;
    sum.leases = true;
    sum.used += memory.used ?? 0;
    sum.backed += memory.backed ?? 0;
  }
  const cached = Math.max(0, sum.backed - sum.used);
  return cell("KV in use, cached", sum.leases && html`<span>${bytes(sum.used)} <small>${bytes(cached)}</small></span>`);
}

/** @param {{name: string}} props */
export function Row({ name }) {
  const model = modelOf(name)?.value;
  if (!model) return null;
  const shown = open.value.has(name);
  const note = noteOf(model);
  const progress = model.instances.find((one) => one.state === "starting")?.progress;
  const [first] = actionsOf(model);
  const devices = [...new Set(model.instances.flatMap((one) => one.devices))].join(", ");
  const toggle = () => {
    const next = new Set(open.value);
    if (!next.delete(name)) next.add(name);
    open.value = next;
  };
  return html`
    <li class=${`model ${pointed.value === name ? "pointed" : ""}`} data-state=${model.state} aria-label=${name}
      onMouseEnter=${() => (pointed.value = name)} onMouseLeave=${() => (pointed.value = "")}>
      <div class="row">
        <${Badge} state=${model.state} />
        <div class="who">
          <h3><i class=${`dot c${colourOf(name)}`} aria-hidden="true"></i><a class="clip" href=${modelAddress(name)} title=${name}><${Name} text=${name} /></a>${model.spec.pin && html`<span class="pin">pinned</span>`}</h3>
          <p class="soft"><span>${model.spec.engine}${devices && ` · ${devices}`}</span>${note && html`<span class=${model.state === "failed" ? "bad note" : "note"} title=${note}>${note}</span>`}</p>
          ${progress && html`<progress max="100" value=${progress.percent} aria-label=${`Progress of ${name}: ${progress.phase}`}></progress>`}
        </div>
        <${Numbers} name=${name} />
        ${kvOf(model)}
        <div class="buttons">
          ${first && html`<button type="button" class=${first.id === "load" || first.id === "wake" ? "primary" : ""} disabled=${busy.value.has(name)}
            aria-label=${`${first.label} ${name}`} onClick=${() => begin(name, first)}>${first.label}</button>`}
          <button type="button" class="quiet more" aria-expanded=${String(shown)} aria-controls=${idOf(name)} aria-label=${`Details of ${name}`} onClick=${toggle}><span aria-hidden="true">${shown ? "▴" : "▾"}</span></button>
        </div>
      </div>
      ${shown && html`<${Details} model=${model} id=${idOf(name)} />`}
    </li>
  `;
}
