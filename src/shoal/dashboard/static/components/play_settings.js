// System prompt and sampling: of all columns, or of one. What is typed stays as it is typed; what is wrong is said beside it.

import { html } from "../lib.js";
import { readFields, SAMPLING } from "../playground.js";

/** @param {{id: string, fields: PlayFields, shared?: PlayFields, onChange: (fields: PlayFields) => void}} props */
export function Fields({ id, fields, shared = {}, onChange }) {
  const { faults } = readFields(fields);
  const set = (/** @type {string} */ name) => (/** @type {any} */ event) => onChange({ ...fields, [name]: event.target.value });
  const fault = (/** @type {string} */ name) => faults[name] && html`<span class="fault" id=${`${id}-${name}-fault`}>${faults[name]}</span>`;
  const marks = (/** @type {string} */ name) => (faults[name] ? { "aria-invalid": "true", "aria-describedby": `${id}-${name}-fault` } : {});
  return html`
    <div class="play-fields">
      <label class="play-field broad"><span>System prompt</span>
        <textarea rows="2" dir="auto" value=${fields.system ?? ""} placeholder=${shared.system ?? ""} onInput=${set("system")}></textarea></label>
      ${SAMPLING.map(({ name, label, hint }) => html`
        <label class="play-field" key=${name}><span>${label}</span>
          <input type="text" inputmode="decimal" value=${fields[name] ?? ""} placeholder=${shared[name] || hint} onInput=${set(name)} ...${marks(name)} />${fault(name)}</label>`)}
      <label class="play-field"><span>Stop at, one a line</span>
        <textarea rows="1" value=${fields.stop ?? ""} placeholder=${shared.stop ?? ""} onInput=${set("stop")} ...${marks("stop")}></textarea>${fault("stop")}</label>
    </div>
  `;
}
