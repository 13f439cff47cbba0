// What each instance of a model holds on each of its devices, to the scale of what it may hold.

import { html } from "../lib.js";
import { devices, now } from "../store.js";
import { tinOf, WORDS } from "../tins.js";
import { bytes, seconds } from "../units.js";
import { Facts, Section } from "./model_section.js";
import { Badge } from "./small.js";
import { colourOf, Legend } from "./tin.js";

/** Beyond a ceiling or a lease there is a little room, so that its mark is seen. */
const ROOM = 1.04;

/** What an instance holds of a device, and how far the bar reaches. @param {ModelView} model @param {InstanceView} instance @param {DeviceView} device */
export function held(model, instance, device) {
  const [holding] = tinOf(device, [{ ...model, instances: [instance] }]).holdings;
  if (!holding) return null;
  const leases = instance.memory.leases.filter((one) => one.device === device.id);
  const lease = leases.reduce((sum, one) => sum + one.lease, 0);
  const { beside, size, floor } = holding;
  const ceiling = holding.ceiling !== null && beside + holding.ceiling <= device.memory_total ? holding.ceiling : null;
  return { ...holding, ceiling, lease, leases: leases.length > 0, reach: Math.max(size, beside + lease, beside + (floor ?? 0), beside + (ceiling ?? 0)) * ROOM || 1 };
}

/** @param {{model: ModelView, instance: InstanceView, device: DeviceView}} props */
function Bar({ model, instance, device }) {
  const found = held(model, instance, device);
  if (!found) return null;
  const at = (/** @type {number} */ size) => `${(100 * size) / found.reach}%`;
  const words = found.parts.map((part) => `${WORDS[part.kind]} ${bytes(part.size)}`).join(", ");
  const colour = `c${colourOf(model.name)}`;
  /** @type {[string, number | null][]} */
  const marks = [["floor", found.floor], ["ceiling", found.ceiling], ["lease", found.lease || null]];
  return html`
    <div class="bar">
      <p class="line"><span>${device.id}</span><span class="soft">${bytes(found.size)} of the device's ${bytes(device.memory_total)}</span></p>
      <div class="tin-frame">
        <div class="tin" role="img" aria-label=${`${instance.id} on ${device.id}: ${words || "nothing yet"}`}>
          <div class=${`holding ${colour}`} style=${{ width: at(found.size) }} title=${words}>
            ${found.parts.map((part) => html`<span key=${part.kind} class="part" data-kind=${part.kind} title=${`${WORDS[part.kind]} ${bytes(part.size)}`} style=${{ width: `${(100 * part.size) / found.size}%` }}></span>`)}
          </div>
        </div>
        <div class="marks" aria-hidden="true">
          ${marks.map(([kind, size]) => size && html`<i key=${kind} class=${`mark ${kind} ${colour}`} style=${{ left: at(found.beside + size) }} title=${`${kind}: ${bytes(size)} of KV cache`}></i>`)}
        </div>
      </div>
      <${Facts} list=${[
        ...found.parts.map((part) => [WORDS[part.kind], bytes(part.size)]),
        ...(found.leases ? [["lease", bytes(found.lease)], ["floor", bytes(found.floor ?? 0)], ["ceiling", instance.memory.ceiling === null ? "none" : bytes(instance.memory.ceiling)]] : []),
      ]} />
    </div>
  `;
}

/** @param {{model: ModelView, instance: InstanceView}} props */
function Instance({ model, instance }) {
  const { memory } = instance;
  const there = devices.value.filter((device) => instance.devices.includes(device.id) || memory.held[device.id]);
  const notes = [
    instance.failure ? "" : instance.reason,
    instance.outdated ? "Runs with older settings." : "",
    instance.sleepless_because && !instance.failure ? `It cannot sleep: ${instance.sleepless_because}.` : "",
    memory.mode === "fixed" && memory.reason ? `KV cache of fixed size: ${memory.reason}.` : "",
  ].filter(Boolean);
  return html`
    <li class="instance">
      <p class="line"><${Badge} state=${instance.state} /><code>${instance.id}</code>
        <span class="soft">for ${seconds(Math.max(0, now.value - instance.changed_at))}${instance.restarts ? ` · restarted ${instance.restarts}×` : ""}</span></p>
      ${there.map((device) => html`<${Bar} key=${device.id} model=${model} instance=${instance} device=${device} />`)}
      ${notes.map((text) => html`<p key=${text} class="soft">${text}</p>`)}
      ${memory.waiting ? html`<p class="short">${memory.waiting} ${memory.waiting === 1 ? "request waits" : "requests wait"} for memory: ${bytes(memory.missing ?? 0)} short</p>` : null}
    </li>
  `;
}

/** @param {{model: ModelView}} props */
export const MemorySection = ({ model }) => html`
  <${Section} id="memory" title="Memory">
    ${model.instances.length > 0
      ? html`<${Legend} /><p class="soft lease-key"><i aria-hidden="true"></i>lease: what the broker lets it keep</p><ul class="instances">${model.instances.map((one) => html`<${Instance} key=${one.id} model=${model} instance=${one} />`)}</ul>`
      : html`<p class="soft">It holds nothing: none of its instances runs. Load it, or send it a request${model.spec.on_request === false ? " once it is loaded" : ""}.</p>`}
  <//>
`;
