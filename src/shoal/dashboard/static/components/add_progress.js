// What becomes of a model that was just added: each phase as it comes, the log beside it, and what to do if it fails.

import { begin, busy, quote } from "../actions.js";
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { modelAddress } from "../router.js";
import { known, model as modelOf, names, now } from "../store.js";
import { seconds } from "../units.js";
import { Log } from "./details.js";
import { Badge, Command, Name } from "./small.js";

/** Phases that were seen, with when they began. @typedef {{phase: string, at: number}} Seen */

/** What it does now, in a few words. @param {InstanceView} one */
const phaseOf = (one) => (one.state === "starting" && one.progress ? one.progress.phase : { queued: one.reason || "waiting for its turn", ready: "ready", failed: "failed" }[one.state] ?? one.state);

/** `arrived`: it took the place of the form, in which the keyboard was.
 * @param {{name: string, arrived: boolean, onBack: () => void, onAnother: () => void}} props */
export function AddProgress({ name, arrived, onBack, onAnother }) {
  void names.value;
  const model = modelOf(name)?.value;
  const one = [...(model?.instances ?? [])].sort((a, b) => a.created_at - b.created_at).at(-1);
  const seen = useSignal(/** @type {Seen[]} */ ([]));
  const instance = useSignal("");
  const attempt = useSignal(0);
  const phase = one ? phaseOf(one) : "";
  useEffect(() => {
    if (!one) return;
    const another = instance.peek() !== one.id || seen.peek().at(-1)?.phase === "failed"; // one that failed is started anew
    const before = another && phase !== "failed" ? [] : seen.peek();
    if (another && instance.peek() && phase !== "failed") attempt.value++;
    instance.value = one.id;
    if (before.at(-1)?.phase !== phase) seen.value = [...before, { phase, at: Date.now() / 1000 }];
  }, [one?.id, phase]);
  const title = useRef(/** @type {HTMLElement | null} */ (null));
  const there = Boolean(model);
  useEffect(() => {
    if (arrived && document.activeElement === document.body) title.current?.focus();
  }, [there]);
  if (!model) {
    return html`<div class="empty"><h3><${Name} text=${name} /></h3><p>${known.value ? "It is not there: somebody has removed it." : "Asking Shoal how it is…"}</p><div class="buttons"><button type="button" onClick=${onBack}>Back to the settings</button><button type="button" onClick=${onAnother}>Add another one</button></div></div>`;
  }
  const failed = model.state === "failed" && one?.failure;
  const ready = model.state === "ready";
  const coming = one && ["queued", "starting", "waking"].includes(one.state);
  const again = { id: "load", label: "Try again", method: "POST", path: `models/${encodeURIComponent(name)}/load`, body: {}, command: `shoal load ${quote(name)}` };
  const retry = () => {
    title.current?.focus(); // the button goes
    void begin(name, again);
  };
  const progress = one?.progress;
  return html`
    <section class="going" aria-labelledby="going-title">
      <div class="heading"><h2 id="going-title" ref=${title} tabindex="-1"><${Name} text=${name} /></h2><${Badge} state=${model.state} /></div>
      <div class="going-columns">
        <div class="card">
          <div role="status">
            ${ready
              ? html`<p class="fit-verdict" data-verdict="fits"><span aria-hidden="true">✓</span> It serves<small> on ${one?.devices.join(", ")}</small></p>`
              : failed
                ? html`<p class="fit-verdict" data-verdict="does_not_fit"><span aria-hidden="true">✕</span> It failed</p>`
                : html`<p class="fit-verdict"><span aria-hidden="true">◐</span> ${one ? phase : "It is declared"}${progress && coming && html` <small>${progress.percent} %${progress.seconds_left === null ? "" : `, about ${seconds(progress.seconds_left)} left`}</small>`}</p>`}
          </div>
          ${coming && html`<progress max="100" value=${progress?.percent ?? undefined} aria-label=${`Progress of ${name}`}></progress>`}
          ${failed && html`<div class="failure"><p><strong>${failed.message}</strong></p>${failed.hint && html`<p>${failed.hint}</p>`}</div>`}
          ${seen.value.length > 0 && html`<ol class="phases" aria-label="Phases">${seen.value.map(({ phase: word, at }, n) => {
            const until = seen.value[n + 1]?.at ?? (coming ? now.value : at);
            return html`<li key=${n} data-now=${String(n === seen.value.length - 1)}><span>${word}</span> <span class="soft">${until - at >= 1 ? seconds(until - at) : ""}</span></li>`;
          })}</ol>`}
          ${one?.restart_at && html`<p class="soft">It starts again in ${seconds(Math.max(0, one.restart_at - now.value))}.</p>`}
          <div class="buttons">
            ${(failed || !one) && html`<button type="button" class="primary" disabled=${busy.value.has(name)} onClick=${retry}>${failed ? "Try again" : "Load"}</button>`}
            ${!ready && html`<button type="button" onClick=${onBack}>Back to the settings</button>`}
            ${ready && html`<a class="button" href=${modelAddress(name)}>Look at it</a>`}
            <a class="button" href="#/">To the overview</a>
            <button type="button" onClick=${onAnother}>Add another one</button>
          </div>
          ${(failed || !one) && html`<${Command} text=${again.command} />`}
        </div>
        <div class="card">
          <h3>Log</h3>
          ${one ? html`<${Log} key=${`${one.id} ${attempt.value}`} id=${one.id} />` : html`<p class="soft">It begins with a load.</p>`}
        </div>
      </div>
    </section>
  `;
}
