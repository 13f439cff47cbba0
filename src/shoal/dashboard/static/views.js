// What each thing looks like. Pure: from the API's objects to elements.

import { command, el, name } from "./dom.js";
import { memoryBar, memoryFacts } from "./memory.js";
import { bytes, clock, seconds } from "./units.js";

export const ENDED = new Set(["stopped", "failed"]);
const now = () => Date.now() / 1000;

export const badge = (state) => el("span", { class: "badge", "data-state": state }, state);

function note(instance) {
  const parts = [];
  if (instance.failure) {
    parts.push(
      el("p", { class: "failure" }, el("strong", {}, instance.failure.message), instance.failure.hint ? ` ${instance.failure.hint}` : ""),
    );
  } else if (instance.reason && instance.state !== "ready") {
    parts.push(el("p", { class: "reason" }, instance.reason));
  }
  if (instance.restart_at) {
    parts.push(el("p", { class: "reason" }, "Starts again in ", el("span", { "data-until": instance.restart_at }, seconds(Math.max(0, instance.restart_at - now()))), "."));
  }
  if (instance.outdated) parts.push(el("p", { class: "reason" }, "Runs with older settings: unload and load it to use the new ones."));
  if (instance.progress && instance.state === "starting") {
    const { phase, percent, seconds_left: left } = instance.progress;
    const until = left === null ? null : now() + left;
    parts.push(
      el(
        "div",
        { class: "progress" },
        el("progress", { max: 100, value: percent, "aria-label": `Progress of ${instance.id}: ${phase}` }),
        el("span", { class: "progress-text" }, `${phase}, ${percent} %`, until === null ? "" : ", about ",
          until === null ? "" : el("span", { "data-until": until }, seconds(left)), until === null ? "" : " left"),
      ),
    );
  }
  return parts;
}

function instanceView(instance, act, alone) {
  const held = Object.values(instance.memory.held).reduce((sum, part) => sum + part, 0);
  const facts = [
    instance.devices.join(", "),
    held ? bytes(held) : "",
    instance.restarts ? `restarted ${instance.restarts}×` : "",
  ].filter(Boolean);
  return el(
    "li",
    { class: "instance" },
    el(
      "div",
      { class: "instance-line" },
      alone ? "" : badge(instance.state),
      el("code", { class: "id" }, instance.id),
      el("span", { class: "facts" }, facts.join(" · "), facts.length ? " · " : "", "for ", el("span", { "data-since": instance.changed_at }, seconds(Math.max(0, now() - instance.changed_at)))),
      el(
        "button",
        { type: "button", class: "quiet", "data-focus": `log ${instance.id}`, "aria-expanded": act.logOpen(instance.id) ? "true" : "false",
          "aria-label": `Log of ${instance.id}`, on: { click: () => act.toggleLog(instance.id) } },
        act.logOpen(instance.id) ? "Hide log" : "Log",
      ),
    ),
    ...note(instance),
    ...memoryFacts(instance.memory),
    el("div", { class: "log-place", "data-log": instance.id }),
  );
}

export function modelView(model, act) {
  const live = model.instances.filter((instance) => !ENDED.has(instance.state));
  const ready = live.filter((instance) => instance.state === "ready").length;
  const stopping = live.length > 0 && live.every((instance) => ["draining", "stopping"].includes(instance.state));
  const buttons = [];
  const busy = act.busy(model.name);
  if (live.length < Math.max(1, model.desired)) {
    buttons.push(
      el("button", { type: "button", class: "primary", "data-focus": "action", disabled: busy, "aria-label": `Load ${model.name}`, on: { click: () => act.load(model) } },
        model.state === "failed" ? "Try again" : "Load"),
    );
  }
  if (live.length) {
    buttons.push(
      el("button", { type: "button", "data-focus": "action", disabled: busy || stopping, "aria-label": `Unload ${model.name}`, on: { click: () => act.unload(model) } },
        stopping ? "Unloading…" : "Unload"),
    );
  }
  const facts = [model.spec.engine, model.desired > 1 || ready > 1 ? `${ready} of ${Math.max(model.desired, ready)} ready` : ""].filter(Boolean);
  return el(
    "article",
    { class: "card model", "data-state": model.state, "aria-label": model.name },
    el(
      "div",
      { class: "model-line" },
      el("div", { class: "model-name" }, el("h3", {}, name(model.name)), badge(model.state)),
      el("div", { class: "buttons" }, buttons),
    ),
    el("p", { class: "facts" }, facts.join(" · "), " · ", el("bdi", { class: "source" }, model.spec.source)),
    model.instances.length ? el("ul", { class: "instances" }, model.instances.map((instance) => instanceView(instance, act, model.instances.length === 1))) : "",
  );
}

export function deviceView(device, models) {
  const share = device.memory_total ? device.memory_used / device.memory_total : 0;
  const load = [
    device.utilization === null ? "" : `${Math.round(100 * device.utilization)} % busy`,
    device.temperature === null ? "" : `${Math.round(device.temperature)} °C`,
    device.power === null ? "" : `${Math.round(device.power)} W`,
  ].filter(Boolean);
  const here = device.instances.map((id) => models.get(id) ?? id);
  return el(
    "article",
    { class: "card device", "aria-label": device.id },
    el("div", { class: "device-line" }, el("h3", {}, device.id), el("span", { class: "facts" }, device.name)),
    device.pool ? memoryBar(device) : el("meter", { min: 0, max: device.memory_total || 1, high: 0.9 * (device.memory_total || 1), value: device.memory_used, "aria-label": `Memory of ${device.id}` },
      `${Math.round(100 * share)} %`),
    el("p", { class: "facts" }, `${bytes(device.memory_used)} of ${bytes(device.memory_total)} in use`, load.length ? ` · ${load.join(" · ")}` : ""),
    device.error ? el("p", { class: "failure" }, device.error) : "",
    here.length ? el("p", { class: "facts" }, "Holds ", here.map((model, at) => [at ? ", " : "", name(model)])) : "",
  );
}

export function eventView(event) {
  const about = event.instance ?? event.model;
  const text = !about || event.message.includes(event.model ?? about) || event.message.includes(about) ? event.message : `${about}: ${event.message}`;
  return el(
    "li",
    { class: "event", "data-level": event.level },
    el("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
    el("span", {}, event.level === "info" ? "" : el("strong", { class: "level" }, `${event.level}: `), name(text)),
  );
}

export const noModels = () =>
  el(
    "div",
    { class: "card empty" },
    el("h3", {}, "No models yet"),
    el("p", {}, "Declare one and load it. The source is a local folder or a Hugging Face hub id."),
    command("shoal models add my-model --source ./my-model"),
    command("shoal load my-model"),
    el("p", {}, "No engine at hand? A simulated one needs neither GPU nor weights:"),
    command("shoal models add toy --source toy --engine simulated"),
    command("shoal load toy"),
  );

export const noDevices = () =>
  el("div", { class: "card empty" }, el("h3", {}, "No devices found"), el("p", {}, "This says what is missing on the machine:"), command("shoal doctor"));

export const noEvents = () => el("li", { class: "event nothing" }, "Nothing has happened yet. Loads, failures and restarts appear here.");
