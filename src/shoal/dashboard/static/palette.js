// Finding one of many things by a few letters. Pure.

/** @typedef {{title: string, more?: string}} Entry */

const PREFIX = 4;
const WORD = 3;
const INSIDE = 2;
const SCATTERED = 1;

/** How well a word fits a text: whole, from a word's beginning, inside, or letter by letter in its order; 0: not at all.
 * Both in lower case. @param {string} word @param {string} text */
export function fit(word, text) {
  const at = text.indexOf(word);
  if (at === 0) return PREFIX + (text.length === word.length ? 1 : 0);
  if (at > 0) {
    for (let next = at; next > 0; next = text.indexOf(word, next + 1)) if (!/[\p{L}\p{N}]/u.test(text[next - 1] ?? "")) return WORD;
    return INSIDE;
  }
  let from = 0;
  for (const letter of word) {
    from = text.indexOf(letter, from) + 1;
    if (!from) return 0;
  }
  // Letters that lie far apart are met in every long name; they have to lie close together to mean it.
  const start = text.indexOf(word[0] ?? "");
  return from - start <= 3 * word.length ? SCATTERED : 0;
}

/** Those that have every word of what was typed, the best first, otherwise in their order; `more` counts half.
 * @template {Entry} T @param {T[]} entries @param {string} typed @returns {T[]} */
export function find(entries, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return entries;
  const scored = [];
  for (const [order, entry] of entries.entries()) {
    const title = entry.title.toLowerCase();
    const more = (entry.more ?? "").toLowerCase();
    let score = title.startsWith(words.join(" ")) ? PREFIX : 0;
    let all = true;
    for (const word of words) {
      const found = Math.max(fit(word, title), ...title.split(/[\s/]+/).map((part) => fit(word, part) * 0.9), more ? fit(word, more) / 2 : 0);
      all &&= found > 0;
      score += found;
    }
    if (all) scored.push({ entry, score, order });
  }
  return scored.sort((a, b) => b.score - a.score || a.entry.title.length - b.entry.title.length || a.order - b.order).map(({ entry }) => entry);
}
