// The overview: devices and what is in them, models and what they do, what has happened.

import { Devices } from "../components/devices.js";
import { Models } from "../components/models.js";
import { Name } from "../components/small.js";
import { computed, html } from "../lib.js";
import { all, events, known } from "../store.js";
import { total } from "../traffic.js";
import { clock, rate } from "../units.js";

/** @param {string[]} states */
const count = (states) => all.value.filter((model) => states.includes(model.state)).length;
const counts = computed(() => JSON.stringify([count(["ready"]), count(["waking", "starting", "queued"]), count(["sleeping"]), count(["failed"])]));

/** @param {{word: string, value: string | number, tone?: string}} props */
const Figure = ({ word, value, tone = "" }) => html`<div class=${`figure ${tone}`}><dd>${value}</dd><dt>${word}</dt></div>`;

function Figures() {
  const [serving, coming, asleep, failed] = JSON.parse(counts.value);
  return html`
    <dl class="figures">
      <${Figure} word="serving" value=${serving} tone=${serving ? "good" : ""} />
      <${Figure} word="on the way" value=${coming} tone=${coming ? "wait" : ""} />
      <${Figure} word="asleep" value=${asleep} />
      <${Figure} word="failed" value=${failed} tone=${failed ? "bad" : ""} />
      <${Figure} word="requests/s" value=${rate(total.value.requests)} />
      <${Figure} word="tokens/s" value=${rate(total.value.tokens)} />
    </dl>
  `;
}

/** @param {EventView} event */
function words(event) {
  const about = event.instance ?? event.model;
  const named = !about || event.message.includes(event.model ?? about) || event.message.includes(about);
  return named ? event.message : `${about}: ${event.message}`;
}

const Events = () => html`
  <section aria-labelledby="events-title">
    <div class="heading"><h2 id="events-title">Recent events</h2><a href="#/events">All events</a></div>
    <ol id="events" class="events" tabindex="0" aria-labelledby="events-title">
      ${events.value.length === 0 && html`<li class="soft">Nothing has happened yet. Loads, failures and restarts appear here.</li>`}
      ${events.value.map((event) => html`
        <li key=${event.key} data-level=${event.level}>
          <time datetime=${new Date(event.at * 1000).toISOString()}>${clock(event.at)}</time>
          <span>${event.level !== "info" && html`<strong class="level">${event.level}: </strong>`}<${Name} text=${words(event)} /></span>
        </li>`)}
    </ol>
  </section>
`;

export function Overview() {
  if (!known.value) return html`<p class="soft loading">Reading what there is…</p>`;
  return html`
    <${Figures} />
    <div class="overview"><${Devices} /><${Models} /></div>
    <${Events} />
  `;
}
