// What models are asked and answer, read every few seconds while the page is seen.

import { ApiError, call } from "./api.js";
import { afterFrame } from "./frames.js";
import { batch, effect, signal } from "./lib.js";
import { keep, rates } from "./rates.js";
import { connection, known } from "./store.js";

/** @template T @typedef {import("./vendor/signals.js").Signal<T>} Signal */

const EVERY = 3000;
const USE_EVERY = 10; // readings

/** @type {Map<string, Signal<import("./rates.js").Rates | null>>} */
const byModel = new Map();
/** @type {Map<string, Signal<number | null>>} */
const lastUse = new Map();
/** Requests and tokens per second of all models. */
export const total = signal({ requests: 0, tokens: 0 });

/** @template T @param {Map<string, Signal<T | null>>} map @param {string} name @returns {Signal<T | null>} */
function of(map, name) {
  const kept = map.get(name) ?? signal(/** @type {T | null} */ (null));
  map.set(name, kept);
  return kept;
}

/** @param {string} name */
export const ratesOf = (name) => of(byModel, name);
/** When a model was last used, in Unix seconds. @param {string} name */
export const lastUseOf = (name) => of(lastUse, name);

/** @type {Traffic[]} */
let kept = [];
let readings = 0;

async function read() {
  if (document.hidden || connection.peek() !== "live") return;
  try {
    const { data } = await call("GET", "traffic");
    const usage = readings++ % USE_EVERY ? null : (await call("GET", "usage?by=model")).data.usage;
    kept = keep(kept, data);
    batch(() => show(usage));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the stream says that Shoal is gone
  }
}

/** @param {{model: string, last_used: number}[] | null} usage */
function show(usage) {
  const sum = { requests: 0, tokens: 0 };
  for (const [name, found] of rates(kept)) {
    const shown = ratesOf(name);
    if (JSON.stringify(shown.peek()) !== JSON.stringify(found)) shown.value = found;
    if (found.running || found.waiting) lastUseOf(name).value = Date.now() / 1000;
    sum.requests += found.requests;
    sum.tokens += found.tokens;
  }
  total.value = sum;
  for (const row of usage ?? []) {
    const shown = lastUseOf(row.model);
    if ((shown.peek() ?? 0) < row.last_used) shown.value = row.last_used;
  }
}

/** Begin to read. */
export function start() {
  let begun = false;
  effect(() => {
    if (begun || connection.value !== "live" || !known.value) return;
    begun = true;
    afterFrame(read);
  });
  setInterval(read, EVERY);
}
