// Where in a YAML text a fault is that the API has named. Pure.

/** The number of the line, from 1; 0 if it cannot be told. The API says `line 3`, or the way to a setting, such as
 * `models.0.spec.flor`; of that, the last word is looked for, behind the model that it belongs to.
 * @param {string} message @param {string} text */
export function lineOf(message, text) {
  const lines = text.split("\n");
  const numbers = [...message.matchAll(/\bline (\d+)/g)].map((found) => Number(found[1]));
  const last = numbers.at(-1);
  if (last) return Math.min(last, lines.length);
  const [way] = /[a-z_]+(?:\.[\w-]+)*(?=:)/.exec(message) ?? [];
  if (!way) return 0;
  const words = way.split(".");
  let from = 0;
  for (const [n, word] of words.entries()) {
    if (/^\d+$/.test(word)) {
      const parent = indent(lines[from - 1] ?? "");
      from = item(lines, from, Number(word), parent);
    } else {
      const found = lines.findIndex((line, at) => at >= Math.max(0, from - (n ? 1 : 0)) && line.replace(/^[\s-]*/, "").startsWith(`${word}:`));
      if (found < 0) return from;
      from = found + 1;
    }
    if (!from) return 0;
  }
  return from;
}

/** @param {string} line */
const indent = (line) => line.length - line.trimStart().length;

/** The line after the dash of a list's item, 0 if there is none. @param {string[]} lines @param {number} from @param {number} wanted @param {number} parent */
function item(lines, from, wanted, parent) {
  let count = -1;
  let depth = -1;
  for (let at = from; at < lines.length; at++) {
    const line = lines[at] ?? "";
    if (!line.trim() || line.trimStart().startsWith("#")) continue;
    if (indent(line) < parent) return 0;
    if (!/^\s*-(\s|$)/.test(line)) continue;
    if (depth < 0) depth = indent(line);
    if (indent(line) === depth && ++count === wanted) return at + 1;
  }
  return 0;
}
