// What is where. A view is fetched when it is gone to for the first time, with its style sheet.

import { computed, signal } from "./lib.js";
import { path } from "./router.js";
import { style } from "./style.js";
import { Overview } from "./views/overview.js";

/** `path` is what the address begins with; a path that ends with "/" has one word behind it, which the view gets.
 * `nav` is its word in the navigation, if it is there.
 * @typedef {{path: string, title: string, nav?: string, style?: string, load?: () => Promise<View>}} Route
 * @typedef {(props: {word: string}) => any} View */

/** @type {Route[]} */
export const ROUTES = [
  { path: "/", title: "Overview", nav: "Overview" },
  { path: "/playground", title: "Playground", nav: "Playground", style: "playground.css", load: async () => (await import("./views/playground.js")).Playground },
  { path: "/add", title: "Add a model", style: "add.css", load: async () => (await import("./views/add.js")).AddModel },
  { path: "/requests", title: "Requests", nav: "Requests", style: "manage.css", load: async () => (await import("./views/requests.js")).Requests },
  { path: "/presets", title: "Presets", nav: "Presets", style: "manage.css", load: async () => (await import("./views/presets.js")).Presets },
  { path: "/access", title: "Access", nav: "Access", style: "manage.css", load: async () => (await import("./views/access.js")).Access },
  { path: "/events", title: "Events", nav: "Events", style: "manage.css", load: async () => (await import("./views/events.js")).Events },
  { path: "/models/", title: "Model", style: "model.css", load: () => import("./views/model.js").then((module) => module.ModelPage) },
];

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a % that a person typed
  }
}

/** The route of this place, and the word behind its path. @type {import("./vendor/signals.js").ReadonlySignal<{route: Route | undefined, word: string}>} */
export const here = computed(() => {
  const exact = ROUTES.find((route) => route.path === path.value);
  if (exact) return { route: exact, word: "" };
  const route = ROUTES.find((one) => one.path.length > 1 && one.path.endsWith("/") && path.value.startsWith(one.path) && path.value.length > one.path.length);
  return { route, word: route ? decoded(path.value.slice(route.path.length)) : "" };
});

/** The files of this page and those that Shoal has now do not fit. */
const CHANGED = "Shoal was changed since this page was opened, and the page has to be loaded again. What is typed and not sent is lost with it.";

/** Views that are there, by path; a text where one could not be fetched. */
const views = signal(/** @type {ReadonlyMap<string, View | string>} */ (new Map([["/", Overview]])));
const asked = new Set(["/"]);

/** A route's view; a text if it could not be fetched, nothing while it comes. @param {Route} route */
export function viewOf(route) {
  if (!asked.has(route.path)) void fetchView(route);
  return views.value.get(route.path);
}

/** @param {Route} route */
async function fetchView(route) {
  asked.add(route.path);
  try {
    const [view] = await Promise.all([route.load?.(), route.style && style(route.style)]);
    views.value = new Map(views.value).set(route.path, view ?? "This page has no view.");
  } catch {
    const told = (await changed()) ? CHANGED : "This page could not be fetched: Shoal does not answer.";
    views.value = new Map(views.value).set(route.path, told);
  }
}

/** Whether Shoal has other files now than those that this page began with: their release is in the address of each. */
async function changed() {
  const [release = ""] = new URL(".", import.meta.url).pathname.split("/").slice(-2);
  try {
    const index = await fetch(".", { cache: "no-cache" });
    return index.ok && !(await index.text()).includes(release);
  } catch {
    return false;
  }
}

/** Fetch a view again that could not be fetched, or the whole page where only that helps. @param {Route} route */
export function retry(route) {
  if (views.peek().get(route.path) === CHANGED) return location.reload();
  const next = new Map(views.value);
  next.delete(route.path);
  views.value = next;
  void fetchView(route);
}
