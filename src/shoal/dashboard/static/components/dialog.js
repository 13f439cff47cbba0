// Asks once before what cannot be undone, and shows what went wrong.

import { asking, dismiss, notices, run } from "../actions.js";
import { html, useEffect, useRef } from "../lib.js";
import { Command } from "./small.js";

export function Ask() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const one = asking.value;
  useEffect(() => {
    if (one) dialog.current?.showModal();
  }, [one]);
  if (!one?.action.ask) return null;
  const { title, text } = one.action.ask;
  const closed = () => {
    const yes = dialog.current?.returnValue === "yes";
    asking.value = null;
    if (yes) void run(one.name, one.action);
  };
  return html`
    <dialog ref=${dialog} aria-labelledby="ask-title" aria-describedby="ask-text" onClose=${closed}>
      <form method="dialog">
        <h2 id="ask-title">${title}</h2>
        <p id="ask-text">${text}</p>
        <p class="soft">The same on the command line:</p>
        <${Command} text=${one.action.command} />
        <div class="buttons">
          <button value="no" autofocus>Cancel</button>
          <button value="yes" class="danger">${one.action.label}</button>
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
