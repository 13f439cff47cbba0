// Small things that many views draw.

import { html, useSignal } from "../lib.js";

/** A shape for each state, so that none is told by its colour alone. @type {Record<string, string>} */
const SHAPES = {
  ready: "●", waking: "◐", starting: "◐", queued: "○", sleeping: "☾", draining: "▽", stopping: "▽", failed: "✕", unloaded: "–",
};

/** @param {{state: string}} props */
export const Badge = ({ state }) => html`
  <span class="badge" data-state=${state}><span aria-hidden="true">${SHAPES[state] ?? "·"}</span>${state}</span>
`;

/** A name: it may run right to left, and must not turn the text around it. @param {{text: string}} props */
export const Name = ({ text }) => html`<bdi>${text}</bdi>`;

/** Copying a text, and what is said of it until there is another one. @param {string} text */
export function useCopy(text) {
  const last = useSignal({ text, words: "" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      last.value = { text, words: "Copied" };
    } catch {
      last.value = { text, words: "Select and copy it by hand" }; // a page without TLS has no clipboard
    }
  };
  return { said: last.value.text === text ? last.value.words : "", copy };
}

/** A command line with a button that copies it. @param {{text: string}} props */
export function Command({ text }) {
  const { said, copy } = useCopy(text);
  return html`
    <span class="command">
      <code dir="ltr">${text}</code>
      <button type="button" class="quiet" aria-label=${`Copy the command ${text}`} onClick=${copy}>Copy</button>
      <span class="soft" role="status">${said}</span>
    </span>
  `;
}
