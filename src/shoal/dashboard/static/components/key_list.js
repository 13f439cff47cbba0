// API keys: made, shown once, changed, given another secret, revoked.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { html, signal, useSignal } from "../lib.js";
import { mayAct } from "../session.js";
import { now } from "../store.js";
import { ago, clock } from "../units.js";
import { confirm } from "./confirm.js";
import { CopyButton, SelectField, Table } from "./forms.js";
import { KeyForm } from "./key_form.js";
import { Command, Name } from "./small.js";

/** @type {Record<string, string>} */
const SHAPES = { living: "●", expired: "○", revoked: "✕" };
const GRACES = /** @type {[string, string][]} */ ([["0", "ends at once"], ["3600", "works for 1 hour more"], ["86400", "works for 1 day more"], ["604800", "works for 7 days more"], ["2592000", "works for 30 days more"]]);
/** @type {Record<string, string>} */
const GRACE_WORDS = { 3600: "1h", 86400: "1d", 604800: "7d", 2592000: "30d" };

/** The key itself, which nobody can ask for again. @param {{made: NewKeyView, onClose: () => void}} props */
const Shown = ({ made, onClose }) => html`
  <section class="card panel shown-once" aria-label=${`The key ${made.name}`}>
    <h3>The key <${Name} text=${made.name} /> is shown this once</h3>
    <p class="secret"><code dir="ltr">${made.key}</code><${CopyButton} text=${made.key} word="Copy the key" /></p>
    <p class="soft">Keep it: only a digest of it is stored. Clients send it as their API key.${made.former_until ? ` The former secret works until ${clock(made.former_until)}.` : ""}</p>
    <div class="ends"><button type="button" class="primary" onClick=${onClose}>I have it</button></div>
  </section>
`;

/** @param {KeyView} key @param {(made: NewKeyView) => void} onMade */
function rotate(key, onMade) {
  const grace = signal("0");
  return confirm({
    title: `Give ${key.name} another secret?`,
    text: "Its id and its settings stay. Whoever uses the key needs the new secret, which is shown once.",
    body: () => html`<${SelectField} word="The secret that it has" value=${grace} options=${GRACES} />`,
    label: "Give another secret",
    command: () => `shoal keys rotate ${grace.value === "0" ? "" : `--grace ${GRACE_WORDS[grace.value]} `}${quote(key.id)}`,
    act: async () => onMade((await call("POST", `keys/${encodeURIComponent(key.id)}/rotate`, { grace: Number(grace.peek()) })).data),
  });
}

/** @param {KeyView} key @param {boolean} last @param {() => void} reload */
function revoke(key, last, reload) {
  const used = key.last_used_at === null ? "It was never used." : `It was used last ${ago(Math.max(0, Date.now() / 1000 - key.last_used_at))}, for ${(key.used?.requests ?? 0).toLocaleString()} requests.`;
  return confirm({
    title: `Revoke the key ${key.name}?`,
    text: `Whoever uses it is refused from now on, for good; requests that run finish. ${used} What it used stays known.${last ? " It is the last key: where Shoal listens on this machine alone, requests need no key after that, for any model." : ""}`,
    label: "Revoke",
    command: `shoal keys revoke ${quote(key.id)}`,
    act: async () => {
      await call("DELETE", `keys/${encodeURIComponent(key.id)}`);
      reload();
    },
  });
}

/** @param {KeyView} key */
function limits(key) {
  const words = [
    key.requests_per_minute === null ? "" : `${key.requests_per_minute.toLocaleString()} requests/min`,
    key.tokens_per_minute === null ? "" : `${key.tokens_per_minute.toLocaleString()} tokens/min`,
    key.concurrent === null ? "" : `${key.concurrent.toLocaleString()} at once`,
    key.priority === "normal" ? "" : `${key.priority} class`,
    key.weight === 1 ? "" : `weight ${key.weight}`,
  ].filter(Boolean);
  return words.join(", ");
}

/** @param {{keys: KeyView[] | null, all: import("../vendor/signals.js").Signal<boolean>, virtual: string[], reload: () => void, onUsage: (key: string) => void}} props */
export function Keys({ keys, all, virtual, reload, onUsage }) {
  const open = useSignal(/** @type {{one: KeyView | null} | null} */ (null));
  const made = useSignal(/** @type {NewKeyView | null} */ (null));
  const shut = (keys ?? []).filter((key) => key.state !== "revoked").length;
  const done = (/** @type {NewKeyView | null} */ key) => {
    open.value = null;
    if (key) made.value = key;
    reload();
  };
  /** @param {KeyView} key */
  const row = (key) => ({
    key: key.id,
    attributes: key.state === "living" ? {} : { class: "none" },
    cells: [
      html`<strong class="clip" title=${key.name}><${Name} text=${key.name} /></strong><code class="soft">${key.prefix}-…</code>`,
      html`<span class="phase" data-phase=${key.state}><span aria-hidden="true">${SHAPES[key.state]}</span>${key.state}</span>${key.former_until ? html`<br /><small>former secret until ${clock(key.former_until)}</small>` : null}`,
      key.models.length ? html`<span class="names">${key.models.map((model, n) => html`<span key=${model}>${n ? ", " : ""}<${Name} text=${model} /></span>`)}</span>` : html`<span class="soft">every model</span>`,
      limits(key) || html`<span class="soft">none</span>`,
      key.expires_at === null ? html`<span class="soft">never</span>` : clock(key.expires_at),
      key.last_used_at === null ? html`<span class="soft">never</span>` : ago(Math.max(0, now.value - key.last_used_at)),
      key.used === null ? html`<span class="soft" title="The store cannot be read now">?</span>` : key.used.requests.toLocaleString(),
      html`<div class="buttons">
        <button type="button" aria-label=${`Usage of ${key.name}`} onClick=${() => onUsage(key.id)}>Usage</button>
        ${mayAct.value && key.state !== "revoked" && html`
          <button type="button" aria-label=${`Change ${key.name}`} onClick=${() => (open.value = { one: key })}>Change</button>
          <button type="button" aria-label=${`Rotate ${key.name}`} onClick=${() => void rotate(key, done)}>Rotate…</button>
          <button type="button" aria-label=${`Revoke ${key.name}`} onClick=${() => void revoke(key, shut === 1, reload)}>Revoke…</button>`}
      </div>`,
    ],
  });
  return html`
    <section class="section" aria-labelledby="keys-title">
      <div class="heading">
        <h2 id="keys-title">API keys</h2>
        <label class="choice"><input type="checkbox" checked=${all.value} onChange=${(/** @type {any} */ event) => (all.value = event.target.checked)} /><span>Those that were revoked, too</span></label>
        ${mayAct.value && html`<button type="button" class="primary" aria-expanded=${String(open.value !== null && !open.value.one)} onClick=${() => (open.value = open.value && !open.value.one ? null : { one: null })}>New key</button>`}
      </div>
      ${made.value && html`<${Shown} key=${made.value.key} made=${made.value} onClose=${() => (made.value = null)} />`}
      ${open.value && html`<${KeyForm} key=${open.value.one?.id ?? ""} one=${open.value.one} virtual=${virtual} onDone=${done} onClose=${() => (open.value = null)} />`}
      ${keys?.length === 0 && !open.value && html`<div class="empty"><h3>No keys yet</h3><p>Whoever can connect may use every model; so Shoal listens on this machine alone. As soon as there is a key, every request needs one.</p><${Command} text="shoal keys create NAME" /></div>`}
      ${keys && keys.length > 0 && html`<${Table} label="API keys" columns=${["key", "state", "models", "limits", "expires", "last use", "requests", ""]} numbers=${[6]} rows=${keys.map(row)} />`}
    </section>
  `;
}
