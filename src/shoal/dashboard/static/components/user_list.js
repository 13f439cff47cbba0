// Users: who may sign in to the admin side, and what they may do there.

import { quote } from "../actions.js";
import { call } from "../api.js";
import { html, useSignal } from "../lib.js";
import { mayAct, session } from "../session.js";
import { ago } from "../units.js";
import { confirm } from "./confirm.js";
import { Panel, SelectField, Table, TextField, useAct } from "./forms.js";
import { Command, Name } from "./small.js";

/** @param {{one: UserView | null, first: boolean, onDone: () => void, onClose: () => void}} props */
function Form({ one, first, onDone, onClose }) {
  const name = useSignal(one?.name ?? "");
  const role = useSignal(one?.role ?? "admin");
  const password = useSignal("");
  const command = `shoal users set --role ${role.value}${one && !password.value ? " --keep-password" : ""} ${quote(name.value.trim() || "NAME")}`;
  const { busy, error, act } = useAct(async () => {
    const body = { role: role.peek(), ...(password.peek() ? { password: password.peek() } : {}) };
    await call("PUT", `users/${encodeURIComponent(name.peek().trim())}`, body);
    onDone();
  });
  const help = one ? "Another one, or empty to keep it. Either ends where they are signed in." : "8 characters at least.";
  return html`
    <${Panel} title=${one ? `Change ${one.name}` : "New user"} onSubmit=${act} error=${error.value} ends=${html`
      <button class="primary" disabled=${busy.value}>${one ? "Save" : "Make the user"}</button><button type="button" onClick=${onClose}>Close</button>
      <${Command} text=${command} />`}>
      ${first && html`<p>From the first user on everybody signs in, and other machines may. The first should be an admin: you.</p>`}
      <div class="fields">
        <${TextField} word="Name" value=${name} required readonly=${one !== null} autocomplete="off" />
        <${SelectField} word="Role" value=${role} options=${[["admin", "admin: may do everything"], ["read-only", "read-only: looks, changes nothing"]]} />
        <${TextField} word="Password" value=${password} type="password" required=${one === null} autocomplete="new-password" help=${help} />
      </div>
    <//>
  `;
}

/** @param {UserView} one @param {boolean} last @param {() => void} reload */
const remove = (one, last, reload) =>
  confirm({
    title: `Remove the user ${one.name}?`,
    text: last
      ? "It is the last one: then nobody signs in any more, and the admin side answers this machine alone."
      : "Where they are signed in, that ends at once. What they did stays.",
    label: "Remove",
    command: `shoal users rm ${quote(one.name)}`,
    act: async () => {
      await call("DELETE", `users/${encodeURIComponent(one.name)}`);
      reload();
    },
  });

/** @param {{users: UserView[] | null, reload: () => void}} props */
export function Users({ users, reload }) {
  const open = useSignal(/** @type {{one: UserView | null} | null} */ (null));
  const close = () => (open.value = null);
  const key = open.value?.one?.name ?? "";
  return html`
    <section class="section" aria-labelledby="users-title">
      <div class="heading"><h2 id="users-title">Users</h2>
        ${mayAct.value && html`<button type="button" aria-expanded=${String(open.value !== null && !key)} onClick=${() => (open.value = open.value && !key ? null : { one: null })}>New user</button>`}</div>
      ${open.value && html`<${Form} key=${key} one=${open.value.one} first=${users?.length === 0} onDone=${() => { close(); reload(); }} onClose=${close} />`}
      ${users?.length === 0 && !open.value && html`<div class="empty"><h3>No users</h3><p>Nobody has to sign in; Shoal is looked at and managed from its own machine alone.</p><${Command} text="shoal users set --role admin NAME" /></div>`}
      ${users && users.length > 0 && html`
        <${Table} label="Users" columns=${["user", "role", "signed in", "changed", ""]} numbers=${[2]}
          rows=${users.map((one) => ({
            key: one.name,
            cells: [
              html`<strong class="clip" title=${one.name}><${Name} text=${one.name} /></strong>${one.name === session.value.name && html` <span class="soft">you</span>`}`,
              one.role,
              html`${one.sessions ? `${one.sessions}×` : "–"}`,
              ago(Math.max(0, Date.now() / 1000 - one.changed_at)),
              mayAct.value && html`<div class="buttons"><button type="button" aria-label=${`Change ${one.name}`} onClick=${() => (open.value = { one })}>Change</button>
                <button type="button" aria-label=${`Remove ${one.name}`} onClick=${() => void remove(one, users.length === 1, reload)}>Remove…</button></div>`,
            ],
          }))} />`}
    </section>
  `;
}
