// The card of one query in the list on the right.

import { el, icon, two } from "./dom.js";

const STATES = { queued: "Waiting", reading: "Reading", encoding: "Encoding", running: "Asking", map: "Loading the map" };

/** Makes a card; `act` names what its buttons do: select, toggle, remove, peak, changed, retry. */
export class Card {
  constructor(layer, act) {
    this.layer = layer;
    this.act = act;
    this.node = el("li", { class: "finding", tabindex: "-1" });
    this.build();
  }

  /** Builds the card anew after the layer's state changed. */
  build() {
    const { layer, node } = this;
    node.dataset.state = layer.state;
    node.dataset.query = layer.query;
    node.replaceChildren(this.#head());
    if (layer.state === "asking") node.append(this.#waiting());
    else if (layer.state === "failed") node.append(this.#failure());
    else node.append(...this.#answer());
    this.update();
  }

  /** Brings texts and sliders up to date. */
  update() {
    const { layer, node } = this;
    node.classList.toggle("off", layer.isMarked && !layer.visible);
    if (layer.colour) node.style.setProperty("--tint", layer.colour.hex);
    if (layer.state === "asking") this.waitingText.textContent = `${STATES[layer.stage] ?? "Asking"}\u2026`;
    if (layer.isMarked) this.#updateLayer();
  }

  #updateLayer() {
    const { layer } = this;
    this.eye.replaceChildren(icon(layer.visible ? "eye" : "hidden"));
    this.eye.setAttribute("aria-pressed", String(layer.visible));
    this.threshold.value = String(Math.round(layer.threshold * 100));
    this.thresholdNow.textContent = two(layer.threshold);
    this.opacity.value = String(Math.round(layer.opacity * 100));
    this.size.textContent = layer.isBelow ? `nothing: the finding itself has ${two(layer.finding.probability)}` : layer.size;
    this.own.hidden = !layer.isMoved;
    this.tick.style.left = `${100 * layer.threshold}%`;
    const busy = layer.texture === null;
    for (const control of [this.eye, this.threshold, this.opacity]) control.disabled = busy;
    this.busy.hidden = !busy;
    this.node.dataset.drawn = String(layer.isDrawn);
  }

  /** Shows the probability under the crosshair. */
  showHere(index) {
    if (!this.here) return;
    const value = this.layer.at(index);
    this.here.textContent = value === null ? "" : `here ${two(value)}`;
  }

  setSelected(selected) {
    this.node.classList.toggle("selected", selected);
    this.select.setAttribute("aria-expanded", String(selected));
  }

  #head() {
    const { layer, act } = this;
    this.select = el("button", { type: "button", class: "name", "aria-expanded": "false", onclick: () => act.select(layer) }, layer.query);
    const swatch = layer.isMarked ? this.#eye() : el("span", { class: "swatch", "aria-hidden": "true" });
    const verdict = layer.state === "answered" ? layer.verdict : null;
    const badge = verdict && el("span", { class: `badge ${verdict.kind}` }, verdict.word);
    const stop = layer.state === "asking" ? "Cancel" : "Remove";
    const remove = el(
      "button",
      { type: "button", class: "plain", "aria-label": `${stop} ${layer.query}`, title: stop, onclick: () => act.remove(layer) },
      icon("close"),
    );
    return el("div", { class: "head" }, swatch, this.select, badge, remove);
  }

  #eye() {
    const { layer, act } = this;
    const label = `Layer ${layer.query}, ${layer.colour?.name ?? ""}`;
    this.eye = el("button", { type: "button", class: "swatch", "aria-pressed": "true", "aria-label": label, title: "Show or hide", onclick: () => act.toggle(layer) });
    return this.eye;
  }

  #waiting() {
    this.waitingText = el("span");
    return el("p", { class: "wait" }, el("span", { class: "spinner", "aria-hidden": "true" }), this.waitingText);
  }

  #failure() {
    const again = el("button", { type: "button", class: "link", onclick: () => this.act.retry(this.layer) }, "Ask again");
    return el("p", { class: "note trouble-line" }, `${this.layer.problem.message} `, again);
  }

  #answer() {
    const { layer } = this;
    const { probability, score, note } = layer.finding;
    const isAsked = layer.verdict.kind !== "unasked";
    const parts = [];
    if (isAsked) {
      this.tick = el("i", { class: "tick" });
      const fill = el("i", { class: "fill" });
      fill.style.width = `${100 * probability}%`;
      this.tick.style.left = `${100 * layer.finding.threshold}%`;
      this.here = el("span", { class: "here" });
      parts.push(
        el("div", { class: "chance" }, el("b", {}, two(probability)), el("div", { class: "meter", "aria-hidden": "true" }, fill, this.tick)),
        el("p", { class: "facts" }, el("span", {}, "probability"), el("span", {}, `score ${two(score).replace("-", "\u2212")}`), this.here),
      );
    }
    if (layer.isMarked) parts.push(this.#controls());
    if (note) parts.push(el("p", { class: "note" }, note));
    return parts;
  }

  #controls() {
    const { layer, act } = this;
    const changed = (change) => (event) => {
      change(Number(event.target.value) / 100);
      act.changed(layer);
    };
    this.size = el("output", { class: "size" });
    this.busy = el("span", { class: "spinner", "aria-label": "Loading the map" });
    this.thresholdNow = el("output", { class: "now" });
    this.threshold = el("input", { type: "range", min: "1", max: "99", step: "1", "aria-label": `Threshold of ${layer.query}`, oninput: changed((v) => (layer.threshold = v)) });
    this.opacity = el("input", { type: "range", min: "10", max: "100", step: "5", "aria-label": `Opacity of ${layer.query}`, oninput: changed((v) => (layer.opacity = v)) });
    this.own = el("button", { type: "button", class: "link", onclick: () => { layer.threshold = layer.ownThreshold; act.changed(layer); } }, "model's own");
    const peak = el("button", { type: "button", class: "small", title: "Go to peak (P)", onclick: () => act.peak(layer) }, icon("peak"), "Go to peak");
    return el(
      "div",
      { class: "controls" },
      el("div", { class: "line" }, el("span", { class: "marked" }, "marked ", this.size, this.busy), peak),
      el("div", { class: "sliders" },
        el("label", {}, el("span", {}, "Threshold ", this.thresholdNow, " ", this.own), this.threshold),
        el("label", {}, el("span", {}, "Opacity"), this.opacity)),
    );
  }
}
