// Presets: saving what runs, taking one in as YAML, and when one is applied by the clock.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { html, useRef, useSignal } from "../lib.js";
import { all } from "../store.js";
import { clock } from "../units.js";
import { confirm } from "./confirm.js";
import { Check, Field, option, Panel, TextArea, TextField, useAct } from "./forms.js";
import { lineOf } from "./preset_place.js";
import { Command, Name } from "./small.js";

/** @typedef {{known: string[], onDone: () => void, onClose: () => void}} FormProps */

const HERE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** @param {(string | false)[]} words */
const joined = (...words) => words.filter(Boolean).join(" ");

/** @param {FormProps} props */
export function Save({ known, onDone, onClose }) {
  const name = useSignal("");
  const description = useSignal("");
  const fix = useSignal(false);
  const replace = useSignal(false);
  const there = known.includes(name.value.trim());
  const running = all.value.filter((model) => model.instances.some((one) => !["stopped", "failed", "stopping", "draining"].includes(one.state)));
  const { busy, error, act } = useAct(async () => {
    await call("POST", "presets", {
      name: name.peek().trim(), description: description.peek() || null, replace: there && replace.peek(), fix_devices: fix.peek(),
    });
    onDone();
  });
  const command = joined("shoal presets save", description.value && option("--description", description.value), there && replace.value && "--replace",
    fix.value && "--fix-devices", quote(name.value.trim() || "NAME"));
  return html`
    <${Panel} title="Save what runs" onSubmit=${act} error=${error.value} ends=${html`
      <button class="primary" disabled=${busy.value || (there && !replace.value)}>Save</button><button type="button" onClick=${onClose}>Close</button><${Command} text=${command} />`}>
      <p class="soft">${running.length ? html`It holds what serves and sleeps now, with every setting: ${running.map((model, n) => html`<span key=${model.name}>${n ? ", " : ""}<${Name} text=${model.name} /></span>`)}.` : "Nothing runs now: applying it would stop everything."}</p>
      <div class="fields">
        <${TextField} word="Name" value=${name} required maxlength="200" help="Such as day or night." error=${there && !replace.value ? "There is a preset of this name." : ""} />
        <${TextField} word="Description" value=${description} maxlength="2000" help="What it is for." />
        <${Check} word="Come back on the devices where they are now" value=${fix} help="Otherwise models with devices: auto may go elsewhere." />
        ${there && html`<${Check} word="Replace the preset of this name" value=${replace} help="Its schedules stay, what it held is lost." />`}
      </div>
    <//>
  `;
}

/** @param {FormProps} props */
export function Import({ known, onDone, onClose }) {
  const yaml = useSignal("");
  const file = useSignal("");
  const name = useSignal("");
  const replace = useSignal(false);
  const form = useRef(/** @type {HTMLElement | null} */ (null));
  const { busy, error, act } = useAct(async () => {
    await call("POST", "presets/import", { yaml: yaml.peek(), name: name.peek().trim() || null, replace: replace.peek() });
    onDone();
  });
  const line = error.value ? lineOf(error.value, yaml.value) : 0;
  const read = async (/** @type {any} */ event) => {
    const [chosen] = event.target.files;
    if (!chosen) return;
    yaml.value = await chosen.text();
    file.value = chosen.name;
    error.value = "";
  };
  const go = () => {
    const area = form.current?.querySelector("textarea");
    const lines = yaml.value.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    area?.focus();
    area?.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
    if (area) area.scrollTop = Math.max(0, (line - 4) * parseFloat(getComputedStyle(area).lineHeight));
  };
  return html`
    <div ref=${form}>
      <${Panel} title="Import a preset" onSubmit=${act} error=${error.value} ends=${html`
        <button class="primary" disabled=${busy.value}>Import</button><button type="button" onClick=${onClose}>Close</button>
        <${Command} text=${joined("shoal presets import", name.value.trim() && option("--name", name.value.trim()), replace.value && "--replace", quote(file.value || "FILE"))} />`}>
        <p class="soft">Nothing is fetched or loaded by it.</p>
        <div class="fields">
          <${Field} word="File" help="YAML as an export gives it; it is put below, where it can be changed.">${(/** @type {any} */ given) => html`<input type="file" accept=".yaml,.yml,.txt,application/yaml,text/*" ...${given} onChange=${read} />`}<//>
          <${TextField} word="Another name" value=${name} placeholder="its own" help="Instead of the one in the text." />
          <${Check} word="Replace a preset of this name" value=${replace} help=${known.length ? `There are: ${known.join(", ")}.` : undefined} />
          <${TextArea} word="YAML" value=${yaml} required rows="10" placeholder=${"shoal_preset: 1\nname: day\nmodels: []"} error=${line ? `Line ${line}: ${yaml.value.split("\n")[line - 1]?.trim() ?? ""}` : ""} />
        </div>
        ${line > 0 && html`<p><button type="button" onClick=${go}>Go to line ${line}</button></p>`}
      <//>
    </div>
  `;
}

const zones = () => (Intl.supportedValuesOf ? Intl.supportedValuesOf("timeZone") : []);

/** When a preset is applied, and another time for it. @param {{name: string, schedules: ScheduleView[], onDone: () => void, onClose: () => void}} props */
export function Schedules({ name, schedules, onDone, onClose }) {
  const cron = useSignal("");
  const zone = useSignal(HERE);
  const keep = useSignal(false);
  const path = `presets/${encodeURIComponent(name)}/schedules`;
  const { busy, error, act } = useAct(async () => {
    await call("POST", path, { cron: cron.peek(), zone: zone.peek().trim(), exclusive: !keep.peek() });
    cron.value = "";
    onDone();
  });
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const remove = async (/** @type {ScheduleView} */ one) => {
    const gone = await confirm({
      title: `Not apply ${name} any more at these times?`,
      text: `It was applied ${one.words}. The preset itself stays.`,
      label: "Remove the schedule",
      command: `shoal presets unschedule ${quote(name)} ${quote(one.cron)}`,
      act: async () => {
        await call("DELETE", `${path}?cron=${encodeURIComponent(one.cron)}`);
        onDone();
      },
    });
    if (gone) place.current?.querySelector("input")?.focus(); // the button goes with the times
  };
  const about = (/** @type {string} */ word) => (error.value.startsWith(word) || error.value.includes(`.${word}:`) ? error.value : "");
  return html`
    <div ref=${place}>
      <${Panel} title=${`When ${name} is applied`} onSubmit=${act} error=${about("cron") || about("zone") ? "" : error.value} ends=${html`
        <button class="primary" disabled=${busy.value}>Add these times</button><button type="button" onClick=${onClose}>Close</button>
        <${Command} text=${joined("shoal presets schedule", option("--zone", zone.value || "ZONE"), keep.value && "--keep-others", quote(name), quote(cron.value || "CRON"))} />`}>
        ${schedules.length > 0 && html`<ul class="times">${schedules.map((one) => html`
          <li key=${`${one.cron} ${one.zone}`}><span><code>${one.cron}</code> ${one.words}${one.exclusive ? "" : "; others are kept"}<span class="soft"> · next ${one.next_at === null ? "never" : clock(one.next_at)}</span></span>
            <button type="button" aria-label=${`Remove the schedule ${one.cron}`} onClick=${() => void remove(one)}>Remove…</button></li>`)}</ul>`}
        <div class="fields">
          <${TextField} word="Times" value=${cron} required placeholder="0 8 * * 1-5" dir="ltr" error=${about("cron")} help="Minute, hour, day of month, month, day of week. 0 8 * * 1-5 is 08:00 from Monday to Friday." />
          <${TextField} word="Time zone" value=${zone} required list="zones" error=${about("zone")} help="Such as Europe/Berlin." />
          <datalist id="zones">${zones().map((one) => html`<option key=${one} value=${one}></option>`)}</datalist>
          <${Check} word="Keep models that the preset does not name" value=${keep} />
        </div>
      <//>
    </div>
  `;
}
