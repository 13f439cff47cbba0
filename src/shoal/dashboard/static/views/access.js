// Who may use what: API keys, what was used with them, names that stand for other models; and who may sign in.

import { useAnswer } from "../components/forms.js";
import { Keys } from "../components/key_list.js";
import { Usage } from "../components/key_usage.js";
import { Users } from "../components/user_list.js";
import { VirtualModels } from "../components/virtual_list.js";
import { html, useSignal } from "../lib.js";
import { setQuery } from "../router.js";

export function Access() {
  const all = useSignal(false);
  const keys = useAnswer(`keys${all.value ? "?all=true" : ""}`);
  const virtual = useAnswer("virtual-models");
  const users = useAnswer("users");
  /** @type {VirtualView[] | null} */
  const views = virtual.data.value?.virtual_models ?? null;
  const error = keys.error.value || virtual.error.value || users.error.value;
  const usage = (/** @type {string} */ key) => {
    setQuery("key", key);
    const title = document.getElementById("usage-title");
    title?.scrollIntoView({ block: "start" });
    title?.focus({ preventScroll: true });
  };
  return html`
    ${error && html`<p class="failure" role="alert">${error} <button type="button" onClick=${() => { void keys.load(); void virtual.load(); void users.load(); }}>Try again</button></p>`}
    ${!keys.data.value && !error && html`<p class="soft">Reading…</p>`}
    <${Keys} keys=${keys.data.value?.keys ?? null} all=${all} virtual=${views?.map((one) => one.name) ?? []} reload=${keys.load} onUsage=${usage} />
    <${Usage} keys=${keys.data.value?.keys ?? null} />
    <${VirtualModels} views=${views} reload=${virtual.load} />
    <${Users} users=${users.data.value?.users ?? null} reload=${users.load} />
  `;
}
