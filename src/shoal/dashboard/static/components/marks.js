// Floor and ceiling of a model in a device, as marks that can be moved: by pointer, by finger, by keys.

import { quote, say } from "../actions.js";
import { ApiError, call, modelPath } from "../api.js";
import { html, signal, useLayoutEffect, useRef } from "../lib.js";
import { accept, model as modelOf } from "../store.js";
import { bytes } from "../units.js";
import { Command } from "./small.js";

/** @typedef {"floor" | "ceiling"} Kind */
/** A mark that is being moved, and where it would be: bytes of KV cache on the device; null is no ceiling. `by` is what
 * moves it; once it is `sent` it stays there until the broker's numbers have followed. A `grip` is there as long as it is held
 * and not moved: where on the screen, and what the keys had made of the mark before.
 * @typedef {{x: number, before: Draft | null}} Grip
 * @typedef {{model: string, device: string, kind: Kind, value: number | null, by: "pointer" | "keys", sent: boolean, grip?: Grip}} Draft */

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Milliseconds after which what the stream says counts again. */
const SETTLING = 2500;
const PAGE = 8;
/** Pixels from which on a mark is meant to move. */
const MEANT = 3;
const draft = signal(/** @type {Draft | null} */ (null));
/** The mark that was moved last, with the command that does the same, until somebody goes on to something else. */
const done = signal(/** @type {{model: string, device: string, kind: Kind, words: string, command: string} | null} */ (null));

/** The step of a tin's marks: a power of two, about a hundredth of it. @param {number} total */
export const stepOf = (total) => Math.max(MIB, 2 ** Math.floor(Math.log2(Math.max(MIB, total / 100))));

/** A size as the command line takes it, without a loss. @param {number} size */
export const sizeWord = (size) => (size % GIB === 0 ? `${size / GIB}GiB` : size % MIB === 0 ? `${size / MIB}MiB` : String(size));

/** The nearest value that the mark may have; a ceiling at the end of the tin is none.
 * @param {Kind} kind @param {number} wanted @param {{floor: number, ceiling: number | null, room: number, step: number}} bounds
 * @returns {number | null} */
export function allowed(kind, wanted, { floor, ceiling, room, step }) {
  const near = Math.round(wanted / step) * step;
  if (kind === "floor") return Math.max(0, Math.min(near, ceiling ?? room, room));
  if (Math.max(near, wanted) >= room) return null; // the end need not lie on a step
  return Math.max(near, floor, step);
}

/** @param {Draft} mine @param {number} leases */
async function send(mine, leases) {
  const { model, device, kind, value } = mine;
  const each = value === null ? null : Math.round(value / leases / MIB) * MIB;
  const command = `shoal models set --${kind} ${each === null ? "none" : sizeWord(each)} ${quote(model)}`;
  const before = modelOf(model)?.peek();
  draft.value = { ...mine, sent: true };
  const sent = draft.peek();
  try {
    const { data, warning } = await call("PATCH", modelPath(model), { [kind]: each });
    accept(data, before);
    if (draft.peek() === sent) done.value = { model, device, kind, words: `${kind} ${each === null ? "none" : bytes(each)}${leases > 1 ? " for each instance" : ""}`, command };
    if (warning) say("warning", warning);
    setTimeout(() => draft.peek() === sent && (draft.value = null), SETTLING);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (draft.peek() === sent) draft.value = null;
    say("error", error.message, command);
  }
}

/** Whether something is a mark or what is said below it. @param {EventTarget | null} where */
const isPart = (where) => where instanceof Element && where.closest(".mark, .mark-done") !== null;

/** The mark that stands before what is said of it, if it is there. @param {Element} box @returns {HTMLElement | null} */
function markOf(box) {
  let one = box.previousElementSibling;
  while (one?.matches(".mark-value, .mark-done")) one = one.previousElementSibling;
  return /** @type {HTMLElement | null} */ (one);
}

/** What was set, and how to do it from a terminal. It goes with the next click or focus elsewhere, or with Escape.
 * @param {{words: string, command: string}} props */
function Done({ words, command }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => { // at once: who is quick may have gone on before the next frame
    const leave = (/** @type {Event} */ event) => {
      if (event instanceof KeyboardEvent ? event.key !== "Escape" : isPart(event.target)) return;
      if (box.current?.contains(document.activeElement)) markOf(box.current)?.focus(); // what had the focus goes
      done.value = null;
    };
    const kinds = ["pointerdown", "focusin", "keydown"];
    for (const kind of kinds) document.addEventListener(kind, leave);
    return () => kinds.forEach((kind) => document.removeEventListener(kind, leave));
  }, []);
  return html`<div class="mark-done" ref=${box}><span>Set: ${words}</span><${Command} text=${command} /></div>`;
}

/** @param {{device: string, holding: import("../tins.js").Holding, kind: Kind, start: number, total: number, colour: string}} props */
export function Mark({ device, holding, kind, start, total, colour }) {
  const { model, leases } = holding;
  const set = done.value?.model === model && done.value.device === device && done.value.kind === kind ? done.value : null;
  const mine = draft.value?.model === model && draft.value.device === device && draft.value.kind === kind ? draft.value : null;
  const value = mine ? mine.value : holding[kind];
  const told = set && html`<${Done} key=${set.command} words=${set.words} command=${set.command} />`;
  if (!mine && (!value || start + value > total)) return told;
  const room = Math.max(0, total - start);
  const bounds = { floor: holding.floor ?? 0, ceiling: holding.ceiling, room, step: stepOf(total) };
  const shown = value ?? room;
  const put = (/** @type {number} */ wanted, /** @type {Draft["by"]} */ by) => {
    done.value = null;
    draft.value = { model, device, kind, value: allowed(kind, wanted, bounds), by, sent: false };
  };
  const live = () => (draft.peek()?.model === model && draft.peek()?.device === device && draft.peek()?.kind === kind && !draft.peek()?.sent ? draft.peek() : null);
  const finish = () => {
    const last = live();
    if (!last) return;
    if (last.grip) draft.value = last.grip.before; // a click moves nothing
    else if (last.value === holding[kind]) draft.value = null;
    else void send(last, Math.max(1, leases));
  };
  const giveUp = () => live() && (draft.value = null);
  const key = (/** @type {KeyboardEvent} */ event) => {
    const { step } = bounds;
    /** @type {Record<string, number>} */
    const to = {
      ArrowRight: shown + step, ArrowUp: shown + step, ArrowLeft: shown - step, ArrowDown: shown - step,
      PageUp: shown + PAGE * step, PageDown: shown - PAGE * step, Home: 0, End: room,
    };
    const wanted = to[event.key];
    if (wanted !== undefined) put(wanted, "keys");
    else if (event.key === "Enter") finish();
    else if (event.key === "Escape") giveUp();
    else return;
    event.preventDefault();
  };
  const drag = (/** @type {PointerEvent} */ event) => {
    const frame = /** @type {HTMLElement} */ (event.currentTarget).parentElement?.getBoundingClientRect();
    const held = live();
    if (held?.by !== "pointer" || !frame || (held.grip && Math.abs(event.clientX - held.grip.x) < MEANT)) return;
    put(((event.clientX - frame.left) / (frame.width || 1)) * total - start, "pointer");
  };
  const grab = (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0) return;
    const mark = /** @type {HTMLElement} */ (event.currentTarget);
    event.preventDefault();
    mark.setPointerCapture(event.pointerId);
    mark.focus();
    done.value = null;
    // As it is, not rounded to a step: it has not moved yet.
    draft.value = { model, device, kind, value, by: "pointer", sent: false, grip: { x: event.clientX, before: live() } };
  };
  const share = (100 * (start + shown)) / (total || 1);
  const text = value === null ? "no ceiling" : `${bytes(value)} of KV cache`;
  return html`
    <span class=${`mark ${kind} ${colour} ${mine ? "moving" : ""}`} role="slider" tabindex="0" style=${{ left: `${share}%` }}
      aria-label=${`${kind} of ${model} on ${device}`} aria-valuemin="0" aria-valuemax=${room} aria-valuenow=${shown} aria-valuetext=${text} title=${`${kind} of ${model}: ${text}`}
      onPointerDown=${grab} onPointerMove=${drag} onPointerUp=${finish} onPointerCancel=${giveUp} onKeyDown=${key} onBlur=${() => live()?.by === "keys" && finish()}></span>
    ${mine && html`<span class=${`mark-value ${kind}`} style=${{ left: `${share}%`, transform: `translate(-${share}%, -50%)` }}>${kind} ${value === null ? "none" : bytes(value)}${mine.by === "keys" && !mine.sent ? " · Enter sets it" : ""}</span>`}
    ${told}
  `;
}
