// The admin API. Addresses are relative to the page, so that it works behind a path prefix too.

import { signal } from "./lib.js";

const BASE = "api/v1/";

export class ApiError extends Error {}

/** How often Shoal has refused an answer because nobody is signed in. */
export const refusals = signal(0);

/** Milliseconds after which nobody answers any more: a connection that died silently, as that of a tunnel does, tells nobody.
 * Reading is quick; what changes something may wait for others. */
const PATIENCE = { read: 8000, change: 60_000 };

/** Ask the API. Raises ApiError with what to tell people.
 * @param {string} method @param {string} path @param {unknown} [body]
 * @returns {Promise<{data: any, warning: string | null}>} */
export async function call(method, path, body) {
  const reads = method === "GET";
  const signal = AbortSignal.timeout(reads ? PATIENCE.read : PATIENCE.change);
  let response, text;
  try {
    response = await fetch(BASE + path, {
      method,
      signal,
      // The first is for sessions: no other web page can send it.
      headers: { "x-shoal-page": "1", ...(body === undefined ? {} : { "content-type": "application/json" }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    text = await response.text();
  } catch {
    if (!signal.aborted) throw new ApiError("Shoal does not answer. Is `shoal serve` running?");
    const after = `${(reads ? PATIENCE.read : PATIENCE.change) / 1000} s`;
    throw new ApiError(reads ? `Shoal does not answer: nothing came for ${after}.` : `Shoal has not answered for ${after}. What was asked may still happen: see how it is before you ask again.`);
  }
  const data = parsed(text);
  if (data?.error?.code === "sign_in_required") refusals.value++;
  if (!response.ok) throw new ApiError(data?.error?.message ?? `Shoal answered ${response.status}.`);
  return { data, warning: response.headers.get("x-shoal-warning") };
}

/** What a text says; null if it is no JSON, as that of a proxy may be. @param {string} text @returns {any} */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** @param {string} name @param {string} [action] */
export const modelPath = (name, action) => `models/${encodeURIComponent(name)}${action ? `/${action}` : ""}`;

const FIRST_RETRY = 500;
const LAST_RETRY = 8000;
/** Milliseconds after which a page that nobody sees gives its stream back: a browser has six connections to a host, and
 * pages that hold them all leave none for what is asked. */
const UNSEEN = 5000;

/** Live events: `handlers` by kind. `onState` hears "live", "lost", and "resting": nobody sees the page. It begins again as
 * soon as somebody does. The browser's EventSource gives up after some
 * errors and cannot see a connection that died silently; so connecting again is done here, later each time it fails, and
 * the function that is returned does it when something else shows that the connection is dead. Each connection begins
 * with a snapshot.
 * @param {Record<string, (data: any) => void>} handlers @param {(state: "live" | "lost" | "resting") => void} onState */
export function live(handlers, onState) {
  /** @type {EventSource | null} */
  let source = null;
  let retry = FIRST_RETRY;
  let timer = 0;
  let unseen = 0;
  let resting = false;

  function connect() {
    if (resting) return;
    clearTimeout(timer);
    source?.close();
    listen(new EventSource(`${BASE}events`));
  }

  /** @param {EventSource} opened */
  function listen(opened) {
    source = opened;
    source.addEventListener("open", () => (retry = FIRST_RETRY));
    source.addEventListener("error", again);
    for (const kind of Object.keys(handlers)) source.addEventListener(kind, hear);
  }

  /** @param {MessageEvent} event */
  function hear(event) {
    onState("live");
    handlers[event.type]?.(JSON.parse(event.data));
  }

  function again() {
    if (resting) return;
    source?.close();
    onState("lost");
    clearTimeout(timer);
    timer = setTimeout(connect, retry * (0.75 + Math.random() / 2)); // many pages must not all come back at once
    retry = Math.min(LAST_RETRY, retry * 2);
  }

  function rest() {
    resting = true;
    clearTimeout(timer);
    source?.close();
    onState("resting");
  }

  function look() {
    clearTimeout(unseen);
    if (document.hidden) {
      if (!resting) unseen = setTimeout(rest, UNSEEN);
    } else if (resting) {
      resting = false;
      retry = FIRST_RETRY;
      connect();
    }
  }

  const early = globalThis.shoalEarly;
  const heard = early?.take() ?? [];
  if (early && early.source.readyState !== EventSource.CLOSED) {
    listen(early.source);
    heard.forEach(hear);
  } else {
    connect(); // it was refused, or had no time to be opened
  }
  look(); // it may have been opened behind another one
  document.addEventListener("visibilitychange", look);
  addEventListener("online", connect);
  addEventListener("signed-in", connect);
  return again;
}

/** An instance's log as it is written; the function that is returned ends that. A connection that is lost is made again, later
 * each time it fails. Each begins with the last `tail` lines, of which those that were told before are told again: `onOpen`
 * says where that is.
 * @param {string} instance @param {number} tail
 * @param {{onOpen: () => void, onLine: (text: string) => void, onEnd: (state: string) => void, onLost: () => void}} reader */
export function followLog(instance, tail, { onOpen, onLine, onEnd, onLost }) {
  /** @type {EventSource | null} */
  let source = null;
  let retry = FIRST_RETRY;
  let timer = 0;

  function connect() {
    const opened = (source = new EventSource(`${BASE}instances/${encodeURIComponent(instance)}/logs/stream?tail=${tail}`));
    opened.addEventListener("open", () => {
      retry = FIRST_RETRY;
      onOpen();
    });
    opened.addEventListener("line", (event) => onLine(JSON.parse(event.data).text));
    opened.addEventListener("end", (event) => {
      opened.close();
      onEnd(JSON.parse(event.data).state);
    });
    opened.addEventListener("error", () => {
      opened.close();
      onLost();
      timer = setTimeout(connect, retry * (0.75 + Math.random() / 2));
      retry = Math.min(LAST_RETRY, retry * 2);
    });
  }

  connect();
  return () => {
    clearTimeout(timer);
    source?.close();
  };
}
