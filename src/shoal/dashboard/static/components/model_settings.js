// All settings of a model, changed here by the API. What was typed stays, whatever happens, until it is saved or taken back.

import { say } from "../actions.js";
import { ApiError, call, modelPath } from "../api.js";
import { html, signal, useSignal } from "../lib.js";
import { mayAct } from "../session.js";
import { changeCommand, faultsOf, setCommand, settingsOf, textOf, valueOf } from "../settings_text.js";
import { accept, model as modelOf } from "../store.js";
import { Field, useAnswer } from "./forms.js";
import { coded, Section, Unread } from "./model_section.js";
import { Command } from "./small.js";

/** @typedef {import("../settings_text.js").Setting} Setting */
/** `base` is what the setting was when somebody began to type. @typedef {{text: string, base: string}} Draft */
/** @typedef {Record<string, Draft>} Drafts */

/** What is typed and not saved, by model; it stays while the page is elsewhere. @type {Map<string, import("../vendor/signals.js").Signal<Drafts>>} */
const kept = new Map();

/** @param {string} name */
function draftsOf(name) {
  const found = kept.get(name) ?? signal(/** @type {Drafts} */ ({}));
  kept.set(name, found);
  return found;
}

/** @param {string} name @param {string} setting @param {Draft | null} draft */
function put(name, setting, draft) {
  const { [setting]: _, ...others } = draftsOf(name).peek();
  draftsOf(name).value = draft ? { ...others, [setting]: draft } : others;
}

/** @param {{setting: Setting, text: string, change: (text: string) => void, given: any}} props */
function Control({ setting: { kind, choices, none, standard }, text, change, given }) {
  const input = (/** @type {any} */ event) => change(event.target.value);
  const options = kind === "switch" ? [["true", "yes"], ["false", "no"]] : choices.map((one) => [one, one]);
  if (options.length) return html`<select ...${given} value=${text} onChange=${input}>${options.map(([value, word]) => html`<option key=${value} value=${value}>${word}</option>`)}</select>`;
  if (kind === "list" || kind === "variables") {
    return html`<textarea ...${given} rows=${Math.min(8, Math.max(2, text.split("\n").length))} spellcheck=${false} placeholder=${kind === "list" ? `one a line, or as JSON: "a\\nb"` : `NAME=VALUE, one a line, or NAME="a\\nb"`} value=${text} onInput=${input}></textarea>`;
  }
  const hint = none ? "none" : kind === "devices" ? "auto" : standard === null ? "" : String(standard);
  return html`<input type="text" ...${given} autocomplete="off" spellcheck=${false} inputmode=${kind === "number" ? "numeric" : undefined} placeholder=${hint} value=${text} onInput=${input} />`;
}

/** @param {{model: ModelView, setting: Setting, draft: Draft | undefined, fault: string | undefined}} props */
function One({ model, setting, draft, fault }) {
  const now = textOf(setting, /** @type {any} */ (model.spec)[setting.name]);
  const text = draft?.text ?? now;
  const change = (/** @type {string} */ typed) => put(model.name, setting.name, typed === now ? null : { text: typed, base: draft?.base ?? now });
  const overtaken = draft && draft.base !== now;
  return html`
    <div class=${`setting ${draft ? "changed" : ""}`} data-setting=${setting.name}>
      <${Field} word=${setting.name} help=${coded(setting.help)} error=${fault}>${(/** @type {any} */ given) => html`<${Control} setting=${setting} text=${text} change=${change} given=${{ ...given, disabled: !mayAct.value }} />`}<//>
      ${draft && html`<p class="meanwhile" role="status">${overtaken
        ? html`Changed meanwhile by somebody else, to <code>${now || "none"}</code>. Yours is not saved.`
        : html`Was <code>${now || "none"}</code>.`} <button type="button" class="quiet" onClick=${() => put(model.name, setting.name, null)}>${overtaken ? "Take theirs" : "Take back"}</button></p>`}
    </div>
  `;
}

/** @param {{model: ModelView}} props */
export function SettingsSection({ model }) {
  const { name } = model;
  const { data, error } = useAnswer("../openapi.json");
  const faults = useSignal(/** @type {Record<string, string>} */ ({}));
  const busy = useSignal(false);
  const said = useSignal("");
  const drafts = draftsOf(name).value;
  const schema = data.value?.paths?.["/api/v1/models"]?.post?.requestBody?.content?.["application/json"]?.schema;
  const settings = schema ? settingsOf(schema) : [];
  const typed = settings.filter((one) => drafts[one.name]);
  const changes = Object.fromEntries(typed.map((one) => [one.name, valueOf(one, drafts[one.name]?.text ?? "")]));
  const anew = typed.filter((one) => !one.live).map((one) => one.name);
  const serving = model.instances.some((one) => one.state === "ready");
  const running = model.instances.some((one) => !["failed", "stopped"].includes(one.state));

  /** What was typed while the answer was awaited stays. @param {Setting} one @param {string} sent */
  const settle = (one, sent) => {
    const draft = draftsOf(name).peek()[one.name];
    if (!draft) return;
    const now = textOf(one, /** @type {any} */ (modelOf(name)?.peek().spec ?? model.spec)[one.name]);
    put(name, one.name, draft.text === sent || draft.text === now ? null : { text: draft.text, base: now });
  };

  /** @param {() => Promise<string>} act */
  const attempt = async (act) => {
    if (busy.peek()) return;
    busy.value = true;
    said.value = "";
    faults.value = {};
    try {
      said.value = await act();
      for (const one of typed) settle(one, drafts[one.name]?.text ?? "");
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      faults.value = faultsOf(fault.message, settings.map((one) => one.name));
    } finally {
      busy.value = false;
    }
  };
  const save = () => attempt(async () => {
    const before = modelOf(name)?.peek();
    const answer = await call("PATCH", modelPath(name), changes);
    accept(answer.data, before);
    if (answer.warning) say("warning", answer.warning);
    return anew.length && running ? "Saved. What runs keeps its older settings until it is loaded anew." : "Saved.";
  });
  const roll = () => attempt(async () => {
    const { id } = (await call("POST", "moves", { model: name, set: changes })).data;
    return `${id} has begun: instances with the new settings take the place of those that run. If one fails, all stays as it was.`;
  });
  const submit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (typed.length) void save();
  };
  const group = (/** @type {boolean} */ live) => settings.filter((one) => one.live === live);
  return html`
    <${Section} id="settings" title="Settings" wide>
      ${error.value && html`<${Unread} error=${error.value} />`}
      ${!schema && !error.value && html`<p class="soft">Reading what can be set…</p>`}
      ${schema && html`
        <form class="settings" onSubmit=${submit} aria-labelledby="model-settings">
          ${!mayAct.value && html`<p class="soft">You may look at them; to change them takes an admin.</p>`}
          <h4>In force at once</h4>
          <div class="fields">${group(true).map((one) => html`<${One} key=${one.name} model=${model} setting=${one} draft=${drafts[one.name]} fault=${faults.value[one.name]} />`)}</div>
          <h4>In force with a new start</h4>
          <div class="fields">${group(false).map((one) => html`<${One} key=${one.name} model=${model} setting=${one} draft=${drafts[one.name]} fault=${faults.value[one.name]} />`)}</div>
          <div class=${`save ${typed.length ? "typed" : ""}`}>
            <div role="alert">${faults.value[""] && html`<p class="failure">${faults.value[""]}</p>`}
              ${Object.keys(faults.value).some(Boolean) && html`<p class="failure">Not saved: see ${Object.keys(faults.value).filter(Boolean).join(", ")}.</p>`}</div>
            ${typed.length > 0 && html`
              <p>${typed.length === 1 ? "One change" : `${typed.length} changes`}: ${typed.map((one) => one.name).join(", ")}.
                ${anew.length > 0 && running && html` <strong>${anew.join(", ")} ${anew.length === 1 ? "needs" : "need"} a new start.</strong>`}</p>
              <div class="choice-line"><button type="submit" class="primary" disabled=${busy.value}>Save</button><${Command} text=${setCommand(name, changes, new URL("api/v1", document.baseURI).href)} /></div>
              ${anew.length > 0 && serving && html`<div class="choice-line"><button type="button" disabled=${busy.value} onClick=${roll}>Change while it serves</button><${Command} text=${changeCommand(name, changes)} /></div>`}
            `}
            <p role="status" class="soft">${said.value}</p>
          </div>
        </form>`}
    <//>
  `;
}
