// Where in the page we are: `#/path?query`. A hash needs nothing of the server, so it works behind any prefix.

import { computed, signal } from "./lib.js";

const read = () => {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { path: `/${path}`, query: new URLSearchParams(query) };
};

const place = signal(read());
addEventListener("hashchange", () => (place.value = read()));

export const path = computed(() => place.value.path);
export const query = computed(() => place.value.query);

/** Change one word of the query without a step in the browser's history; an empty value takes it out.
 * @param {string} name @param {string} value */
export function setQuery(name, value) {
  const next = new URLSearchParams(place.value.query);
  if (value) next.set(name, value);
  else next.delete(name);
  const words = next.toString();
  history.replaceState(null, "", `#${place.value.path}${words ? `?${words}` : ""}`);
  place.value = read();
}

/** Where a model's page is. @param {string} name */
export const modelAddress = (name) => `#/models/${encodeURIComponent(name)}`;
