// An API key's settings: what a form has of them, what it sends, and the command that does the same.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { html, useSignal } from "../lib.js";
import { names } from "../store.js";
import { option, Panel, SelectField, Several, TextField, useAct } from "./forms.js";
import { Command } from "./small.js";

const DAY = 86_400;
/** @type {[string, string, string, string][]} */
const LIMITS = [
  ["requests_per_minute", "--rpm", "Requests a minute", "Refused with 429 beyond."],
  ["tokens_per_minute", "--tpm", "Tokens a minute", "Of prompts and answers together."],
  ["concurrent", "--concurrent", "Requests at once", "Under way at the same time."],
];

/** The last day on which a key works, in UTC; empty if it does not end. @param {number | null} at Unix seconds */
const dayOf = (at) => (at === null ? "" : new Date((at - 1) * 1000).toISOString().slice(0, 10));

/** Not finite for what is no day of a year of four digits: JSON would have it as null, a key that never ends. @param {string} day */
const endOf = (day) => (day ? Date.parse(/^\d{4}-/.test(day) ? `${day}T00:00:00Z` : "") / 1000 + DAY : null);

/** What is different from `before`: as the API takes it, and as options of the command line.
 * @param {Record<string, any>} now @param {Record<string, any>} before */
function changesOf(now, before) {
  const body = Object.fromEntries(Object.entries(now).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name])));
  const options = [];
  if ("models" in body) options.push(...(body.models.length ? body.models.map((/** @type {string} */ model) => option("--model", model)) : ["--all-models"]));
  if ("priority" in body) options.push(option("--priority", body.priority));
  if ("weight" in body) options.push(`--weight ${body.weight}`);
  for (const [name, flag] of LIMITS) if (name in body) options.push(`${flag} ${body[name] ?? "none"}`);
  if ("expires_at" in body && Number.isFinite(body.expires_at ?? 0)) options.push(`--expires ${dayOf(body.expires_at) || "none"}`);
  return { body, options };
}

const NEW = { name: "", models: [], priority: "normal", weight: 1, requests_per_minute: null, tokens_per_minute: null, concurrent: null, expires_at: null };

/** Makes a key, or changes one. @param {{one: KeyView | null, virtual: string[], onDone: (made: NewKeyView | null) => void, onClose: () => void}} props */
export function KeyForm({ one, virtual, onDone, onClose }) {
  /** @type {Record<string, any>} */
  const before = one ?? NEW;
  const name = useSignal(before.name);
  const models = useSignal(/** @type {string[]} */ ([...before.models]));
  const priority = useSignal(before.priority);
  const weight = useSignal(String(before.weight));
  const limits = LIMITS.map(([field]) => useSignal(before[field] === null ? "" : String(before[field])));
  const expires = useSignal(dayOf(before.expires_at));
  const now = {
    name: name.value.trim(),
    models: models.value,
    priority: priority.value,
    weight: Number(weight.value),
    ...Object.fromEntries(LIMITS.map(([field], n) => [field, limits[n]?.value ? Number(limits[n]?.value) : null])),
    expires_at: expires.value === dayOf(before.expires_at) ? before.expires_at : endOf(expires.value), // one that ends at noon stays so
  };
  const wrong = now.expires_at !== null && !Number.isFinite(now.expires_at) ? "There is no such day: give a year of four digits." : "";
  const { body, options } = changesOf(now, before);
  const renamed = one && "name" in body ? [option("--name", now.name)] : [];
  const command = one
    ? ["shoal keys edit", ...renamed, ...options, quote(one.id)].join(" ")
    : ["shoal keys create", ...options.filter((word) => word !== "--all-models"), quote(now.name || "NAME")].join(" ");
  const { busy, error, act } = useAct(async () => {
    if (wrong) return;
    if (one) await call("PATCH", `keys/${encodeURIComponent(one.id)}`, body);
    onDone(one ? null : (await call("POST", "keys", now)).data);
  });
  const nothing = one !== null && !Object.keys(body).length;
  return html`
    <${Panel} title=${one ? `Change the key ${one.name}` : "New key"} onSubmit=${act} error=${error.value} ends=${html`
      <button class="primary" disabled=${busy.value || nothing || Boolean(wrong)}>${one ? "Save" : "Make the key"}</button><button type="button" onClick=${onClose}>Close</button>
      ${nothing ? html`<span class="soft">Nothing is changed yet.</span>` : html`<${Command} text=${command} />`}`}>
      <div class="fields">
        <${TextField} word="Name" value=${name} required maxlength="100" help="Whose it is, or what it is for." />
        <${SelectField} word="Class" value=${priority} options=${[["high", "high"], ["normal", "normal"], ["low", "low"]]} help="Of its requests, where they queue." />
        <${TextField} word="Weight" value=${weight} type="number" min="0.01" max="100" step="any" required help="Its share among the keys of its class." />
        ${LIMITS.map(([field, , word, help], n) => html`<${TextField} key=${field} word=${word} value=${limits[n]} type="number" min="1" step="1" placeholder="no limit" help=${help} />`)}
        <${TextField} word="Last day" value=${expires} type="date" max="9999-12-31" error=${wrong} help="On which it works, in UTC. Empty: it does not end." />
        <${Several} word="Models" value=${models} known=${[...names.value, ...virtual]} none="every model" help="That it may use and see, virtual ones by their own names." />
      </div>
    <//>
  `;
}
