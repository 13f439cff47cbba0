// A model's settings as text that people type, and back. Pure.

import { quote } from "./actions.js";

/** How a setting is typed. @typedef {"switch" | "choice" | "number" | "size" | "time" | "list" | "devices" | "variables" | "text"} Kind */
/** @typedef {{name: string, kind: Kind, help: string, live: boolean, choices: string[], none: boolean, standard: unknown}} Setting */

const SIZES = ["kv_cache_memory", "floor", "ceiling"];
const TIMES = ["sleep_after", "unload_after"];
/** What `shoal models set` takes. */
const TERMS = ["floor", "ceiling", "priority", "pin", ...TIMES];

/** The settings of a JSON schema, without the name. @param {any} schema @returns {Setting[]} */
export function settingsOf(schema) {
  const live = new Set(schema["x-live"] ?? []);
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) =>
    name === "name"
      ? []
      : [{
          name, kind: kindOf(name, property), help: property.description ?? "", live: live.has(name), choices: property.enum ?? [],
          none: Boolean(property.anyOf?.some((/** @type {any} */ one) => one.type === "null")), standard: property.default ?? null,
        }],
  );
}

/** @param {string} name @param {any} property @returns {Kind} */
function kindOf(name, property) {
  const types = [property, ...(property.anyOf ?? [])].map((one) => one.type);
  if (name === "devices") return "devices";
  if (SIZES.includes(name)) return "size";
  if (TIMES.includes(name)) return "time";
  if (property.enum) return "choice";
  if (types.includes("boolean")) return "switch";
  if (types.includes("integer") || types.includes("number")) return "number";
  if (types.includes("array")) return "list";
  return types.includes("object") ? "variables" : "text";
}

/** The largest unit in which it is a whole number. @param {number} value @param {[string, number][]} units */
function exact(value, units) {
  const [unit, size] = units.find(([, one]) => value && value % one === 0) ?? ["", 1];
  return `${value / size}${unit}`;
}

/** A text as one line: as it is, or as JSON if it has line breaks, is `odd` or would be taken for JSON. @param {string} text @param {boolean} odd */
const lined = (text, odd) => (odd || /^"|[\r\n]/.test(text) ? JSON.stringify(text) : text);

/** The text of a line; what is no text in JSON stays as it is. @param {string} line */
function unlined(line) {
  if (!line.startsWith('"')) return line;
  try {
    return String(JSON.parse(line)); // what begins with a quotation mark can be nothing else
  } catch {
    return line;
  }
}

/** What stands in the field. @param {Setting} setting @param {any} value @returns {string} */
export function textOf({ kind }, value) {
  if (value === null || value === undefined) return "";
  if (kind === "size") return exact(value, [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]);
  if (kind === "time") return exact(value, [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]);
  if (kind === "devices") return typeof value === "string" ? value : value.join(", ");
  if (kind === "list") return value.map((/** @type {string} */ one) => lined(one, one === "")).join("\n");
  if (kind === "variables") {
    return Object.entries(value).map(([name, text]) => `${lined(name, name !== name.trim() || /^$|=/.test(name))}=${lined(text, false)}`).join("\n");
  }
  return String(value);
}

/** What is sent for a text. What cannot be read is sent as it is: the server says what is wrong with it.
 * @param {Setting} setting @param {string} text @returns {unknown} */
export function valueOf({ kind, none }, text) {
  const word = text.trim();
  if (kind === "switch") return text === "true";
  if (kind === "list") return text.split("\n").filter((line) => line !== "").map(unlined);
  if (kind === "variables") {
    return Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
      const at = /^\s*"(?:[^"\\]|\\.)*"\s*(?==)/.exec(line)?.[0].length ?? line.indexOf("=");
      return at < 0 ? [line, ""] : [unlined(line.slice(0, at).trim()), unlined(line.slice(at + 1))];
    }));
  }
  if (kind === "devices") return word === "" || word === "auto" ? "auto" : word.split(/[\s,]+/);
  if (word === "" && none) return null;
  return kind === "number" && /^-?\d+(\.\d+)?$/.test(word) ? Number(word) : kind === "choice" || kind === "text" ? text : word;
}

/** An error of the API, by setting; what is of none of them stands under "". @param {string} message @param {string[]} names
 * @returns {Record<string, string>} */
export function faultsOf(message, names) {
  const begins = [...message.matchAll(new RegExp(`(?:^|; )(${names.join("|")})(?:\\.[^:; ]*)*: `, "g"))];
  /** @type {Record<string, string>} */
  const found = {};
  const before = message.slice(0, begins[0]?.index ?? message.length);
  if (before) found[""] = before;
  for (const [at, begin] of begins.entries()) {
    const text = message.slice(begin.index + begin[0].length, begins[at + 1]?.index ?? message.length);
    const name = /** @type {string} */ (begin[1]);
    found[name] = found[name] ? `${found[name]}; ${text}` : text;
  }
  return found;
}

/** A value behind an option. @param {unknown} value */
const word = (value) => (value === null ? "none" : quote(String(value)).replace(/^-- /, ""));

/** The command that changes settings of a model at once. @param {string} name @param {Record<string, unknown>} changes @param {string} api where the API is */
export function setCommand(name, changes, api) {
  if (Object.keys(changes).every((one) => TERMS.includes(one))) {
    const options = Object.entries(changes).map(([one, value]) =>
      one === "pin" ? (value ? "--pin" : "--no-pin") : `--${one.replaceAll("_", "-")}=${word(value)}`);
    return `shoal models set ${options.join(" ")} ${quote(name)}`;
  }
  return `curl -X PATCH ${quote(`${api}/models/${encodeURIComponent(name)}`)} -H 'content-type: application/json' -d ${quote(JSON.stringify(changes))}`;
}

/** The command that has other instances take the place of those that run. @param {string} name @param {Record<string, unknown>} [changes] */
export function changeCommand(name, changes = {}) {
  const sets = Object.entries(changes).map(([one, value]) => ` --set ${quote(`${one}=${JSON.stringify(value)}`)}`);
  return `shoal change${sets.join("")} ${quote(name)}`;
}
