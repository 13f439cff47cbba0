// How a model is called from elsewhere, as programs to copy.

import { APIS, apiOf, LANGUAGES, program } from "../calling.js";
import { html, useSignal } from "../lib.js";
import { CopyButton, useAnswer } from "./forms.js";
import { Section } from "./model_section.js";
import { Command } from "./small.js";

/** Whether a request has to show a key: there is one, or others than this machine can connect. @param {any} keys @param {any} settings */
export const mustShow = (keys, settings) =>
  Boolean(keys?.keys?.length) || Boolean(settings?.settings?.host && !/^(localhost|127\.|::1$|\[::1\]$)/.test(settings.settings.host));

/** @param {{model: ModelView}} props */
export function CallingSection({ model }) {
  const keys = useAnswer("keys?all=false");
  const settings = useAnswer("settings");
  const chosen = useSignal(/** @type {import("../calling.js").Api | ""} */ (""));
  const language = useSignal("curl");
  const spec = /** @type {any} */ (model.spec);
  const api = chosen.value || apiOf(spec);
  const key = mustShow(keys.data.value, settings.data.value);
  const text = program(api, language.value, { name: model.name, base: new URL("v1", document.baseURI).href, key });
  const side = html`
    <label class="choice"><span>API</span>
      <select value=${api} onChange=${(/** @type {any} */ event) => (chosen.value = event.target.value)}>
        ${APIS.map(([word, title]) => html`<option key=${word} value=${word}>${title}</option>`)}
      </select>
    </label>`;
  return html`
    <${Section} id="calling" title="How to call it" side=${side}>
      <div class="languages" role="group" aria-label="Language">
        ${LANGUAGES.map((word) => html`<button key=${word} type="button" aria-pressed=${String(language.value === word)} onClick=${() => (language.value = word)}>${word}</button>`)}
        <${CopyButton} text=${text} label=${`Copy the ${language.value} program`} />
      </div>
      <pre class="program" tabindex="0" dir="ltr" aria-label=${`How to call it: ${language.value}`}>${text}</pre>
      ${key
        ? html`<p class="soft">A request has to show an API key: put one into the variable <code>SHOAL_API_KEY</code>. To make one:</p><${Command} text="shoal keys create my-app" />`
        : keys.error.value
          ? html`<p class="soft">Whether a request has to show a key could not be read: ${keys.error.value}</p>`
          : keys.data.value && html`<p class="soft">No key is needed: Shoal has none, and answers on this machine alone.</p>`}
      ${spec.on_request === false
        ? html`<p class="soft">It is not loaded by requests: while it does not run, they are refused.</p>`
        : html`<p class="soft">While it is not loaded or sleeps, a request waits until it serves.</p>`}
    <//>
  `;
}
