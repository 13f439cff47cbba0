// Asks once before what cannot be undone, says what is lost, and shows the command that does the same.

import { ApiError } from "../api.js";
import { html, render, useEffect, useRef, useSignal } from "../lib.js";
import { useId } from "./forms.js";
import { Command } from "./small.js";

/** `act` does it; where it is refused, the dialog stays and says why. `body` is drawn below the text.
 * @typedef {{title: string, text: string, label: string, command: string | (() => string), act: () => Promise<unknown>,
 *   body?: () => any, danger?: boolean}} Question */

/** @param {{question: Question, onEnd: (done: boolean) => void}} props */
function Dialog({ question, onEnd }) {
  const { title, text, label, command, act, body, danger = true } = question;
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId("confirm");
  const busy = useSignal(false);
  const error = useSignal("");
  const done = useRef(false);
  useEffect(() => dialog.current?.showModal(), []);
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    if (busy.peek()) return;
    busy.value = true;
    error.value = "";
    try {
      await act();
      done.current = true;
      dialog.current?.close();
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      error.value = fault.message;
    } finally {
      busy.value = false;
    }
  };
  return html`
    <dialog ref=${dialog} aria-labelledby=${`${id}-title`} aria-describedby=${`${id}-text`} onClose=${() => onEnd(done.current)}>
      <form onSubmit=${submit}>
        <h2 id=${`${id}-title`}>${title}</h2>
        <p id=${`${id}-text`}>${text}</p>
        ${body?.()}
        <p class="soft">The same on the command line:</p>
        <${Command} text=${typeof command === "string" ? command : command()} />
        <div role="alert">${error.value && html`<p class="failure">${error.value}</p>`}</div>
        <div class="buttons">
          <button type="button" autofocus onClick=${() => dialog.current?.close()}>Cancel</button>
          <button type="submit" class=${danger ? "danger" : "primary"} disabled=${busy.value}>${label}</button>
        </div>
      </form>
    </dialog>
  `;
}

/** Ask, and do it on a yes. Whether it was done. The focus goes back to where it was. @param {Question} question
 * @returns {Promise<boolean>} */
export function confirm(question) {
  const place = document.createElement("div");
  document.body.append(place);
  return new Promise((resolve) => {
    const end = (/** @type {boolean} */ done) => {
      render(null, place);
      place.remove();
      resolve(done);
    };
    render(html`<${Dialog} question=${question} onEnd=${end} />`, place);
  });
}
