// What need not be there before something is drawn.

/** Milliseconds after which no frame is waited for: nobody sees the page. */
const PATIENCE = 1000;

/** Call something once the next frame is drawn: when the one after it begins, as before that its pixels are still being made,
 * on what may be few cores. @param {() => void} work */
export function afterFrame(work) {
  let waits = true;
  const once = () => {
    if (waits) work();
    waits = false;
  };
  setTimeout(once, PATIENCE);
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(once)));
}
