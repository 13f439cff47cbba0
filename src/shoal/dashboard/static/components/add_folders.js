// Folders of the machine that Shoal runs on, to choose a model's source from.

import { ApiError, call } from "../api.js";
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { Name } from "./small.js";

/** The folder that was looked at last: who comes back goes on there. */
let last = "";
/** Where one begins, if there is but one such place. */
let only = "";

/** @param {{onChoose: (source: string) => void, onClose: () => void}} props */
export function Folders({ onChoose, onClose }) {
  const list = useSignal(/** @type {FolderList | null} */ (null));
  const error = useSignal("");
  const title = useRef(/** @type {HTMLElement | null} */ (null));
  const turn = useRef(0);
  const go = async (/** @type {string} */ path, focus = true) => {
    const mine = ++turn.current;
    error.value = "";
    try {
      const { data } = await call("GET", `folders${path ? `?path=${encodeURIComponent(path)}` : ""}`);
      if (mine !== turn.current) return;
      if (!path) only = data.folders.length === 1 ? data.folders[0].path : "";
      if (only && !path) return void go(only, focus);
      list.value = data;
      last = path;
      if (focus) title.current?.focus();
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      if (mine !== turn.current) return;
      error.value = fault.message;
      if (!list.peek() && path) void go("", focus);
    }
  };
  useEffect(() => {
    void go(last);
    return () => void turn.current++;
  }, []);
  const found = list.value;
  return html`
    <div class="folders" role="group" aria-label="Folders of Shoal's machine" onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") onClose();
    }}>
      <div class="line">
        <strong ref=${title} tabindex="-1" class="where">${found?.path ? html`<${Name} text=${found.path} />` : "Folders of Shoal's machine"}</strong>
        ${found?.path && found.path !== only && html`<button type="button" class="quiet" onClick=${() => go(found.parent ?? "")}>Up</button>`}
        <button type="button" class="quiet" onClick=${onClose}>Close</button>
      </div>
      <div role="alert">${error.value && html`<p class="wrong">${error.value}</p>`}</div>
      ${found?.source && html`<p class="line">This folder holds a model (${found.weights}).<button type="button" class="primary" onClick=${() => onChoose(/** @type {string} */ (found.source))}>Choose it</button></p>`}
      ${found && html`
        <ul aria-label="Folders here">
          ${found.folders.map((folder) => html`
            <li key=${folder.name}>
              ${folder.path
                ? html`<button type="button" class="quiet folder" onClick=${() => go(/** @type {string} */ (folder.path))}><span aria-hidden="true">▸</span> <${Name} text=${folder.name} /></button>`
                : html`<span class="folder soft"><${Name} text=${folder.name} />: ${folder.problem}</span>`}
              ${folder.source && html`<small>model, ${folder.weights}</small><button type="button" aria-label=${`Choose ${folder.name}`} onClick=${() => onChoose(/** @type {string} */ (folder.source))}>Choose</button>`}
            </li>`)}
          ${!found.folders.length && html`<li class="soft">No folders here.</li>`}
          ${found.left_out > 0 && html`<li class="soft">and ${found.left_out} more: type the path of one of those</li>`}
        </ul>
      `}
    </div>
  `;
}
