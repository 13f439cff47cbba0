// What somebody who was signed in leaves in this browser, and its clearing before it is another's.

/** The browser's store of the playground's sessions. */
export const DATABASE = "shoal.playground";
const USER = "shoal.user";
const STORES = /** @type {const} */ (["sessionStorage", "localStorage"]);

/** @param {"sessionStorage" | "localStorage"} store */
function userOf(store) {
  try {
    return window[store].getItem(USER);
  } catch {
    return null; // the browser keeps nothing
  }
}

/** Whether this tab or this browser has what another user left. @param {string} name who is signed in now */
export const isOfAnother = (name) => STORES.some((store) => ![null, name].includes(userOf(store)));

/** Take note of whose it is from now on. @param {string} name */
export function belongsTo(name) {
  for (const store of STORES) {
    try {
      window[store].removeItem(USER); // also where there is no room for another
      window[store].setItem(USER, name);
    } catch {
      // It keeps nothing of anybody then.
    }
  }
}

function clearTab() {
  try {
    sessionStorage.clear();
  } catch {
    // There is nothing in it.
  }
}

/** Clear what was typed in this tab (keys and settings among it) and, unless the browser's store is already that of `name`,
 * the sessions of the playground. The page is to be read anew after it: until then nothing more is kept.
 * @param {string | null} name who is signed in now */
export async function clear(name) {
  dispatchEvent(new Event("signed-out"));
  clearTab();
  addEventListener("pagehide", clearTab); // after whatever else keeps things when the page goes
  if (name !== null && userOf("localStorage") === name) return;
  await new Promise((resolve) => {
    try {
      const asked = indexedDB.deleteDatabase(DATABASE);
      // Blocked: another tab is about to close it, and it is deleted then.
      asked.onsuccess = asked.onerror = asked.onblocked = resolve;
    } catch {
      resolve(null);
    }
  });
}
