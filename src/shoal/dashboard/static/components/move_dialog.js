// Where a model is to move: the choice, both devices before and after, who would have to give way, and the command.

import { moveCommand, targetsOf } from "../actions.js";
import { call } from "../api.js";
import { html, render, useEffect, useRef, useSignal } from "../lib.js";
import { all, devices, model as modelOf } from "../store.js";
import { bytes } from "../units.js";
import { useFit } from "./fit_ask.js";
import { FitView } from "./fit_view.js";
import { useAct, useId } from "./forms.js";
import { preview } from "./move_preview.js";
import { Command, Name } from "./small.js";
import { TinBar } from "./tin.js";

/** The name under which the new one is asked about: under its own it would be answered that it is loaded.
 * @param {string} name */
const another = (name) => `${name.slice(0, 180).trim()} (moved)`;

/** The answer with the model's own name. @param {FitAnswer | null} answer @param {string} name */
const named = (answer, name) => (answer ? /** @type {FitAnswer} */ (JSON.parse(JSON.stringify(answer).replaceAll(JSON.stringify(another(name)).slice(1, -1), () => JSON.stringify(name).slice(1, -1)))) : null);

/** @param {{name: string, target?: string, onEnd: (begun: boolean) => void}} props */
function Dialog({ name, target, onEnd }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId("move");
  const model = modelOf(name)?.value;
  const ready = model?.instances.filter((one) => one.state === "ready") ?? [];
  const which = useSignal(ready[0]?.id ?? "");
  const instance = ready.find((one) => one.id === which.value) ?? ready[0];
  const on = instance?.devices ?? [];
  const width = Math.max(1, on.length);
  const targets = model ? targetsOf(model) : [];
  const first = targets.filter((one) => one === target).concat(targets.filter((one) => one !== target));
  const chosen = useSignal(first.slice(0, width));
  const stopFirst = useSignal(false);
  const to = chosen.value.filter((one) => targets.includes(one));
  const { source, ...spec } = /** @type {any} */ (model?.spec ?? {});
  const body = model && to.length === width ? JSON.stringify({ models: [{ ...spec, source, name: another(name), devices: to, tensor_parallel: width }], devices: to }) : "";
  const fit = useFit(body);
  const answer = named(fit.answer.value, name);
  const one = answer?.models[0];
  const impossible = one?.verdict === "does_not_fit";
  const tins = one ? preview(devices.value, all.value, name, on, one.devices.filter((device) => to.includes(device.device))) : [];
  const several = ready.length > 1 ? instance?.id : undefined;
  const { busy, error, act } = useAct(() => call("POST", "moves", { model: name, to, ...(several ? { instance: several } : {}), stop_first: stopFirst.value }));
  const begun = useRef(false);
  useEffect(() => dialog.current?.showModal(), []);
  const choose = (/** @type {string} */ device, /** @type {boolean} */ yes) => {
    chosen.value = width === 1 ? [device] : targets.filter((other) => (other === device ? yes : to.includes(other)));
  };
  return html`
    <dialog ref=${dialog} class="move" aria-labelledby=${`${id}-title`} onClose=${() => onEnd(begun.current)}>
      <form onSubmit=${async (/** @type {Event} */ event) => { event.preventDefault(); if ((begun.current = await act())) dialog.current?.close(); }}>
        <h2 id=${`${id}-title`}>Move <${Name} text=${name} /></h2>
        <p class="soft">Another one loads at the target and takes its place once it answers alike. It serves all the while.</p>
        ${ready.length > 1 && html`<label class="choice"><span>Instance</span><select value=${instance?.id} onChange=${(/** @type {any} */ event) => (which.value = event.target.value)}>
          ${ready.map((other) => html`<option key=${other.id} value=${other.id}>${other.id} on ${other.devices.join(", ")}</option>`)}</select></label>`}
        ${targets.length >= width
          ? html`<fieldset class="targets"><legend>From ${on.join(", ")} to${width > 1 ? ` (${width} devices)` : ""}</legend>
              ${first.map((device) => html`<label key=${device}><input type=${width === 1 ? "radio" : "checkbox"} name=${id} checked=${to.includes(device)} onChange=${(/** @type {any} */ event) => choose(device, event.target.checked)} /> ${device}</label>`)}
            </fieldset>`
          : html`<p class="failure">There is nowhere to move it now: it does not serve, or there is no other device of its kind.</p>`}
        ${tins.length > 0 && html`<div class="before-after">
          ${tins.map(({ id: device, before, after, gains }) => html`
            <section key=${device} aria-label=${`${device}, before and after`}>
              <h3>${device} <small>${gains ? "gets it" : "lets it go"}; free: ${bytes(before.free)} → ${bytes(after.free)}</small></h3>
              <p class="soft">now</p><${TinBar} id=${`${device} now`} tin=${before} /><p class="soft">then</p><${TinBar} id=${`${device} then`} tin=${after} />
            </section>`)}
        </div>`}
        ${body && html`<${FitView} answer=${answer && { ...answer, models: answer.models.map((model) => ({ ...model, devices: [] })) }} error=${fit.error.value} asking=${fit.asking.value} />`}
        <label class="tick"><input type="checkbox" checked=${stopFirst.value} onChange=${(/** @type {any} */ event) => (stopFirst.value = event.target.checked)} /> End the old one first: needs no room for both; requests wait meanwhile</label>
        <p class="soft">The same on the command line:</p>
        <${Command} text=${moveCommand(name, to, { instance: several, stopFirst: stopFirst.value })} />
        <div role="alert">${error.value && html`<p class="failure">${error.value}</p>`}</div>
        <div class="buttons">
          <button type="button" onClick=${() => dialog.current?.close()}>Cancel</button>
          <button type="submit" class="primary" disabled=${busy.value || to.length !== width || (impossible && !stopFirst.value)}>Move it</button>
        </div>
      </form>
    </dialog>
  `;
}

let open = false;

/** Ask where a model is to move, and begin it on a yes. @param {string} name @param {string} [target] */
export function askWhere(name, target) {
  if (open) return;
  open = true;
  const back = /** @type {HTMLElement | null} */ (document.activeElement);
  const row = back?.closest(".model"); // as long as the button is there
  const place = document.createElement("div");
  document.body.append(place);
  const end = (/** @type {boolean} */ begun) => {
    open = false;
    render(null, place);
    place.remove();
    // One that moves cannot be moved: the button goes, and the keyboard is better at what opens its details.
    const line = begun ? row?.querySelector(".more") : null;
    /** @type {HTMLElement | null | undefined} */ (line ?? back)?.focus();
  };
  render(html`<${Dialog} name=${name} target=${target} onEnd=${end} />`, place);
}
