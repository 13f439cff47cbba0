// Presets: what runs, saved under a name; what having it again would change; having it again, also by the clock.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { confirm } from "../components/confirm.js";
import { Table, useAnswer } from "../components/forms.js";
import { Import, Save, Schedules } from "../components/preset_forms.js";
import { news, Plan, Run, RunState } from "../components/preset_run.js";
import { Command, Name } from "../components/small.js";
import { html, useEffect, useSignal } from "../lib.js";
import { modelAddress } from "../router.js";
import { mayAct } from "../session.js";
import { presetRun } from "../store.js";
import { clock } from "../units.js";

/** @param {PresetEntry} entry */
const instances = (entry) =>
  [entry.awake ? `${entry.awake} awake` : "", entry.asleep ? `${entry.asleep} asleep (level ${entry.sleep_level})` : ""].filter(Boolean).join(", ");

/** @param {{preset: PresetView}} props */
const Inside = ({ preset }) =>
  preset.models.length
    ? html`<${Table} label=${`Models of ${preset.name}`} columns=${["model", "source", "instances", "devices"]}
        rows=${preset.models.map((entry) => ({
          key: entry.spec.name,
          cells: [
            html`<a class="clip" title=${entry.spec.name} href=${modelAddress(entry.spec.name)}><${Name} text=${entry.spec.name} /></a>`,
            html`<code>${entry.spec.source}</code>`, instances(entry), entry.devices.map((placed) => placed.join(", ")).join("; ") || html`<span class="soft">not known</span>`,
          ],
        }))} />`
    : html`<p class="soft">It holds no models: applying it stops everything.</p>`;

/** @param {{preset: PresetView, schedules: ScheduleView[], open: string, onOpen: (what: string) => void, reload: () => void}} props */
function Preset({ preset, schedules, open, onOpen, reload }) {
  const { name, description, models, last_run: last } = preset;
  const word = quote(name);
  const toggle = (/** @type {string} */ what) => () => onOpen(open === what ? "" : what);
  const remove = async () => {
    const gone = await confirm({
      title: `Remove the preset ${name}?`,
      text: `What it holds is lost${schedules.length ? `, and it is not applied by the clock any more (${schedules.map((one) => one.words).join("; ")})` : ""}. What runs goes on.`,
      label: "Remove",
      command: `shoal presets rm ${word}`,
      act: async () => {
        await call("DELETE", `presets/${encodeURIComponent(name)}`);
        reload();
      },
    });
    if (gone) document.getElementById("presets-title")?.focus(); // the button goes with the preset
  };
  return html`
    <li class="card preset" aria-label=${name}>
      <div class="heading">
        <div class="about-preset"><h3><${Name} text=${name} /></h3>${description && html`<p>${description}</p>`}</div>
        <div class="buttons">
          <button type="button" class="primary" aria-expanded=${String(open === "plan")} onClick=${toggle("plan")}>${mayAct.value ? "Apply…" : "Plan"}</button>
          <button type="button" aria-expanded=${String(open === "inside")} onClick=${toggle("inside")}>Show</button>
          ${mayAct.value && html`<button type="button" aria-expanded=${String(open === "times")} onClick=${toggle("times")}>Schedule</button>`}
          <a class="button" href=${`api/v1/presets/${encodeURIComponent(name)}/export`} download=${`${name}.yaml`}>Export</a>
          ${mayAct.value && html`<button type="button" onClick=${() => void remove()}>Remove…</button>`}
        </div>
      </div>
      <p class="soft">${models.length} ${models.length === 1 ? "model" : "models"} · saved ${clock(preset.changed_at)}${last ? html` · applied ${clock(last.started_at)} <${RunState} state=${last.state} />` : " · never applied"}</p>
      ${last && last.state !== "done" && last.state !== "running" && last.message && html`<p class="short">${last.message}</p>`}
      ${open !== "times" && schedules.length > 0 && html`<ul class="times">${schedules.map((one) => html`<li key=${`${one.cron} ${one.zone}`}>Applied ${one.words}<span class="soft">next ${one.next_at === null ? "never" : clock(one.next_at)}</span></li>`)}</ul>`}
      ${open === "plan" && html`<${Plan} name=${name} onClose=${() => onOpen("")} />`}
      ${open === "inside" && html`<div class="stack"><${Inside} preset=${preset} />
        <p class="ends"><span class="soft">An export holds the models' env too: look for secrets before you pass it on.</span><${Command} text=${`shoal presets show ${word}`} /><${Command} text=${`shoal presets export ${option(name)} ${word}`} /></p></div>`}
      ${open === "times" && html`<${Schedules} name=${name} schedules=${schedules} onDone=${reload} onClose=${() => onOpen("")} />`}
    </li>
  `;
}

/** @param {string} name */
const option = (name) => `-o ${quote(`./${name}.yaml`)}`;

export function Presets() {
  const { data, error, load } = useAnswer("presets");
  const { data: times, load: loadTimes } = useAnswer("preset-schedules");
  const open = useSignal({ name: "", what: "" });
  const form = useSignal("");
  const reload = () => {
    void load();
    void loadTimes();
  };
  useEffect(reload, [news.value, presetRun.value?.state]);
  /** @type {PresetView[] | undefined} */
  const presets = data.value?.presets;
  const known = presets?.map((one) => one.name) ?? [];
  const close = () => (form.value = "");
  const done = () => {
    close();
    reload();
  };
  return html`
    <section aria-labelledby="presets-title">
      <div class="heading">
        <h2 id="presets-title" tabindex="-1">Presets</h2>
        ${mayAct.value && html`
          <button type="button" class="primary" aria-expanded=${String(form.value === "save")} onClick=${() => (form.value = form.value === "save" ? "" : "save")}>Save what runs</button>
          <button type="button" aria-expanded=${String(form.value === "import")} onClick=${() => (form.value = form.value === "import" ? "" : "import")}>Import</button>`}
      </div>
      ${form.value === "save" && html`<${Save} known=${known} onDone=${done} onClose=${close} />`}
      ${form.value === "import" && html`<${Import} known=${known} onDone=${done} onClose=${close} />`}
      <${Run} />
      ${error.value && html`<p class="failure" role="alert">${error.value} <button type="button" onClick=${reload}>Try again</button></p>`}
      ${!presets && !error.value && html`<p class="soft">Reading…</p>`}
      ${presets?.length === 0 && html`<div class="empty"><h3>No presets yet</h3><p>A preset is what runs, saved under a name. Applying it changes only what differs from it.</p><${Command} text="shoal presets save day" /></div>`}
      <ul class="stack" aria-label="Presets">
        ${presets?.map((one) => html`
          <${Preset} key=${one.name} preset=${one} schedules=${(times.value?.schedules ?? []).filter((/** @type {ScheduleView} */ time) => time.preset === one.name)}
            open=${open.value.name === one.name ? open.value.what : ""} onOpen=${(/** @type {string} */ what) => (open.value = { name: one.name, what })} reload=${reload} />`)}
      </ul>
    </section>
  `;
}
