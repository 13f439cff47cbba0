// Moves that are under way: how far each is, and a way back as long as there is one.

import { say } from "../actions.js";
import { ApiError, call } from "../api.js";
import { html, useSignal } from "../lib.js";
import { mayAct } from "../session.js";
import { moves } from "../store.js";
import { Command, Name } from "./small.js";

/** @type {Record<string, string>} */
const STEPS = {
  waiting: "waits for moves before it", asking: "the old one answers the canary", loading: "another one loads", checking: "the new one answers the canary",
  draining: "the new one serves, the old one lets its requests end", undoing: "the new one ends, the old one serves on", restoring: "the old one is loaded again",
};
/** Steps from which there is a way back. */
const CANCELLABLE = new Set(["waiting", "asking", "loading", "checking"]);

/** @param {{move: MoveView}} props */
function One({ move }) {
  const busy = useSignal(false);
  const at = move.legs.findIndex((leg) => !["done", "failed", "cancelled"].includes(leg.step));
  const leg = move.legs[Math.max(0, at)];
  const command = `shoal moves cancel ${move.id}`;
  const cancel = async () => {
    busy.value = true;
    try {
      await call("DELETE", `moves/${encodeURIComponent(move.id)}`);
      // The button goes: the keyboard goes on at the model.
      /** @type {HTMLElement | null} */ (document.querySelector(`.model[aria-label="${CSS.escape(move.model)}"] .more`))?.focus();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      say("error", error.message, command);
    } finally {
      busy.value = false;
    }
  };
  const [from, to] = [leg?.was_on.join(", ") ?? "", leg?.devices.join(", ") ?? ""];
  const way = to && to !== from ? `${from} → ${to}` : "to new settings";
  return html`
    <li>
      <span><strong><${Name} text=${move.model} /></strong> ${way}${move.legs.length > 1 && ` (${at + 1} of ${move.legs.length})`}: ${move.cancelling ? "is being cancelled" : STEPS[leg?.step ?? ""] ?? leg?.step}</span>
      ${leg && mayAct.value && CANCELLABLE.has(leg.step) && !move.cancelling && html`<span class="line"><${Command} text=${command} /><button type="button" disabled=${busy.value} aria-label=${`Cancel the move of ${move.model}`} onClick=${cancel}>Cancel</button></span>`}
    </li>
  `;
}

export function MoveStrip() {
  const found = [...moves.value.values()].filter((move) => move.ended_at === null);
  return html`<div role="status"><ul class="moves" aria-label="Moves under way" hidden=${!found.length}>${found.map((move) => html`<${One} key=${move.id} move=${move} />`)}</ul></div>`;
}
