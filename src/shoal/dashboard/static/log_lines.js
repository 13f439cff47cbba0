// The last lines of a log, however many and long they are, and what is searched for in them. Pure.

/** Lines and characters that are kept at most; a page of them is some tens of megabytes. */
export const LINES = 20_000;
export const CHARACTERS = 8_000_000;
/** Of one line: what is kept, and what is drawn before somebody asks for all of it. */
export const LONGEST = 65_536;
export const DRAWN = 1_000;

const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])?/g;
const CONTROLS = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]/g;

/** A line as it is kept. @param {string} text */
const line = (text) => shown(text.length > LONGEST ? beginning(text) : text);

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

/** Lines of which the page may know more than are told again: one that was told in two parts is told as one. */
const PARTED = 8;

/** Where the end of a log that is told again goes on after the lines that are known. Lines have no numbers, so this is the
 * longest end of what is known with which what is told begins. Lines that are all alike are taken for those that are known. */
export class Joint {
  /** @param {string[]} known lines that are kept, in order @param {number} most lines that are told again at most */
  constructor(known, most) {
    this.known = known.slice(-(most + PARTED));
    this.most = most;
    this.from = 0;
    /** @type {string[]} */
    this.told = [];
    /** @type {string[]} */
    this.lines = [];
    /** Whether it is known what is new. */
    this.found = !known.length;
    /** Whether nothing of what is known was told again: what came between may be missing. */
    this.gap = false;
  }

  /** The lines that are new with this one; none as long as they are known, or may be. @param {string} text @returns {string[]} */
  take(text) {
    if (this.found) return [text];
    this.told.push(text);
    this.lines.push(line(text));
    for (; this.from < this.known.length; this.from++) {
      const news = beyond(this.known, this.from, this.lines);
      if (news === "differs") continue;
      if (news === "within" && this.told.length < this.most) return [];
      this.found = true;
      return news === "within" ? [] : this.told.slice(news);
    }
    this.found = this.gap = true;
    return this.told;
  }
}

/** How many of the lines that are told are the known ones from `from` to their end; or that they `differ`, or that they end
 * `within`. @param {string[]} known @param {number} from @param {string[]} told @returns {number | "differs" | "within"} */
function beyond(known, from, told) {
  let at = from;
  let parted = 0;
  for (const [n, text] of told.entries()) {
    if (at === known.length) return n;
    const here = known[at] ?? "";
    const next = known[at + 1];
    if (text === here) at += 1;
    else if (n === 0) return "differs";
    else if (next === undefined) return here && text.startsWith(here) ? n : "differs"; // its beginning was the last that came
    else if ((text === next || text === here + next) && parted < PARTED) {
      at += 2; // it was told before it was complete, and then the rest of it
      parted += 1;
    } else return "differs";
  }
  return at === known.length ? told.length : "within";
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
      const kept = line(text);
      this.kept.push(kept);
      this.characters += kept.length;
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
