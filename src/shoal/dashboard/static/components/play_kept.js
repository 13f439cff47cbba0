// Sessions in this browser's IndexedDB: whole ones, and beside them a list that is quick to read.

import { DATABASE } from "../left_behind.js";
import { lineOf } from "../playground.js";

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open(DATABASE, 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("sessions", { keyPath: "id" });
      asked.result.createObjectStore("lines", { keyPath: "id" });
    };
    asked.onsuccess = () => {
      asked.result.onversionchange = () => {
        // Somebody signs out: it is deleted.
        asked.result.close();
        opened = null;
      };
      resolve(asked.result);
    };
    asked.onerror = () => {
      opened = null;
      reject(asked.error);
    };
  });
  return opened;
}

/** @template T @param {IDBTransactionMode} mode @param {(sessions: IDBObjectStore, lines: IDBObjectStore) => IDBRequest<T> | void} work
 * @returns {Promise<T>} */
async function within(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const whole = database.transaction(["sessions", "lines"], mode);
    const asked = work(whole.objectStore("sessions"), whole.objectStore("lines"));
    whole.oncomplete = () => resolve(/** @type {T} */ (asked?.result));
    whole.onerror = whole.onabort = () => reject(whole.error);
  });
}

/** @returns {Promise<PlayLine[]>} the newest first */
export async function readLines() {
  const lines = await within("readonly", (_, store) => store.getAll());
  return lines.sort((a, b) => b.changedAt - a.changedAt);
}

/** @param {string} id @returns {Promise<PlaySession | undefined>} */
export const readSession = (id) => within("readonly", (store) => store.get(id));

/** @param {PlaySession} session */
export const keepSession = (session) =>
  within("readwrite", (sessions, lines) => {
    sessions.put(session);
    lines.put(lineOf(session));
  });

/** @param {string[]} ids */
export const dropSessions = (ids) =>
  within("readwrite", (sessions, lines) => {
    for (const id of ids) {
      sessions.delete(id);
      lines.delete(id);
    }
  });
