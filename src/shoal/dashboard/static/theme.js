// Applies the chosen theme before anything is drawn; no module, so that it runs at once. `theme_choice.js` changes it.

(() => {
  try {
    const kept = localStorage.getItem("shoal.theme");
    if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  } catch {
    // Storage is closed to the page: the system's theme it is.
  }
})();
