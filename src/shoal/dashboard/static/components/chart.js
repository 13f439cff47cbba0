// Charts. Their library is as large as a third of the rest, and not needed before what they are part of is there.

import { afterFrame } from "../frames.js";
import { effect, signal, useEffect, useRef } from "../lib.js";
import { connection, known } from "../store.js";
import { style } from "../style.js";

/** @typedef {typeof import("../vendor/uplot.js").default} Library */
/** @typedef {Omit<import("../vendor/uplot.js").default.Options, "width">} Options */

/** @type {import("../vendor/signals.js").Signal<Library | null>} */
const library = signal(/** @type {Library | null} */ (null));
let coming = false;

async function fetchLibrary() {
  if (coming || library.peek()) return;
  coming = true;
  try {
    const [module] = await Promise.all([import("../vendor/uplot.js"), style("vendor/uplot.css")]);
    library.value = module.default;
  } catch {
    // Shoal went away meanwhile; it is asked again once it is back.
  } finally {
    coming = false;
  }
}
effect(() => {
  if (connection.value === "live" && known.value) afterFrame(() => void fetchLibrary());
});

/** A chart in the element that the reference comes to have, as wide as that. It is made anew when one of `inputs` changes.
 * `make` says what it is like: uPlot's options, the data as they are now, and how to hear of others.
 * @param {(element: HTMLElement) => {options: Options, data: () => any, follow: (draw: () => void) => () => void}} make
 * @param {unknown[]} inputs */
export function useChart(make, inputs) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const uPlot = library.value;
  useEffect(() => {
    const element = place.current;
    if (!element || !uPlot) return undefined;
    const { options, data, follow } = make(element);
    const width = () => Math.max(1, element.clientWidth);
    const plot = new uPlot({ ...options, width: width() }, data(), element);
    const sized = new ResizeObserver(() => plot.setSize({ width: width(), height: options.height }));
    sized.observe(element);
    const stop = follow(() => plot.setData(data()));
    return () => {
      stop();
      sized.disconnect();
      plot.destroy();
    };
  }, [...inputs, uPlot]);
  return place;
}
