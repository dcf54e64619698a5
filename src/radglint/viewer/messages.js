// Calm messages in the page: what went wrong, in a line that can be put away.

import { el, icon } from "./dom.js";

/** Shows a problem in a list of messages, once. */
export function message(list, error) {
  const title = error.title && error.title !== error.message ? el("b", {}, error.title) : null;
  const text = error.message || String(error);
  if ([...list.children].some((child) => child.dataset.text === text)) return;
  const node = el("div", { class: "message", role: "alert", "data-text": text, "data-status": error.status ?? "" });
  const close = el("button", { type: "button", class: "plain", "aria-label": "Put this message away", onclick: () => node.remove() }, icon("close"));
  node.append(el("p", {}, title, title ? " " : "", text), close);
  list.append(node);
}
