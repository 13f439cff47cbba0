// Adding a model: its settings with their help, whether it will fit while they are typed, and how its start goes.

import { quote, say } from "../actions.js";
import { ApiError, call, modelPath } from "../api.js";
import { Folders } from "../components/add_folders.js";
import { APART, blame, commandOf, devicesOf, faultsOf, FIRST, fitOf, GROUPS, keep, kept, LISTS, nameOf, proposed, settingsOf, type } from "../components/add_form.js";
import { AddProgress } from "../components/add_progress.js";
import { useFit } from "../components/fit_ask.js";
import { FitView } from "../components/fit_view.js";
import { Field, useAct, useAnswer } from "../components/forms.js";
import { Command, Name } from "../components/small.js";
import { computed, effect, html, useEffect, useRef, useSignal } from "../lib.js";
import { devices, model as modelOf, names } from "../store.js";
import { bytes } from "../units.js";

/** The fit is asked anew when what lies in the devices has changed much, not with every byte. */
const lying = computed(() => devices.value.map((device) => `${device.id} ${device.instances.join(" ")}`).join("\n"));
/** States in which nobody has been served yet by a model that was just added. */
const UNSERVED = new Set(["unloaded", "queued", "starting", "failed"]);
/** One that has served is a model like any other, and not replaced by what is typed next; also while another view is open. */
effect(() => {
  void names.value;
  const { sent } = kept.value;
  const state = sent && modelOf(sent)?.value.state;
  if (state && !UNSERVED.has(state)) keep({ sent: "" });
});
/** @type {Record<string, Schema>} */
const NONE = {};
/** @type {Record<string, string>} */
const NOTHING = {};

/** @param {string} name */
const words = (name) => ({ tensor_parallel: "Tensor parallel", kv_cache_memory: "KV cache of fixed size", args: "Engine arguments", env: "Environment variables", pin: "Pinned", environment: "Engine environment", dtype: "Data type" })[name] ?? name.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

/** What a setting is if nothing is typed. @param {Schema} schema */
const usual = ({ default: value }) => (value === null || value === undefined || Array.isArray(value) ? "" : typeof value === "boolean" ? (value ? "yes" : "no") : String(value));

/** Help with its code as code. @param {string} text */
const helped = (text) => text.split("`").map((part, n) => (n % 2 ? html`<code>${part}</code>` : part));

/** @param {{name: string, schema: Schema, off?: string}} props */
function Setting({ name, schema, off = "" }) {
  const value = kept.value.typed[name] ?? "";
  const error = kept.value.failed[name];
  const put = (/** @type {any} */ event) => type(name, event.target.value);
  const choices = schema.type === "boolean" ? ["true", "false"] : schema.enum;
  const shown = usual(schema);
  return html`
    <${Field} word=${words(name)} help=${off || helped(schema.description ?? "")} error=${error} wide=${LISTS.has(name)}>${(/** @type {any} */ given) =>
      choices
        ? html`<select ...${given} value=${value} disabled=${Boolean(off)} onChange=${put}>
            <option value="">${shown ? `${shown} (default)` : "default"}</option>
            ${choices.filter((word) => (schema.type === "boolean" ? (word === "true" ? "yes" : "no") : word) !== shown).map((word) => html`<option key=${word} value=${word}>${schema.type === "boolean" ? (word === "true" ? "yes" : "no") : word}</option>`)}
          </select>`
        : LISTS.has(name)
          ? html`<textarea ...${given} rows="3" spellcheck=${false} placeholder=${name === "env" ? "NAME=VALUE, one a line" : "one word a line"} value=${value} onInput=${put}></textarea>`
          : html`<input ...${given} type="text" autocomplete="off" spellcheck=${false} list=${name === "environment" ? "environments" : undefined} disabled=${Boolean(off)} placeholder=${shown} value=${value} onInput=${put} />`}<//>
  `;
}

/** @param {{fault?: string}} props */
function Source({ fault = "" }) {
  const open = useSignal(false);
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const { typed, failed } = kept.value;
  const close = () => {
    open.value = false;
    field.current?.focus();
  };
  return html`
    <${Field} word="Source" wide error=${failed.source ?? fault} help="A folder of the machine that Shoal runs on, or a Hugging Face hub id such as org/name.">${(/** @type {any} */ given) => html`
      <div class="with-button">
        <input ...${given} ref=${field} type="text" required autocomplete="off" spellcheck=${false} placeholder="~/models/my-model or org/name" value=${typed.source ?? ""} onInput=${(/** @type {any} */ event) => type("source", event.target.value)} />
        <button type="button" aria-expanded=${String(open.value)} onClick=${() => (open.value = !open.value)}>Browse…</button>
      </div>`}<//>
    ${open.value && html`<${Folders} onClose=${close} onChoose=${(/** @type {string} */ source) => { type("source", source); close(); }} />`}
  `;
}

function Places() {
  const { typed, failed } = kept.value;
  const chosen = devicesOf(typed);
  const put = (/** @type {string} */ id, /** @type {boolean} */ on) => type("devices", devices.value.map((device) => device.id).filter((one) => (one === id ? on : chosen.includes(one))).join(","));
  return html`
    <fieldset class="places">
      <legend>Devices</legend>
      <p class="help">None chosen: wherever there is room. Several: it is split over them.</p>
      <div class="choices">${devices.value.map((device) => html`
        <label key=${device.id}><input type="checkbox" checked=${chosen.includes(device.id)} onChange=${(/** @type {any} */ event) => put(device.id, event.target.checked)} />
          ${device.id} <span class="soft">${bytes(Math.max(0, device.memory_total - device.memory_used))} of ${bytes(device.memory_total)} unused</span></label>`)}</div>
      ${failed.devices && html`<p class="wrong">${failed.devices}</p>`}
    </fieldset>
  `;
}

/** `arrived`: it took the place of what became of a model, where the keyboard was.
 * @param {{schema: Record<string, Schema>, problem: string, arrived: boolean, installed: {name: string, kind: string, version: string}[]}} props */
function Form({ schema, problem, arrived, installed }) {
  const { typed, load, sent, failed } = kept.value;
  const settings = settingsOf(typed, schema);
  const name = nameOf(typed);
  const taken = name !== sent && names.value.includes(name);
  const before = sent && names.value.includes(sent) ? sent : "";
  const unload = before !== "" && modelOf(before)?.value.state !== "unloaded";
  const command = commandOf(settings, load, before && { name: before, unload });
  const fit = useFit(fitOf(typed, schema), lying.value);
  const fitFaults = fit.error.value ? blame(fit.error.value, typed, Object.keys(schema)) : NOTHING;
  const split = devicesOf(typed).length;
  const { busy, error, act } = useAct(async () => {
    const faults = faultsOf(typed);
    if (Object.keys(faults).length) return keep({ failed: faults });
    try {
      if (before) {
        await call("DELETE", `${modelPath(before)}${unload ? "?unload=true" : ""}`);
        keep({ sent: "" });
      }
      const { warning } = await call("POST", "models", settings);
      if (warning) say("warning", warning);
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      const { "": rest, ...known } = blame(fault.message, typed, Object.keys(schema));
      keep({ failed: known });
      throw new ApiError(rest ?? "Some settings cannot be so; each says why.");
    }
    try {
      if (load) await call("POST", modelPath(name, "load"), {});
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      say("error", fault.message, `shoal load ${quote(name)}`);
    }
    return keep({ sent: taken ? "" : name, shown: name, failed: {} });
  });
  const first = new Set(GROUPS.flatMap(([, group]) => group));
  const advanced = Object.keys(schema).filter((one) => !first.has(one) && !APART.has(one));
  const open = useSignal(advanced.some((one) => typed[one]));
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  useEffect(() => {
    if (arrived) form.current?.querySelector("input")?.focus();
  }, []);
  return html`
    <form ref=${form} class="add" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); void act(); }}>
      <datalist id="environments">${installed.map((one) => html`<option key=${one.name} value=${one.name}>${one.kind} ${one.version}</option>`)}</datalist>
      <div class="heading"><h2>Add a model</h2><button type="button" onClick=${() => keep({ typed: FIRST, failed: {}, sent: "" })}>Empty the form</button></div>
      <div class="add-columns">
        <div class="add-fields">
          ${problem && html`<p class="failure" role="alert">${problem}</p>`}
          <div class="card fields first">
            <${Source} fault=${fitFaults.source} />
            <${Field} word="Name" wide error=${failed.name ?? fitFaults.name} help="The name that clients send as model.">${(/** @type {any} */ given) => html`
              <input ...${given} type="text" autocomplete="off" spellcheck=${false} maxlength="200" placeholder=${proposed(typed.source ?? "") || "my-model"} value=${typed.name ?? ""} onInput=${(/** @type {any} */ event) => type("name", event.target.value)} />`}<//>
            ${taken && html`<p class="short wide">There is a model of this name already: that one is loaded if its settings are the same; with other ones this is refused.</p>`}
          </div>
          ${GROUPS.map(([title, group]) => html`
            <fieldset class="card fields" key=${title}>
              <legend>${title}</legend>
              ${title === GROUPS[0]?.[0] && html`<${Places} />`}
              ${group.map((one) => schema[one] && html`<${Setting} key=${one} name=${one} schema=${schema[one]} off=${one === "tensor_parallel" && split ? `It is split over the ${split} chosen.` : ""} />`)}
            </fieldset>`)}
          <details class="card" open=${open.value} onToggle=${(/** @type {any} */ event) => (open.value = event.target.open)}>
            <summary>Advanced settings</summary>
            ${open.value && html`<div class="fields">${advanced.map((one) => html`<${Setting} key=${one} name=${one} schema=${schema[one] ?? {}} />`)}</div>`}
          </details>
        </div>
        <div class="add-side">
          <section class="card verdict" aria-labelledby="fit-title">
            <h3 id="fit-title">Will it fit?</h3>
            <${FitView} answer=${fit.answer.value} error=${fit.error.value} asking=${fit.asking.value} empty="Give a source, and this says where it fits." />
            <div class="fields load">
              <${Field} word="Requests at once" help="On average; for the chance that KV caches collide.">${(/** @type {any} */ given) => html`<input ...${given} type="number" min="0" step="any" value=${typed.concurrency ?? ""} onInput=${(/** @type {any} */ event) => type("concurrency", event.target.value)} />`}<//>
              <${Field} word="Tokens of each" help="Prompt and answer, on average.">${(/** @type {any} */ given) => html`<input ...${given} type="number" min="1" step="any" value=${typed.tokens ?? ""} onInput=${(/** @type {any} */ event) => type("tokens", event.target.value)} />`}<//>
            </div>
          </section>
          <section class="card send">
            <label class="tick"><input type="checkbox" checked=${load} onChange=${(/** @type {any} */ event) => keep({ load: event.target.checked })} /> Load it at once</label>
            ${before && html`<p class="short">This replaces <${Name} text=${before} />, which was added from this form${unload ? " and does not serve yet" : ""}.</p>`}
            <div role="alert">${error.value && html`<p class="failure">${error.value}</p>`}</div>
            <button type="submit" class="primary" disabled=${busy.value || !settings.source}>${load ? "Add and load" : "Add"}</button>
            <p class="soft">The same on the command line:</p>
            ${command ? html`<${Command} text=${command} />` : html`<p class="soft">${name.startsWith("-") ? "A name that begins with - cannot be given there." : "Give a source first."}</p>`}
          </section>
        </div>
      </div>
    </form>
  `;
}

/** What `POST models` takes, as the API describes it. @param {any} document */
const schemaIn = (document) => document?.paths?.["/api/v1/models"]?.post?.requestBody?.content?.["application/json"]?.schema?.properties;

export function AddModel() {
  const { data, error } = useAnswer("../openapi.json");
  const inForce = useAnswer("settings").data.value?.settings;
  const installed = useAnswer("environments").data.value?.environments ?? [];
  const { shown } = kept.value;
  const first = useRef(shown);
  const arrived = useRef(false);
  arrived.current ||= first.current !== shown;
  if (shown) {
    return html`<${AddProgress} key=${shown} name=${shown} arrived=${arrived.current} onBack=${() => keep({ shown: "" })} onAnother=${() => keep({ shown: "", sent: "", typed: FIRST })} />`;
  }
  const described = schemaIn(data.value);
  // What is taken if nothing is said is a setting of Shoal's, and no constant.
  const schema = described?.engine && inForce ? { ...described, engine: { ...described.engine, default: inForce.engine } } : described;
  if (!schema && !error.value) return html`<p class="soft loading">Asking what there is to set…</p>`;
  return html`<${Form} schema=${schema ?? NONE} arrived=${arrived.current} installed=${installed} problem=${schema ? "" : error.value || "Shoal does not say what can be set."} />`;
}
