// The last lines of a log, however many and long they are, and what is searched for in them. Pure.

/** Lines and characters that are kept at most; a page of them is some tens of megabytes. */
export const LINES = 20_000;
export const CHARACTERS = 8_000_000;
/** Of one line: what is kept, and what is drawn before somebody asks for all of it. */
export const LONGEST = 65_536;
export const DRAWN = 1_000;

const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])?/g;
const CONTROLS = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]/g;

/** A line without colours, and with other control characters made visible. @param {string} text */
export const shown = (text) =>
  text.replace(ESCAPES, "").replace(CONTROLS, (one) => {
    const code = one.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : code === 127 ? "␡" : "�";
  });

/** The beginning of a long line. It is copied: a part of a string keeps the whole of it in memory. @param {string} text */
function beginning(text) {
  const kept = text.slice(0, LONGEST);
  return `${new TextDecoder().decode(new TextEncoder().encode(kept))} … (${text.length.toLocaleString()} characters)`;
}

export class Lines {
  constructor() {
    /** @type {string[]} */
    this.kept = [];
    /** The number of the first line that is kept, counted from 0. */
    this.first = 0;
    this.characters = 0;
    this.needle = "";
    /** Numbers of lines in which the needle is, in order. @type {number[]} */
    this.found = [];
  }

  /** One beyond the number of the last line. */
  get end() {
    return this.first + this.kept.length;
  }

  /** @param {number} number */
  line(number) {
    return this.kept[number - this.first] ?? "";
  }

  /** Add lines at the end; the oldest go. @param {string[]} texts */
  add(texts) {
    let from = this.end;
    for (const text of texts) {
      const line = shown(text.length > LONGEST ? beginning(text) : text);
      this.kept.push(line);
      this.characters += line.length;
    }
    let gone = 0;
    while (this.kept.length - gone > LINES || (this.characters > CHARACTERS && this.kept.length - gone > 1)) {
      this.characters -= this.kept[gone]?.length ?? 0;
      gone += 1;
    }
    this.kept.splice(0, gone);
    this.first += gone;
    const old = this.found.findIndex((number) => number >= this.first);
    this.found.splice(0, old < 0 ? this.found.length : old);
    from = Math.max(from, this.first);
    this.match(from);
  }

  /** Search for a text, in any case. @param {string} needle */
  search(needle) {
    this.needle = needle.toLowerCase();
    this.found = [];
    this.match(this.first);
  }

  /** @param {number} from */
  match(from) {
    if (!this.needle) return;
    for (let number = from; number < this.end; number++) {
      if (this.line(number).toLowerCase().includes(this.needle)) this.found.push(number);
    }
  }

  clear() {
    this.kept = [];
    this.found = [];
    this.first = this.characters = 0;
  }
}

/** A line as parts, every second of which is the needle. @param {string} text @param {string} needle in small letters */
export function parts(text, needle) {
  if (!needle) return [text];
  const small = text.toLowerCase();
  if (small.length !== text.length) return [text]; // letters that change their length would shift what is marked
  const found = [];
  let from = 0;
  for (let at = small.indexOf(needle); at >= 0; at = small.indexOf(needle, from)) {
    found.push(text.slice(from, at), text.slice(at, at + needle.length));
    from = at + needle.length;
  }
  return [...found, text.slice(from)];
}
