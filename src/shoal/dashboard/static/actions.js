// What can be done with a model, through the public API, and the command that does the same. Pure, but for `run`.

import { ApiError, call, modelPath } from "./api.js";
import { signal } from "./lib.js";
import { mayAct } from "./session.js";
import { accept, devices, model as modelOf, moves, onNews } from "./store.js";

/** `dialog`: there is something to choose first, which a dialog of that name asks for.
 * @typedef {{id: string, label: string, method: string, path: string, body: unknown, command: string,
 *   ask?: {title: string, text: string}, dialog?: "move"}} Action */

const ENDED = new Set(["stopped", "failed"]);
const LEAVING = new Set(["draining", "stopping"]);

/** A word for a POSIX shell. @param {string} text */
export function quote(text) {
  const word = /^[\w./:@=+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
  return text.startsWith("-") ? `-- ${word}` : word;
}

/** What can be done now, the first the most likely; nothing by who may only look. @param {ModelView} model @returns {Action[]} */
export function actionsOf(model) {
  if (!mayAct.value) return [];
  const live = model.instances.filter((one) => !ENDED.has(one.state));
  const asleep = live.some((one) => one.state === "sleeping");
  const ready = live.some((one) => one.state === "ready");
  const word = quote(model.name);
  /** @type {(id: string, label: string, body?: unknown, ask?: Action["ask"]) => Action} */
  const post = (id, label, body = {}, ask) => ({
    id, label, method: "POST", path: modelPath(model.name, id), body, command: `shoal ${id} ${word}`, ...(ask ? { ask } : {}),
  });
  /** @type {Action[]} */
  const found = [];
  if (asleep) found.push(post("wake", "Wake"));
  if (live.length < Math.max(1, model.desired)) found.push(post("load", model.state === "failed" ? "Try again" : "Load"));
  if (ready && live.some((one) => one.can_sleep && one.state === "ready")) found.push(post("sleep", "Sleep"));
  if (live.some((one) => !LEAVING.has(one.state))) {
    const text = ready
      ? "Running requests may finish. What is in its KV cache is lost; a request may load it again."
      : asleep
        ? "Its weights leave the host's memory: the next load reads them from disk."
        : "What has been loaded so far is lost.";
    found.push(post("unload", "Unload", {}, { title: `Unload ${model.name}?`, text }));
  }
  const to = targetsOf(model).slice(0, widthOf(model));
  if (ready && to.length === widthOf(model) && !movesOf(model.name).length) {
    found.push({
      id: "move", label: "Move…", method: "POST", path: "moves", body: { model: model.name, to }, dialog: "move",
      command: moveCommand(model.name, to),
    });
  }
  if (live.some((one) => one.outdated && one.state === "ready") && !movesOf(model.name).length) {
    found.push({
      id: "change", label: "Roll out new settings", method: "POST", path: "moves", body: { model: model.name },
      command: `shoal change ${word}`,
    });
  }
  const { pin } = model.spec;
  found.push({
    id: "pin", label: pin ? "Unpin" : "Pin", method: "PATCH", path: modelPath(model.name), body: { pin: !pin },
    command: `shoal models set ${pin ? "--no-pin" : "--pin"} ${word}`,
  });
  return found;
}

/** Over how many devices one instance is split. @param {ModelView} model */
export const widthOf = (model) => model.instances.find((one) => one.state === "ready")?.devices.length ?? 1;

/** The devices of the kind that a model is on, without those that it is on. @param {ModelView} model */
function besides(model) {
  const ready = model.instances.filter((one) => one.state === "ready");
  const on = new Set(ready.flatMap((one) => one.devices));
  const kinds = new Set(devices.value.filter((device) => on.has(device.id)).map((device) => device.kind));
  return devices.value.filter((device) => kinds.has(device.kind) && !on.has(device.id));
}

/** The devices that a model can move to now: those beside its own that work. @param {ModelView} model */
export const targetsOf = (model) => besides(model).filter((device) => !device.error).map((device) => device.id);

/** Why a model that serves cannot move, where it lacks devices for that; empty if it can, or if another thing stands against it.
 * @param {ModelView} model */
export function stuckBecause(model) {
  const serves = model.instances.some((one) => one.state === "ready");
  if (!mayAct.value || !serves || movesOf(model.name).length) return "";
  const width = widthOf(model);
  const count = targetsOf(model).length;
  if (count >= width) return "";
  const broken = besides(model).filter((device) => device.error).map((device) => device.id);
  if (broken.length) return `${broken.join(", ")} ${broken.length === 1 ? "does" : "do"} not work, and without ${broken.length === 1 ? "it" : "them"} there ${count ? "are too few devices" : "is none of its kind"} to move it to.`;
  if (count) return `It is split over ${width} devices, and there ${count === 1 ? "is only one other" : `are only ${count} others`} of their kind.`;
  return "There is no other device of its kind to move it to.";
}

/** Moves of a model that have not ended. @param {string} name */
export const movesOf = (name) => [...moves.value.values()].filter((move) => move.model === name && move.ended_at === null);

/** @param {string} name @param {string[]} to @param {{instance?: string, stopFirst?: boolean}} [how] */
export const moveCommand = (name, to, { instance, stopFirst } = {}) =>
  ["shoal move", `--to ${quote(to.join(","))}`, instance && `--instance ${quote(instance)}`, stopFirst && "--stop-first", quote(name)]
    .filter(Boolean)
    .join(" ");

/** Names of models with an action under way. */
export const busy = signal(/** @type {ReadonlySet<string>} */ (new Set()));
/** @typedef {{id: number, level: "error" | "warning", text: string, command: string}} Notice */
export const notices = signal(/** @type {Notice[]} */ ([]));
/** The action that waits for a yes. @type {import("./vendor/signals.js").Signal<{name: string, action: Action} | null>} */
export const asking = signal(/** @type {{name: string, action: Action} | null} */ (null));
let count = 0;

/** @param {"error" | "warning"} level @param {string} text @param {string} [command] */
export function say(level, text, command = "") {
  const others = notices.value.filter((one) => one.text !== text || one.command !== command); // said again is said once
  notices.value = [...others.slice(-4), { id: ++count, level, text, command }];
}

// What went wrong by itself is said once, as it happens. What is wrong with Shoal itself stays above all, by `warnings`.
onNews(({ level, message, model, instance }) => {
  const about = model ?? instance;
  const named = !about || mentions(message, about) || (instance && mentions(message, instance));
  if (level === "error") say("error", named ? message : `${about}: ${message}`);
});

/** Whether a text has a name in it, and not as a part of a word. @param {string} text @param {string} name */
function mentions(text, name) {
  const parts = text.split(name);
  return parts.some((part, n) => n < parts.length - 1 && !/\w$/.test(part) && !/^\w/.test(parts[n + 1] ?? ""));
}

/** @param {number} id */
export const dismiss = (id) => (notices.value = notices.value.filter((one) => one.id !== id));

/** Do it, or ask first. @param {string} name @param {Action} action */
export function begin(name, action) {
  if (busy.value.has(name)) return;
  if (action.dialog === "move") void openMove(name);
  else if (action.ask) asking.value = { name, action };
  else void run(name, action);
}

/** Ask where a model is to move. @param {string} name @param {string} [target] the device that is proposed */
export async function openMove(name, target) {
  try {
    (await import("./components/move_dialog.js")).askWhere(name, target);
  } catch {
    say("error", "The dialog could not be fetched: Shoal does not answer.");
  }
}

/** @param {string} name @param {Action} action */
export async function run(name, action) {
  busy.value = new Set([...busy.value, name]);
  const before = modelOf(name)?.peek();
  try {
    const { data, warning } = await call(action.method, action.path, action.body);
    if (data) accept(data, before);
    if (warning) say("warning", warning);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say("error", error.message, action.command);
  } finally {
    busy.value = new Set([...busy.value].filter((one) => one !== name));
  }
}
