// Asking: one request for each column, read as it comes, and stopped.

import { batch } from "../lib.js";
import { ended, EventStream, heard, newAnswer, refusal, requestOf, underWay } from "../playground.js";
import { change, changeAnswer, changeColumn, key, keyWanted, onLeave, session } from "./play_session.js";

const ENDPOINT = "v1";
const DRAW = 60;

/** @type {Map<string, AbortController>} */
const running = new Map();

/** @param {string} column */
export const stop = (column) => running.get(column)?.abort();
export const stopAll = () => [...running.values()].forEach((one) => one.abort());
onLeave(() => {
  stopAll();
  for (const column of session.peek().columns) settle(column.id, "stopped");
});

/** Mark what runs in a column as ended, where nobody will. @param {string} id @param {"stopped"} how */
function settle(id, how) {
  const column = session.peek().columns.find((one) => one.id === id);
  for (const [turn, answer] of Object.entries(column?.answers ?? {})) {
    if (underWay(answer)) changeAnswer(session.peek().id, id, turn, (one) => ended(one, how));
  }
}

/** Send the draft to all columns that take part; when a turn is edited, in its place, and what followed it is dropped. */
export function send() {
  const { draft, images, editing, turns, columns } = session.peek();
  const turn = { id: `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 6)}`, text: draft, images };
  const at = editing ? turns.findIndex(({ id }) => id === editing.turn) : -1;
  batch(() => {
    change({ turns: [...(at < 0 ? turns : turns.slice(0, at)), turn], draft: editing?.draft ?? "", images: editing?.images ?? [], editing: null });
    for (const column of columns) if (column.model && !column.muted) void ask(column.id, turn);
  });
}

/** Have a column answer a turn, again if it has. @param {string} id @param {PlayTurn} turn */
export async function ask(id, turn) {
  stop(id);
  settle(id, "stopped");
  const owner = session.peek().id;
  const column = session.peek().columns.find((one) => one.id === id);
  if (!column) return;
  const control = new AbortController();
  running.set(id, control);
  changeColumn(id, { answers: { ...column.answers, [turn.id]: newAnswer(column.model, Date.now()) } });
  /** @type {((answer: PlayAnswer) => PlayAnswer)[]} */
  let pending = [];
  let timer = 0;
  const flush = () => {
    clearTimeout(timer);
    timer = 0;
    const taken = pending;
    pending = [];
    if (running.get(id) !== control) return; // it was asked again meanwhile
    changeAnswer(owner, id, turn.id, (answer) => taken.reduce((one, next) => next(one), answer));
  };
  const then = (/** @type {(answer: PlayAnswer) => PlayAnswer} */ next) => {
    pending.push(next);
    if (!timer) timer = setTimeout(flush, DRAW); // a fast model must not have all of it drawn for every token
  };
  try {
    await read(requestOf(session.peek(), column, turn), control.signal, then);
    then((answer) => ended(answer, "lost"));
  } catch (error) {
    if (control.signal.aborted) then((answer) => ended(answer, "stopped"));
    else then((answer) => ended(answer, "cut", error instanceof RangeError ? error.message : "The connection to Shoal was lost."));
  } finally {
    flush();
    if (running.get(id) === control) running.delete(id);
  }
}

/** @param {unknown} body @param {AbortSignal} signal @param {(next: (answer: PlayAnswer) => PlayAnswer) => void} then */
async function read(body, signal, then) {
  const response = await fetch(`${ENDPOINT}/chat/completions`, {
    method: "POST",
    // Told of what it waits for, a long load does not look like a dead connection to what is in between.
    headers: { "content-type": "application/json", "x-shoal-hold": "comments", ...authorization() },
    body: JSON.stringify(body),
    signal,
  });
  const told = (/** @type {string} */ name) => (response.headers.has(name) ? Number(response.headers.get(name)) : null);
  then((answer) => ({ ...answer, queue: told("x-shoal-queue-ms"), wake: told("x-shoal-wake-ms") }));
  if (!response.ok || !(response.headers.get("content-type") ?? "").includes("event-stream")) {
    const text = await response.text();
    const data = parsed(text);
    if (response.status === 401) keyWanted.value = refusal(data, 401);
    if (response.ok && data?.choices) then((answer) => ended(heard(answer, { data: text }, Date.now()), "lost"));
    else then((answer) => ended(answer, "cut", response.ok ? "It was answered with what is no event stream." : refusal(data, response.status)));
    return;
  }
  keyWanted.value = "";
  const stream = new EventStream();
  const decoder = new TextDecoder();
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const at = Date.now();
    for (const event of stream.push(decoder.decode(part.value, { stream: true }))) then((answer) => heard(answer, event, at));
  }
}

/** @returns {Record<string, string>} */
function authorization() {
  const text = key.peek();
  if (/[^!-~]/.test(text)) throw new RangeError("The API key has characters that no key has: paste it again.");
  return text ? { authorization: `Bearer ${text}` } : {};
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Names of the endpoint, virtual models and adapters among them. @returns {Promise<{id: string, state: string}[]>} */
export async function readNames() {
  const response = await fetch(`${ENDPOINT}/models`, { headers: authorization() });
  const data = await response.json();
  if (response.status === 401) keyWanted.value = refusal(data, 401);
  else if (response.ok) keyWanted.value = "";
  return response.ok ? data.data : [];
}
