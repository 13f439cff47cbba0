// The theme: the system's, light or dark; kept in this browser.

import { effect, html, signal } from "./lib.js";

const KEY = "shoal.theme";
const root = document.documentElement;

/** `system`, `light` or `dark`. */
export const theme = signal(root.dataset.theme ?? "system");
/** Grows whenever the colours change, by choice or by the system. */
export const colours = signal(0);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.value++);

effect(() => {
  if (theme.value === "system") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
  try {
    localStorage.setItem(KEY, theme.value);
  } catch {
    // It lasts as long as the page.
  }
  colours.value = colours.peek() + 1;
});

export const ThemeChoice = () => html`
  <label class="choice">
    <span>Theme</span>
    <select value=${theme.value} onChange=${(/** @type {any} */ event) => (theme.value = event.target.value)}>
      ${["system", "light", "dark"].map((name) => html`<option value=${name}>${name}</option>`)}
    </select>
  </label>
`;
