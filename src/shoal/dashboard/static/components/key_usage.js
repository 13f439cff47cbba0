// What was used: requests and tokens by day, key and model.

import { option, Table, useAnswer } from "./forms.js";
import { QueryChoice } from "./query.js";
import { html } from "../lib.js";
import { query } from "../router.js";
import { Command, Name } from "./small.js";

const BY = /** @type {[string, string][]} */ ([["day", "day"], ["day,model", "day and model"], ["key", "key"], ["key,day", "key and day"], ["model", "model"], ["key,model", "key and model"]]);
const DAYS = /** @type {[string, string][]} */ ([["1", "today"], ["7", "7 days"], ["30", "30 days"], ["90", "90 days"], ["366", "a year"]]);
const MOST = 400;

/** @param {{keys: KeyView[] | null}} props */
export function Usage({ keys }) {
  const key = query.value.get("key") ?? "";
  const asked = query.value.get("by") ?? "day";
  const by = (BY.some(([value]) => value === asked) ? asked : "day").split(",");
  const days = Math.min(400, Math.max(1, Number(query.value.get("days")) || 30));
  const from = new Date(Date.now() - (days - 1) * 86_400_000).toISOString().slice(0, 10);
  const words = new URLSearchParams({ from, ...(key && { key: key === "-" ? "" : key }) });
  for (const word of by) words.append("by", word);
  const { data, error } = useAnswer(`usage?${words}`);
  /** @type {UsageRow[]} */
  const rows = [...(data.value?.usage ?? [])];
  if (by[0] === "day") rows.reverse(); // the newest day first
  const tokens = (/** @type {UsageRow} */ row) => row.prompt_tokens + row.completion_tokens;
  const most = Math.max(1, ...rows.map(tokens));
  /** @type {Record<string, (row: UsageRow) => any>} */
  const cell = {
    day: (row) => row.day,
    model: (row) => html`<${Name} text=${row.model ?? ""} />`,
    key: (row) => (row.key ? html`<${Name} text=${row.key_name ?? row.key} />` : html`<span class="soft">without a key</span>`),
  };
  const total = data.value?.total;
  return html`
    <section class="section" aria-labelledby="usage-title">
      <div class="heading"><h2 id="usage-title" tabindex="-1">Usage</h2>
        <${QueryChoice} word="Key" name="key" options=${[["", "all"], ["-", "without a key"], ...(keys ?? []).map((one) => [one.id, one.name]), ...(key && key !== "-" && !keys?.some((one) => one.id === key) ? [[key, key]] : [])]} />
        <${QueryChoice} word="By" name="by" kept="day" options=${BY} />
        <${QueryChoice} word="Of" name="days" kept="30" options=${DAYS.some(([value]) => value === String(days)) ? DAYS : [...DAYS, [String(days), `${days} days`]]} />
      </div>
      <div class="bar"><p class="soft" role="status">${total ? `${total.requests.toLocaleString()} requests, ${total.prompt_tokens.toLocaleString()} tokens of prompts and ${total.completion_tokens.toLocaleString()} of answers` : data.value ? `Nothing was used since ${from}.` : "Reading…"}</p>
        <${Command} text=${["shoal usage", by.join() !== "day" && `--by ${by.join()}`, `--from ${from}`, key && (key === "-" ? "--key ''" : option("--key", key))].filter(Boolean).join(" ")} /></div>
      ${error.value && html`<p class="failure" role="alert">${error.value}</p>`}
      ${rows.length > 0 && html`<${Table} label="Usage" columns=${[...by, "requests", "prompt tokens", "answer tokens", "share"]} numbers=${[by.length, by.length + 1, by.length + 2]}
        rows=${rows.slice(0, MOST).map((row) => ({
          key: [row.day, row.key, row.model].join(" "),
          cells: [...by.map((word) => cell[word]?.(row)), row.requests.toLocaleString(), row.prompt_tokens.toLocaleString(), row.completion_tokens.toLocaleString(),
            html`<span class="share-bar" aria-hidden="true"><span style=${{ width: `${(100 * tokens(row)) / most}%` }}></span></span>`],
        }))} />`}
      ${rows.length > MOST && html`<p class="soft older">${MOST} of ${rows.length.toLocaleString()} lines are shown; the command has all.</p>`}
    </section>
  `;
}
