// Asks once before what cannot be undone, and shows what went wrong.

import { actionsOf, asking, dismiss, notices, run } from "../actions.js";
import { html, useEffect, useRef } from "../lib.js";
import { model as modelOf, names } from "../store.js";
import { Command } from "./small.js";

/** What would be lost as things are now, which others may have changed since it was asked; and instead of that, why it
 * cannot be done. @param {string} name @param {string} id @returns {{text: string, over: string}} */
function standing(name, id) {
  void names.value; // which models there are
  const model = modelOf(name)?.value;
  const ask = model && actionsOf(model).find((action) => action.id === id)?.ask;
  if (ask) return { text: ask.text, over: "" };
  const how = model ? `is ${model.state}` : "is not there any more";
  return { text: "", over: `It cannot be done now: ${name} ${how}. Somebody else was quicker, or it happened by itself.` };
}

export function Ask() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const one = asking.value;
  useEffect(() => {
    if (one) dialog.current?.showModal();
  }, [one]);
  if (!one?.action.ask) return null;
  const { title } = one.action.ask;
  const { text, over } = standing(one.name, one.action.id);
  const closed = () => {
    const yes = dialog.current?.returnValue === "yes";
    asking.value = null;
    if (yes) void run(one.name, one.action);
  };
  return html`
    <dialog ref=${dialog} aria-labelledby="ask-title" aria-describedby="ask-text" onClose=${closed}>
      <form method="dialog">
        <h2 id="ask-title">${title}</h2>
        <div id="ask-text" role="status">${over ? html`<p class="short">${over}</p>` : html`<p>${text}</p>`}</div>
        <p class="soft">The same on the command line:</p>
        <${Command} text=${one.action.command} />
        <div class="buttons">
          <button value="no" autofocus>Cancel</button>
          <button value="yes" class="danger" disabled=${over !== ""}>${one.action.label}</button>
        </div>
      </form>
    </dialog>
  `;
}

export const Notices = () => html`
  <div class="notices" role="alert">
    ${notices.value.map(
      ({ id, level, text, command }) => html`
        <div key=${id} class=${`notice ${level}`}>
          <span>${text}${command && html` <span class="by">(<code>${command}</code>)</span>`}</span>
          <button type="button" class="quiet" aria-label="Dismiss this message" onClick=${() => dismiss(id)}>Dismiss</button>
        </div>
      `,
    )}
  </div>
`;
