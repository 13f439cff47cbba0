// A device as a tin: what is in it, to scale.

import { html, signal } from "../lib.js";
import { WORDS } from "../tins.js";
import { bytes } from "../units.js";
import { Mark } from "./marks.js";
import { grab, places } from "./move_drag.js";
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

/** `steer`: its marks can be moved, and models be taken to other devices.
 * @param {{id: string, tin: import("../tins.js").Tin, steer?: boolean}} props */
export function TinBar({ id, tin, steer = false }) {
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
    const colour = `c${colourOf(one.model)}`;
    for (const kind of /** @type {const} */ (["floor", "ceiling"])) {
      const value = one[kind];
      if (steer) marks.push(html`<${Mark} key=${`${kind} ${one.model}`} device=${id} holding=${one} kind=${kind} start=${start} total=${tin.total} colour=${colour} />`);
      else if (value && start + value <= tin.total) marks.push(html`<i key=${`${kind} ${one.model}`} class=${`mark ${kind} ${colour}`} style=${{ left: share(start + value) }} title=${`${kind} of ${one.model}: ${bytes(value)} of KV cache`}></i>`);
    }
    before += one.size;
  }
  return html`
    <div class="tin-frame">
      <div class="tin" role="img" aria-label=${`Memory of ${id}: ${words}`}>
        ${tin.holdings.filter((one) => one.size).map(
          (one) => html`
            <div key=${one.model} class=${`holding c${colourOf(one.model)} ${pointed.value === one.model ? "pointed" : ""} ${steer && places(one.model).length ? "movable" : ""}`}
              style=${{ width: share(one.size) }} title=${said(one)} onPointerDown=${steer ? (/** @type {PointerEvent} */ event) => grab(event, one.model, id) : undefined}
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
      <div class="marks" aria-hidden=${steer ? undefined : "true"}>${marks}</div>
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
