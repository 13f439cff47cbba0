// What devices and instances hold of memory. Pure: from the API's objects to elements.

import { el } from "./dom.js";
import { bytes } from "./units.js";

// The parts of a device's memory. What KV caches hold and no request uses comes back when somebody needs it.
export function parts(device) {
  const { pool } = device;
  const used = Math.min(pool.used, pool.backed);
  const others = Math.max(0, device.memory_used - pool.backed);
  const free = Math.max(0, device.memory_total - others - pool.backed);
  return [
    { kind: "others", words: "weights and others", size: others },
    { kind: "used", words: "KV in use", size: used },
    { kind: "cached", words: "KV cached", size: pool.backed - used },
    { kind: "free", words: "free", size: free },
  ];
}

export function memoryBar(device) {
  const all = parts(device);
  const said = all.map((part) => `${part.words} ${bytes(part.size)}`).join(", ");
  const bar = el("div", { class: "bar", role: "img", "aria-label": `Memory of ${device.id}: ${said}` });
  for (const part of all) {
    const piece = el("span", { class: "part", "data-kind": part.kind });
    piece.style.flexGrow = part.size / (device.memory_total || 1);
    bar.append(piece);
  }
  const legend = all.map((part) => el("li", { "data-kind": part.kind }, `${part.words} ${bytes(part.size)}`));
  const notes = [
    device.pool.held_back ? `${bytes(device.pool.held_back)} held back for a start` : "",
    device.pool.owed ? `${bytes(device.pool.owed)} to be given back` : "",
    device.pool.limit === null ? "" : `KV caches together at most ${bytes(device.pool.limit)}`,
  ].filter(Boolean);
  return [bar, el("ul", { class: "legend" }, legend), notes.length ? el("p", { class: "facts" }, notes.join(" · ")) : ""];
}

export function memoryFacts(memory) {
  if (memory.mode === "fixed") {
    return memory.reason ? [el("p", { class: "reason" }, `KV cache of fixed size: ${memory.reason}`)] : [];
  }
  if (memory.lease === null) return [];
  const facts = [
    ["weights", memory.weights === null ? null : bytes(memory.weights)],
    ["KV in use", bytes(memory.used)],
    ["cached", bytes(memory.cached)],
    ["backed", bytes(memory.backed)],
    ["lease", bytes(memory.lease)],
    ["floor", bytes(memory.floor)],
    ["ceiling", memory.ceiling === null ? "none" : bytes(memory.ceiling)],
    ["priority", String(memory.priority)],
  ].filter(([, value]) => value !== null);
  return [
    el("dl", { class: "memory" }, facts.map(([word, value]) => el("div", {}, el("dt", {}, word), el("dd", {}, value)))),
    memory.waiting
      ? el("p", { class: "short" }, `${memory.waiting} ${memory.waiting === 1 ? "request waits" : "requests wait"} for memory`, memory.missing ? `: ${bytes(memory.missing)} short` : "")
      : "",
  ];
}
