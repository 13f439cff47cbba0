// What two devices hold now, and what they will once a model has moved from one to the other. Pure.

import { tinOf } from "../tins.js";

/** @typedef {import("../tins.js").Tin} Tin */
/** The pattern of each part of a fit's sum, by its first word. @type {Record<string, import("../tins.js").Kind>} */
const KINDS = { weights: "weights", overhead: "other", KV: "used" };

/** A tin without some models: what they held is free. @param {Tin} tin @param {string[]} models @returns {Tin} */
export function without(tin, models) {
  const gone = tin.holdings.filter((one) => models.includes(one.model));
  const size = gone.reduce((sum, one) => sum + one.size, 0);
  return { ...tin, holdings: tin.holdings.filter((one) => !models.includes(one.model)), free: tin.free + size };
}

/** A tin with a model in it that is not there yet, as far as there is room. KV cache that others only keep makes way,
 * so that what is free is never less than nothing. @param {Tin} tin @param {string} model @param {DeviceFit} answer @returns {Tin} */
export function withModel(tin, model, answer) {
  const parts = answer.parts.flatMap(({ what, bytes: size }) => {
    const kind = KINDS[what.split(" ")[0] ?? ""];
    return kind && size > 0 ? [{ kind, size }] : [];
  });
  const size = parts.reduce((sum, part) => sum + part.size, 0);
  let short = Math.max(0, size - tin.free);
  const holdings = tin.holdings.map((one) => {
    const cached = one.parts.find((part) => part.kind === "cached")?.size ?? 0;
    const back = Math.min(cached, short);
    short -= back;
    const left = one.parts.map((part) => (part.kind === "cached" ? { ...part, size: part.size - back } : part)).filter((part) => part.size > 0);
    return { ...one, parts: left, size: one.size - back };
  });
  /** @type {import("../tins.js").Holding} */
  const held = { model, asleep: false, parts, size, floor: null, ceiling: null, beside: 0, leases: 0 };
  const free = Math.max(0, tin.free - size);
  const used = holdings.reduce((sum, one) => sum + one.size, 0) + size + tin.others;
  return { ...tin, holdings: [...holdings, held], free, total: Math.max(tin.total, used + free), heldBack: 0 };
}

/** Each device that a move touches, before and after. `on`: the devices that it leaves; `fits`: what each that it goes
 * to answers. @param {DeviceView[]} devices @param {ModelView[]} models @param {string} name @param {string[]} on
 * @param {DeviceFit[]} fits @returns {{id: string, before: Tin, after: Tin, gains: boolean}[]} */
export function preview(devices, models, name, on, fits) {
  const leaving = fits.flatMap((fit) => [...fit.sleep, ...fit.unload]);
  return devices.flatMap((device) => {
    const fit = fits.find((one) => one.device === device.id);
    if (!fit && !on.includes(device.id)) return [];
    const before = { ...tinOf(device, models), heldBack: 0 };
    const cleared = without(before, leaving);
    return [{ id: device.id, before, after: fit ? withModel(cleared, name, fit) : without(cleared, [name]), gains: Boolean(fit) }];
  });
}
