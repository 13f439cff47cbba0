// The requests that wait or run: looked at each second while somebody looks, filtered, ended.

import { quote } from "../actions.js";
import { ApiError, call } from "../api.js";
import { confirm } from "../components/confirm.js";
import { option, Table } from "../components/forms.js";
import { QueryChoice, QuerySearch } from "../components/query.js";
import { Command, Name } from "../components/small.js";
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { modelAddress, query } from "../router.js";
import { mayAct } from "../session.js";
import { names } from "../store.js";
import { brief, clock, seconds } from "../units.js";

const EVERY = 1000;
/** Rows at first: a browser draws these each second without effort. */
const SHOWN = 200;
/** @type {Record<string, [string, string]>} */
const PHASES = {
  queued: ["○", "waits for its turn"],
  held: ["☾", "waits for its model"],
  waiting: ["◐", "at the engine, which has not answered yet"],
  answering: ["●", "is being answered"],
};

/** What is there, asked each second while the page is seen. @param {string} path */
function useEachSecond(path) {
  const found = useSignal(/** @type {RequestsView | null} */ (null));
  const error = useSignal("");
  const at = useSignal(0);
  const look = useRef(/** @type {() => Promise<void>} */ (async () => {}));
  useEffect(() => {
    let ended = false;
    let timer = 0;
    look.current = async () => {
      clearTimeout(timer);
      if (!document.hidden) {
        try {
          const { data } = await call("GET", path);
          if (ended) return;
          found.value = data;
          at.value = Date.now() / 1000;
          error.value = "";
        } catch (fault) {
          if (!(fault instanceof ApiError)) throw fault;
          if (!ended) error.value = fault.message;
        }
      }
      clearTimeout(timer);
      if (!ended && !document.hidden) timer = setTimeout(look.current, EVERY); // after the answer: a slow one is not asked twice
    };
    const seen = () => void look.current();
    document.addEventListener("visibilitychange", seen);
    seen();
    return () => {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [path]);
  return { found, error, at, again: () => look.current() };
}

/** @param {RequestRow} one */
const lost = (one) =>
  one.phase === "answering"
    ? `Its client gets an error in the midst of the answer; the ${one.tokens === 1 ? "token" : `${one.tokens.toLocaleString()} tokens`} that were written stay with the client, and the rest is never made.`
    : one.phase === "waiting"
      ? "Its client gets an error. What the engine has read of the prompt is lost."
      : "Its client gets an error, and it loses its place in the queue.";

/** @param {RequestRow} one @param {() => Promise<void>} again */
const cancel = (one, again) =>
  confirm({
    title: `Cancel the request ${one.id}?`,
    text: lost(one),
    label: "Cancel the request",
    command: `shoal requests cancel ${quote(one.id)}`,
    act: async () => {
      await call("DELETE", `requests/${encodeURIComponent(one.id)}`);
      void again();
    },
  });

/** @param {{phase: string}} props */
const Phase = ({ phase }) => {
  const [shape, words] = PHASES[phase] ?? ["·", ""];
  return html`<span class="phase" data-phase=${phase} title=${words}><span aria-hidden="true">${shape}</span>${phase}</span>`;
};

/** @param {RequestRow} one @param {() => Promise<void>} again */
const row = (one, again) => ({
  key: one.id,
  cells: [
    html`<${Phase} phase=${one.phase} />`,
    html`<a href=${modelAddress(one.model)} class="clip" title=${one.model}><${Name} text=${one.model} /></a>`,
    html`<span class="clip" title=${`tenant ${one.tenant}`}><${Name} text=${one.key ?? one.tenant} /></span>`,
    one.priority,
    one.position ?? html`<span class="soft">–</span>`,
    brief(one.age),
    one.tokens ? one.tokens.toLocaleString() : html`<span class="soft">–</span>`,
    html`<code class="clip" title=${`${one.id} · ${one.path}${one.instance ? ` · ${one.instance}` : ""}`}>${one.id}</code>`,
    mayAct.value && html`<button type="button" aria-label=${`Cancel ${one.id}`} onClick=${() => void cancel(one, again)}>Cancel</button>`,
  ],
});

export function Requests() {
  const model = query.value.get("model") ?? "";
  const phase = query.value.get("phase") ?? "";
  const words = (query.value.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const { found, error, at, again } = useEachSecond(`requests${model ? `?model=${encodeURIComponent(model)}` : ""}`);
  const shown = useSignal(SHOWN);
  const all = found.value?.requests ?? [];
  const fitting = all.filter((one) => {
    if (phase && one.phase !== phase) return false;
    if (!words.length) return true;
    const text = `${one.id} ${one.model} ${one.key ?? ""} ${one.tenant} ${one.priority} ${one.instance ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const models = [...new Set([...names.value, ...all.map((one) => one.model), ...(model ? [model] : [])])].sort();
  const count = (/** @type {string} */ name) => all.reduce((sum, one) => sum + (one.phase === name ? 1 : 0), 0);
  return html`
    <section aria-labelledby="requests-title">
      <div class="heading">
        <h2 id="requests-title">Requests</h2>
        <${QuerySearch} label="Search by tenant, id or model" />
        <${QueryChoice} word="Phase" name="phase" options=${[["", "all"], ...Object.keys(PHASES).map((name) => [name, `${name} (${count(name)})`])]} />
        <${QueryChoice} word="Model" name="model" options=${[["", "all"], ...models.map((name) => [name, name])]} />
      </div>
      <div class="bar">
        <p class="soft" id="requests-count">${found.value ? `${fitting.length.toLocaleString()}${fitting.length < all.length ? ` of ${all.length.toLocaleString()}` : ""} ${fitting.length === 1 ? "request" : "requests"}` : error.value ? "" : "Reading…"}</p>
        <${Command} text=${["shoal requests", model && option("--model", model)].filter(Boolean).join(" ")} />
      </div>
      ${error.value && html`<p class="failure" role="alert">${error.value}${at.value ? ` What is shown is from ${clock(at.value)}.` : ""}</p>`}
      ${found.value?.silent.map((relay) => html`<p key=${relay} class="short">Relay ${relay} did not say in time what it has.</p>`)}
      ${fitting.length > 0 && html`
        <${Table} label="Requests, the oldest first" kind="requests-list" columns=${["phase", "model", "key or tenant", "class", "place", "age", "tokens", "request", ""]} numbers=${[4, 5, 6]}
          rows=${fitting.slice(0, shown.value).map((one) => row(one, again))} />
        ${fitting.length > shown.value && html`<p class="older"><span class="soft">${shown.value} of ${fitting.length.toLocaleString()} are shown.</span> <button type="button" onClick=${() => (shown.value += SHOWN)}>Show more</button></p>`}
      `}
      ${found.value && !fitting.length && html`
        <div class="empty"><h3>${all.length ? "No request matches" : "No request waits or runs"}</h3>
          ${all.length || model ? html`<p><a href="#/requests">Show all requests</a></p>` : html`<p>What clients ask appears here while it waits or is answered, up to ${seconds(EVERY / 1000)} late.</p>`}</div>`}
    </section>
  `;
}
