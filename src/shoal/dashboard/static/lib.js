// The libraries, under one roof. `vendor/` is written by tools/vendor.py.

import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

/** Templates to elements. Every value becomes text or a property, so no name or message is ever read as HTML.
 * @type {(strings: TemplateStringsArray, ...values: any[]) => any} */
export const html = htm.bind(h);

export { render } from "./vendor/preact.js";
export { useEffect, useLayoutEffect, useRef } from "./vendor/hooks.js";
export { batch, computed, effect, signal, useSignal } from "./vendor/signals.js";
