// Where a prompt is written: text and pictures, by keyboard, paste, drop or file.

import { html, signal, useRef } from "../lib.js";
import { faultOf } from "../playground.js";
import { imagesOf, MOST, readImage } from "./play_images.js";
import { send, stopAll } from "./play_run.js";
import { busyNow, change, session } from "./play_session.js";

const trouble = signal("");

/** @param {File[]} files */
async function attach(files) {
  const owner = session.peek().id;
  trouble.value = "";
  for (const file of files) {
    if (session.peek().images.length >= MOST) {
      trouble.value = `A prompt takes ${MOST} pictures at most.`;
      return;
    }
    try {
      const image = await readImage(file);
      if (session.peek().id === owner) change({ images: [...session.peek().images, image] });
    } catch (error) {
      trouble.value = error instanceof Error ? error.message : "The picture could not be read.";
    }
  }
}

/** @param {{images: PlayImage[], onRemove?: (at: number) => void}} props */
export const Thumbnails = ({ images, onRemove }) => html`
  <ul class="thumbnails" aria-label="Pictures">
    ${images.map((image, at) => html`
      <li key=${`${at} ${image.name}`}><img src=${image.url} alt=${image.name} />
        ${onRemove && html`<button type="button" class="quiet" aria-label=${`Remove ${image.name}`} onClick=${() => onRemove(at)}>✕</button>`}</li>`)}
  </ul>
`;

/** Why nothing can be sent; empty if it can. @param {PlaySession} now */
function hindrance(now) {
  if (!now.columns.some(({ model, muted }) => model && !muted)) return "Choose a model first.";
  return faultOf(now);
}

/** Write a turn anew. @param {PlayTurn} turn */
export function edit(turn) {
  const { draft, images, editing } = session.peek();
  change({ draft: turn.text, images: turn.images, editing: { turn: turn.id, draft: editing?.draft ?? draft, images: editing?.images ?? images } });
  document.getElementById("prompt")?.focus();
}

function leaveEdit() {
  const { editing } = session.peek();
  if (editing) change({ draft: editing.draft, images: editing.images, editing: null });
}

export function Composer() {
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  const now = session.value;
  const { draft, images, editing, turns } = now;
  const why = hindrance(now);
  const later = editing ? turns.length - 1 - turns.findIndex(({ id }) => id === editing.turn) : 0;
  const go = () => {
    trouble.value = why;
    if (!why && (draft.trim() || images.length)) send();
  };
  /** @param {KeyboardEvent} event */
  const press = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    go();
  };
  /** @param {ClipboardEvent} event */
  const paste = (event) => {
    const found = imagesOf(event.clipboardData);
    if (!found.length) return;
    event.preventDefault();
    void attach(found);
  };
  /** @param {DragEvent} event */
  const drop = (event) => {
    event.preventDefault();
    void attach(imagesOf(event.dataTransfer));
  };
  return html`
    <form class="play-composer" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), go())} onDragOver=${(/** @type {Event} */ event) => event.preventDefault()} onDrop=${drop}>
      ${editing && html`<p class="notice warning"><span>You write a prompt anew.${later > 0 ? ` The ${later === 1 ? "turn" : `${later} turns`} after it will be dropped.` : ""}</span><button type="button" class="quiet" onClick=${leaveEdit}>Leave it as it was</button></p>`}
      ${images.length > 0 && html`<${Thumbnails} images=${images} onRemove=${(/** @type {number} */ at) => change({ images: images.filter((_, each) => each !== at) })} />`}
      <textarea id="prompt" rows="3" dir="auto" aria-label="Prompt" placeholder="Prompt to all models. Enter sends, Shift+Enter begins a line; pictures can be pasted or dropped here." value=${draft} onInput=${(/** @type {any} */ event) => change({ draft: event.target.value })} onKeyDown=${press} onPaste=${paste}></textarea>
      <div class="send">
        <p class="fault" role="alert">${trouble.value}</p>
        <input ref=${file} type="file" accept="image/*" multiple hidden aria-hidden="true" tabindex="-1" onChange=${(/** @type {any} */ event) => (void attach([...event.target.files]), (event.target.value = ""))} />
        <button type="button" onClick=${() => file.current?.click()}>Add pictures</button>
        ${busyNow.value && html`<button type="button" onClick=${stopAll} title="Escape">Stop all</button>`}
        <button class="primary">${editing ? "Send anew" : "Send"}</button>
      </div>
    </form>
  `;
}
