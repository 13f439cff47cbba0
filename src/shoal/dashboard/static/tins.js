// What lies in a device's memory, by model: from the API's objects to parts with sizes. Pure.

/** @typedef {"weights" | "used" | "cached" | "other"} Kind */
/** @typedef {{kind: Kind, size: number}} Part */
/** @typedef {{model: string, asleep: boolean, parts: Part[], size: number, floor: number | null, ceiling: number | null,
 *   beside: number, leases: number}} Holding `floor` and `ceiling` in bytes of KV cache, together for its `leases` on the
 *   device, `beside` what lies before the KV cache */
/** @typedef {{holdings: Holding[], others: number, free: number, heldBack: number, total: number}} Tin */

/** @type {Record<Kind | "others" | "free", string>} */
export const WORDS = {
  weights: "weights",
  used: "KV in use",
  cached: "KV cached",
  other: "graphs and other",
  others: "other processes",
  free: "free",
};

/** Models by the devices that they are on, or hold something of. @param {ModelView[]} models @returns {Map<string, ModelView[]>} */
export function byDevice(models) {
  /** @type {Map<string, ModelView[]>} */
  const found = new Map();
  for (const model of models) {
    const there = new Set(model.instances.flatMap(({ devices, memory }) => [...devices, ...Object.keys(memory.held)]));
    for (const id of there) found.set(id, [...(found.get(id) ?? []), model]);
  }
  return found;
}

/** What is on a device; of `models`, those that are elsewhere add nothing. @param {DeviceView} device @param {ModelView[]} models @returns {Tin} */
export function tinOf(device, models) {
  const all = models.map((model) => ({ model, held: holding(device, model) }));
  let ours = all.reduce((sum, { held }) => sum + held.size, 0);
  for (const { model, held } of all) {
    // One that starts, of whose processes nobody says what they hold: what is there and nobody's is its weights.
    const size = held.size ? 0 : Math.min(coming(device, model), Math.max(0, device.memory_used - ours));
    if (!size) continue;
    held.parts = [{ kind: "weights", size }];
    held.size = size;
    ours += size;
  }
  const holdings = all.map(({ held }) => held).filter((one) => one.size > 0 || one.floor);
  const used = Math.max(device.memory_used, ours);
  const total = Math.max(device.memory_total, used);
  return { holdings, others: used - ours, free: total - used, heldBack: device.pool?.held_back ?? 0, total };
}

/** Weights that a model is bringing to a device. @param {DeviceView} device @param {ModelView} model */
const coming = (device, model) =>
  model.instances.reduce((sum, { state, devices, memory }) => sum + (state === "starting" && devices.includes(device.id) ? (memory.weights ?? 0) : 0), 0);

/** @param {DeviceView} device @param {ModelView} model @returns {Holding} */
function holding(device, model) {
  const sum = { weights: 0, used: 0, cached: 0, other: 0 };
  let [floor, ceiling, asleep, count] = [0, /** @type {number | null} */ (null), false, 0];
  for (const instance of model.instances) {
    const { memory } = instance;
    const held = memory.held[device.id] ?? null;
    const here = instance.devices.includes(device.id);
    if (!here && !held) continue;
    const sleeps = instance.state === "sleeping";
    asleep ||= sleeps;
    const leases = memory.leases.filter((lease) => lease.device === device.id);
    count += leases.length;
    const used = leases.reduce((all, lease) => all + Math.min(lease.used, lease.backed), 0);
    const backed = leases.reduce((all, lease) => all + lease.backed, 0);
    // Of one that starts, its weights are there as far as its processes hold something.
    const present = here && !sleeps && ["ready", "draining", "waking", "stopping"].includes(instance.state);
    const weights = memory.weights ?? 0;
    const there = present ? (held === null ? weights : Math.min(weights, held)) : 0;
    sum.weights += there;
    sum.used += used;
    sum.cached += backed - used;
    sum.other += held === null ? 0 : Math.max(0, held - there - backed);
    for (const lease of leases) {
      floor += lease.floor;
      if (lease.ceiling !== null) ceiling = (ceiling ?? 0) + lease.ceiling;
    }
  }
  const beside = sum.other + sum.weights;
  /** @type {Kind[]} */
  const order = ["other", "weights", "used", "cached"];
  const parts = order.map((kind) => ({ kind, size: sum[kind] })).filter((part) => part.size > 0);
  const size = beside + sum.used + sum.cached;
  return { model: model.name, asleep, parts, size, floor: floor || null, ceiling, beside, leases: count };
}

/** How wide a tin is beside the others of its kind, 0…1: a small device is seen to be small, and can still be read.
 * @param {DeviceView} device @param {DeviceView[]} devices */
export function scale(device, devices) {
  const largest = Math.max(...devices.filter((one) => one.kind === device.kind).map((one) => one.memory_total), 1);
  return Math.max(0.35, device.memory_total / largest);
}
