// Style sheets of what is fetched only when it is needed.

/** Have a style sheet, of those beside this file. @param {string} file */
export const style = (file) =>
  new Promise((resolve, reject) => {
    const href = new URL(file, import.meta.url).href;
    if ([...document.querySelectorAll("link")].some((link) => link.href === href)) return resolve(null); // several views share it
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = href;
    link.addEventListener("load", resolve);
    link.addEventListener("error", () => {
      link.remove();
      reject(new Error(file));
    });
    document.head.append(link);
  });
