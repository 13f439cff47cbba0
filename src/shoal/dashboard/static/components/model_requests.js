// The requests of a model that run or wait, read anew every other second while they are seen.

import { html, useEffect } from "../lib.js";
import { call } from "../api.js";
import { quote } from "../actions.js";
import { mayAct } from "../session.js";
import { connection } from "../store.js";
import { brief } from "../units.js";
import { confirm } from "./confirm.js";
import { option, Table, useAnswer } from "./forms.js";
import { Section, Unread } from "./model_section.js";
import { Command, Name } from "./small.js";

const EVERY = 2000;
const SHOWN = 100;

/** @type {Record<string, string>} */
const PHASES = { queued: "queued for its turn", held: "held until the model serves", waiting: "at the engine, no answer yet", answering: "answering" };

/** @param {ModelRequest} request @param {() => void} again */
const cancel = async (request, again) => {
  await confirm({
    title: "Cancel this request?",
    text: `Its client gets an error${request.tokens ? `, and the ${request.tokens} tokens of its answer so far are all that it gets` : ""}.`,
    label: "Cancel the request",
    command: `shoal requests cancel ${quote(request.id)}`,
    act: () => call("DELETE", `requests/${encodeURIComponent(request.id)}`),
  });
  again();
};

/** @param {{name: string}} props */
export function RequestsSection({ name }) {
  const { data, error, load } = useAnswer(`requests?model=${encodeURIComponent(name)}`);
  useEffect(() => {
    const timer = setInterval(() => {
      if (!document.hidden && connection.peek() === "live") void load();
    }, EVERY);
    return () => clearInterval(timer);
  }, [name]);
  /** @type {ModelRequest[]} */
  const all = data.value?.requests ?? [];
  const waiting = all.filter((one) => one.position !== null || one.phase === "held" || one.phase === "queued").length;
  const rows = all.slice(0, SHOWN).map((one) => ({
    key: one.id,
    attributes: { "data-request": one.id },
    cells: [
      html`<code>${one.id}</code><small>${one.path}</small>`,
      html`${PHASES[one.phase] ?? one.phase}${one.position ? html` <b>#${one.position}</b>` : ""}${one.instance && html`<small>${one.instance}</small>`}`,
      brief(one.age), one.tokens || "–",
      html`<${Name} text=${one.key ?? one.tenant} /><small>${one.priority}</small>`,
      mayAct.value && html`<button type="button" aria-label=${`Cancel the request ${one.id}`} onClick=${() => cancel(one, load)}>Cancel…</button>`,
    ],
  }));
  return html`
    <${Section} id="requests" title="Requests now" wide side=${html`<span class="soft">${all.length - waiting} running, ${waiting} waiting</span>`}>
      <${Unread} error=${error.value} />
      ${data.value?.silent?.length ? html`<p class="soft">A relay did not say in time what it has; there may be more.</p>` : null}
      ${rows.length > 0
        ? html`<${Table} label=${`Requests of ${name}`} columns=${["request", "phase", "age", "tokens", "client", ""]} numbers=${[2, 3]} rows=${rows} />`
        : html`<p class="soft">${data.value ? "No request runs or waits now." : "Reading…"}</p>`}
      ${all.length > SHOWN && html`<p class="soft">The ${SHOWN} oldest of ${all.length}; all of them:</p><${Command} text=${`shoal requests ${option("--model", name)}`} />`}
    <//>
  `;
}
