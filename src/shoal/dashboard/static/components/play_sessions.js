// The sessions that this browser keeps: open, name, delete; and what can be taken out of the one that is open.

import { html, useSignal } from "../lib.js";
import { asMarkdown, titleOf } from "../playground.js";
import { clock } from "../units.js";
import { focused } from "./play_columns.js";
import { lines, openSession, remove, rename, session } from "./play_session.js";
import { Name } from "./small.js";

/** @param {{line: PlayLine}} props */
function Line({ line }) {
  const naming = useSignal(false);
  const sure = useSignal(false);
  const title = useSignal("");
  const here = line.id === session.value.id;
  const named = () => {
    naming.value = false;
    void rename(line.id, title.value.trim());
  };
  if (naming.value) {
    return html`<li><form class="naming" onSubmit=${(/** @type {Event} */ event) => (event.preventDefault(), named())}>
      <input type="text" aria-label="Name of the session" maxlength="120" value=${title.value} onInput=${(/** @type {any} */ event) => (title.value = event.target.value)} ref=${focused} />
      <button class="primary">Rename</button><button type="button" onClick=${() => (naming.value = false)}>Cancel</button></form></li>`;
  }
  return html`
    <li aria-current=${here ? "true" : undefined}>
      <button type="button" class="quiet open clip" onClick=${() => openSession(line.id)}><${Name} text=${line.title} /></button>
      <span class="soft">${clock(line.changedAt / 1000)} · ${line.turns} ${line.turns === 1 ? "turn" : "turns"}</span>
      ${sure.value
        ? html`<span class="sure" role="group" aria-label=${`Delete ${line.title}?`}>Its prompts and answers are lost.
            <button type="button" class="danger" onClick=${() => remove(line.id)}>Delete it</button><button type="button" ref=${focused} onClick=${() => (sure.value = false)}>Keep it</button></span>`
        : html`<span class="buttons"><button type="button" class="quiet" aria-label=${`Rename ${line.title}`} onClick=${() => ((title.value = line.title), (naming.value = true))}>Rename</button>
            <button type="button" class="quiet" aria-label=${`Delete ${line.title}`} onClick=${() => (sure.value = true)}>Delete</button></span>`}
    </li>
  `;
}

/** @param {string} text @param {string} kind @param {string} ending */
function save(text, kind, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = `${titleOf(session.peek()).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50) || "session"}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const Sessions = () => html`
  <div class="play-panel">
    <h3>Sessions in this browser</h3>
    ${lines.value.length === 0 && html`<p class="soft">None yet. A session is kept from its first prompt on, here alone: the server keeps none.</p>`}
    <ul class="play-sessions">${lines.value.map((line) => html`<${Line} key=${line.id} line=${line} />`)}</ul>
    <div class="exports">
      <button type="button" onClick=${() => save(JSON.stringify(session.peek(), null, 1), "application/json", "json")}>Export this one as JSON</button>
      <button type="button" onClick=${() => save(asMarkdown(session.peek()), "text/markdown", "md")}>Export this one as Markdown</button>
    </div>
  </div>
`;
