// Virtual models: names that stand for other models.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { html, useEffect, useSignal } from "../lib.js";
import { modelAddress } from "../router.js";
import { mayAct } from "../session.js";
import { names } from "../store.js";
import { confirm } from "./confirm.js";
import { option, Panel, Several, Table, TextArea, TextField, useAct } from "./forms.js";
import { Command, Name } from "./small.js";
import { fieldsOf, linesOf } from "./virtual_text.js";

/** @param {VirtualSpec} spec */
const commandOf = (spec) =>
  [
    "shoal virtual set",
    option("--model", spec.model || "MODEL"),
    ...linesOf(spec.set).map((line) => option("--set", line)),
    ...linesOf(spec.defaults).map((line) => option("--default", line)),
    ...spec.strip.map((name) => option("--strip", name)),
    ...(spec.system ? [option("--system", spec.system)] : []),
    ...spec.fallback.map((name) => option("--fallback", name)),
    quote(spec.name || "NAME"),
  ].join(" ");

/** @param {{one: VirtualView | null, onDone: () => void, onClose: () => void}} props */
function Form({ one, onDone, onClose }) {
  const spec = one?.spec;
  const name = useSignal(spec?.name ?? "");
  const model = useSignal(spec?.model ?? "");
  const set = useSignal(linesOf(spec?.set ?? {}).join("\n"));
  const defaults = useSignal(linesOf(spec?.defaults ?? {}).join("\n"));
  const strip = useSignal(spec?.strip ?? []);
  const fallback = useSignal(spec?.fallback ?? []);
  const system = useSignal(spec?.system ?? "");
  const fixed = fieldsOf(set.value);
  const added = fieldsOf(defaults.value);
  const now = { model: model.value.trim(), set: fixed.fields, defaults: added.fields, strip: strip.value, system: system.value || null, fallback: fallback.value };
  const { busy, error, act } = useAct(async () => {
    await call("PUT", `virtual-models/${encodeURIComponent(name.peek().trim())}`, now);
    onDone();
  });
  return html`
    <${Panel} title=${one ? `Change ${one.name}` : "Add a virtual model"} onSubmit=${act} error=${error.value} ends=${html`
      <button class="primary" disabled=${busy.value || Boolean(fixed.error || added.error)}>${one ? "Save" : "Add"}</button><button type="button" onClick=${onClose}>Close</button>
      <${Command} text=${commandOf({ ...now, name: name.value.trim() })} />`}>
      <div class="fields">
        <${TextField} word="Name" value=${name} required readonly=${one !== null} help="What clients send as the model." />
        <${TextField} word="Model" value=${model} required list="virtual-models-known" help="What serves its requests." />
        <datalist id="virtual-models-known">${names.value.map((known) => html`<option key=${known} value=${known}></option>`)}</datalist>
        <${Several} wide="half" word="Fallbacks" value=${fallback} known=${names.value} none="none" help="Asked in this order where the model cannot serve." />
        <${TextArea} wide="half" word="Fields to replace" value=${set} rows="3" placeholder="temperature=0" error=${fixed.error} help="name=value, one a line; a value is JSON or else text." />
        <${TextArea} wide="half" word="Fields to add where they are missing" value=${defaults} rows="3" placeholder="max_tokens=512" error=${added.error} help="As above." />
        <${Several} wide="half" word="Fields to take out" value=${strip} known=${["logit_bias", "logprobs", "seed", "stop", "temperature", "tools", "top_p", "user"]} none="none" />
        <${TextArea} wide="half" word="System message" value=${system} rows="3" help="Put before messages that have none." />
      </div>
    <//>
  `;
}

/** @param {VirtualView} one @param {() => void} reload */
const remove = (one, reload) =>
  confirm({
    title: `Remove the virtual model ${one.name}?`,
    text: `What it does to requests is lost, and who asks for ${one.name} is told that there is no such model. Keys that name it keep the name. ${one.spec.model} goes on.`,
    label: "Remove",
    command: `shoal virtual rm ${quote(one.name)}`,
    act: async () => {
      await call("DELETE", `virtual-models/${encodeURIComponent(one.name)}`);
      reload();
    },
  });

/** @param {VirtualSpec} spec */
const changes = (spec) =>
  [...linesOf(spec.set), ...linesOf(spec.defaults).map((line) => line.replace("=", "?=")), ...spec.strip.map((name) => `no ${name}`), ...(spec.system ? ["system message"] : [])].join(", ");

/** @param {{views: VirtualView[] | null, reload: () => void}} props */
export function VirtualModels({ views, reload }) {
  const open = useSignal(/** @type {{one: VirtualView | null} | null} */ (null));
  const close = () => (open.value = null);
  const key = open.value?.one?.name ?? "";
  useEffect(() => {
    if (key && views && !views.some((one) => one.name === key)) close(); // somebody else removed it
  }, [views]);
  return html`
    <section class="section" aria-labelledby="virtual-title">
      <div class="heading"><h2 id="virtual-title">Virtual models</h2>
        ${mayAct.value && html`<button type="button" aria-expanded=${String(open.value !== null && !key)} onClick=${() => (open.value = open.value && !key ? null : { one: null })}>Add a virtual model</button>`}</div>
      ${open.value && html`<${Form} key=${key} one=${open.value.one} onDone=${() => { close(); reload(); }} onClose=${close} />`}
      ${views?.length === 0 && !open.value && html`<div class="empty"><h3>No virtual models yet</h3><p>A name that stands for another model, with requests changed on the way.</p><${Command} text="shoal virtual set --model MODEL NAME" /></div>`}
      ${views && views.length > 0 && html`
        <${Table} label="Virtual models" columns=${["name", "served by", "changes", "origin", ""]}
          rows=${views.map((one) => ({
            key: one.name,
            cells: [
              html`<strong class="clip" title=${one.name}><${Name} text=${one.name} /></strong>`,
              [one.spec.model, ...one.spec.fallback].map((model, n) => html`<span key=${model}>${n ? " → " : ""}<a href=${modelAddress(model)}><${Name} text=${model} /></a></span>`),
              changes(one.spec) ? html`<code class="changes">${changes(one.spec)}</code>` : html`<span class="soft">none</span>`,
              one.origin === "file" ? html`<span title="Change it in the configuration file, then: shoal reload">file</span>` : one.origin,
              one.origin === "file"
                ? html`<span class="soft">changed in the configuration file</span>`
                : mayAct.value && html`<div class="buttons"><button type="button" aria-label=${`Change ${one.name}`} onClick=${() => (open.value = { one })}>Change</button>
                    <button type="button" aria-label=${`Remove ${one.name}`} onClick=${() => void remove(one, reload)}>Remove…</button></div>`,
            ],
          }))} />`}
    </section>
  `;
}
