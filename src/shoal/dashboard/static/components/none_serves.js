// What is said above the list when every model that was tried has failed: why, and what to do next.

import { quote } from "../actions.js";
import { computed, html } from "../lib.js";
import { modelAddress } from "../router.js";
import { all } from "../store.js";
import { Command, Name } from "./small.js";

/** `count` models were tried, `alike` of them failed with the code that most did; `model` is the last of these.
 * @typedef {{count: number, alike: number, model: string, message: string, hint: string}} AllFailed */

/** Null as soon as one serves, sleeps, leaves or is on the way, and while none was tried. Pure. @param {ModelView[]} models @returns {AllFailed | null} */
export function allFailed(models) {
  const tried = models.filter((model) => model.state !== "unloaded");
  if (!tried.length || tried.some((model) => model.state !== "failed")) return null;
  const last = tried.flatMap(({ name, instances }) => {
    const [one] = instances.filter((instance) => instance.state === "failed").sort((a, b) => b.changed_at - a.changed_at);
    return one ? [{ name, at: one.changed_at, code: one.failure?.code ?? "", message: one.failure?.message ?? one.reason, hint: one.failure?.hint ?? "" }] : [];
  });
  /** @param {string} code */
  const count = (code) => last.filter((one) => one.code === code).length;
  const [first] = last.sort((a, b) => count(b.code) - count(a.code) || b.at - a.at || (a.name < b.name ? -1 : 1));
  if (!first) return null;
  return { count: tried.length, alike: count(first.code), model: first.name, message: first.message, hint: first.hint };
}

/** As one text: what is the same is drawn once. */
const found = computed(() => JSON.stringify(allFailed(all.value)));

/** @param {AllFailed} found */
const often = ({ count, alike }) => (count === 1 ? "" : alike === count ? "All in the same way, the last " : alike > 1 ? `Most often (${alike} of ${count}), the last ` : "The last ");

export function NoneServes() {
  /** @type {AllFailed | null} */
  const one = JSON.parse(found.value);
  if (!one) return null;
  return html`
    <div class="empty none-serves">
      <h3>${one.count === 1 ? "No model serves: the one that was tried has failed" : `No model serves: all ${one.count} that were tried have failed`}</h3>
      <p class="failure">${often(one)}<strong><${Name} text=${one.model} /></strong>: <bdi>${one.message}</bdi> <bdi>${one.hint}</bdi></p>
      <p><a href=${modelAddress(one.model)}>Its log and settings</a>. On the command line, its log, and what is missing on the machine:</p>
      <${Command} text=${`shoal logs ${quote(one.model)}`} />
      <${Command} text="shoal doctor" />
    </div>
  `;
}
