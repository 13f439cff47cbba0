// The session that is open, in signals, and its keeping: what is typed at once for this tab, all of it soon after in the
// browser's store.

import { batch, computed, signal } from "../lib.js";
import { COLUMNS, newSession, revived, toDrop, underWay, worthKeeping } from "../playground.js";
import { query, setQuery } from "../router.js";
import { dropSessions, keepSession, readLines, readSession } from "./play_kept.js";

const FORM = "shoal.play.form";
const LAST = "shoal.play.last";
const KEY = "shoal.play.key";
const SOON = 1000;

const makeId = () => `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;

/** @type {import("../vendor/signals.js").Signal<PlaySession>} */
export const session = signal(newSession(makeId(), [], Date.now()));
/** Sessions that are kept, the newest first. */
export const lines = signal(/** @type {PlayLine[]} */ ([]));
/** What the reader should know of the keeping of sessions. */
export const said = signal("");
export const key = signal(taken(KEY));
/** Why a key is asked for; empty if none is. */
export const keyWanted = signal("");
export const busyNow = computed(() => session.value.columns.some(({ answers }) => Object.values(answers).some(underWay)));

/** @param {string} name */
function taken(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} name @param {string} text */
function put(name, text) {
  try {
    sessionStorage.setItem(name, text);
  } catch {
    // It lasts as long as the page.
  }
}

/** @param {string} text */
export function setKey(text) {
  key.value = text;
  put(KEY, text);
}

let timer = 0;
/** Whoever was here has signed out, and nothing more is kept. */
let left = false;

/** @param {PlaySession} next */
function take(next) {
  session.value = { ...next, changedAt: Date.now() };
  if (!timer && !left) timer = setTimeout(() => void keep(), SOON);
}

/** Change the session. @param {Partial<PlaySession>} change */
export function change(change) {
  take({ ...session.peek(), ...change });
  // Pictures are too large for this store; they come with the rest.
  const { id, draft, fields, editing, columns } = session.peek();
  const form = { id, draft, fields, editing: editing && { ...editing, images: [] }, models: columns.map(({ model }) => model) };
  put(FORM, JSON.stringify(form));
}

/** @param {string} id @param {Partial<PlayColumn>} change_ */
const changed = (id, change_) => session.peek().columns.map((one) => (one.id === id ? { ...one, ...change_ } : one));

/** @param {string} id @param {Partial<PlayColumn>} change_ */
export const changeColumn = (id, change_) => change({ columns: changed(id, change_) });

/** An answer of a session, if that is the one which is open.
 * @param {string} owner @param {string} column @param {string} turn @param {(answer: PlayAnswer) => PlayAnswer} next */
export function changeAnswer(owner, column, turn, next) {
  const { id, columns } = session.peek();
  const one = columns.find((each) => each.id === column);
  const before = one?.answers[turn];
  if (id !== owner || !one || !before) return;
  const after = next(before);
  if (after !== before) take({ ...session.peek(), columns: changed(column, { answers: { ...one.answers, [turn]: after } }) });
}

export async function keep() {
  clearTimeout(timer);
  timer = 0;
  const kept = session.peek();
  if (left || !worthKeeping(kept)) return;
  try {
    await keepSession(kept);
    const all = await readLines();
    const gone = toDrop(all, kept.id);
    if (gone.length) {
      await dropSessions(gone.map(({ id }) => id));
      said.value = `This browser keeps no more: ${gone.length === 1 ? "the oldest session was" : `the ${gone.length} oldest sessions were`} dropped (${gone.map(({ title }) => title).join(", ")}).`;
    }
    lines.value = all.filter((line) => !gone.includes(line));
  } catch (error) {
    said.value = `This browser does not keep sessions (${error instanceof Error ? error.message : "no store"}): export what you need.`;
  }
}

/** @param {PlaySession} next */
function show(next) {
  batch(() => {
    session.value = next;
    said.value = "";
  });
  place();
}

/** The address says which session is open. */
function place() {
  if (query.peek().get("session") !== session.peek().id) setQuery("session", session.peek().id);
}

/** Begin anew, with these models or those of now. @param {string[]} [models] */
export async function begin(models) {
  await leave();
  show(newSession(makeId(), models ?? session.peek().columns.map(({ model }) => model), Date.now()));
  change({});
}

/** What runs here is stopped before another session is shown: it would go on unseen. */
let stopAll = () => {};
/** @param {() => void} stop */
export const onLeave = (stop) => (stopAll = stop);

async function leave() {
  stopAll();
  if (timer) await keep();
}

/** Open a session that is kept. @param {string} id @returns {Promise<boolean>} whether there is one */
export async function openSession(id) {
  await leave();
  const kept = await readSession(id).catch(() => undefined);
  const last = read(taken(LAST));
  const form = read(taken(FORM));
  const found = last?.id === id && last.changedAt > (kept?.changedAt ?? 0) ? last : kept;
  if (!found && form?.id !== id) return false;
  let next = revived(found ?? newSession(id, form.models, Date.now()));
  // What was typed last, should the store not have got it.
  if (form?.id === id) next = { ...next, draft: form.draft, fields: form.fields, editing: form.editing && (next.editing ?? form.editing) };
  show(next);
  return true;
}

/** @param {string} text @returns {any} */
function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

let arrived = false;

/** What the address asks for: a new session with these models, a session that is kept, else that of this tab. */
export async function arrive() {
  const models = [...new Set(query.peek().getAll("models"))].filter(Boolean).slice(0, COLUMNS);
  const wanted = query.peek().get("session") || (arrived ? session.peek().id : read(taken(FORM))?.id);
  const same = arrived && wanted === session.peek().id;
  arrived = true;
  if (models.length) {
    setQuery("models", "");
    await begin(models);
  } else if (same) place();
  else if (!wanted || !(await openSession(wanted))) await begin();
  lines.value = await readLines().catch(() => []);
}

/** @param {string} id @param {string} title */
export async function rename(id, title) {
  if (id === session.peek().id) {
    change({ title });
    await keep();
    return;
  }
  const found = await readSession(id);
  if (found) await keepSession({ ...found, title });
  lines.value = await readLines();
}

/** @param {string} id */
export async function remove(id) {
  if (id === session.peek().id) {
    stopAll();
    clearTimeout(timer);
    timer = 0;
  }
  await dropSessions([id]);
  if (id === session.peek().id) show(newSession(makeId(), session.peek().columns.map(({ model }) => model), Date.now()));
  lines.value = await readLines();
}

addEventListener("signed-out", () => {
  left = true;
  stopAll();
  clearTimeout(timer);
  timer = 0;
});

addEventListener("pagehide", () => {
  if (!timer) return;
  // The store may not get to it any more; this one takes it at once, unless there are too many pictures in it.
  put(LAST, JSON.stringify(session.peek()));
  void keep();
});
