// What need not be there before something is drawn.

/** Milliseconds after which there is no frame to wait for: nobody sees the page. */
const PATIENCE = 200;

/** Call something once the next frame is drawn. @param {() => void} work */
export function afterFrame(work) {
  let waits = true;
  const once = () => {
    if (waits) work();
    waits = false;
  };
  setTimeout(once, PATIENCE);
  requestAnimationFrame(() => setTimeout(once));
}
