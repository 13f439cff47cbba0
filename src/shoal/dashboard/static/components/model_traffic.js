// What a model is asked and answers: now, and over time.

import { colour } from "../dom.js";
import { historyOf } from "../history.js";
import { html, signal, useSignal } from "../lib.js";
import { colours } from "../theme_choice.js";
import { ratesOf } from "../traffic.js";
import { brief, bytes, clock, rate } from "../units.js";
import { useChart } from "./chart.js";
import { Section } from "./model_section.js";

const HEIGHT = 110;

/** @typedef {"10m" | "24h"} Span */
/** Seconds that a chart shows. */
const SPANS = { "10m": 600, "24h": 86_400 };
/** What somebody chose stays while the page is elsewhere. */
const span = signal(/** @type {Span} */ ("10m"));

/** @typedef {{id: Exclude<keyof import("../history.js").ModelHistory, "at" | "state">, word: string}} Line */
/** @typedef {{title: string, lines: Line[], write: (value: number) => string}} ChartKind */

/** @type {ChartKind[]} */
const CHARTS = [
  { title: "Requests per second", lines: [{ id: "requests", word: "requests/s" }], write: rate },
  { title: "Tokens per second", lines: [{ id: "tokens", word: "tokens/s" }], write: rate },
  { title: "Time to the first token", lines: [{ id: "first_byte_p50", word: "median" }, { id: "first_byte_p95", word: "95th percentile" }], write: brief },
  { title: "Requests at once", lines: [{ id: "running", word: "running" }, { id: "waiting", word: "waiting" }], write: rate },
  { title: "KV cache", lines: [{ id: "kv_used", word: "in use" }, { id: "kv_cached", word: "cached" }], write: bytes },
];

/** @param {HTMLElement} element @param {{name: string, kind: ChartKind, over: Span}} what @param {(text: string) => void} point */
function chart(element, { name, kind, over }, point) {
  const [first, second, soft, line] = ["--accent", "--wait", "--soft", "--line"].map((property) => colour(element, property));
  const history = historyOf(name, over);
  const range = () => {
    const last = history.peek()?.at.at(-1) ?? Date.now() / 1000;
    return /** @type {[number, number]} */ ([last - SPANS[over], last]);
  };
  let flat = false; // nothing but zeros: a scale would be made up
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    options: {
      height: HEIGHT, padding: /** @type {[number, number, number, number]} */ ([8, 8, 0, 0]),
      legend: { show: false }, cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { range }, y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ most) => {
        flat = !(most > 0);
        return /** @type {[number, number]} */ ([0, flat ? 1 : most * 1.1]);
      } } },
      axes: [
        { ...axis, size: 26, space: 90, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((at) => clock(at).slice(-8, -3)) },
        { ...axis, size: 52, space: 34, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((value) => (value === 0 ? "0" : flat ? "" : kind.write(value))) },
      ],
      series: [{}, ...kind.lines.map(({ word }, at) => ({ label: word, stroke: at ? second : first, width: 2, ...(at ? { dash: [6, 4] } : {}), points: { show: false } }))],
      hooks: {
        setCursor: [(/** @type {any} */ self) => {
          const at = self.cursor.idx;
          point(at == null ? "" : `${clock(self.data[0][at])}: ${kind.lines.map(({ word }, n) => `${word} ${self.data[n + 1][at] == null ? "–" : kind.write(self.data[n + 1][at])}`).join(", ")}`);
        }],
      },
    },
    data() {
      const found = history.peek();
      return [found?.at ?? [], ...kind.lines.map(({ id }) => found?.[id] ?? [])];
    },
    follow: (/** @type {() => void} */ draw) => history.subscribe(draw),
  };
}

/** @param {{name: string, kind: ChartKind, over: Span}} props */
function Chart({ name, kind, over }) {
  const pointed = useSignal("");
  const place = useChart((element) => chart(element, { name, kind, over }, (text) => (pointed.value = text)), [name, over, colours.value]);
  return html`
    <figure class="chart">
      <figcaption><span>${kind.title}</span>
        ${kind.lines.length > 1 && html`<span class="soft keys">${kind.lines.map(({ word }, at) => html`<span key=${word}><i class=${`key k${at}`} aria-hidden="true"></i>${word}</span>`)}</span>`}
        <small class="pointed-at">${pointed.value}</small></figcaption>
      <div ref=${place} role="img" aria-label=${`${kind.title} over time`}></div>
    </figure>
  `;
}

/** @param {{name: string}} props */
function Now({ name }) {
  const found = ratesOf(name).value;
  /** @type {[string, string][]} */
  const list = [
    ["requests/s", found ? rate(found.requests) : "–"],
    ["tokens/s", found ? rate(found.tokens) : "–"],
    ["first token, median", found?.p50 != null ? brief(found.p50) : "–"],
    ["first token, 95 %", found?.p95 != null ? brief(found.p95) : "–"],
    ["running", String(found?.running ?? "–")],
    ["waiting", String(found?.waiting ?? "–")],
  ];
  return html`<dl class="numbers">${list.map(([word, value]) => html`<div key=${word}><dd>${value}</dd><dt>${word}</dt></div>`)}</dl>`;
}

/** @param {{name: string}} props */
export function TrafficSection({ name }) {
  const over = span.value;
  const side = html`
    <label class="choice"><span>Charts of</span>
      <select value=${over} onChange=${(/** @type {any} */ event) => (span.value = event.target.value)}>
        <option value="10m">ten minutes</option><option value="24h">24 hours</option>
      </select>
    </label>`;
  return html`
    <${Section} id="traffic" title="Traffic" side=${side}>
      <${Now} name=${name} />
      <div class="charts">${CHARTS.map((kind) => html`<${Chart} key=${kind.title} name=${name} kind=${kind} over=${over} />`)}</div>
      <p class="soft">The numbers are of the last minute. The charts begin where the controller started.</p>
    <//>
  `;
}
