// The last ten minutes of each device, as far as this page has seen them.

import { effect } from "./lib.js";
import { devices, heardAt } from "./store.js";

const SPAN = 600;
const EVERY = 2;

/** @typedef {{at: number[], used: number[], kv: number[]}} History Shares of the device's memory, 0…1 */

/** @type {Map<string, History>} */
const kept = new Map();

/** @param {string} device @returns {History} */
export const historyOf = (device) => kept.get(device) ?? { at: [], used: [], kv: [] };

/** Add a reading and forget those older than the span. Pure but for `history`.
 * @param {History} history @param {DeviceView} device @param {number} at */
export function add(history, device, at) {
  if (at - (history.at.at(-1) ?? 0) < EVERY || !device.memory_total) return;
  history.at.push(at);
  history.used.push(device.memory_used / device.memory_total);
  history.kv.push((device.pool?.backed ?? 0) / device.memory_total);
  const old = history.at.findIndex((one) => one >= at - SPAN);
  if (old > 0) for (const list of [history.at, history.used, history.kv]) list.splice(0, old);
}

/** Begin to collect. */
export function start() {
  effect(() => {
    for (const device of devices.value) {
      const history = historyOf(device.id);
      kept.set(device.id, history);
      add(history, device, heardAt.value);
    }
  });
}
