// What a model went through, with reasons and how long each state lasted; and how long its starts took, phase by phase.

import { ApiError, call } from "../api.js";
import { NOTHING, reach, withPage } from "../event_reads.js";
import { html, useEffect, useSignal } from "../lib.js";
import { events, told } from "../store.js";
import { brief, clock } from "../units.js";
import { useAnswer } from "./forms.js";
import { Facts, Section, Unread } from "./model_section.js";
import { Badge, Name } from "./small.js";

const PAGE = 40;
/** Pages that are read at most after the connection was lost. */
const PAGES = 8;
const STATES = new Set(["queued", "starting", "ready", "draining", "sleeping", "waking", "stopping", "stopped", "failed"]);

/** What an event says: one of the stream has no id yet. @param {ModelEvent} one */
const same = (one) => `${one.at} ${one.kind} ${one.instance ?? ""} ${one.message}`;

/** Two lists of events as one, the newest first; what stands in both once, as it was saved.
 * @param {ModelEvent[]} saved @param {ModelEvent[]} heard @returns {ModelEvent[]} */
export function merged(saved, heard) {
  const all = new Map([...heard, ...saved].map((one) => [same(one), one]));
  return [...all.values()].sort((a, b) => b.at - a.at || (b.id ?? 0) - (a.id ?? 0));
}

/** @param {{name: string}} props */
export function StatesSection({ name }) {
  const saved = useSignal(/** @type {ModelEvent[]} */ ([]));
  const error = useSignal("");
  const reads = useSignal(NOTHING);
  const busy = useSignal(false);
  /** The newest page, or the one before `oldest`; and on until no event is missing above what was read before. @param {number} [oldest] */
  const read = async (oldest) => {
    busy.value = true;
    const heard = new Set(events.peek().filter((one) => !one.id).map(same));
    try {
      let before = oldest;
      for (let pages = 0; pages < PAGES; pages++) {
        const path = `events/history?model=${encodeURIComponent(name)}&limit=${PAGE}${before === undefined ? "" : `&before=${before}`}`;
        const found = /** @type {ModelEvent[]} */ ((await call("GET", path)).data.events);
        reads.value = withPage(reads.peek(), found, { newest: before === undefined, limit: PAGE, heard: (one) => heard.has(same(one)) });
        saved.value = merged([...saved.peek(), ...found], []);
        if (reads.peek().runs.length < 2) break;
        before = reads.peek().runs[0]?.oldest;
      }
      error.value = "";
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      error.value = fault.message;
    } finally {
      busy.value = false;
    }
  };
  const live = told.value;
  useEffect(() => {
    if (live) void read();
  }, [name, live]);
  const oldest = reach(reads.value, []);
  const list = merged(saved.value, events.value.filter((one) => one.model === name)).filter(({ id }) => !id || id >= oldest);
  const gap = reads.value.runs.length > 1 && !busy.value;
  return html`
    <${Section} id="states" title="What it went through">
      <${Unread} error=${error.value} />
      ${list.length === 0 && html`<p class="soft">Nothing has happened to it yet.</p>`}
      <ol class="states" aria-labelledby="model-states" tabindex="0">
        ${list.map((one) => html`
          <li key=${`${one.at} ${one.kind} ${one.instance} ${one.message}`} data-level=${one.level}>
            <time datetime=${new Date(one.at * 1000).toISOString()}>${clock(one.at)}</time>
            ${STATES.has(one.kind) ? html`<${Badge} state=${one.kind} />` : html`<span class="kind">${one.kind.replaceAll("_", " ")}</span>`}
            <span class="what">${one.level !== "info" && html`<strong class="level">${one.level}: </strong>`}<${Name} text=${one.message} />
              ${one.seconds != null && html` <small>the state before lasted ${brief(one.seconds)}</small>`}</span>
          </li>`)}
        ${gap && html`<li class="soft" role="status">More happened while the connection was lost than was read so far: the list ends at this gap.</li>`}
        ${oldest > 0 && Number.isFinite(oldest) && html`<li class="older"><button type="button" disabled=${busy.value} onClick=${() => read(oldest)}>Older ones</button></li>`}
      </ol>
    <//>
  `;
}

/** Times as a bar to scale, with their words below. @param {{phases: Record<string, number>, label: string}} props */
export function Phases({ phases, label }) {
  const list = Object.entries(phases);
  const sum = list.reduce((all, [, time]) => all + time, 0);
  if (!list.length) return null;
  return html`
    <div class="phases" role="img" aria-label=${`${label}: ${list.map(([word, time]) => `${word} ${brief(time)}`).join(", ")}`}>
      ${list.map(([word, time], at) => html`<span key=${word} class=${`phase p${at % 4}`} title=${`${word}: ${brief(time)}`} style=${{ width: `${(100 * time) / (sum || 1)}%` }}></span>`)}
    </div>
    <${Facts} list=${list.map(([word, time]) => [word, brief(time)])} />
  `;
}

/** @param {{model: ModelView}} props */
export function StartsSection({ model }) {
  const { data, error, load } = useAnswer(`loads?model=${encodeURIComponent(model.name)}&limit=20`);
  const states = model.instances.map((one) => `${one.id} ${one.state}`).join(" ");
  useEffect(() => void load(), [states]);
  /** @type {ModelLoad[]} */
  const loads = data.value?.loads ?? [];
  return html`
    <${Section} id="starts" title="Starts">
      <${Unread} error=${error.value} />
      ${data.value && !loads.length && html`<p class="soft">It was not started yet.</p>`}
      <ol class="starts" aria-labelledby="model-starts" tabindex="0">
        ${loads.map((one) => html`
          <li key=${`${one.instance} ${one.started_at}`}>
            <p class="line"><${Badge} state=${one.outcome === "ready" ? "ready" : "failed"} /><strong>${brief(one.seconds)}</strong><time datetime=${new Date(one.started_at * 1000).toISOString()}>${clock(one.started_at)}</time>
              <span class="soft"><code>${one.instance}</code>, ${one.engine} ${one.version} on ${one.devices.join(", ")}${one.outcome === "ready" ? "" : `: ${one.outcome}`}</span></p>
            <${Phases} phases=${one.phases} label=${`Phases of ${one.instance}`} />
          </li>`)}
      </ol>
    <//>
  `;
}
