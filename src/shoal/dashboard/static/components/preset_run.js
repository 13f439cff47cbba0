// Presets: what applying one would do, and how far it is.

import { ApiError, call } from "../api.js";
import { quote } from "../actions.js";
import { computed, html, useEffect, useLayoutEffect, useRef, useSignal } from "../lib.js";
import { modelAddress } from "../router.js";
import { mayAct } from "../session.js";
import { events, now, presetRun as run, told } from "../store.js";
import { brief, clock } from "../units.js";
import { confirm } from "./confirm.js";
import { Check, Table, useAct, useAnswer } from "./forms.js";
import { Command, Name } from "./small.js";

/** @type {Record<string, string>} */
const SHAPES = { waiting: "○", running: "◐", done: "●", failed: "✕", skipped: "–", cancelled: "▽", interrupted: "▽" };
/** @type {Record<string, string>} */
const ACTS = { keep: "=", change: "~", start: "+", stop: "−", sleep: "☾", wake: "☼" };

/** Changes whenever something happened to a preset. */
export const news = computed(() => events.value.find((event) => event.kind.startsWith("preset_"))?.key ?? "");

/** What is answered to an act or a question; but not over what the stream told meanwhile. @param {Promise<{data: RunView}>} answer */
async function take(answer) {
  const before = run.peek();
  const { data } = await answer;
  if (run.peek() === before) run.value = data;
}

async function look() {
  try {
    await take(call("GET", "presets/runs/current"));
  } catch (fault) {
    if (!(fault instanceof ApiError)) throw fault; // there was none, or nobody answers, which the list says too
  }
}

/** @param {{state: string}} props */
export const RunState = ({ state }) => html`<span class="phase" data-phase=${state}><span aria-hidden="true">${SHAPES[state] ?? "·"}</span>${state}</span>`;

/** @param {{action: string}} props */
const Act = ({ action }) => html`<span class="act" data-act=${action}><span aria-hidden="true">${ACTS[action] ?? "·"}</span>${action}</span>`;

/** @param {{name: string}} props */
const ModelLink = ({ name }) => html`<a class="clip" title=${name} href=${modelAddress(name)}><${Name} text=${name} /></a>`;

/** @param {{problems: PresetProblem[], word: string}} props */
const Problems = ({ problems, word }) => html`${problems.map((one) => html`<p key=${one.model} class="failure">${word} <strong><${Name} text=${one.model} /></strong>: ${one.message}</p>`)}`;

const cancelling = () =>
  confirm({
    title: run.value?.cancelling ? "Not wait for the steps under way either?" : "Cancel this run?",
    text: run.value?.cancelling
      ? "What they asked for goes on by itself; the run says what is in place by now."
      : "No further step is begun; those under way end. What is done stays as it is, so the fleet lies between what was and the preset.",
    label: run.value?.cancelling ? "Do not wait" : "Cancel the run",
    command: "shoal presets cancel",
    act: () => take(call("POST", "presets/runs/current/cancel", {})),
  });

/** How far the run is, or how the last one ended. */
export function Run() {
  const live = told.value;
  useEffect(() => void (live && look()), [live]); // from then on the stream tells each step
  const hidden = useSignal(0);
  const one = run.value;
  if (!one || hidden.value === one.started_at) return null;
  const steps = one.steps.filter(({ step }) => step.action !== "keep");
  const ended = steps.filter(({ state }) => state !== "waiting" && state !== "running").length;
  const running = one.state === "running";
  return html`
    <section class="card section run" aria-labelledby="run-title">
      <div class="heading">
        <h3 id="run-title" tabindex="-1">${running ? "Applying" : "Applied last:"} <${Name} text=${one.preset} /> <${RunState} state=${one.state} /></h3>
        <span class="soft">${clock(one.started_at)}${one.ended_at ? `, took ${brief(one.ended_at - one.started_at)}` : ""}</span>
        ${running ? mayAct.value && html`<button type="button" class="danger" onClick=${() => void cancelling()}>${one.cancelling ? "Do not wait…" : "Cancel…"}</button>`
          : html`<button type="button" class="quiet" onClick=${() => (hidden.value = one.started_at)}>Hide</button>`}
      </div>
      <p role="status">${running ? `${one.cancelling ? "Cancelling: " : ""}${ended} of ${steps.length} steps have ended` : `${one.message}.`}</p>
      ${running && steps.length > 0 && html`<progress max=${steps.length} value=${ended} aria-label=${`Progress of ${one.preset}`}></progress>`}
      ${steps.length > 0 && html`
        <${Table} label=${`Steps of ${one.preset}`} kind="steps" columns=${["state", "step", "model", "why", "took"]} numbers=${[4]}
          rows=${steps.map(({ step, state, message, started_at: from, ended_at: to }, n) => ({
            key: String(n),
            cells: [
              html`<${RunState} state=${state} />`, html`<${Act} action=${step.action} />`, html`<${ModelLink} name=${step.model} />`,
              html`<span class=${state === "failed" || state === "skipped" ? "wrong" : ""}>${message || step.reason}</span>`,
              from ? brief(Math.max(0, (to ?? now.value) - from)) : html`<span class="soft">–</span>`,
            ],
          }))} />`}
      ${running ? html`<${Problems} problems=${one.problems} word="Cannot be had:" />` : html`<${Problems} problems=${one.missing} word="Not in place:" />`}
      ${one.notes.map((note) => html`<p key=${note} class="short">${note}</p>`)}
      <${Command} text=${running ? "shoal presets cancel" : "shoal presets status"} />
    </section>
  `;
}

/** What applying a preset would do, and the button that does it. @param {{name: string, onClose: () => void}} props */
export function Plan({ name, onClose }) {
  const keep = useSignal(false);
  const { data, error, load } = useAnswer(`presets/${encodeURIComponent(name)}/plan?exclusive=${!keep.value}`);
  const { busy, error: refused, act } = useAct(() => take(call("POST", `presets/${encodeURIComponent(name)}/apply`, { exclusive: !keep.peek() })));
  useEffect(() => void load(), [news.value]); // somebody else may have changed what runs
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    const mine = place.current;
    return () => {
      if (mine?.contains(document.activeElement)) before?.focus({ preventScroll: true });
    };
  }, []);
  /** @type {PlanView | null} */
  const plan = data.value?.exclusive === !keep.value ? data.value : null;
  const steps = plan?.groups.flat() ?? [];
  const others = keep.value ? "--keep-others " : "";
  const apply = async () => {
    if (!(await act())) return;
    onClose();
    const title = document.getElementById("run-title"); // the button is gone: the keyboard goes on there
    title?.scrollIntoView({ block: "center" });
    title?.focus({ preventScroll: true });
  };
  return html`
    <section ref=${place} class="plan" aria-label=${`Plan of ${name}`}>
      <div class="ends"><h4>What applying it would do now</h4>
        <${Check} word="Keep models that the preset does not name" value=${keep} />
        <button type="button" class="quiet" onClick=${load}>Look again</button></div>
      ${!plan && !error.value && html`<p class="soft" role="status">Working out the plan…</p>`}
      ${error.value && html`<p class="failure" role="alert">${error.value}</p>`}
      ${plan?.in_place && html`<p class="good" role="status">${plan.preset} is in place; there is nothing to do.</p>`}
      ${plan && steps.length > 0 && html`
        <${Table} label=${`Steps to ${name}`} kind="steps" columns=${["step", "model", "why", "devices"]}
          rows=${steps.map((step, n) => ({
            key: String(n),
            attributes: { class: step.action === "keep" ? "none" : "" },
            cells: [html`<${Act} action=${step.action} />`, html`<${ModelLink} name=${step.model} />`, step.reason, step.devices.join(", ") || "any"],
          }))} />`}
      ${plan && html`<${Problems} problems=${plan.problems} word="Cannot be had:" />`}
      ${plan?.notes.map((note) => html`<p key=${note} class="short">${note}</p>`)}
      ${plan && plan.left.length > 0 && html`<p class="soft">Left running beside it: ${plan.left.join(", ")}</p>`}
      ${plan && steps.some((step) => step.action === "stop") && html`<p class="short">Models that are stopped finish the requests that run; what is in their KV caches is lost.</p>`}
      <div role="alert">${refused.value && html`<p class="failure">${refused.value}</p>`}</div>
      <div class="ends">
        ${mayAct.value && html`<button type="button" class="primary" disabled=${busy.value || !plan || plan.in_place} onClick=${() => void apply()}>${plan?.problems.length ? "Apply what can be had" : "Apply"}</button>`}
        <button type="button" onClick=${onClose}>Close</button>
        <${Command} text=${`shoal presets apply ${others}--dry-run ${quote(name)}`} />
        <${Command} text=${`shoal presets apply ${others}${quote(name)}`} />
      </div>
    </section>
  `;
}
