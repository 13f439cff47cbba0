// Taking a model by its part of a tin, to another device: there it is asked whether it should move. For keyboards and
// fingers, which scroll with the same gesture, the model's details have the same.

import { movesOf, openMove, targetsOf, widthOf } from "../actions.js";
import { signal } from "../lib.js";
import { mayAct } from "../session.js";
import { model as modelOf } from "../store.js";

/** Pixels from which on it is meant. */
const MEANT = 8;
/** What is carried, from where, over what, and where it is on the screen.
 * @type {import("../vendor/signals.js").Signal<{model: string, from: string, over: string, targets: string[], x: number, y: number} | null>} */
export const carried = signal(/** @type {any} */ (null));

/** Where a model could be carried to; nowhere if it cannot move now. @param {string} name */
export function places(name) {
  const model = modelOf(name)?.value;
  const targets = model && mayAct.value ? targetsOf(model) : [];
  return model && targets.length >= widthOf(model) && !movesOf(name).length ? targets : [];
}

/** Begin, if the pointer then moves. @param {PointerEvent} event @param {string} model @param {string} from */
export function grab(event, model, from) {
  if (event.button !== 0 || event.pointerType === "touch") return;
  const targets = places(model);
  if (!targets.length) return;
  const begun = { x: event.clientX, y: event.clientY };
  const over = (/** @type {PointerEvent} */ at) =>
    /** @type {HTMLElement | null | undefined} */ (document.elementFromPoint(at.clientX, at.clientY)?.closest("[data-device]"))?.dataset.device ?? "";
  const move = (/** @type {PointerEvent} */ at) => {
    if (!carried.peek() && Math.hypot(at.clientX - begun.x, at.clientY - begun.y) < MEANT) return;
    carried.value = { model, from, over: over(at), targets, x: at.clientX, y: at.clientY };
  };
  const end = () => {
    carried.value = null;
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", drop);
    removeEventListener("pointercancel", end);
    removeEventListener("keydown", escape);
  };
  const drop = (/** @type {PointerEvent} */ at) => {
    const target = carried.peek() ? over(at) : "";
    end();
    if (targets.includes(target)) void openMove(model, target);
  };
  const escape = (/** @type {KeyboardEvent} */ key) => {
    if (key.key === "Escape") end();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", drop);
  addEventListener("pointercancel", end);
  addEventListener("keydown", escape);
}
