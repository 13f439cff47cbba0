// The page's frame: where we are, how the connection is, and the view of this place.

import { Ask, Notices } from "./components/dialog.js";
import { Palette } from "./components/palette.js";
import { SignIn, Who } from "./components/sign_in.js";
import { start as startHistory } from "./history.js";
import { effect, html, render } from "./lib.js";
import { here, retry, ROUTES, viewOf } from "./routes.js";
import { start as startSession } from "./session.js";
import { connection, heardAt, known, now, start as startStore, status } from "./store.js";
import { ThemeChoice } from "./theme_choice.js";
import { start as startTraffic } from "./traffic.js";
import { clock, seconds } from "./units.js";

function Connection() {
  const state = connection.value;
  const lost = known.value ? `Disconnected: this is from ${clock(heardAt.value)}. Trying again…` : "Shoal does not answer. Trying again…";
  const words = { connecting: "Connecting…", live: "Live", lost }[state];
  return html`<p id="connection" class="connection" role="status" data-state=${state}>${words}</p>`;
}

function About() {
  const known = status.value;
  return html`<p class="about soft">${known && `Shoal ${known.version}, up ${seconds(Math.max(0, now.value - known.started_at))}`}</p>`;
}

const Warnings = () => html`
  <div class="notices" role="status">
    ${[...new Set(status.value?.warnings ?? [])].map((text) => html`<p key=${text} class="notice warning">${text}</p>`)}
  </div>
`;

function Place() {
  const { route, word } = here.value;
  if (!route) return html`<div class="empty"><h2>There is nothing here</h2><p><a href="#/">Go to the overview</a></p></div>`;
  const view = viewOf(route);
  if (!view) return html`<p class="soft loading">Opening ${route.title}…</p>`;
  if (typeof view !== "string") return html`<${view} key=${`${route.path} ${word}`} word=${word} />`;
  return html`<div class="empty" role="alert"><h2>${route.title}</h2><p>${view}</p><button type="button" onClick=${() => retry(route)}>Try again</button></div>`;
}

const Navigation = () => html`
  <nav class="pages" aria-label="Pages">
    ${ROUTES.map(({ path, nav }) => nav && html`<a key=${path} href=${`#${path}`} aria-current=${here.value.route?.path === path ? "page" : undefined}>${nav}</a>`)}
  </nav>
`;

/** @param {Event} event */
function skip(event) {
  event.preventDefault(); // the hash is the page's address
  document.getElementById("main")?.focus();
}

const App = () => html`
  <header class="top">
    <a class="skip" href="#/" onClick=${skip}>Skip to the content</a>
    <h1><img loading="lazy" src=${new URL("icon.svg", import.meta.url).href} alt="" width="28" height="28" />Shoal</h1>
    <${Navigation} /><${Connection} /><${About} /><${Palette} /><${ThemeChoice} /><${Who} />
  </header>
  <main id="main" tabindex="-1" class=${connection.value === "lost" && known.value ? "old" : ""}>
    <${Warnings} /><${Notices} /><${Place} />
  </main>
  <${Ask} /><${SignIn} />
  <footer>
    <a href="api/docs">API</a><a href="metrics">Metrics</a>
    <span>OpenAI endpoint: <code>${new URL("v1", document.baseURI).href}</code></span>
  </footer>
`;

/** Where we are is said, and the keyboard goes on there. */
let place = here.peek();
effect(() => {
  const { route, word } = here.value;
  document.title = route && route.path !== "/" ? `${word || route.title} · Shoal` : "Shoal";
  if (place !== here.value) document.getElementById("main")?.focus({ preventScroll: true });
  if (place !== here.value) scrollTo(0, 0);
  place = here.value;
});

startStore();
startSession();
startHistory();
startTraffic();

/** Milliseconds for which the first frame waits for what there is: without it, it would be drawn twice. */
const PATIENCE = 150;
const root = /** @type {HTMLElement} */ (document.getElementById("app"));
let begun = false;
function begin() {
  if (begun) return;
  begun = true;
  root.replaceChildren();
  render(html`<${App} />`, root);
}
setTimeout(begin, PATIENCE);
known.subscribe((is) => is && begin());
connection.subscribe((state) => state === "lost" && begin());
