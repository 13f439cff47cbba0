// Conversations of the playground: what is sent, what comes back, what is kept. Pure.

export const COLUMNS = 4;
const SESSIONS = 40;
const CHARACTERS = 64 * 2 ** 20;
const LINE = 16 * 2 ** 20;

/** Where these models can be talked to. @param {string[]} names */
export const playgroundAddress = (names) => `#/playground?${names.map((name) => `models=${encodeURIComponent(name)}`).join("&")}`;

/** An event stream, cut anywhere: `push` gives what has come whole. Time and memory are linear in what comes. */
export class EventStream {
  /** What has come of a line. @type {string[]} */
  #parts = [];
  #length = 0;
  #halfEnd = false;
  /** @type {string[]} */
  #data = [];

  /** @param {string} text @returns {PlayEvent[]} Raises RangeError for a line that is too long. */
  push(text) {
    /** @type {PlayEvent[]} */
    const found = [];
    let begin = this.#halfEnd && text.startsWith("\n") ? 1 : 0; // the rest of a CR LF
    if (text) this.#halfEnd = text.endsWith("\r");
    const end = /\r\n|\n|\r/g;
    end.lastIndex = begin;
    for (let match = end.exec(text); match; match = end.exec(text)) {
      this.#line([...this.#parts, text.slice(begin, match.index)].join(""), found);
      this.#parts = [];
      this.#length = 0;
      begin = end.lastIndex;
    }
    this.#parts.push(text.slice(begin));
    this.#length += text.length - begin;
    if (this.#length > LINE) throw new RangeError("A line of the answer is longer than 16 MiB.");
    return found;
  }

  /** @param {string} line @param {PlayEvent[]} found */
  #line(line, found) {
    if (line === "") {
      if (this.#data.length) found.push({ data: this.#data.join("\n") });
      this.#data = [];
    } else if (line.startsWith(":")) found.push({ comment: line.slice(1).trim() });
    else if (/^data(:|$)/.test(line)) this.#data.push(line.slice(5).replace(/^ /, ""));
  }
}

/** @param {string} model @param {number} at @returns {PlayAnswer} */
export const newAnswer = (model, at) => ({
  model, state: "waiting", text: "", reasoning: "", finish: null, why: "", waits: "", askedAt: at, first: null, last: null,
  held: null, pieces: 0, prompt: null, completion: null, queue: null, wake: null,
});

/** @param {PlayAnswer} answer */
export const underWay = (answer) => answer.state === "waiting" || answer.state === "answering";

/** The answer after one event of its stream. @param {PlayAnswer} answer @param {PlayEvent} event @param {number} at
 * @returns {PlayAnswer} */
export function heard(answer, event, at) {
  if (!underWay(answer)) return answer;
  if ("comment" in event) return { ...answer, waits: event.comment, held: at - answer.askedAt };
  if (event.data.trim() === "[DONE]") return ended({ ...answer, finish: answer.finish ?? "stop" }, "done");
  let data;
  try {
    data = JSON.parse(event.data);
  } catch {
    data = null;
  }
  if (data === null || typeof data !== "object") return { ...answer, why: "A piece of it could not be read." };
  if (data.error) return ended(answer, "cut", refusal(data, 200));
  const next = { ...answer };
  const choice = Array.isArray(data.choices) ? data.choices[0] : null;
  const piece = choice?.delta ?? choice?.message ?? {};
  const text = words(piece.content);
  const reasoning = words(piece.reasoning_content) || words(piece.reasoning);
  if (text || reasoning) {
    next.text += text;
    next.reasoning += reasoning;
    next.pieces++;
    next.first ??= at - answer.askedAt;
    next.last = at - answer.askedAt;
    next.state = "answering";
  }
  if (typeof choice?.finish_reason === "string") next.finish = choice.finish_reason;
  if (data.usage && typeof data.usage === "object") {
    next.prompt = count(data.usage.prompt_tokens) ?? next.prompt;
    next.completion = count(data.usage.completion_tokens) ?? next.completion;
  }
  return next;
}

const words = (/** @type {unknown} */ value) => (typeof value === "string" ? value : "");
const count = (/** @type {unknown} */ value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

/** What a refusal says, whoever refuses. @param {any} data @param {number} status */
export function refusal(data, status) {
  const said = data?.error?.message ?? data?.error ?? data?.detail ?? data?.message;
  const text = typeof said === "string" && said ? said : `It was answered ${status}.`;
  const unknown = status === 404 && data?.error?.code !== "model_not_found";
  return unknown ? `${text.replace(/[^.!?]$/, "$&.")} Its engine has no chat: it may be a model for something else.` : text;
}

/** The answer after its end. Without `[DONE]` it is whole only if it said how it finished and all of it was read.
 * @param {PlayAnswer} answer @param {"done" | "stopped" | "cut" | "lost"} how @param {string} [why] @returns {PlayAnswer} */
export function ended(answer, how, why = answer.why) {
  if (!underWay(answer)) return answer;
  const whole = (how === "done" || (how === "lost" && answer.finish)) && !why;
  if (whole) return { ...answer, state: "done" };
  const reason = why || (how === "stopped" ? "You stopped it." : "The connection ended before the answer did.");
  if (how === "stopped") return { ...answer, state: "stopped", why: reason };
  return { ...answer, state: answer.text || answer.reasoning ? "cut" : "refused", why: reason };
}

/** Tokens per second between the first and the last piece, and whether pieces stand for tokens there because nobody has
 * counted these. @param {PlayAnswer} answer @returns {{rate: number | null, estimated: boolean}} */
export function speed(answer) {
  const tokens = answer.completion ?? answer.pieces;
  const time = (answer.last ?? 0) - (answer.first ?? 0);
  return { rate: tokens > 1 && time > 0 ? ((tokens - 1) * 1000) / time : null, estimated: answer.completion === null };
}

/** Settings of sampling: the field, its label, and what may stand there.
 * @type {{name: string, label: string, low: number, high: number, whole?: boolean, hint: string}[]} */
export const SAMPLING = [
  { name: "temperature", label: "Temperature", low: 0, high: 2, hint: "0 to 2" },
  { name: "top_p", label: "Top p", low: 0, high: 1, hint: "0 to 1" },
  { name: "max_tokens", label: "Most tokens", low: 1, high: 1e9, whole: true, hint: "a whole number" },
  { name: "seed", label: "Seed", low: -(2 ** 53) + 1, high: 2 ** 53 - 1, whole: true, hint: "a whole number" },
  { name: "presence_penalty", label: "Presence penalty", low: -2, high: 2, hint: "-2 to 2" },
  { name: "frequency_penalty", label: "Frequency penalty", low: -2, high: 2, hint: "-2 to 2" },
];

/** What typed settings come to in a request, and what is wrong with them, by field. @param {PlayFields} fields
 * @returns {{body: Record<string, unknown>, faults: Record<string, string>}} */
export function readFields(fields) {
  /** @type {Record<string, unknown>} */
  const body = {};
  /** @type {Record<string, string>} */
  const faults = {};
  for (const { name, low, high, whole, hint } of SAMPLING) {
    const text = (fields[name] ?? "").trim();
    if (!text) continue;
    const value = Number(text);
    if (!Number.isFinite(value) || value < low || value > high || (whole && !Number.isInteger(value))) faults[name] = `Give ${hint}.`;
    else body[name] = value;
  }
  const stop = (fields.stop ?? "").split("\n").filter(Boolean);
  if (stop.length > 4) faults.stop = "Give four at most, one a line.";
  else if (stop.length) body.stop = stop;
  return { body, faults };
}

/** A column's settings: its own where it has some, else those of all. @param {PlaySession} session @param {PlayColumn} column
 * @returns {PlayFields} */
export const fieldsOf = (session, column) => ({ ...session.fields, ...Object.fromEntries(Object.entries(column.fields).filter(([, text]) => text.trim())) });

/** What is wrong with the settings of those that are asked, in one sentence; empty if nothing is. @param {PlaySession} session */
export function faultOf(session) {
  for (const column of session.columns) {
    const [fault] = Object.entries(readFields(fieldsOf(session, column)).faults);
    if (fault && !column.muted) return `${SAMPLING.find(({ name }) => name === fault[0])?.label ?? "Stop"}: ${fault[1]}`;
  }
  return "";
}

/** @param {PlayTurn} turn */
const userMessage = ({ text, images }) => ({
  role: "user",
  content: images.length ? [...images.map(({ url }) => ({ type: "image_url", image_url: { url } })), ...(text ? [{ type: "text", text }] : [])] : text,
});

/** The request of one column for a turn. Turns before it that this column has not answered are left out: chat templates
 * want user and assistant to alternate. @param {PlaySession} session @param {PlayColumn} column @param {PlayTurn} turn */
export function requestOf(session, column, turn) {
  const fields = fieldsOf(session, column);
  const messages = [];
  if ((fields.system ?? "").trim()) messages.push({ role: "system", content: fields.system });
  for (const before of session.turns) {
    if (before.id === turn.id) break;
    const text = column.answers[before.id]?.text;
    if (text) messages.push(userMessage(before), { role: "assistant", content: text });
  }
  messages.push(userMessage(turn));
  return { model: column.model, messages, ...readFields(fields).body, stream: true, stream_options: { include_usage: true } };
}

/** The same request for a POSIX shell. The body comes from the standard input: an argument may not be as long as a picture is.
 * @param {string} endpoint @param {unknown} body @param {boolean} key */
export const curlOf = (endpoint, body, key) =>
  `curl -N ${endpoint}/chat/completions -H 'Content-Type: application/json'${key ? ' -H "Authorization: Bearer $SHOAL_API_KEY"' : ""} -d @- <<'JSON'\n${JSON.stringify(body, null, 1)}\nJSON`;

/** @param {string} id @param {string[]} models @param {number} at @returns {PlaySession} */
export const newSession = (id, models, at) => ({
  id, title: "", createdAt: at, changedAt: at, fields: {}, turns: [], draft: "", images: [], editing: null,
  columns: (models.length ? models : [""]).slice(0, COLUMNS).map((model, index) => ({ id: `${index}`, model, muted: false, fields: {}, answers: {} })),
});

/** @param {PlaySession} session */
export const titleOf = ({ title, turns, draft }) => title || (turns[0]?.text || draft).trim().replace(/\s+/g, " ").slice(0, 60) || "New session";

/** Whether there is anything in it that somebody could miss. @param {PlaySession} session */
export const worthKeeping = ({ turns, draft, images, fields, title }) =>
  Boolean(title || turns.length || draft.trim() || images.length || Object.values(fields).some((text) => text.trim()));

/** A session as it was kept: what was under way then is no longer. @param {PlaySession} session @returns {PlaySession} */
export function revived(session) {
  const columns = session.columns.map((column) => ({
    ...column,
    answers: Object.fromEntries(Object.entries(column.answers).map(([id, one]) => [id, ended(one, "cut", "The page was left while it came.")])),
  }));
  return { ...session, columns };
}

/** @param {PlaySession} session @returns {PlayLine} */
export const lineOf = (session) => ({
  id: session.id, title: titleOf(session), changedAt: session.changedAt, turns: session.turns.length, size: JSON.stringify(session).length,
});

/** Which sessions have to go, the oldest first, so that there are not too many or too much in them.
 * @param {PlayLine[]} lines @param {string} current it stays @returns {PlayLine[]} */
export function toDrop(lines, current) {
  const old = lines.filter((line) => line.id !== current).sort((a, b) => a.changedAt - b.changedAt);
  let many = lines.length;
  let size = lines.reduce((sum, line) => sum + line.size, 0);
  const gone = [];
  for (const line of old) {
    if (many <= SESSIONS && size <= CHARACTERS) break;
    gone.push(line);
    many--;
    size -= line.size;
  }
  return gone;
}

/** A session for people to read. @param {PlaySession} session */
export function asMarkdown(session) {
  const parts = [`# ${titleOf(session)}`];
  if ((session.fields.system ?? "").trim()) parts.push("## System", session.fields.system ?? "");
  for (const turn of session.turns) {
    parts.push("## You", turn.text, ...turn.images.map(({ name, url }) => `![${name.replace(/[[\]\\]/g, "\\$&")}](${url})`));
    for (const { answers } of session.columns) {
      const answer = answers[turn.id];
      if (!answer) continue;
      parts.push(`## ${answer.model}`, answer.text);
      if (answer.state !== "done") parts.push(`*Incomplete: ${answer.why || "it was still coming."}*`);
    }
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

/** What a model is for, if that is no chat: its engine's arguments say so. Empty if it can be talked to, as far as is known.
 * @param {string[]} args */
export function otherTask(args) {
  const said = args.flatMap((arg, at) => {
    const [, name, value] = /^--(task|runner|convert)(?:=(.*))?$/.exec(arg) ?? [];
    return name ? [value ?? args[at + 1] ?? ""] : [];
  });
  return said.find((task) => !["", "auto", "generate", "none", "draft"].includes(task)) ?? "";
}
