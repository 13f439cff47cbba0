// Markdown as models write it, to a tree of elements and texts. Pure; time is linear in the text, whatever it is: nothing is
// looked for twice, nesting has a bound, and past a number of elements the rest is plain text.

const ELEMENTS = 20_000;
const DEPTH = 8;
const CELLS = 64;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: |$)/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +(?=\S)|$)/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^\|? *:?-+:? *(?:\| *:?-+:? *)*\|?$/;

/** @param {string} text @returns {MarkNode[]} */
export function parse(text) {
  return blocks(text.split(/\r\n|\r|\n/), 0, { left: ELEMENTS });
}

/** @typedef {{left: number}} Budget */

/** @param {Budget} budget @param {string} tag @param {MarkNode[]} kids @param {Partial<MarkElement>} [more] @returns {MarkElement} */
function element(budget, tag, kids, more) {
  budget.left--;
  return { tag, kids, ...more };
}

/** @param {string[]} lines @param {number} depth @param {Budget} budget @returns {MarkNode[]} */
function blocks(lines, depth, budget) {
  /** @type {MarkNode[]} */
  const found = [];
  /** @type {string[]} */
  let paragraph = [];
  const close = () => {
    if (paragraph.length) found.push(element(budget, "p", inline(paragraph.join("\n"), budget)));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const line = /** @type {string} */ (lines[at]);
    if (budget.left <= 0) {
      close();
      found.push({ tag: "p", kids: [lines.slice(at).join("\n")] });
      break;
    }
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) {
      close();
      at++;
    } else if (fence) {
      close();
      at = code(lines, at, fence, found, budget);
    } else if (heading) {
      close();
      const level = `h${(heading[1] ?? "").length}`; // a look only: headings of an answer are none of the page's
      found.push(element(budget, "p", inline(line.slice(heading[0].length).replace(/ #+ *$/, "").trim(), budget), { word: level }));
      at++;
    } else if (RULE.test(line)) {
      close();
      found.push(element(budget, "hr", []));
      at++;
    } else if (depth < DEPTH && QUOTE.test(line)) {
      close();
      const begin = at;
      while (at < lines.length && QUOTE.test(lines[at] ?? "")) at++;
      found.push(element(budget, "blockquote", blocks(lines.slice(begin, at).map((one) => one.replace(QUOTE, "")), depth + 1, budget)));
    } else if (depth < DEPTH && ITEM.test(line)) {
      close();
      at = list(lines, at, found, depth, budget);
    } else if (!paragraph.length && line.includes("|") && DIVIDER.test((lines[at + 1] ?? "").trim())) {
      const next = table(lines, at, found, budget);
      if (next === at) paragraph.push(/** @type {string} */ (lines[at++]));
      else at = next;
    } else {
      paragraph.push(line);
      at++;
    }
  }
  close();
  return found;
}

/** @param {string[]} lines @param {number} at @param {RegExpExecArray} fence @param {MarkNode[]} found @param {Budget} budget */
function code(lines, at, fence, found, budget) {
  const mark = fence[1] ?? "";
  const indent = line0(lines[at]);
  const closing = new RegExp(`^ {0,3}\\${mark[0]}{${Math.min(mark.length, 1000)},} *$`);
  const begin = ++at;
  while (at < lines.length && !closing.test(lines[at] ?? "")) at++;
  const text = lines.slice(begin, at).map((line) => line.slice(Math.min(indent, line0(line)))).join("\n");
  found.push(element(budget, "pre", [text], { word: (fence[2] ?? "").trim().split(/\s/)[0]?.slice(0, 40) ?? "" }));
  return at + 1; // one that is not closed yet goes to the end
}

/** Blanks before a line's text. @param {string | undefined} line */
const line0 = (line) => (line ?? "").length - (line ?? "").trimStart().length;

/** @param {string[]} lines @param {number} at @param {MarkNode[]} found @param {number} depth @param {Budget} budget */
function list(lines, at, found, depth, budget) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at] ?? ""));
  const ordered = /\d/.test(first[2] ?? "");
  const indent = (first[1] ?? "").length;
  /** @type {MarkNode[]} */
  const items = [];
  while (at < lines.length && budget.left > 0) {
    const line = lines[at] ?? "";
    const item = ITEM.exec(line);
    if (!item || /\d/.test(item[2] ?? "") !== ordered || (item[1] ?? "").length > indent + 3 || RULE.test(line)) break;
    const inside = [line.slice(item[0].length)];
    const least = (item[1] ?? "").length + 2;
    const most = item[0].length;
    let blank = false;
    for (at++; at < lines.length; at++) {
      const next = lines[at] ?? "";
      const before = line0(next);
      if (!next.trim()) blank = true;
      else if (before >= least) blank = false;
      else if (blank || ITEM.test(next) || FENCE.test(next) || HEADING.test(next) || QUOTE.test(next) || RULE.test(next)) break;
      inside.push(next.slice(Math.min(before, most)));
    }
    const kids = blocks(inside, depth + 1, budget);
    const only = kids.length > 0 && typeof kids[0] === "object" && kids[0].tag === "p" ? [...kids[0].kids, ...kids.slice(1)] : kids;
    items.push(element(budget, "li", only));
  }
  found.push(element(budget, ordered ? "ol" : "ul", items, ordered ? { start: parseInt(first[2] ?? "1", 10) } : {}));
  return at;
}

/** @param {string} line */
function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** @param {string[]} lines @param {number} at @param {MarkNode[]} found @param {Budget} budget */
function table(lines, at, found, budget) {
  const head = cells(lines[at] ?? "");
  const sides = cells(lines[at + 1] ?? "").map((side) => (side.endsWith(":") ? (side.startsWith(":") ? "center" : "right") : ""));
  if (head.length !== sides.length || head.length > CELLS) return at;
  const row = (/** @type {string[]} */ texts, /** @type {string} */ tag) =>
    element(budget, "tr", sides.map((align, column) => element(budget, tag, inline(texts[column] ?? "", budget), align ? { align } : {})));
  const rows = [];
  const first = row(head, "th");
  for (at += 2; at < lines.length && budget.left > 0 && (lines[at] ?? "").includes("|"); at++) rows.push(row(cells(lines[at] ?? ""), "td"));
  const body = rows.length ? [element(budget, "tbody", rows)] : [];
  found.push(element(budget, "table", [element(budget, "thead", [first]), ...body]));
  return at;
}

/** @type {Record<string, string>} */
const MARKS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del", "[": "a" };
const TOKEN = /\\[!-/:-@[-`{-~]|`+|\*\*|__|~~|[*_[\]]|[^\\`*_~[\]]+|[^]/gy;
const ADDRESS = /\(((?:https?|mailto):[^\s()<>]+)\)/y;

/** @param {string} text @param {Budget} budget @returns {MarkNode[]} */
export function inline(text, budget = { left: ELEMENTS }) {
  const ticks = runs(text);
  /** What is open: each mark once at most, so that this stays short. @type {{mark: string, kids: MarkNode[]}[]} */
  const open = [{ mark: "", kids: [] }];
  const top = () => /** @type {{mark: string, kids: MarkNode[]}} */ (open.at(-1));
  const put = (/** @type {MarkNode} */ node) => {
    const { kids } = top();
    const last = kids.at(-1);
    if (typeof node === "string" && typeof last === "string") kids[kids.length - 1] = last + node;
    else kids.push(node);
  };
  const dissolve = () => {
    const { mark, kids } = /** @type {{mark: string, kids: MarkNode[]}} */ (open.pop());
    put(mark);
    for (const kid of kids) put(kid);
  };
  const wrap = (/** @type {string} */ mark, /** @type {Partial<MarkElement>} */ more = {}) => {
    while (top().mark !== mark) dissolve();
    const { kids } = /** @type {{mark: string, kids: MarkNode[]}} */ (open.pop());
    put(element(budget, MARKS[mark] ?? "em", kids, more));
  };
  const token = new RegExp(TOKEN);
  for (let match = token.exec(text); match; match = token.exec(text)) {
    const [word] = match;
    const after = text[token.lastIndex] ?? " ";
    const before = text[match.index - 1] ?? " ";
    if (budget.left <= 0) {
      put(text.slice(match.index));
      break;
    }
    if (word[0] === "\\" && word.length > 1) put(word.slice(1));
    else if (word[0] === "`") {
      const end = ticks(word.length, token.lastIndex);
      if (end === null) put(word);
      else {
        const within = text.slice(token.lastIndex, end);
        const padded = within.startsWith(" ") && within.endsWith(" ") && within.trim();
        put(element(budget, "code", [padded ? within.slice(1, -1) : within]));
        token.lastIndex = end + word.length;
      }
    } else if (word === "]") {
      ADDRESS.lastIndex = token.lastIndex;
      const address = after === "(" && open.some(({ mark }) => mark === "[") ? ADDRESS.exec(text) : null;
      if (address) {
        wrap("[", { href: address[1] });
        token.lastIndex = ADDRESS.lastIndex;
      } else put(word);
    } else if (word === "[") {
      while (open.some(({ mark }) => mark === "[")) dissolve();
      open.push({ mark: word, kids: [] });
    } else if (Object.hasOwn(MARKS, word)) {
      const inWord = word[0] === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
      if (!inWord && /\S/.test(before) && top().kids.length && open.some(({ mark }) => mark === word)) wrap(word);
      else if (!inWord && /\S/.test(after) && !open.some(({ mark }) => mark === word)) open.push({ mark: word, kids: [] });
      else put(word);
    } else put(word);
  }
  while (open.length > 1) dissolve();
  return top().kids;
}

/** Finds the next run of as many backticks, asked for with places that grow. @param {string} text
 * @returns {(length: number, from: number) => number | null} */
function runs(text) {
  /** @type {Map<number, number[]>} */
  const places = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    const kept = places.get(run.length);
    if (kept) kept.push(index);
    else places.set(run.length, [index]);
  }
  /** @type {Map<number, number>} */
  const past = new Map();
  return (length, from) => {
    const kept = places.get(length) ?? [];
    let next = past.get(length) ?? 0;
    while (next < kept.length && /** @type {number} */ (kept[next]) < from) next++;
    past.set(length, next);
    return kept[next] ?? null;
  };
}
