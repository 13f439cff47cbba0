// The admin API as its own description has it (`openapi.json`), for people: paths, what they take, what they answer.

import { el } from "./dom.js";

const METHODS = ["get", "head", "post", "put", "patch", "delete"];
const PATIENCE = 8000;

/** @typedef {Record<string, any>} Json */

/** The name that a reference ends with. @param {string} reference */
const nameOf = (reference) => reference.split("/").at(-1) ?? reference;

/** What a value is, in words; names of schemas are links to them.
 * @param {Json | undefined} schema @param {Json} schemas @returns {(Node | string)[]} */
function typeOf(schema, schemas) {
  if (!schema) return ["anything"];
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [name in schemas ? el("a", { href: `#schema-${name}` }, name) : name];
  }
  if (schema.enum) return [schema.enum.map((/** @type {unknown} */ one) => JSON.stringify(one)).join(" | ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  const either = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (either) return either.flatMap((/** @type {Json} */ one, /** @type {number} */ at) => [...(at ? [" | "] : []), ...typeOf(one, schemas)]);
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items, schemas)];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return ["map of ", ...typeOf(schema.additionalProperties, schemas)];
  return [Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type ?? "anything"];
}

/** One name of a list, and what is to be known of it.
 * @param {string} name @param {Json} schema @param {string[]} notes @param {string} text @param {Json} schemas */
function entry(name, schema, notes, text, schemas) {
  const more = [...notes];
  if (schema.default !== undefined && schema.default !== null) more.push(`default ${JSON.stringify(schema.default)}`);
  const words = [el("code", {}, name), " ", el("span", { class: "soft" }, ...typeOf(schema, schemas), ...more.map((one) => `, ${one}`))];
  return [el("dt", {}, ...words), ...(text ? [el("dd", {}, text)] : [])];
}

/** The properties of a schema; of another its type. @param {Json} schema @param {Json} schemas */
function shape(schema, schemas) {
  const properties = Object.entries(schema.properties ?? {});
  if (!properties.length) return el("p", {}, ...typeOf(schema, schemas));
  const needed = new Set(schema.required ?? []);
  return el("dl", {}, ...properties.flatMap(([name, one]) => entry(name, one, needed.has(name) ? ["required"] : [], one.description ?? "", schemas)));
}

/** What a body or an answer holds, by media type. @param {Json | undefined} content @param {Json} schemas @returns {Node[]} */
function contents(content, schemas) {
  return Object.entries(content ?? {}).flatMap(([type, { schema }]) => [el("p", { class: "soft" }, type), shape(schema ?? {}, schemas)]);
}

/** @param {string} path @param {string} method @param {Json} operation @param {Json} schemas */
function operationOf(path, method, operation, schemas) {
  const title = el("summary", {}, el("span", { class: "method" }, method.toUpperCase()), el("code", {}, path), el("span", { class: "soft" }, operation.summary ?? ""));
  const inside = el("div", { class: "inside" });
  if (operation.description) inside.append(el("p", {}, operation.description));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    const lines = parameters.flatMap((/** @type {Json} */ one) => entry(one.name, one.schema ?? {}, [`in the ${one.in}`, ...(one.required ? ["required"] : [])], one.description ?? "", schemas));
    inside.append(el("h3", {}, "Parameters"), el("dl", {}, ...lines));
  }
  if (operation.requestBody) inside.append(el("h3", {}, "Body"), ...contents(operation.requestBody.content, schemas));
  for (const [status, answer] of Object.entries(operation.responses ?? {})) {
    inside.append(el("h3", {}, `${status} ${answer.description ?? ""}`.trim()), ...contents(answer.content, schemas));
  }
  const made = el("details", {}, title, inside);
  made.dataset.words = `${method} ${path} ${operation.summary ?? ""} ${operation.description ?? ""}`.toLowerCase();
  return made;
}

/** Everything that a description describes. @param {Json} document_ @returns {Node[]} */
function reference(document_) {
  const schemas = document_.components?.schemas ?? {};
  /** @type {Map<string, HTMLElement[]>} */
  const groups = new Map();
  for (const [path, methods] of Object.entries(document_.paths ?? {})) {
    for (const method of METHODS) {
      const operation = methods[method];
      if (!operation) continue;
      const group = operation.tags?.[0] ?? "other";
      groups.set(group, [...(groups.get(group) ?? []), operationOf(path, method, operation, schemas)]);
    }
  }
  const input = el("input", { type: "search", placeholder: "models", on: { input: () => find(input.value, groups) } });
  return [
    el("p", {}, `${document_.info?.title ?? ""} ${document_.info?.version ?? ""}. ${document_.info?.description ?? ""}`.trim()),
    el("label", { class: "find" }, "Find", input),
    ...[...groups].flatMap(([group, operations]) => [el("h2", {}, group), ...operations]),
    ...(Object.keys(schemas).length ? [el("h2", {}, "Schemas")] : []),
    ...Object.entries(schemas).map(([name, schema]) =>
      el("details", { id: `schema-${name}` }, el("summary", {}, el("code", {}, name)), el("div", { class: "inside" }, ...(schema.description ? [el("p", {}, schema.description)] : []), shape(schema, schemas))),
    ),
  ];
}

/** Show what has all the words, and the headings of what is shown. @param {string} text @param {Map<string, HTMLElement[]>} groups */
function find(text, groups) {
  const words = text.toLowerCase().split(/\s+/);
  for (const operations of groups.values()) {
    for (const one of operations) one.hidden = !words.every((word) => (one.dataset.words ?? "").includes(word));
    const heading = operations[0]?.previousElementSibling;
    if (heading instanceof HTMLElement) heading.hidden = operations.every((one) => one.hidden);
  }
}

/** Open the schema that the address names. */
function show() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!(named instanceof HTMLDetailsElement)) return;
  named.open = true;
  named.scrollIntoView();
}

/** What Shoal answers. Raises Error with what to tell people. @returns {Promise<Json>} */
async function load() {
  let response, text;
  try {
    response = await fetch("openapi.json", { signal: AbortSignal.timeout(PATIENCE) });
    text = await response.text();
  } catch {
    throw new Error("Shoal does not answer. Is `shoal serve` running? Load this page again when it is.");
  }
  /** @type {Json} */
  let data = {};
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(`Shoal answered ${response.status}, and no JSON.`);
  }
  if (!response.ok) throw new Error(data.error?.message ?? `Shoal answered ${response.status}.`);
  return data;
}

const main = document.getElementById("reference");
if (main) {
  try {
    main.replaceChildren(...reference(await load()));
    main.removeAttribute("aria-live"); // what is hidden and shown by a search is not to be read out
    show();
    addEventListener("hashchange", show);
  } catch (error) {
    main.replaceChildren(el("p", { class: "notice error", role: "alert" }, error instanceof Error ? error.message : String(error)));
  }
}
