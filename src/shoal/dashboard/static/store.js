// The fleet as the event stream tells it, in signals: a row that reads one model is drawn again when that one changes.
// What comes together is given on together.

import { ApiError, call, live } from "./api.js";
import { afterFrame } from "./frames.js";
import { batch, computed, signal } from "./lib.js";

/** @template T @typedef {import("./vendor/signals.js").Signal<T>} Signal */

/** Milliseconds in which what comes is taken in together. The server tells no more than four times a second; a proxy may hold that up
 * and let it go at once. */
const SPACING = 100;
const EVENTS_KEPT = 100;

/** `connecting`, `live` or `lost`. While nobody sees the page, and until it has heard anew when somebody does, it is
 * `connecting` if it was `live`. */
export const connection = signal("connecting");
/** Whether the page rests, as nobody sees it, or has not heard anew since. */
const resting = signal(false);
/** Whether the stream tells what happens, as far as is known: what is read beside it is to be read again whenever this becomes
 * true. */
export const told = computed(() => connection.value !== "lost" && !resting.value);
/** When something was heard last, in Unix seconds. */
export const heardAt = signal(0);
/** Whether anything is known at all. */
export const known = signal(false);
/** @type {Signal<StatusView | null>} */
export const status = signal(null);
/** @type {Signal<DeviceView[]>} */
export const devices = signal(/** @type {DeviceView[]} */ ([]));
/** Names of all models, sorted. */
export const names = signal(/** @type {string[]} */ ([]));
/** The newest first. */
export const events = signal(/** @type {(EventView & {key: string})[]} */ ([]));
/** Moves by id: those that wait or are under way, and some that have ended. */
export const moves = signal(/** @type {ReadonlyMap<string, MoveView>} */ (new Map()));
/** The run of a preset that was told last. @type {Signal<RunView | null>} */
export const presetRun = signal(/** @type {RunView | null} */ (null));
/** Unix seconds, once a second while the connection lives: old data must not seem to live. */
export const now = signal(Date.now() / 1000);

/** @type {Map<string, Signal<ModelView>>} */
const models = new Map();
/** Those that what is being taken in has removed: one that is there again at once is shown by the same signal.
 * @type {Map<string, Signal<ModelView>>} */
const removed = new Map();
/** @param {string} name @returns {Signal<ModelView> | undefined} */
export const model = (name) => models.get(name);
export const all = computed(() => names.value.flatMap((name) => models.get(name)?.value ?? []));

/** @type {Record<string, (data: any) => void>} */
const take = {
  snapshot(/** @type {Snapshot} */ data) {
    const there = new Set(data.models.map((one) => one.name));
    for (const name of models.keys()) if (!there.has(name)) remove(name);
    data.models.forEach(put);
    status.value = data.status;
    devices.value = data.devices;
    known.value = true;
    rename();
    const since = unseenSince;
    unseenSince = Infinity;
    afterFrame(() => {
      void readHistory(since);
      void readMoves();
    });
  },
  model(/** @type {ModelView} */ one) {
    put(one);
    rename();
  },
  model_removed({ name }) {
    remove(name);
    rename();
  },
  devices: (data) => (devices.value = data.devices),
  memory(/** @type {{instances: Record<string, MemoryView>, devices: DeviceView[]}} */ data) {
    devices.value = data.devices;
    for (const kept of models.values()) {
      const { instances } = kept.peek();
      if (!instances.some((one) => data.instances[one.id])) continue;
      kept.value = { ...kept.peek(), instances: instances.map((one) => ({ ...one, memory: data.instances[one.id] ?? one.memory })) };
    }
  },
  move: putMove,
  preset_run: (/** @type {RunView} */ one) => (presetRun.value = one),
  message(/** @type {EventView} */ event) {
    if (!event.kind) return; // so a relay that stops ends the streams that go through it
    if (remember(event)) for (const hear of listeners) hear(event);
  },
};

/** @type {Set<(event: EventView) => void>} */
const listeners = new Set();
/** Have a function hear each event as it happens, once; not those of the past. @param {(event: EventView) => void} hear */
export const onNews = (hear) => void listeners.add(hear);

/** @param {string} name */
function remove(name) {
  const kept = models.get(name);
  if (kept) removed.set(name, kept);
  models.delete(name);
}

/** @param {ModelView} one */
function put(one) {
  const kept = models.get(one.name) ?? removed.get(one.name);
  models.set(one.name, kept ?? signal(one));
  if (kept && JSON.stringify(kept.peek()) !== JSON.stringify(one)) kept.value = one;
}

/** Take in what an action of this page answered, before the stream tells it; but not over what the stream told since the
 * action was asked for, which may be newer. @param {ModelView} one @param {ModelView | undefined} before */
export function accept(one, before) {
  if (before && models.get(one.name)?.peek() === before) put(one);
}

function rename() {
  const sorted = [...models.keys()].sort(); // as the API and the command line do
  if (sorted.join("\0") !== names.peek().join("\0")) names.value = sorted;
}

/** Whether it was new. One that the stream tells has no id, and the same in the history has one: it is told from others by
 * what it says. @param {EventView} event */
function remember(event) {
  const key = `${event.at} ${event.kind} ${event.instance ?? ""} ${event.model ?? ""} ${event.message}`;
  if (events.peek().some((other) => other.key === key)) return false;
  events.value = [{ ...event, key }, ...events.peek()].sort((a, b) => b.at - a.at).slice(0, EVENTS_KEPT);
  return true;
}

/** Moves that were told while the list of them is read; null while it is not. @type {Map<string, MoveView> | null} */
let toldMoves = null;
/** Whether the list is to be read again: the last attempt failed. */
let movesMissing = false;

/** @param {MoveView} move */
function putMove(move) {
  toldMoves?.set(move.id, move);
  const kept = [...moves.peek()].slice(-EVENTS_KEPT);
  moves.value = withMoves(new Map(kept), [move]);
}

/** Moves with others that are newer, but for one that has ended: that is its last word. Pure.
 * @param {ReadonlyMap<string, MoveView>} known @param {Iterable<MoveView>} newer @returns {Map<string, MoveView>} */
export function withMoves(known, newer) {
  const all = new Map(known);
  for (const move of newer) if (move.ended_at !== null || (all.get(move.id)?.ended_at ?? null) === null) all.set(move.id, move);
  return all;
}

async function readMoves() {
  /** @type {Map<string, MoveView>} */
  const heard = new Map();
  toldMoves = heard;
  try {
    const { data } = await call("GET", "moves");
    if (toldMoves !== heard) return; // it was asked for again
    const read = new Map(data.moves.map((/** @type {MoveView} */ move) => [move.id, move]));
    const ended = [...moves.peek().values()].filter((move) => move.ended_at !== null && read.has(move.id));
    moves.value = withMoves(withMoves(read, ended), heard.values());
    movesMissing = false;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (toldMoves === heard) movesMissing = true; // the stream brings each only at its next step
  } finally {
    if (toldMoves === heard) toldMoves = null;
  }
}

/** When the newest event that is known happened, if the page has rested since; otherwise none is news. */
let unseenSince = Infinity;
let historyRead = false;

/** @param {number} since what happened later is news (Unix seconds of Shoal's clock) */
async function readHistory(since) {
  try {
    const { data } = await call("GET", `events/history?limit=${EVENTS_KEPT}`);
    batch(() => {
      for (const event of data.events) if (remember(event) && event.at > since) for (const hear of listeners) hear(event);
    });
    historyRead = true;
  } catch (error) {
    unseenSince = Math.min(unseenSince, since);
    if (!(error instanceof ApiError)) throw error; // the stream brings what comes; only the past is missing
  }
}

/** @type {[string, any][]} */
let pending = [];
let flushedAt = -Infinity;
let timer = 0;

function flush() {
  timer = 0;
  flushedAt = performance.now();
  const taken = pending;
  pending = [];
  batch(() => {
    for (const [kind, data] of taken) take[kind]?.(data);
    removed.clear(); // by now their rows are gone too
    heardAt.value = Date.now() / 1000;
  });
}

/** @param {string} kind */
const gather = (kind) => (/** @type {any} */ data) => {
  if (kind === "snapshot") pending = []; // it has all that came before
  pending.push([kind, data]);
  if (!timer) timer = setTimeout(flush, Math.max(0, flushedAt + SPACING - performance.now()));
};

/** What has been heard is old from now on, but Shoal is not lost. */
function rest() {
  batch(() => {
    resting.value = true;
    if (connection.peek() === "live") connection.value = "connecting";
  });
  if (historyRead && unseenSince === Infinity) unseenSince = events.peek()[0]?.at ?? 0;
}

/** Begin to listen. */
export function start() {
  const again = live(Object.fromEntries(Object.keys(take).map((kind) => [kind, gather(kind)])), (state) => {
    if (state === "resting") return rest();
    if (state === "lost" && !heardAt.peek()) heardAt.value = Date.now() / 1000;
    batch(() => {
      connection.value = state;
      if (state === "live") resting.value = false;
    });
  });
  if (pending.length) {
    clearTimeout(timer); // so that the first frame has it
    flush();
  }
  setInterval(() => {
    if (connection.peek() !== "lost") now.value = Date.now() / 1000;
  }, 1000);
  setInterval(async () => {
    if (document.hidden || connection.peek() !== "live") return;
    try {
      status.value = (await call("GET", "status")).data;
      if (movesMissing && !toldMoves) void readMoves();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (connection.peek() === "live") again();
    }
  }, 10_000);
}
