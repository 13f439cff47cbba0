// The page: keeps what the event stream tells, and draws it.

import { ApiError, call, live, modelPath } from "./api.js";
import { el, keyed } from "./dom.js";
import { LogPanel } from "./log.js";
import { deviceView, eventView, modelView, noDevices, noEvents, noModels } from "./views.js";
import { clock, seconds } from "./units.js";

const EVENTS_SHOWN = 100;
const at = (id) => document.getElementById(id);

const fleet = { status: null, models: new Map(), devices: [], events: [], known: false };
const logs = new Map();
const busy = new Set();
let connection = "connecting";
let heardAt = 0;
let drawing = false;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawAll();
  });
}

const act = {
  busy: (name) => busy.has(name),
  logOpen: (id) => logs.has(id),
  toggleLog(id) {
    if (logs.has(id)) {
      logs.get(id).close();
      logs.delete(id);
    } else {
      logs.set(id, new LogPanel(id));
    }
    draw();
  },
  load: (model) => change(model.name, "load", {}),
  async unload(model) {
    const serving = model.instances.some((instance) => instance.state === "ready");
    const text = serving
      ? "Running requests may finish; new ones are refused until it is loaded again."
      : "What has been loaded so far is lost.";
    if (await ask(`Unload ${model.name}?`, text, "Unload")) await change(model.name, "unload", {});
  },
};

async function change(name, action, body) {
  busy.add(name);
  draw();
  try {
    const { data, warning } = await call("POST", modelPath(name, action), body);
    if (data) fleet.models.set(data.name, data);
    if (warning) say(warning, "warning");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message, "error");
  } finally {
    busy.delete(name);
    draw();
  }
}

function ask(title, text, yes) {
  const dialog = at("ask");
  at("ask-title").textContent = title;
  at("ask-text").textContent = text;
  at("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function say(text, level) {
  const shown = el("div", { class: `notice ${level}` }, el("span", {}, text),
    el("button", { type: "button", class: "quiet", "aria-label": "Dismiss this message", on: { click: () => shown.remove() } }, "Dismiss"));
  at("notices").append(shown);
}

function drawAll() {
  drawTop();
  if (!fleet.known) return;
  const models = [...fleet.models.values()].sort((a, b) => a.name.localeCompare(b.name));
  const loaded = models.filter((model) => model.state === "ready").length;
  at("models-count").textContent = models.length ? `${loaded} of ${models.length} ready` : "";
  keyed(at("models"), models.length ? models : [null], {
    key: (model) => (model ? `model ${model.name}` : "none"),
    stamp: (model) => (model ? JSON.stringify([model, busy.has(model.name), model.instances.map((one) => logs.has(one.id))]) : "none"),
    make: (model) => (model ? modelView(model, act) : noModels()),
  });
  const names = new Map(models.flatMap((model) => model.instances.map((one) => [one.id, model.name])));
  keyed(at("devices"), fleet.devices.length ? fleet.devices : [null], {
    key: (device) => (device ? `device ${device.id}` : "none"),
    stamp: (device) => (device ? JSON.stringify([device, device.instances.map((id) => names.get(id))]) : "none"),
    make: (device) => (device ? deviceView(device, names) : noDevices()),
  });
  keyed(at("events"), fleet.events.length ? fleet.events : [null], {
    key: (event) => (event ? event.key : "none"),
    stamp: () => "",
    make: (event) => (event ? eventView(event) : noEvents()),
  });
  placeLogs();
}

// A log panel moves with its instance, and closes when the instance is forgotten.
function placeLogs() {
  for (const [id, panel] of logs) {
    const place = document.querySelector(`[data-log="${CSS.escape(id)}"]`);
    if (!place) {
      panel.close();
      logs.delete(id);
    } else if (panel.element.parentNode !== place) {
      const { scrollTop } = panel.lines;
      place.append(panel.element);
      panel.lines.scrollTop = scrollTop;
    }
  }
}

function drawTop() {
  const words = { connecting: "Connecting…", live: "Live", lost: fleet.known ? `Disconnected: this is from ${clock(heardAt)}. Trying again…` : "Shoal does not answer. Trying again…" };
  const shown = at("connection");
  if (shown.textContent !== words[connection]) shown.textContent = words[connection];
  shown.dataset.state = connection;
  document.body.classList.toggle("old", connection === "lost" && fleet.known);
  const { status } = fleet;
  if (!status) return;
  at("about").replaceChildren(`Shoal ${status.version}, up `, el("span", { "data-since": status.started_at }, seconds(Math.max(0, Date.now() / 1000 - status.started_at))));
  const problems = [...new Set(status.warnings)];
  keyed(at("warnings"), problems, { key: (text) => text, stamp: () => "", make: (text) => el("p", { class: "notice warning" }, text) });
}

function remember(event) {
  const key = event.id != null ? `event ${event.id}` : `event ${event.at} ${event.kind} ${event.instance ?? event.model ?? ""}`;
  if (fleet.events.some((other) => other.key === key)) return;
  fleet.events.unshift({ ...event, key });
  fleet.events.sort((a, b) => b.at - a.at);
  fleet.events.length = Math.min(fleet.events.length, EVENTS_SHOWN);
}

async function readHistory() {
  try {
    const { data } = await call("GET", `events/history?limit=${EVENTS_SHOWN}`);
    data.events.forEach(remember);
    draw();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(`Past events cannot be read: ${error.message}`, "error");
  }
}

async function readStatus() {
  if (document.hidden || connection !== "live") return;
  try {
    fleet.status = (await call("GET", "status")).data;
    draw();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (connection === "live") reconnect();
  }
}

function heard(handle) {
  return (data) => {
    heardAt = Date.now() / 1000;
    handle(data);
    draw();
  };
}

const reconnect = live(
  {
    snapshot: heard((data) => {
      fleet.status = data.status;
      fleet.models = new Map(data.models.map((model) => [model.name, model]));
      fleet.devices = data.devices;
      fleet.known = true;
      readHistory();
    }),
    model: heard((model) => fleet.models.set(model.name, model)),
    model_removed: heard(({ name }) => fleet.models.delete(name)),
    devices: heard(({ devices }) => (fleet.devices = devices)),
    memory: heard(({ instances, devices }) => {
      fleet.devices = devices;
      for (const [name, model] of fleet.models) {
        if (!model.instances.some((one) => instances[one.id])) continue;
        fleet.models.set(name, { ...model, instances: model.instances.map((one) => (instances[one.id] ? { ...one, memory: instances[one.id] } : one)) });
      }
    }),
    message: heard(remember),
  },
  (state) => {
    if (state === "lost" && !heardAt) heardAt = Date.now() / 1000;
    connection = state;
    draw();
  },
);

// Clocks tick without drawing anything anew.
setInterval(() => {
  const present = Date.now() / 1000;
  if (connection === "lost") return; // old data must not seem to live
  for (const shown of document.querySelectorAll("[data-since]")) shown.textContent = seconds(Math.max(0, present - Number(shown.dataset.since)));
  for (const shown of document.querySelectorAll("[data-until]")) shown.textContent = seconds(Math.max(0, Number(shown.dataset.until) - present));
}, 1000);
setInterval(readStatus, 10_000);

at("endpoint").replaceChildren("OpenAI endpoint: ", el("code", {}, new URL("v1", document.baseURI).href));
