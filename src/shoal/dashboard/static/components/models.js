// The models: filtered, sorted, grouped. Which rows there are is worked out apart from what is in them.

import { afterFrame } from "../frames.js";
import { computed, html, signal, useEffect } from "../lib.js";
import { query, setQuery } from "../router.js";
import { mayAct } from "../session.js";
import { all } from "../store.js";
import { lastUseOf, ratesOf } from "../traffic.js";
import { MoveStrip } from "./move_strip.js";
import { NoneServes } from "./none_serves.js";
import { QueryChoice, QuerySearch } from "./query.js";
import { Row } from "./row.js";
import { Command } from "./small.js";

/** @type {[string, string, string[]][]} */
const STATES = [
  ["serving", "Serving", ["ready"]],
  ["coming", "On the way", ["waking", "starting", "queued"]],
  ["leaving", "Leaving", ["draining", "stopping"]],
  ["failed", "Failed", ["failed"]],
  ["asleep", "Asleep", ["sleeping"]],
  ["unloaded", "Not loaded", ["unloaded"]],
];

/** @type {Map<string, [string, string]>} */
const GROUPS = new Map(STATES.flatMap(([word, title, states]) => states.map((state) => [state, [word, title]])));

/** @param {ModelView} model @returns {[string, string]} */
const stateGroup = (model) => GROUPS.get(model.state) ?? ["other", "Other"];

/** @param {ModelView} model */
const kv = (model) => model.instances.reduce((sum, one) => sum + (one.memory.backed ?? 0), 0);

/** By what the list can be sorted: larger comes first. @type {Record<string, (model: ModelView) => number>} */
const SORTS = {
  name: () => 0,
  "requests/s": (model) => ratesOf(model.name).value?.requests ?? 0,
  "tokens/s": (model) => ratesOf(model.name).value?.tokens ?? 0,
  waiting: (model) => ratesOf(model.name).value?.waiting ?? 0,
  KV: kv,
  "last use": (model) => lastUseOf(model.name).value ?? 0,
};

/** Rows by group, as one text: equal lists are one value, and the list is drawn again only when it changes. */
const arranged = computed(() => {
  const words = (query.value.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const state = query.value.get("state") ?? "";
  const wanted = query.value.get("sort") ?? "";
  const sort = (Object.hasOwn(SORTS, wanted) ? SORTS[wanted] : undefined) ?? (() => 0);
  const by = query.value.get("group") ?? "state";
  const found = all.value.filter((model) => {
    if (!words.length) return !state || stateGroup(model)[0] === state;
    const text = `${model.name} ${model.spec.source} ${model.spec.engine} ${model.state} ${model.instances.flatMap((one) => one.devices).join(" ")}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!state || stateGroup(model)[0] === state);
  });
  const weighed = found.map((model) => ({ model, weight: sort(model) })).sort((a, b) => b.weight - a.weight);
  /** @type {Map<string, string[]>} */
  const groups = new Map(by === "state" ? STATES.map(([, title]) => [title, []]) : []);
  for (const { model } of weighed) {
    const title = by === "state" ? stateGroup(model)[1] : by === "device" ? model.instances.flatMap((one) => one.devices)[0] ?? "On no device" : "";
    groups.set(title, [...(groups.get(title) ?? []), model.name]);
  }
  return JSON.stringify([...groups].filter(([, names]) => names.length));
});
const counts = computed(() => {
  /** @type {Map<string, number>} */
  const found = new Map();
  for (const model of all.value) found.set(stateGroup(model)[0], (found.get(stateGroup(model)[0]) ?? 0) + 1);
  return JSON.stringify(STATES.map(([word, title]) => [word, title, found.get(word) ?? 0]));
});
const any = computed(() => all.value.length > 0);

/** Rows of the first frame: as many as a screen has. The others come in the next ones. */
const FIRST = 12;
const drawn = signal(FIRST);

/** The first `drawn` of all, by group. @param {[string, string[]][]} groups @returns {[string, string[], number][]} */
function begun(groups) {
  let left = drawn.value;
  return groups.map(([title, names]) => {
    const shown = names.slice(0, Math.max(0, left));
    left -= names.length;
    return [title, shown, names.length];
  });
}

const Empty = () => html`
  <div class="empty">
    <h3>No models yet</h3>
    <p>Declare one and load it. The source is a local folder or a Hugging Face hub id.</p>
    ${mayAct.value && html`<a class="button primary" href="#/add">Add a model</a><p>The same on the command line:</p>`}
    <${Command} text="shoal models add my-model --source ./my-model" />
    <${Command} text="shoal load my-model" />
    <p>No engine at hand? A simulated one needs neither GPU nor weights:</p>
    <${Command} text="shoal models add toy --source toy --engine simulated" />
    <${Command} text="shoal load toy" />
  </div>
`;

export function Models() {
  useEffect(() => afterFrame(() => (drawn.value = Infinity)), []);
  /** @type {[string, string[]][]} */
  const groups = JSON.parse(arranged.value);
  /** @type {[string, string, number][]} */
  const states = JSON.parse(counts.value);
  return html`
    <section class="models" aria-labelledby="models-title">
      <div class="heading"><h2 id="models-title" tabindex="-1">Models</h2>
        ${any.value && html`
          <${QuerySearch} label="Search models" />
          <${QueryChoice} word="State" name="state" kept="" options=${[["", "all"], ...states.map(([word, title, count]) => [word, `${title} (${count})`])]} />
          <${QueryChoice} word="Sort" name="sort" kept="name" options=${Object.keys(SORTS).map((word) => [word, word])} />
          <${QueryChoice} word="Group" name="group" kept="state" options=${[["state", "by state"], ["device", "by device"], ["none", "none"]]} />
          ${mayAct.value && html`<a class="button" href="#/add">Add a model</a>`}
        `}
      </div>
      <${MoveStrip} />
      <${NoneServes} />
      ${!any.value && html`<${Empty} />`}
      ${any.value && !groups.length && html`<div class="empty"><h3>No model matches</h3><p><button type="button" onClick=${() => { setQuery("q", ""); setQuery("state", ""); }}>Show all models</button></p></div>`}
      ${groups.length > 0 && html`
        <div class="row columns" aria-hidden="true"><span>state</span><span>model</span><span>req/s</span><span>tokens/s</span><span>running <b>+wait</b></span><span>first token<small>p95</small></span><span>last use</span><span>KV in use<small>cached</small></span><span></span></div>
        ${begun(groups).map(([title, names, count]) => html`
          <div key=${title} class="group">
            ${title && html`<h3 class="group-title">${title} <span class="soft">${count}</span></h3>`}
            <ul>${names.map((name) => html`<${Row} key=${name} name=${name} />`)}</ul>
          </div>`)}
      `}
    </section>
  `;
}
