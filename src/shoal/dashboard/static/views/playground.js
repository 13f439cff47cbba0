// The playground: one prompt to one to four models, their answers side by side.

import { Answer } from "../components/play_answer.js";
import { Columns, others } from "../components/play_columns.js";
import { Composer, edit, Thumbnails } from "../components/play_composer.js";
import { readNames, stopAll } from "../components/play_run.js";
import { arrive, begin, busyNow, change, key, keyWanted, said, session, setKey } from "../components/play_session.js";
import { Sessions } from "../components/play_sessions.js";
import { Fields } from "../components/play_settings.js";
import { Copy } from "../components/play_text.js";
import { computed, effect, html, signal, useEffect, useRef } from "../lib.js";
import { curlOf, requestOf, titleOf, underWay } from "../playground.js";
import { path, query } from "../router.js";
import { connection, known, names } from "../store.js";

/** Which panel is open. */
const panel = signal("");
const plain = signal(false);

/** Which is shown: one for the key where it is wanted. */
const shown = computed(() => panel.value || (keyWanted.value ? "key" : ""));

/** @param {{name: string, word: string}} props */
const Toggle = ({ name, word }) => html`
  <button type="button" aria-expanded=${String(shown.value === name)} onClick=${() => (panel.value = panel.value === name ? "" : name)}>${word}</button>
`;

const Key = () => html`
  <div class="play-panel">
    ${keyWanted.value && html`<p class="failure">${keyWanted.value}</p>`}
    <label class="play-field broad"><span>API key</span>
      <input type="password" autocomplete="off" spellcheck="false" value=${key.value} placeholder="sk-shoal-…" onChange=${(/** @type {any} */ event) => setKey(event.target.value.trim())} /></label>
    <p class="soft">It stays in this tab of the browser and is gone with it.</p>
  </div>
`;

function Curl() {
  const now = session.value;
  const last = now.turns.at(-1);
  const turn = now.draft.trim() || now.images.length || !last ? { id: "", text: now.draft || "Hello", images: now.images } : last;
  const endpoint = new URL("v1", document.baseURI).href;
  return html`
    <div class="play-panel">
      <h3>The same by curl</h3>
      ${now.columns.filter(({ model }) => model).map((column) => {
        const text = curlOf(endpoint, requestOf(now, column, turn), Boolean(key.value));
        const shown = text.replace(/(data:[\w/+.-]+;base64,.{24})[^"]+/g, "$1…");
        return html`<div class="play-code" key=${column.id}>
          <div class="play-code-head"><bdi class="soft clip">${column.model}</bdi><${Copy} text=${text} label=${`Copy the command for ${column.model}`} /></div>
          <pre tabindex="0" dir="ltr" aria-label=${`Command for ${column.model}`}><code>${shown}</code></pre></div>`;
      })}
      ${key.value && html`<p class="soft">Put the key in the variable SHOAL_API_KEY first.</p>`}
    </div>
  `;
}

const PANELS = /** @type {Record<string, () => any>} */ ({
  sessions: Sessions,
  settings: () => html`<div class="play-panel"><h3>Settings of all columns</h3><${Fields} id="all" fields=${session.value.fields} onChange=${(/** @type {PlayFields} */ fields) => change({ fields })} /></div>`,
  key: Key,
  curl: Curl,
});

/** @param {{turn: PlayTurn, last: boolean, number: number}} props */
const Turn = ({ turn, last, number }) => html`
  <li class="play-turn">
    <div class="asked"><div class="bubble"><h3 class="visually-hidden">Prompt ${number}</h3>
        ${turn.images.length > 0 && html`<${Thumbnails} images=${turn.images} />`}
        <p class="as-is" dir="auto">${turn.text}</p></div>
      <button type="button" class="quiet" aria-label=${`Edit prompt ${number}`} onClick=${() => edit(turn)}>Edit</button></div>
    <div class="side-by-side" data-columns=${session.value.columns.length}>
      ${session.value.columns.map((column) => html`<${Answer} key=${column.id} column=${column} turn=${turn} answer=${column.answers[turn.id]} last=${last} plain=${plain.value} />`)}
    </div>
  </li>
`;

/** How far the answers to the last prompt are, for those who do not see them grow. */
function Progress() {
  const { turns, columns } = session.value;
  const answers = columns.flatMap(({ answers }) => answers[turns.at(-1)?.id ?? ""] ?? []);
  const going = answers.filter(underWay).length;
  const words = !answers.length ? "" : going ? `${answers.length - going} of ${answers.length} answers are there` : answers.length === 1 ? "The answer is there" : "All answers are there";
  return html`<p class="visually-hidden" role="status">${words}</p>`;
}

/** The end is followed while the reader is at it. */
function Follow() {
  const atEnd = useRef(true);
  const { turns } = session.value;
  useEffect(() => {
    const look = () => (atEnd.current = document.documentElement.scrollHeight - innerHeight - scrollY < 60);
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  const busy = busyNow.value;
  const before = useRef(false);
  useEffect(() => {
    atEnd.current = true;
  }, [turns.length]);
  // After all of it is drawn, and once more when the last has ended.
  useEffect(() => {
    if (atEnd.current && (busy || before.current)) scrollTo(0, document.documentElement.scrollHeight);
    before.current = busy;
  });
  return null;
}

async function learnNames() {
  try {
    others.value = (await readNames()).map(({ id }) => id);
  } catch {
    // The models are known by the page's own stream; virtual ones and adapters are missing until it is live again.
  }
}

export function Playground() {
  useEffect(() => effect(() => {
    if (query.value && path.peek() === "/playground") void arrive();
  }), []);
  useEffect(() => effect(() => {
    key.value; // another key may see other names
    if (connection.value === "live") void learnNames();
  }), []);
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape" && busyNow.peek() && !document.querySelector("dialog[open]")) stopAll();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const { turns } = session.value;
  const Panel = PANELS[shown.value];
  return html`
    <div class="playground">
      <div class="heading">
        <h2>Playground <small class="clip"><bdi>${titleOf(session.value)}</bdi></small></h2>
        <label class="choice"><input type="checkbox" checked=${plain.value} onChange=${(/** @type {any} */ event) => (plain.value = event.target.checked)} /> as plain text</label>
        <button type="button" onClick=${() => begin()}>New session</button>
        <${Toggle} name="sessions" word="Sessions" /><${Toggle} name="settings" word="Settings" />
        <${Toggle} name="curl" word="curl" /><${Toggle} name="key" word="API key" />
      </div>
      ${said.value && html`<p class="notice warning" role="status">${said.value}</p>`}
      ${Panel && html`<${Panel} />`}
      ${known.value && names.value.length === 0 && html`<div class="empty"><h3>There is no model yet</h3><p>Declare one, then choose it here:</p><code>shoal models add my-model --source ./my-model</code></div>`}
      <${Columns} />
      <ol class="play-turns">${turns.map((turn, at) => html`<${Turn} key=${turn.id} turn=${turn} number=${at + 1} last=${at === turns.length - 1} />`)}</ol>
      <${Composer} /><${Progress} /><${Follow} />
    </div>
  `;
}
