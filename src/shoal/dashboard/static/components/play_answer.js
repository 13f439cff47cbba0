// One answer of one model: its text, how it ended, and what it took.

import { html, useRef } from "../lib.js";
import { speed, underWay } from "../playground.js";
import { model as modelOf, names } from "../store.js";
import { brief, rate } from "../units.js";
import { ask, stop } from "./play_run.js";
import { Name } from "./small.js";
import { Text } from "./play_text.js";

/** What is done about a request meanwhile. @param {PlayAnswer} answer */
function waiting(answer) {
  if (answer.waits) return answer.waits;
  const there = names.value.length ? modelOf(answer.model)?.value : undefined;
  const progress = there?.instances.find((one) => one.progress)?.progress;
  const far = progress ? ` ${progress.phase}, ${Math.round(progress.percent)} %` : "";
  if (there?.state === "sleeping" || there?.state === "waking") return `It wakes…${far}`;
  if (there && ["unloaded", "queued", "starting"].includes(there.state)) return `It loads…${far}`;
  return "Waiting for its first token…";
}

/** @param {PlayAnswer} answer @returns {[string, string][]} */
export function figures(answer) {
  const { rate: perSecond, estimated } = speed(answer);
  const time = (/** @type {number | null} */ ms) => (ms === null ? null : brief(ms / 1000));
  /** @type {[string, string | null][]} */
  const all = [
    ["first token", time(answer.first)],
    ["tokens/s", perSecond === null ? null : `${estimated ? "≈ " : ""}${rate(perSecond)}`],
    ["prompt tokens", answer.prompt === null ? null : `${answer.prompt}`],
    ["answer tokens", answer.completion === null ? (answer.pieces ? `≈ ${answer.pieces}` : null) : `${answer.completion}`],
    ["queued", time(answer.queue)],
    ["woken in", answer.wake ? time(answer.wake) : null],
    ["held", answer.wake === null ? time(answer.held) : null],
  ];
  return all.flatMap(([word, text]) => (text === null ? [] : [[word, text]]));
}

const ENDS = /** @type {const} */ ({ stopped: "Stopped", cut: "Incomplete", refused: "No answer" });

/** @typedef {{answer: PlayAnswer | undefined, column: PlayColumn, turn: PlayTurn, last: boolean, plain: boolean}} Props */

/** One that has ended is drawn once, however fast others come. @param {Props} props */
export function Answer(props) {
  const kept = useRef(/** @type {{of: unknown[], made: any} | null} */ (null));
  const of = [props.answer, props.column.model, props.turn, props.last, props.plain];
  const same = kept.current?.of.every((one, at) => one === of[at]);
  if (!same || (props.answer && underWay(props.answer))) kept.current = { of, made: html`<${One} ...${props} />` };
  return kept.current?.made;
}

/** @param {Props} props */
function One({ answer, column, turn, last, plain }) {
  const name = answer?.model ?? column.model;
  const going = Boolean(answer && underWay(answer));
  const end = answer && answer.state in ENDS ? ENDS[/** @type {keyof typeof ENDS} */ (answer.state)] : "";
  return html`
    <article class="play-answer" aria-label=${`Answer of ${name || "no model"}`} data-state=${answer?.state ?? "none"} aria-busy=${String(going)}>
      <header><h4 class="clip" title=${name}><${Name} text=${name || "No model"} /></h4>
        ${going && html`<button type="button" aria-label=${`Stop ${name}`} onClick=${() => stop(column.id)}>Stop</button>`}
        ${!going && last && column.model && html`<button type="button" class="quiet" aria-label=${`${answer ? "Ask again" : "Ask"} ${column.model}`} onClick=${() => ask(column.id, turn)}>${answer ? "Ask again" : "Ask"}</button>`}
      </header>
      ${!answer && html`<p class="soft">Not asked.</p>`}
      ${answer?.reasoning && html`<details class="reasoning"><summary>Reasoning${answer.text ? "" : "…"}</summary><${Text} text=${answer.reasoning} plain=${plain} /></details>`}
      ${answer?.text && html`<${Text} text=${answer.text} plain=${plain} />`}
      ${answer?.state === "waiting" && html`<p class="soft waits">${waiting(answer)}</p>`}
      ${answer?.state === "done" && !answer.text && !answer.reasoning && html`<p class="soft">It answered with nothing.</p>`}
      ${answer?.finish === "length" && html`<p class="short">It ended at the limit of tokens.</p>`}
      ${answer && end && html`<p class=${answer.state === "stopped" ? "soft end" : "failure end"} dir="auto"><strong>${end}: </strong>${answer.why}</p>`}
      ${answer && figures(answer).length > 0 && html`<dl class="facts">${figures(answer).map(([word, text]) => html`<div key=${word}><dt>${word}</dt><dd>${text}</dd></div>`)}</dl>`}
    </article>
  `;
}
