// Small helpers for the page.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: `el("button", {class: "quiet", onclick: f, "aria-label": "Remove"}, "x")`. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A picture of the sprite in index.html. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** "0.83": two decimals. */
export const two = (value) => value.toFixed(2);

/** A number with a real minus sign. */
export const signed = (value, digits) => value.toFixed(digits).replace("-", "\u2212");

/** Runs a function that may fail, and hands what it throws to `shown`. */
export async function guarded(work, shown) {
  try {
    return await work();
  } catch (error) {
    if (error?.name !== "AbortError") shown(error);
    return undefined;
  }
}
