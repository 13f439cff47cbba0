// Building the page. Every text goes in as a text node, so no name or message is ever read as HTML.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// Names may run right to left; isolation keeps them from turning the text around them.
export const name = (text, attributes = {}) => el("bdi", attributes, text);

// Make the children of `parent` those of `items`, by key, in order. A child whose `stamp` has not changed is kept, so
// that focus, selection and scroll positions stay; the one that holds the focus gives it to its successor.
export function keyed(parent, items, { key, stamp, make }) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const id = key(item);
    const mark = stamp(item);
    const found = old.get(id);
    old.delete(id);
    if (found && found.stamp === mark) return found;
    const focus = found?.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    const made = make(item);
    made.dataset.key = id;
    made.stamp = mark;
    if (found) {
      found.replaceWith(made);
      if (focus) made.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    }
    return made;
  });
  for (const gone of old.values()) gone.remove();
  wanted.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
  while (parent.childNodes.length > parent.children.length) {
    [...parent.childNodes].find((node) => node.nodeType !== Node.ELEMENT_NODE).remove();
  }
}

export function command(text) {
  const copied = el("span", { class: "copied", role: "status" });
  const button = el(
    "button",
    {
      type: "button",
      class: "copy",
      "aria-label": `Copy the command ${text}`,
      on: {
        click: async () => {
          try {
            await navigator.clipboard.writeText(text);
            copied.textContent = "Copied";
          } catch {
            copied.textContent = "Select and copy it by hand";
          }
          setTimeout(() => (copied.textContent = ""), 2500);
        },
      },
    },
    "Copy",
  );
  return el("div", { class: "command" }, el("code", {}, text), button, copied);
}
