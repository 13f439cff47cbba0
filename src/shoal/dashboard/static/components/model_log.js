// The log of one of a model's instances, also of those that have ended.

import { html, useEffect, useSignal } from "../lib.js";
import { quote } from "../actions.js";
import { clock } from "../units.js";
import { Log } from "./details.js";
import { useAnswer } from "./forms.js";
import { Section } from "./model_section.js";
import { Command } from "./small.js";

/** Those that run and those that have ended, the newest first. @param {InstanceView[]} live @param {InstanceView[]} all @param {string} name */
export function choices(live, all, name) {
  const there = new Set(live.map((one) => one.id));
  const ended = all.filter((one) => one.model === name && !there.has(one.id));
  return [...live, ...ended].sort((a, b) => b.created_at - a.created_at);
}

/** @param {{model: ModelView}} props */
export function LogSection({ model }) {
  const { data, load } = useAnswer("instances?all=true");
  const chosen = useSignal("");
  const ids = model.instances.map((one) => one.id).join(" ");
  useEffect(() => void load(), [ids]);
  const list = choices(model.instances, data.value?.instances ?? [], model.name);
  const one = list.find(({ id }) => id === chosen.value) ?? list[0];
  const side = list.length > 1 && html`
    <label class="choice"><span>Instance</span>
      <select value=${one?.id} onChange=${(/** @type {any} */ event) => (chosen.value = event.target.value)}>
        ${list.map(({ id, state, created_at: at }) => html`<option key=${id} value=${id}>${id} (${state}, from ${clock(at)})</option>`)}
      </select>
    </label>`;
  return html`
    <${Section} id="log" title="Log" wide side=${side}>
      ${one ? html`<${Log} key=${one.id} id=${one.id} state=${one.state} /><${Command} text=${`shoal logs --follow ${quote(one.id)}`} />` : html`<p class="soft">No instance has run yet. The log begins with the first load.</p>`}
    <//>
  `;
}
