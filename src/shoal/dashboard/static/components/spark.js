// The last ten minutes of a device's memory, as a strip.

import { colour } from "../dom.js";
import { filled, sharesOf } from "../history.js";
import { effect, html } from "../lib.js";
import { heardAt } from "../store.js";
import { colours } from "../theme_choice.js";
import { useChart } from "./chart.js";

const HEIGHT = 30;
const SPAN = 600;

/** @param {HTMLElement} element @param {string} device */
function chart(element, device) {
  const [used, kv] = [colour(element, "--spark-used"), colour(element, "--spark-kv")];
  const range = () => {
    const last = sharesOf(device).at.at(-1) ?? Date.now() / 1000;
    return /** @type {[number, number]} */ ([last - SPAN, last]);
  };
  let drawn = sharesOf(device).version;
  return {
    options: {
      height: HEIGHT,
      padding: /** @type {[number, number, number, number]} */ ([2, 0, 0, 0]),
      cursor: { show: false },
      legend: { show: false },
      axes: [{ show: false }, { show: false }],
      scales: { x: { range }, y: { range: /** @type {[number, number]} */ ([0, 1]) } },
      series: [{}, { fill: used, stroke: used, width: 1, points: { show: false } }, { fill: kv, points: { show: false } }],
    },
    data() {
      const { at, used: share, kv: backed } = sharesOf(device);
      return [at, share, backed];
    },
    follow: (/** @type {() => void} */ draw) =>
      effect(() => {
        void [heardAt.value, filled.value];
        const { version } = sharesOf(device);
        if (version === drawn) return;
        drawn = version;
        draw();
      }),
  };
}

/** @param {{device: string}} props */
export function Spark({ device }) {
  const place = useChart((element) => chart(element, device), [device, colours.value]);
  // The canvas has the width of its place, and must not hold that open when the window becomes narrower.
  return html`<div class="spark" style=${{ contain: "inline-size" }} ref=${place} role="img" aria-label=${`Memory of ${device} in the last ten minutes`}></div>`;
}
