// What is typed to add a model, the settings that come of it, and the command that does the same. Pure, but for keeping
// what was typed in the browser's session.

import { quote } from "../actions.js";
import { signal } from "../lib.js";

/** What is in the form, by setting; "" and what is not there are left to Shoal. `concurrency` and `tokens` are what the
 * model is asked for, which is no setting.
 * @typedef {Record<string, string>} Typed
 * @typedef {{typed: Typed, load: boolean, sent: string, shown: string, failed: Record<string, string>}} Kept `sent`:
 *   the model that was made of it, as long as the next attempt replaces it; `shown`: the one whose start is shown, not the form */

const PLACE = "shoal-add";
/** Settings of one line each, by what they are about; what is in no group is advanced. @type {[string, string[]][]} */
export const GROUPS = [
  ["Where it runs", ["engine", "environment", "tensor_parallel", "context_length"]],
  ["Its share of the memory", ["floor", "ceiling", "priority", "pin"]],
  ["When nobody uses it", ["sleep", "sleep_after", "unload_after"]],
];
/** Settings that have a place of their own in the form. */
export const APART = new Set(["source", "name", "devices"]);
/** Settings of several lines. */
export const LISTS = new Set(["args", "env"]);

/** @type {Typed} */
export const FIRST = { concurrency: "4", tokens: "2000" };
export const kept = signal(/** @type {Kept} */ ({ typed: FIRST, load: true, sent: "", shown: "", failed: {} }));
try {
  const found = JSON.parse(sessionStorage.getItem(PLACE) ?? "null");
  if (found && typeof found.typed === "object") kept.value = { ...kept.value, ...found };
} catch {
  // Nothing is kept, or the browser keeps nothing: the form begins empty.
}

/** @param {Partial<Kept>} change */
export function keep(change) {
  kept.value = { ...kept.peek(), ...change };
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(kept.peek()));
  } catch {
    // It is in the page as long as that is open.
  }
}

/** @param {string} name @param {string} value */
export function type(name, value) {
  const { typed, failed } = kept.peek();
  const { [name]: _, ...rest } = failed;
  keep({ typed: { ...typed, [name]: value }, failed: rest });
}

/** A name for clients, from a source: a hub id is its own, a folder is called as its last part; of the cache's folders
 * (models--org--name/snapshots/…) the hub id. @param {string} source */
export function proposed(source) {
  const text = source.trim().replace(/\/+$/, "");
  const cached = /models--([^/]+)/.exec(text)?.[1]?.replace("--", "/");
  if (cached) return cached;
  return /^[\w][\w.-]*\/[\w][\w.-]*$/.test(text) ? text : (text.split("/").at(-1) ?? "").trim().slice(0, 200);
}

/** @param {Typed} typed */
export const nameOf = (typed) => typed.name || proposed(typed.source ?? "");
/** @param {Typed} typed */
export const devicesOf = (typed) => (typed.devices ? typed.devices.split(",") : []);

/** Lines that are not blank. @param {string} text */
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** The settings, as `POST models` takes them: numbers and sizes as they were typed, for the API says what is wrong
 * with them. @param {Typed} typed @param {Record<string, Schema>} schema */
export function settingsOf(typed, schema) {
  /** @type {Record<string, unknown>} */
  const settings = { name: nameOf(typed), source: (typed.source ?? "").trim() };
  for (const name of Object.keys(schema)) {
    const value = (typed[name] ?? "").trim();
    if (!value || APART.has(name)) continue;
    if (schema[name]?.type === "boolean") settings[name] = value === "true";
    else if (name === "args") settings.args = lines(value);
    else if (name === "env") settings.env = Object.fromEntries(lines(value).map((line) => [line.split("=")[0] ?? "", line.slice(line.indexOf("=") + 1)]));
    else settings[name] = value;
  }
  const devices = devicesOf(typed);
  if (devices.length) Object.assign(settings, { devices, tensor_parallel: devices.length });
  return settings;
}

/** What is wrong that the API cannot see, by setting. @param {Typed} typed @returns {Record<string, string>} */
export function faultsOf(typed) {
  const odd = lines(typed.env ?? "").find((line) => line.indexOf("=") < 1);
  return odd ? { env: `${odd} is not NAME=VALUE` } : {};
}

/** @param {Typed} typed @param {Record<string, Schema>} schema */
export function fitOf(typed, schema) {
  const settings = settingsOf(typed, schema);
  if (!settings.source) return "";
  const name = nameOf(typed) || "model";
  const named = { ...settings, name };
  const [concurrency, tokens] = [Number(typed.concurrency), Number(typed.tokens)];
  const load = typed.concurrency && tokens > 0 && concurrency >= 0 ? { load: { [name]: { concurrency, tokens } } } : {};
  return JSON.stringify({ models: [named], ...load });
}

/** A word of a command line that is no option's name. @param {unknown} value */
const word = (value) => quote(String(value)).replace(/^-- /, "");
/** @param {string} name @param {unknown} value */
const option = (name, value) => `--${name.replaceAll("_", "-")}${String(value).startsWith("-") ? "=" : " "}${word(value)}`;

/** The command that does the same; "" where the command line cannot say it. `before`: a model that is replaced.
 * @param {Record<string, unknown>} settings @param {boolean} load @param {{name: string, unload: boolean} | ""} [before] */
export function commandOf(settings, load, before = "") {
  const { name, args, env, devices, tensor_parallel: split, ...others } = settings;
  if (!name || String(name).startsWith("-")) return "";
  const parts = [`shoal models add ${word(name)}`];
  for (const [key, value] of Object.entries(others)) {
    if (typeof value !== "boolean") parts.push(option(key, value));
    else if (value || key === "pin" || key === "on_request") parts.push(`--${value ? "" : "no-"}${key.replaceAll("_", "-")}`);
  }
  if (Array.isArray(devices)) parts.push(option("devices", devices.join(",")));
  else if (split) parts.push(option("tensor_parallel", split));
  for (const [key, value] of Object.entries(env ?? {})) parts.push(option("env", `${key}=${value}`));
  if (Array.isArray(args)) parts.push("--", ...args.map(word));
  return [before && `shoal models rm ${before.unload ? "--unload " : ""}${quote(before.name)}`, parts.join(" "), load && `shoal load ${word(name)}`].filter(Boolean).join(" && ");
}

/** The parts of a refusal that are about a setting of the form, by setting; the rest under "".
 * @param {string} message @param {Typed} typed @param {Iterable<string>} settings */
export function blame(message, typed, settings) {
  const known = new Set(settings);
  const source = (typed.source ?? "").trim();
  /** @type {Record<string, string>} */
  const found = {};
  for (const part of message.split(/; (?=\w+(?:\.\w+)*: )/)) {
    const match = /^(\w+)(?:\.\w+)*: (.*)$/s.exec(part);
    const named = match && known.has(match[1] ?? "");
    const name = named ? (match[1] ?? "") : source && part.includes(source) ? "source" : "";
    found[name] = [found[name], named ? match[2] : part].filter(Boolean).join("; ");
  }
  return found;
}
