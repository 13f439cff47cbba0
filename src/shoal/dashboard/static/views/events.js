// What happened and why: filtered, live at the top, older on demand.

import { option, download } from "../components/forms.js";
import { QueryChoice, QuerySearch } from "../components/query.js";
import { Command, Name } from "../components/small.js";
import { ApiError, call } from "../api.js";
import { forgotten, NOTHING, reach, withPage } from "../event_reads.js";
import { effect, html, useEffect, useRef, useSignal } from "../lib.js";
import { modelAddress, query, setQuery } from "../router.js";
import { events, names, told } from "../store.js";
import { brief, clock } from "../units.js";

/** @typedef {import("../event_reads.js").Reads} Reads */

const PAGE = 500;
/** Pages that one press on "Older" reads at most: a filter may match little. */
const PAGES = 8;
const SHOWN = 200;
const MOST = 20_000;
const SINCE = /** @type {[string, string][]} */ ([["", "any time"], ["10m", "last 10 minutes"], ["1h", "last hour"], ["1d", "last day"], ["7d", "last 7 days"]]);
/** @type {Record<string, number>} */
const UNITS = { m: 60, h: 3600, d: 86_400 };
/** @type {Record<string, string>} */
const SHAPES = { info: "·", warning: "▲", error: "✕" };

/** An event of the stream has no id yet; so it is told from others by what it says. @param {HistoryEvent} event */
const keyOf = (event) => `${event.at} ${event.kind} ${event.instance ?? event.model ?? ""} ${event.message}`;

/** Seconds in `10m`, `1h`, `7d`; 0 if it is none of these. @param {string} text */
function span(text) {
  const [, number, unit] = /^(\d{1,4})([mhd])$/.exec(text) ?? [];
  return number && unit ? Number(number) * (UNITS[unit] ?? 0) : 0;
}

/** What the address asks for. */
function wanted() {
  const said = (/** @type {string} */ name) => query.value.get(name) ?? "";
  return { text: said("q"), level: said("level"), kind: said("kind"), model: said("model"), since: span(said("since")) ? said("since") : "" };
}

/** @param {HistoryEvent} event @param {ReturnType<typeof wanted>} filter @param {number} from */
function fits(event, { text, level, kind, model }, from) {
  if ((kind && event.kind !== kind) || (model && event.model !== model) || event.at < from) return false;
  if (level === "warning" ? event.level === "info" : level && event.level !== level) return false;
  const all = `${event.message} ${event.kind} ${event.model ?? ""} ${event.instance ?? ""}`.toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}

/** The same by the command line. @param {ReturnType<typeof wanted>} filter */
function commandOf({ kind, model, since }) {
  return ["shoal events", model && option("--model", model), kind && option("--kind", kind), since && `--since ${since}`].filter(Boolean).join(" ");
}

/** Reads are kept by what was asked for. @param {{kind: string, model: string, since: string}} filter */
const asked = ({ kind, model, since }) => JSON.stringify([kind, model, since]);

/** The events that are known, and how older ones are asked for. @param {ReturnType<typeof wanted>} filter */
function useEvents({ kind, model, since }) {
  const kept = useSignal(/** @type {ReadonlyMap<string, HistoryEvent>} */ (new Map()));
  const reads = useSignal(/** @type {ReadonlyMap<string, Reads>} */ (new Map()));
  const state = useSignal({ busy: false, error: "" });
  const turn = useRef(0);
  const own = asked({ kind, model, since });
  const wider = [...new Set([kind, ""])].flatMap((one) => [...new Set([model, ""])].map((other) => asked({ kind: one, model: other, since: "" }))).filter((one) => one !== own);
  const reached = () => reach(reads.value.get(own), wider.flatMap((one) => reads.value.get(one) ?? []));
  /** From the newest back to where an event may be missing. */
  const known = () => {
    const least = reached();
    return [...kept.value.values()].filter(({ id }) => !id || id >= least);
  };
  const gap = () => reached() > (reads.value.get(own)?.runs[1]?.newest ?? Infinity);
  const take = (/** @type {HistoryEvent[]} */ list) => {
    const next = new Map(kept.peek());
    for (const event of list) if (!next.get(keyOf(event))?.id) next.set(keyOf(event), event);
    kept.value = next;
    if (next.size <= 2 * MOST) return;
    // A page that stays open for weeks forgets the oldest.
    const stays = [...next].sort(([, a], [, b]) => b.at - a.at).slice(0, MOST);
    const least = stays.reduce((least, [, { id }]) => Math.min(least, id ?? Infinity), Infinity);
    kept.value = new Map(stays);
    reads.value = new Map([...reads.peek()].map(([one, found]) => [one, forgotten(found, least)]));
  };
  /** Read pages before the oldest that is known, or the newest ones until they meet what is known, until `enough` says so.
   * @param {boolean} older @param {(known: HistoryEvent[]) => boolean} enough */
  const read = async (older, enough) => {
    const mine = ++turn.current;
    const from = since ? Date.now() / 1000 - span(since) : 0;
    state.value = { busy: true, error: "" };
    try {
      const oldest = reached();
      let before = older && Number.isFinite(oldest) ? oldest : 0;
      let newest = !before;
      const had = kept.peek();
      const heard = (/** @type {HistoryEvent} */ event) => had.has(keyOf(event)) && !had.get(keyOf(event))?.id;
      for (let pages = 0; pages < PAGES; pages++) {
        const words = new URLSearchParams({ limit: String(PAGE), ...(before && { before: String(before) }), ...(kind && { kind }), ...(model && { model }), ...(from && { since: String(from) }) });
        const { data } = await call("GET", `events/history?${words}`);
        if (mine !== turn.current) return; // the filter is another one by now
        reads.value = new Map(reads.peek()).set(own, withPage(reads.peek().get(own) ?? NOTHING, data.events, { newest, limit: PAGE, heard }));
        take(data.events);
        newest = false;
        before = reached();
        if (!before || kept.peek().size > MOST || (enough(known()) && !gap())) break;
      }
      state.value = { busy: false, error: "" };
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      if (mine === turn.current) state.value = { busy: false, error: fault.message };
    }
  };
  const refresh = () => read(false, () => true);
  const live = told.value;
  useEffect(() => {
    if (live) void refresh();
  }, [kind, model, since, live]);
  useEffect(() => effect(() => take(events.value)), []);
  return { known: known(), begun: Number.isFinite(reached()), ended: reached() === 0, gap: gap(), full: kept.value.size > MOST, state, read, refresh };
}

/** While somebody reads further down, or is in the list by keyboard, what comes waits above and is counted.
 * @param {import("../vendor/signals.js").Signal<number>} until @param {() => number} newest */
function useReading(until, newest) {
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const look = () => {
      const element = list.current;
      const reading = element !== null && (element.getBoundingClientRect().top < 60 || (element.contains(document.activeElement) && document.activeElement !== element));
      if (!reading) until.value = Infinity;
      else if (until.peek() === Infinity) until.value = newest();
    };
    addEventListener("scroll", look, { passive: true });
    addEventListener("focusin", look);
    return () => {
      removeEventListener("scroll", look);
      removeEventListener("focusin", look);
    };
  }, []);
  return list;
}

/** @param {{event: HistoryEvent}} props */
const Line = ({ event }) => html`
  <li class="event" data-level=${event.level}>
    <time datetime=${new Date(event.at * 1000).toISOString()}>${clock(event.at)}</time>
    <span class="level-mark"><span aria-hidden="true">${SHAPES[event.level] ?? "·"}</span> ${event.level}</span>
    <div class="said">
      <p><${Name} text=${event.message} /></p>
      <p class="soft about-event">
        <button type="button" class="word" title="Only this kind" onClick=${() => setQuery("kind", event.kind)}>${event.kind}</button>
        ${event.model && html`<a href=${modelAddress(event.model)}><${Name} text=${event.model} /></a>`}
        ${event.instance && html`<code>${event.instance}</code>`}
      </p>
    </div>
    <span class="took" title="how long the state before it took">${event.seconds != null && html`<span class="visually-hidden">took </span>${brief(event.seconds)}`}</span>
  </li>
`;

export function Events() {
  const filter = wanted();
  const { known, begun, ended, gap, full, state, read, refresh } = useEvents(filter);
  const shown = useSignal(SHOWN);
  const until = useSignal(Infinity);
  const from = filter.since ? Date.now() / 1000 - span(filter.since) : 0;
  const all = known.sort((a, b) => b.at - a.at || (b.id ?? Infinity) - (a.id ?? Infinity));
  const newest = useRef(0);
  newest.current = all[0]?.at ?? 0;
  const list = useReading(until, () => newest.current);
  const found = all.filter((event) => fits(event, filter, from));
  const above = found.filter((event) => event.at > until.value).length;
  const lines = found.slice(above, above + shown.value);
  const kinds = [...new Set([...all.map((event) => event.kind), ...(filter.kind ? [filter.kind] : [])])].sort();
  const models = [...new Set([...names.value, ...(filter.model ? [filter.model] : [])])];
  const filtered = filter.text || filter.level || filter.kind || filter.model || filter.since;
  const older = () => {
    const enough = lines.length + SHOWN;
    shown.value = above + enough;
    if (found.length >= above + enough) return;
    void read(true, (known) => known.filter((event) => fits(event, filter, from)).length >= enough);
  };
  const top = () => {
    until.value = Infinity;
    /** @type {HTMLElement | null} */ (document.activeElement)?.blur?.();
    scrollTo({ top: 0 });
  };
  const { busy, error } = state.value;
  return html`
    <section aria-labelledby="events-title">
      <div class="heading">
        <h2 id="events-title">Events</h2>
        <${QuerySearch} label="Search events" />
        <${QueryChoice} word="Level" name="level" options=${[["", "all"], ["warning", "warnings and errors"], ["error", "errors"]]} />
        <${QueryChoice} word="Kind" name="kind" options=${[["", "all"], ...kinds.map((kind) => [kind, kind])]} />
        <${QueryChoice} word="Model" name="model" options=${[["", "all"], ...models.map((name) => [name, name])]} />
        <${QueryChoice} word="Since" name="since" options=${SINCE.some(([value]) => value === filter.since) ? SINCE : [...SINCE, [filter.since, filter.since]]} />
      </div>
      <div class="bar">
        <p class="soft" role="status">${found.length === 1 ? "1 event" : `${found.length.toLocaleString()} events`}${all.length > found.length ? ` of ${all.length.toLocaleString()} read` : ""}</p>
        <${Command} text=${commandOf(filter)} />
        <button type="button" disabled=${!found.length} onClick=${() => download("shoal-events.jsonl", found.toReversed().map((event) => `${JSON.stringify({ ...event, key: undefined })}\n`).join(""), "application/jsonl")}>Save as JSON lines</button>
      </div>
      ${above > 0 && html`<button type="button" class="primary news" onClick=${top}>↑ ${above} new</button>`}
      ${error && html`<p class="failure" role="alert">${error} <button type="button" onClick=${() => void refresh()}>Try again</button></p>`}
      ${found.length > 0 && html`<ol class="event-list" ref=${list} aria-label="Events, the newest first">${lines.map((event) => html`<${Line} key=${keyOf(event)} event=${event} />`)}</ol>`}
      ${!found.length && begun && !busy && html`<div class="empty"><h3>${filtered ? "No event matches" : "Nothing has happened yet"}</h3>
        ${filtered ? html`<p><a href="#/events">Show all events</a></p>` : html`<p>Loads, failures and restarts appear here.</p>`}</div>`}
      ${gap && !busy && html`<p class="soft" role="status">More happened while the connection was lost than was read so far: the list ends at this gap.</p>`}
      <p class="older">
        ${busy ? html`<span class="soft" role="status">Reading…</span>`
          : (ended || full) && above + lines.length >= found.length ? html`<span class="soft">${full && !ended ? "That is as far back as this page reads; the command reads on." : "That is all that is kept."}</span>`
          : html`<button type="button" onClick=${older}>Older</button>`}
      </p>
    </section>
  `;
}
