// What a model wrote: Markdown as elements, or as it came. All of it is text nodes.

import { html, useRef } from "../lib.js";
import { parse } from "../markdown.js";
import { useCopy } from "./small.js";

/** Beyond this many characters it is shown as it came: elements for all of it would make the page slow. */
const FORMATTED = 300_000;

/** @param {{text: string, label: string, word?: string}} props */
export function Copy({ text, label, word = "Copy" }) {
  const { said, copy } = useCopy(text);
  return html`<button type="button" class="quiet" aria-label=${label} onClick=${copy}>${word}</button><span class="soft copied" role="status">${said}</span>`;
}

/** @param {MarkNode} node @returns {any} */
function draw(node) {
  if (typeof node === "string") return node;
  const { tag, kids, word, href, start, align } = node;
  if (tag === "pre") {
    return html`<div class="play-code"><div class="play-code-head"><span class="soft">${word || "code"}</span><${Copy} text=${kids[0]} label="Copy this code" /></div><pre tabindex="0" dir="ltr"><code>${kids[0]}</code></pre></div>`;
  }
  const inside = kids.map(draw);
  if (tag === "a") return html`<a href=${href} target="_blank" rel="noopener noreferrer">${inside}</a>`;
  if (tag === "table") return html`<div class="wide" tabindex="0" role="group" aria-label="Table"><table>${inside}</table></div>`;
  if (tag === "hr") return html`<hr />`;
  if (tag === "ol") return html`<ol start=${start}>${inside}</ol>`;
  return html`<${tag} class=${word || (align ? `to-${align}` : undefined)} dir=${tag === "p" || tag === "li" ? "auto" : undefined}>${inside}<//>`;
}

/** @param {{text: string, plain: boolean}} props */
export function Text({ text, plain }) {
  // The same elements again are not compared again: other columns' tokens cost nothing here.
  const drawn = useRef(/** @type {{text: string, plain: boolean, made: any} | null} */ (null));
  if (drawn.current?.text !== text || drawn.current.plain !== plain) {
    const made = plain || text.length > FORMATTED ? html`<p class="as-is" dir="auto">${text}</p>` : html`<div class="prose">${parse(text).map(draw)}</div>`;
    drawn.current = { text, plain, made };
  }
  return drawn.current?.made;
}
