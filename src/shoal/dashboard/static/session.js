// Who is signed in, what they may do, and whether Shoal asks for it.

import { ApiError, call, refusals } from "./api.js";
import { computed, effect, signal } from "./lib.js";
import { belongsTo, clear, isOfAnother } from "./left_behind.js";
import { connection } from "./store.js";

/** @typedef {{needed: boolean, name: string | null, role: "admin" | "read-only" | null}} SessionView */

const WHILE_LOST = 2000;
/** The cookie is for this page's own address: behind a path prefix others may live beside it. */
const PATH = `path=${encodeURIComponent(new URL(".", document.baseURI).pathname)}`;

/** As Shoal told it last; until then as without users. */
export const session = signal(/** @type {SessionView} */ ({ needed: false, name: null, role: null }));
/** `admin`, `read-only`, or nothing as long as that is not known. */
export const role = computed(() => session.value.role);
/** Whether buttons that change something are offered. Shoal itself refuses what a role may not do. */
export const mayAct = computed(() => role.value !== "read-only");
/** Whether the sign-in form is to be shown. */
export const wanted = computed(() => session.value.needed && !session.value.name);

/** Take in how it is, unless the page has what another user left: then it begins anew. @param {SessionView} data */
async function take(data) {
  if (data.name !== null) {
    const another = isOfAnother(data.name);
    if (another) await clear(data.name);
    belongsTo(data.name);
    if (another) return location.reload(); // what another has typed is not theirs
  }
  if (JSON.stringify(data) !== JSON.stringify(session.peek())) session.value = data;
}

/** Ask Shoal how it is. */
export async function refresh() {
  try {
    const { data } = await call("GET", "session");
    await take(data);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it is asked again as long as the connection is lost
  }
}

/** Raises ApiError with the reason. @param {string} name @param {string} password */
export async function signIn(name, password) {
  const { data } = await call("POST", `session?${PATH}`, { name, password });
  await take(data);
  dispatchEvent(new Event("signed-in"));
}

/** Raises ApiError with the reason. */
export async function signOut() {
  await call("DELETE", `session?${PATH}`);
  await clear(null);
  location.reload(); // nothing of what was seen stays behind the form
}

/** Begin to watch. */
export function start() {
  void refresh();
  effect(() => {
    if (refusals.value || connection.value === "lost") void refresh();
  });
  // A stream that is refused looks to the page like one that is lost.
  setInterval(() => {
    if (connection.peek() === "lost" && !wanted.peek()) void refresh();
  }, WHILE_LOST);
}
