// A device as a tin: what is in it, to scale.

import { html, signal } from "../lib.js";
import { WORDS } from "../tins.js";
import { bytes } from "../units.js";
import { Name } from "./small.js";

const COLOURS = 8;
/** A part of the device that is wide enough for a name. */
const NAMED = 0.15;
/** @type {Map<string, number>} */
const given = new Map();

/** Each model keeps the colour that it first got. @param {string} model */
export function colourOf(model) {
  if (!given.has(model)) given.set(model, given.size % COLOURS);
  return given.get(model);
}

/** The model that is pointed at, here or in the list: its parts stand out everywhere. */
export const pointed = signal("");

/** @param {import("../tins.js").Holding} holding */
const said = (holding) => `${holding.model}: ${holding.parts.map((part) => `${WORDS[part.kind]} ${bytes(part.size)}`).join(", ")}`;

/** @param {{id: string, tin: import("../tins.js").Tin}} props */
export function TinBar({ id, tin }) {
  const share = (/** @type {number} */ size) => `${(100 * size) / (tin.total || 1)}%`;
  const words = [
    ...tin.holdings.filter((one) => one.size).map(said),
    ...(tin.others ? [`${WORDS.others} ${bytes(tin.others)}`] : []),
    `${WORDS.free} ${bytes(tin.free)}`,
  ].join("; ");
  let before = 0;
  /** @type {any[]} */
  const marks = [];
  for (const one of tin.holdings) {
    const start = before + one.beside;
    if (one.floor && start + one.floor <= tin.total) {
      marks.push(html`<i key=${`f ${one.model}`} class=${`mark floor c${colourOf(one.model)}`} style=${{ left: share(start + one.floor) }}
        title=${`floor of ${one.model}: ${bytes(one.floor)} of KV cache`}></i>`);
    }
    if (one.ceiling && start + one.ceiling <= tin.total) {
      marks.push(html`<i key=${`c ${one.model}`} class=${`mark ceiling c${colourOf(one.model)}`} style=${{ left: share(start + one.ceiling) }}
        title=${`ceiling of ${one.model}: ${bytes(one.ceiling)} of KV cache`}></i>`);
    }
    before += one.size;
  }
  return html`
    <div class="tin-frame">
      <div class="tin" role="img" aria-label=${`Memory of ${id}: ${words}`}>
        ${tin.holdings.filter((one) => one.size).map(
          (one) => html`
            <div key=${one.model} class=${`holding c${colourOf(one.model)} ${pointed.value === one.model ? "pointed" : ""}`}
              style=${{ width: share(one.size) }} title=${said(one)}
              onMouseEnter=${() => (pointed.value = one.model)} onMouseLeave=${() => (pointed.value = "")}>
              ${one.parts.map((part) => html`<span key=${part.kind} class="part" data-kind=${part.kind} style=${{ width: `${(100 * part.size) / one.size}%` }}></span>`)}
              ${one.size / tin.total > NAMED && html`<span class="label" aria-hidden="true">${one.asleep ? "☾ " : ""}<${Name} text=${one.model} /></span>`}
            </div>
          `,
        )}
        ${tin.others > 0 && html`<div class="holding others" style=${{ width: share(tin.others) }} title=${`${WORDS.others}: ${bytes(tin.others)}`}>
          <span class="part" data-kind="others"></span></div>`}
        ${tin.heldBack > 0 && html`<div class="holding held" style=${{ width: share(Math.min(tin.heldBack, tin.free)) }} title=${`held back for a start: ${bytes(tin.heldBack)}`}></div>`}
      </div>
      <div class="marks" aria-hidden="true">${marks}</div>
    </div>
  `;
}

/** What the patterns mean. */
export const Legend = () => html`
  <ul class="legend" aria-label="What the patterns mean">
    ${["weights", "used", "cached", "other", "others", "free"].map(
      (kind) => html`<li key=${kind}><i class=${`part ${kind === "others" || kind === "free" ? "" : "c0"}`} data-kind=${kind} aria-hidden="true"></i>${WORDS[/** @type {"weights"} */ (kind)]}</li>`,
    )}
    <li><i class="sample floor" aria-hidden="true"></i>floor</li>
    <li><i class="sample ceiling" aria-hidden="true"></i>ceiling</li>
  </ul>
`;
