// Fields of a request as lines of text, `name=value`, where a value is JSON or else text, as the command line has them. Pure.

/** @param {string} text */
function valueOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The fields that lines name, or the first line that is none. @param {string} text
 * @returns {{fields: Record<string, unknown>, error: string}} */
export function fieldsOf(text) {
  /** @type {Map<string, unknown>} */
  const found = new Map();
  for (const [n, line] of text.split("\n").entries()) {
    if (!line.trim()) continue;
    const at = line.indexOf("=");
    const name = line.slice(0, at).trim();
    if (at < 0 || !name) return { fields: {}, error: `Line ${n + 1} is not name=value.` };
    if (found.has(name)) return { fields: {}, error: `Line ${n + 1} has ${name} a second time.` };
    found.set(name, valueOf(line.slice(at + 1).trim()));
  }
  return { fields: Object.fromEntries(found), error: "" };
}

/** A value so that reading it again gives the same. @param {unknown} value */
function textOf(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  const plain = value !== "" && value === value.trim() && !value.includes("\n") && !value.includes("\r") && valueOf(value) === value;
  return plain ? value : JSON.stringify(value);
}

/** Each field as `name=value`. @param {Record<string, unknown>} fields */
export const linesOf = (fields) => Object.entries(fields).map(([name, value]) => `${name}=${textOf(value)}`);
