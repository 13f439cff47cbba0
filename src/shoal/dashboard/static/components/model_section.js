// A section of a model's page, with its title.

import { html } from "../lib.js";

/** @param {{id: string, title: string, wide?: boolean, side?: any, children?: any}} props */
export const Section = ({ id, title, wide, side, children }) => html`
  <section class=${`block ${wide ? "wide" : ""}`} aria-labelledby=${`model-${id}`}>
    <div class="heading"><h3 id=${`model-${id}`} tabindex="-1">${title}</h3>${side}</div>
    ${children}
  </section>
`;

/** Words with their values. @param {{list: [string, any][]}} props */
export const Facts = ({ list }) => html`<dl class="facts">${list.map(([word, value]) => html`<div key=${word}><dt>${word}</dt><dd>${value}</dd></div>`)}</dl>`;

/** Why something could not be read. @param {{error: string}} props */
export const Unread = ({ error }) => (error ? html`<p class="failure" role="status">This may be old: ${error}</p>` : null);

/** Help with what stands between backticks as code. @param {string} text */
export const coded = (text) => text.split("`").map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));
