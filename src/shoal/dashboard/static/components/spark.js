// The last ten minutes of a device's memory, as a strip.

import { colour } from "../dom.js";
import { filled, sharesOf } from "../history.js";
import { effect, html, useEffect, useRef } from "../lib.js";
import { heardAt } from "../store.js";
import { colours } from "../theme_choice.js";
import uPlot from "../vendor/uplot.js";

const HEIGHT = 30;
const SPAN = 600;

/** @param {{device: string}} props */
export function Spark({ device }) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const theme = colours.value;
  useEffect(() => {
    const element = place.current;
    if (!element) return undefined;
    const [used, kv] = [colour(element, "--spark-used"), colour(element, "--spark-kv")];
    const range = () => {
      const last = sharesOf(device).at.at(-1) ?? Date.now() / 1000;
      return /** @type {[number, number]} */ ([last - SPAN, last]);
    };
    const data = () => {
      const { at, used: share, kv: backed } = sharesOf(device);
      return /** @type {[number[], number[], number[]]} */ ([at, share, backed]);
    };
    const plot = new uPlot(
      {
        width: Math.max(1, element.clientWidth),
        height: HEIGHT,
        padding: [2, 0, 0, 0],
        cursor: { show: false },
        legend: { show: false },
        axes: [{ show: false }, { show: false }],
        scales: { x: { range }, y: { range: [0, 1] } },
        series: [{}, { fill: used, stroke: used, width: 1, points: { show: false } }, { fill: kv, points: { show: false } }],
      },
      data(),
      element,
    );
    const sized = new ResizeObserver(() => plot.setSize({ width: Math.max(1, element.clientWidth), height: HEIGHT }));
    sized.observe(element);
    let drawn = -1;
    const stop = effect(() => {
      void [heardAt.value, filled.value];
      const { version } = sharesOf(device);
      if (version === drawn) return;
      drawn = version;
      plot.setData(data());
    });
    return () => {
      stop();
      sized.disconnect();
      plot.destroy();
    };
  }, [device, theme]);
  // The canvas has the width of its place, and must not hold that open when the window becomes narrower.
  return html`<div class="spark" style=${{ contain: "inline-size" }} ref=${place} role="img" aria-label=${`Memory of ${device} in the last ten minutes`}></div>`;
}
