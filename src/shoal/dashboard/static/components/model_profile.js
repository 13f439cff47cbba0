// What loads of a model have shown, and what it answers to the canary.

import { html, useEffect } from "../lib.js";
import { brief, bytes, clock } from "../units.js";
import { useAnswer } from "./forms.js";
import { Phases } from "./model_history.js";
import { Facts, Section, Unread } from "./model_section.js";

/** @param {{profile: ModelProfile}} props */
function Profile({ profile }) {
  /** @type {[string, number | null, (value: number) => string][]} */
  const all = [
    ["weights", profile.weights, bytes], ["graphs and other", profile.overhead, bytes], ["KV of one token", profile.kv_token, bytes],
    ["start", profile.load_seconds, brief], ["falls asleep in", profile.sleep_seconds, brief], ["wakes in", profile.wake_seconds, brief],
    ["held asleep", profile.asleep, bytes],
  ];
  return html`
    <li class="instance">
      <p class="line"><strong>${profile.device}</strong><span class="soft">${profile.loads === 1 ? "one start" : `${profile.loads} starts`}, last ${clock(profile.measured_at)}${profile.version && `, engine ${profile.version}`}</span>
        ${!profile.current && html`<span class="pin">with other settings</span>`}</p>
      <${Facts} list=${all.flatMap(([word, value, write]) => (value === null ? [] : [[word, write(value)]]))} />
      <${Phases} phases=${profile.phases} label="Phases of the last start" />
    </li>
  `;
}

/** @param {{canary: ModelCanary}} props */
const Canary = ({ canary: { instance, asked, completes, answer } }) => html`
  <li><code>${instance}</code> ${asked ? (completes ? html`answered <q><code>${answer}</code></q>` : "completes no text: it is not compared") : html`<span class="soft">was not asked yet: it has not slept</span>`}</li>
`;

/** @param {{model: ModelView}} props */
export function ProfileSection({ model }) {
  const { data, error, load } = useAnswer(`profiles?model=${encodeURIComponent(model.name)}`);
  const states = model.instances.map((one) => `${one.id} ${one.state} ${one.outdated}`).join(" ");
  useEffect(() => void load(), [states]);
  /** @type {ModelProfiles | null} */
  const known = data.value;
  return html`
    <${Section} id="profile" title="Measured">
      <${Unread} error=${error.value} />
      ${known && html`
        ${known.profiles.length > 0
          ? html`<ul class="instances">${known.profiles.map((one) => html`<${Profile} key=${`${one.device} ${one.measured_at}`} profile=${one} />`)}</ul>`
          : html`<p class="soft">Nothing yet. Each start is measured, and the next one is planned by that instead of an estimate.</p>`}
        <h4>Canary</h4>
        <p class="soft">Before its first sleep an instance completes <q>${known.prompt}</q> by one token. It counts as awake, or as moved, only if it answers that again.</p>
        ${known.canaries.length > 0
          ? html`<ul class="canaries">${known.canaries.map((one) => html`<${Canary} key=${one.instance} canary=${one} />`)}</ul>`
          : html`<p class="soft">No instance runs.</p>`}
      `}
    <//>
  `;
}
