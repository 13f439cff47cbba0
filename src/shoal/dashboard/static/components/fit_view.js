// Whether a model fits: the verdict in a word and a shape, each device with its sum to scale, and the chance that KV
// caches want too much at the same time.

import { html } from "../lib.js";
import { bytes } from "../units.js";

/** @type {Record<Verdict, [string, string]>} */
const VERDICTS = {
  loaded: ["●", "It is loaded"],
  fits: ["✓", "It fits"],
  fits_if_others_give_way: ["◐", "It fits if others give way"],
  unknown: ["?", "Its size is not known yet"],
  does_not_fit: ["✕", "It does not fit"],
};
/** The pattern of each part of a sum, by its first word. @type {Record<string, string>} */
const KINDS = { others: "others", weights: "weights", overhead: "other", KV: "used" };

/** The sum's parts as they lie in the device: what is there first. @param {DeviceFit} device */
const laid = (device) =>
  [...device.parts]
    .sort((a, b) => Number(b.what.startsWith("others")) - Number(a.what.startsWith("others")))
    .map(({ what, bytes: size }) => ({ what, size, kind: KINDS[what.split(" ")[0] ?? ""] ?? "other" }));

/** What would have to give way. @param {DeviceFit} device */
const ways = (device) =>
  [device.sleep.length && `${device.sleep.join(", ")} would sleep`, device.unload.length && `${device.unload.join(", ")} would be unloaded`]
    .filter(Boolean)
    .join("; ");

/** @param {{device: DeviceFit}} props */
function DeviceAnswer({ device }) {
  const parts = laid(device);
  const all = Math.max(device.size, parts.reduce((sum, part) => sum + part.size, 0), 1);
  const [shape, words] = VERDICTS[device.verdict];
  const sum = parts.filter((part) => part.kind !== "others").map((part) => `${part.what} ${bytes(part.size)}`).join(" + ");
  const over = all > device.size;
  return html`
    <li class="fit-device" data-verdict=${device.verdict}>
      <p class="line"><strong>${device.device}</strong><span class="fit-word"><span aria-hidden="true">${shape}</span> ${words.replace("It f", "f").replace("It d", "d").replace("Its", "its")}</span>
        <span class="soft fit-free">${bytes(device.free)} free of ${bytes(device.size)}</span></p>
      <div class="fit-bar c0" role="img" aria-label=${`${sum}; ${bytes(device.free)} free of ${bytes(device.size)}`}>
        ${parts.map((part) => html`<span key=${part.what} class="part" data-kind=${part.kind} style=${{ width: `${(100 * part.size) / all}%` }} title=${`${part.what}: ${bytes(part.size)}`}></span>`)}
        ${over && html`<i class="fit-end" style=${{ left: `${(100 * device.size) / all}%` }} title="the end of the device"></i>`}
      </div>
      <p class="soft">${sum}${device.needed === null ? " + weights that are not known" : ` = ${bytes(device.needed)}`}${device.measured ? ", as measured at earlier loads" : ", by estimate"}</p>
      ${ways(device) && html`<p class="short">${ways(device)}.</p>`}
    </li>
  `;
}

/** @param {{collision: Collision}} props */
const Chance = ({ collision }) => html`
  <p class="fit-chance" data-known=${collision.peaks ? "yes" : "no"}>${collision.message}</p>
`;

/** @param {{answer: FitAnswer | null, error: string, asking: boolean, empty?: string}} props */
export function FitView({ answer, error, asking, empty = "" }) {
  const one = answer?.models[0];
  const [shape, words] = one ? VERDICTS[one.verdict] : ["", ""];
  return html`
    <div class="fit" aria-busy=${String(asking)}>
      <div role="status">
        ${error
          ? html`<p class="failure">${error}</p>`
          : one
            ? html`<p class="fit-verdict" data-verdict=${one.verdict}><span aria-hidden="true">${shape}</span> ${words}${one.on.length > 0 && one.verdict !== "loaded" && html` <small>on ${one.on.join(", ")}</small>`}</p><p>${one.message}.</p>`
            : html`<p class="soft">${asking ? "Adding it up…" : empty}</p>`}
      </div>
      ${!error && one && html`
        ${one.devices.length > 0 && html`<ul class="fit-devices" aria-label="Each device">${one.devices.map((device) => html`<${DeviceAnswer} key=${device.device} device=${device} />`)}</ul>`}
        ${(answer?.collisions ?? []).map((collision) => html`<${Chance} key=${collision.device} collision=${collision} />`)}
        ${(one.needs?.notes ?? []).map((note) => html`<p key=${note} class="soft">${note}</p>`)}
      `}
    </div>
  `;
}
