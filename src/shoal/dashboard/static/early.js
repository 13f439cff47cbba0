// Opens the event stream while the page's modules are still on their way, and keeps what it tells until they take it over
// (`live` in api.js). No module, so that it runs at once, and before them in any case.

(() => {
  const source = new EventSource("api/v1/events");
  /** @type {MessageEvent[]} */
  const heard = [];
  const keep = (/** @type {MessageEvent} */ event) => void heard.push(event);
  const kinds = ["snapshot", "model", "model_removed", "devices", "memory", "move", "preset_run", "message"];
  for (const kind of kinds) source.addEventListener(kind, keep);
  globalThis.shoalEarly = {
    source,
    take() {
      for (const kind of kinds) source.removeEventListener(kind, keep);
      globalThis.shoalEarly = undefined;
      return heard;
    },
  };
})();
