// What was: of devices the last ten minutes, as the server tells and then as this page sees them; of models what the server
// keeps, for those that somebody looks at.

import { ApiError, call } from "./api.js";
import { afterFrame } from "./frames.js";
import { effect, signal } from "./lib.js";
import { connection, devices, heardAt, known } from "./store.js";

/** @template T @typedef {import("./vendor/signals.js").Signal<T>} Signal */

const SPAN = 600;
const EVERY = 2;
/** Seconds between two moments that the server keeps. */
const STEP = { "10m": 5, "24h": 60 };

/** Shares of a device's memory, 0…1, at each of `at` (Unix seconds, ascending). `version` grows with each change.
 * @typedef {{at: number[], used: number[], kv: number[], version: number}} Shares */

/** A model over time: one value for each of `at` (Unix seconds, ascending), null where nothing is known. Requests that
 * ended and tokens a second, seconds to the first byte (null: no answer) are of the time since the moment before; memory
 * in bytes; `state` in words.
 * @typedef {(number | null)[]} Values
 * @typedef {{at: number[], requests: Values, tokens: Values, first_byte_p50: Values, first_byte_p95: Values,
 *   running: Values, waiting: Values, kv_used: Values, kv_cached: Values, state: string[]}} ModelHistory */

/** @type {Map<string, Shares>} */
const kept = new Map();
/** How often the server has told what was before: then all is to be drawn again. */
export const filled = signal(0);

/** @returns {Shares} */
const nothing = () => ({ at: [], used: [], kv: [], version: 0 });

/** A device's last ten minutes. @param {string} device */
export const sharesOf = (device) => kept.get(device) ?? nothing();

/** Add a reading and forget those older than the span. Pure but for `shares`.
 * @param {Shares} shares @param {DeviceView} device @param {number} at */
export function add(shares, device, at) {
  if (at - (shares.at.at(-1) ?? 0) < EVERY || !device.memory_total) return;
  shares.at.push(at);
  shares.used.push(device.memory_used / device.memory_total);
  shares.kv.push((device.pool?.backed ?? 0) / device.memory_total);
  const old = shares.at.findIndex((one) => one >= at - SPAN);
  if (old > 0) for (const list of [shares.at, shares.used, shares.kv]) list.splice(0, old);
  shares.version++;
}

/** What the server knows, with what this page saw before and after that. Pure.
 * @param {Shares} own @param {Shares} theirs @returns {Shares} */
export function merge(own, theirs) {
  const [first, last] = [theirs.at[0], theirs.at.at(-1)];
  if (first === undefined || last === undefined) return own;
  const begin = Math.max(last, own.at.at(-1) ?? last) - SPAN;
  const at = (/** @type {number} */ place) => own.at[place] ?? 0;
  /** @param {"at" | "used" | "kv"} column */
  const whole = (column) => [
    ...own[column].filter((_, place) => at(place) < first && at(place) >= begin),
    ...theirs[column],
    ...own[column].filter((_, place) => at(place) > last),
  ];
  return { at: whole("at"), used: whole("used"), kv: whole("kv"), version: own.version + 1 };
}

/** A moment of the server's clock by this one's. @param {{now: number, at: number[]}} data */
const local = ({ now, at }) => at.map((one) => one + Date.now() / 1000 - now);

async function fill() {
  try {
    const { data } = await call("GET", "history");
    const at = local(data);
    for (const device of devices.peek()) {
      const told = data.devices[device.id];
      if (!told || !device.memory_total) continue;
      const theirs = nothing();
      for (const [place, used] of told.memory_used.entries()) {
        if (used === null) continue;
        theirs.at.push(/** @type {number} */ (at[place]));
        theirs.used.push(used / device.memory_total);
        theirs.kv.push((told.kv_backed[place] ?? 0) / device.memory_total);
      }
      kept.set(device.id, merge(sharesOf(device.id), theirs));
    }
    filled.value++;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the past is missing; the stream brings what comes
  }
}

/** Begin to collect. */
export function start() {
  effect(() => {
    for (const device of devices.value) {
      const shares = sharesOf(device.id);
      kept.set(device.id, shares);
      add(shares, device, heardAt.value);
    }
  });
  effect(() => {
    if (connection.value === "live" && known.value) afterFrame(() => void fill());
  });
}

/** @type {Map<string, Signal<ModelHistory | null>>} */
const models = new Map();

/** A model's history, for charts: null until the server has told it. It is read again, every 5 s or every minute, and after
 * each break of the connection, for as long as a component reads the signal's `value` or something has subscribed to it.
 * @param {string} model @param {"10m" | "24h"} [span] @returns {Signal<ModelHistory | null>} */
export function historyOf(model, span = "10m") {
  const key = `${span} ${model}`;
  const there = models.get(key);
  if (there) return there;
  let timer = 0;
  let stop = () => {};
  const made = signal(/** @type {ModelHistory | null} */ (null), {
    watched() {
      const read = async () => {
        if (document.hidden || connection.peek() !== "live") return;
        made.value = (await readModel(model, span)) ?? made.peek();
      };
      timer = setInterval(read, 1000 * STEP[span]);
      stop = connection.subscribe(() => void read());
    },
    unwatched() {
      clearInterval(timer);
      stop();
      if (models.get(key) === made) models.delete(key);
    },
  });
  models.set(key, made);
  return made;
}

/** @param {string} model @param {string} span @returns {Promise<ModelHistory | null>} */
async function readModel(model, span) {
  try {
    const { data } = await call("GET", `history?model=${encodeURIComponent(model)}&span=${span}`);
    const columns = data.models[model] ?? Object.values(data.models)[0]; // the server keeps names in one Unicode form
    return { ...columns, at: local(data), state: columns.state.map((/** @type {number} */ place) => data.states[place]) };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it was removed, or Shoal is away: both are said elsewhere
    return null;
  }
}
