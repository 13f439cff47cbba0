// One model: what it holds, carries and waits for, what it went through, how it is set and how it is called.

import { actionsOf, begin, busy, quote } from "../actions.js";
import { call, modelPath } from "../api.js";
import { confirm } from "../components/confirm.js";
import { CallingSection } from "../components/model_calling.js";
import { StartsSection, StatesSection } from "../components/model_history.js";
import { LogSection } from "../components/model_log.js";
import { MemorySection } from "../components/model_memory.js";
import { ProfileSection } from "../components/model_profile.js";
import { RequestsSection } from "../components/model_requests.js";
import { coded } from "../components/model_section.js";
import { SettingsSection } from "../components/model_settings.js";
import { TrafficSection } from "../components/model_traffic.js";
import { noteOf } from "../components/row.js";
import { Badge, Command, Name } from "../components/small.js";
import { colourOf } from "../components/tin.js";
import { html, useSignal } from "../lib.js";
import { playgroundAddress } from "../playground.js";
import { mayAct } from "../session.js";
import { connection, known, model as modelOf, names, now } from "../store.js";
import { lastUseOf } from "../traffic.js";
import { ago } from "../units.js";

/** @type {[string, string][]} */
const SECTIONS = [
  ["memory", "Memory"], ["traffic", "Traffic"], ["requests", "Requests"], ["log", "Log"], ["settings", "Settings"],
  ["calling", "How to call it"], ["states", "States"], ["starts", "Starts"], ["profile", "Measured"],
];

/** Go to a section; the hash is the page's address, so it is no link. @param {string} id */
function goTo(id) {
  const title = document.getElementById(`model-${id}`);
  title?.scrollIntoView({ block: "start" });
  title?.focus({ preventScroll: true });
}

const Contents = () => html`
  <nav class="contents" aria-label="On this page">
    ${SECTIONS.map(([id, word]) => html`<button key=${id} type="button" class="quiet" onClick=${() => goTo(id)}>${word}</button>`)}
  </nav>
`;

/** What a model is in one line. @param {ModelView} model @param {number | null} used */
function summary(model, used) {
  const devices = [...new Set(model.instances.flatMap((one) => one.devices))];
  const ready = model.instances.filter((one) => one.state === "ready").length;
  return [
    model.spec.engine,
    devices.length ? `on ${devices.join(", ")}` : "",
    model.desired || model.instances.length ? `${ready} of ${model.desired} serving` : "",
    used ? `last used ${ago(Math.max(0, now.value - used))}` : "",
  ].filter(Boolean).join(" · ");
}

/** @param {{instance: InstanceView}} props */
function Failed({ instance }) {
  const { failure, restart_at: again } = instance;
  if (!failure) return null;
  return html`
    <div class="failure" role="alert">
      <p><strong><${Name} text=${failure.message} /></strong></p>
      ${failure.hint && html`<p><b>What to do: </b><bdi>${coded(failure.hint)}</bdi></p>`}
      <p class="by">${instance.id}${again ? `, starts again in ${Math.max(0, Math.round(again - now.value))} s` : ""}. Its log is below.</p>
    </div>
  `;
}

/** @param {{model: ModelView}} props */
function Actions({ model }) {
  const { name } = model;
  const gone = useSignal(false);
  const remove = () =>
    confirm({
      title: `Remove ${name}?`,
      text: `${model.instances.length ? "Its instances end, with their running requests. " : ""}Its settings are lost, and requests for it are refused. Its files, events and what was measured of it stay.`,
      label: "Remove",
      command: `shoal models rm --unload ${quote(name)}`,
      act: async () => {
        await call("DELETE", `${modelPath(name)}?unload=true`);
        gone.value = true;
      },
    });
  return html`
    <ul class="actions" aria-label=${`What can be done with ${name}`}>
      ${actionsOf(model).map((action, at) => html`
        <li key=${action.id}>
          <button type="button" class=${at === 0 && (action.id === "load" || action.id === "wake") ? "primary" : ""} disabled=${busy.value.has(name)} onClick=${() => begin(name, action)}>${action.label}</button>
          <${Command} text=${action.command} />
        </li>`)}
      ${mayAct.value && html`<li key="remove"><button type="button" class="removes" disabled=${gone.value} onClick=${remove}>Remove…</button><${Command} text=${`shoal models rm --unload ${quote(name)}`} /></li>`}
    </ul>
  `;
}

/** @param {{model: ModelView}} props */
function Head({ model }) {
  const starting = model.instances.find((one) => one.state === "starting" && one.progress);
  const note = noteOf(model);
  const failed = model.instances.filter((one) => one.failure);
  return html`
    <header class="model-head">
      <p class="back"><a href="#/">← Overview</a></p>
      <div class="model-title">
        <h2 dir="auto"><i class=${`dot c${colourOf(model.name)}`} aria-hidden="true"></i><${Name} text=${model.name} /></h2>
        <${Badge} state=${model.state} />${model.spec.pin && html`<span class="pin">pinned</span>`}
      </div>
      <p class="soft">${summary(model, lastUseOf(model.name).value)}</p>
      <p><a href=${playgroundAddress([model.name])}>Open it in the playground</a></p>
      <p class="soft">Source <code class="source"><${Name} text=${model.spec.source} /></code></p>
      ${note && !failed.length && html`<p class="model-note"><${Name} text=${note} /></p>`}
      ${starting?.progress && html`<progress max="100" value=${starting.progress.percent} aria-label=${`Progress of ${model.name}: ${starting.progress.phase}`}></progress>`}
      ${failed.map((one) => html`<${Failed} key=${one.id} instance=${one} />`)}
      <${Actions} model=${model} />
    </header>
  `;
}

/** @param {{name: string}} props */
const Missing = ({ name }) => html`
  <div class="empty">
    <h2>There is no model <${Name} text=${name} /></h2>
    <p>It was removed, or it never was. The overview has the models that there are.</p>
    <p><a href="#/">Go to the overview</a></p>
    <p>To declare it anew:</p>
    <${Command} text=${`shoal models add --source ./folder-or-hub-id ${quote(name)}`} />
  </div>
`;

/** @param {{word: string}} props */
export function ModelPage({ word }) {
  const name = word.normalize("NFC"); // the form in which names are kept; some systems type another
  const there = names.value.includes(name);
  const model = there ? modelOf(name)?.value : undefined;
  if (!known.value) return html`<p class="soft loading">${connection.value === "lost" ? "Shoal does not answer." : "Reading what there is…"}</p>`;
  if (!model) return html`<${Missing} name=${name} />`;
  return html`
    <div class="model-page">
      <${Head} model=${model} />
      <${Contents} />
      <div class="model-grid">
        <${MemorySection} model=${model} />
        <${TrafficSection} name=${name} />
        <${RequestsSection} name=${name} />
        <${LogSection} model=${model} />
        <${SettingsSection} model=${model} />
        <${CallingSection} model=${model} />
        <${StatesSection} name=${name} />
        <${StartsSection} model=${model} />
        <${ProfileSection} model=${model} />
      </div>
    </div>
  `;
}
