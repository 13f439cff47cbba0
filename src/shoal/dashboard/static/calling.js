// How a model is called: programs to copy, for the API that fits what it does. Pure.

import { quote } from "./actions.js";

/** @typedef {"chat" | "completions" | "embeddings" | "rerank" | "transcription"} Api */
/** `base` is the address that ends with `v1`, `key` whether a key has to be shown.
 * @typedef {{name: string, base: string, key: boolean}} Target */

/** @type {[Api, string][]} */
export const APIS = [
  ["chat", "Chat"], ["completions", "Text completion"], ["embeddings", "Embeddings"], ["rerank", "Reranking"], ["transcription", "Transcription"],
];
export const LANGUAGES = ["curl", "Python", "JavaScript"];
const VARIABLE = "SHOAL_API_KEY";

/** What engines call their tasks. @type {[RegExp, Api][]} */
const TASKS = [[/^(embed|embedding|pooling)$/, "embeddings"], [/^(score|rerank|classify|reward)$/, "rerank"], [/^(transcription|translation)$/, "transcription"]];
/** What models of a kind tend to be called; only where the settings say nothing. @type {[RegExp, Api][]} */
const NAMES = [[/rerank/i, "rerank"], [/whisper|parakeet|voxtral/i, "transcription"], [/embed|\bbge-|\be5-|\bgte-|minilm/i, "embeddings"]];

/** The API that a model most likely answers. @param {{name: string, source: string, args?: readonly string[]}} spec @returns {Api} */
export function apiOf({ name, source, args = [] }) {
  for (const [at, arg] of args.entries()) {
    const found = /^--(task|runner|convert)(?:=(.*))?$/.exec(arg);
    const task = found ? (found[2] ?? args[at + 1] ?? "") : "";
    const api = TASKS.find(([words]) => words.test(task))?.[1];
    if (api) return api;
    if (found?.[1] === "task") return "chat";
  }
  return NAMES.find(([words]) => words.test(`${name} ${source}`))?.[1] ?? "chat";
}

/** What is sent, and where. @type {Record<Exclude<Api, "transcription">, {path: string, body: Record<string, unknown>, python: string, shown: string, script: string}>} */
const CALLS = {
  chat: {
    path: "chat/completions", body: { messages: [{ role: "user", content: "Hello" }] },
    python: "chat.completions.create", shown: "answer.choices[0].message.content", script: "choices[0].message.content",
  },
  completions: { path: "completions", body: { prompt: "Once upon a time", max_tokens: 64 }, python: "completions.create", shown: "answer.choices[0].text", script: "choices[0].text" },
  embeddings: { path: "embeddings", body: { input: "a sentence" }, python: "embeddings.create", shown: "len(answer.data[0].embedding)", script: "data[0].embedding.length" },
  rerank: { path: "rerank", body: { query: "What is a shoal?", documents: ["Many fish.", "A bank."] }, python: "", shown: "answer", script: "results" },
};

/** A program that calls a model. @param {Api} api @param {string} language @param {Target} target */
export function program(api, language, target) {
  if (language === "curl") return curl(api, target);
  return language === "Python" ? python(api, target) : script(api, target);
}

/** @param {Api} api @param {Target} target */
function curl(api, { name, base, key }) {
  const shown = key ? [`-H "authorization: Bearer $${VARIABLE}"`] : [];
  if (api === "transcription") {
    return [`curl ${quote(`${base}/audio/transcriptions`)}`, ...shown, "-F file=@speech.wav", `--form-string ${quote(`model=${name}`)}`].join(" \\\n  ");
  }
  const { path, body } = CALLS[api];
  return [`curl ${quote(`${base}/${path}`)}`, ...shown, "-H 'content-type: application/json'", `-d ${quote(JSON.stringify({ model: name, ...body }))}`].join(" \\\n  ");
}

/** @param {Api} api @param {Target} target */
function python(api, { name, base, key }) {
  const head = [
    ...(key ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key ? `os.environ["${VARIABLE}"]` : '"none"'})`,
  ];
  if (api === "transcription") {
    return [...head, 'with open("speech.wav", "rb") as file:', `    answer = client.audio.transcriptions.create(model=${JSON.stringify(name)}, file=file)`, "print(answer.text)"].join("\n");
  }
  const { path, body, python: method, shown } = CALLS[api];
  const given = Object.entries(body).map(([word, value]) => `    ${word}=${JSON.stringify(value)},`);
  const call = method
    ? [`answer = client.${method}(`, `    model=${JSON.stringify(name)},`, ...given, ")"]
    : [`answer = client.post("/${path}", cast_to=object, body=${JSON.stringify({ model: name, ...body })})`];
  return [...head, ...call, `print(${shown})`].join("\n");
}

/** @param {Api} api @param {Target} target */
function script(api, { name, base, key }) {
  const shown = key ? `authorization: \`Bearer \${process.env.${VARIABLE}}\`` : "";
  if (api === "transcription") {
    return [
      "import { readFile } from 'node:fs/promises';", "", "const form = new FormData();",
      'form.append("file", new Blob([await readFile("speech.wav")]), "speech.wav");', `form.append("model", ${JSON.stringify(name)});`,
      `const response = await fetch(${JSON.stringify(`${base}/audio/transcriptions`)}, {`, '  method: "POST",',
      ...(shown ? [`  headers: { ${shown} },`] : []), "  body: form,", "});", "console.log((await response.json()).text);",
    ].join("\n");
  }
  const { path, body, script: found } = CALLS[api];
  return [
    `const response = await fetch(${JSON.stringify(`${base}/${path}`)}, {`, '  method: "POST",',
    `  headers: { "content-type": "application/json"${shown ? `, ${shown}` : ""} },`,
    `  body: JSON.stringify(${JSON.stringify({ model: name, ...body })}),`, "});", `console.log((await response.json()).${found});`,
  ].join("\n");
}
