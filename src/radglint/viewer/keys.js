// The keyboard: one letter per action, listed in the help dialog. NiiVue's own keys are switched off.

import { byId, el } from "./dom.js";

/** Fills the help dialog and listens. `actions` maps a key to {words, run(event)}; keys of one row share `words`. */
export function listenToKeys(actions) {
  const rows = new Map();
  for (const [key, { words }] of Object.entries(actions)) rows.set(words, [...(rows.get(words) ?? []), label(key)]);
  byId("keys").replaceChildren(
    ...[...rows].map(([words, keys]) => el("div", {}, el("dt", {}, ...keys.flatMap((key) => [el("kbd", {}, key), " "])), el("dd", {}, words))),
  );
  window.addEventListener("keydown", (event) => {
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey || isTaken(event)) return;
    event.preventDefault();
    action.run(event);
  });
}

const NAMES = { ArrowUp: "\u2191", ArrowDown: "\u2193", ArrowLeft: "\u2190", ArrowRight: "\u2192", PageUp: "PgUp", PageDown: "PgDn" };
const label = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);

/** Whether the focused element wants the key itself. */
function isTaken({ target, key }) {
  if (document.querySelector("dialog[open]")) return true;
  if (target.matches("input[type=text], input[type=password], textarea, select")) return true;
  return target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(key);
}
