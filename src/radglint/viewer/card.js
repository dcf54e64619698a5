// The card of one query in the list on the right.

import { el, icon, signed, two } from "./dom.js";

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
    this.size.textContent = layer.isBelow ? "nothing, the finding itself is below" : layer.size;
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
    const peak = layer.isMarked ? this.#small("peak", "Go to peak", () => act.peak(layer)) : null;
    const remove = this.#small("close", layer.state === "asking" ? "Cancel" : "Remove", () => act.remove(layer));
    return el("div", { class: "head" }, swatch, this.select, peak, remove);
  }

  #small(picture, title, onclick) {
    const label = `${title}: ${this.layer.query}`;
    return el("button", { type: "button", class: "plain", "data-do": title.toLowerCase(), "aria-label": label, title, onclick }, icon(picture));
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
    const { word, kind } = layer.verdict;
    this.here = el("span", { class: "here" });
    const parts = [el("p", { class: "facts" }, el("b", { class: `verdict ${kind}` }, word), this.here)];
    if (kind !== "unasked") parts.push(this.#chance(), this.#facts());
    if (layer.isMarked) parts.push(this.#sliders());
    if (layer.finding.note) parts.push(el("p", { class: "note" }, layer.finding.note));
    return parts;
  }

  #chance() {
    const { probability, threshold } = this.layer.finding;
    this.tick = el("i", { class: "tick" });
    const fill = el("i", { class: "fill" });
    fill.style.width = `${100 * probability}%`;
    this.tick.style.left = `${100 * threshold}%`;
    const meter = el("div", { class: "meter", "aria-hidden": "true" }, fill, this.tick);
    return el("p", { class: "chance" }, "Probability ", el("b", {}, two(probability)), meter);
  }

  #facts() {
    const score = el("span", {}, "Score ", el("span", { class: "number" }, signed(this.layer.finding.score, 2)));
    if (!this.layer.isMarked) return el("p", { class: "facts" }, score);
    this.size = el("output", { class: "size" });
    this.busy = el("span", { class: "spinner", role: "img", "aria-label": "Loading the map" });
    return el("p", { class: "facts" }, score, el("span", {}, "Marked ", this.size, " ", this.busy));
  }

  #sliders() {
    const { layer, act } = this;
    const slider = (name, range, change) => {
      const oninput = (event) => {
        change(Number(event.target.value) / 100);
        act.changed(layer);
      };
      return el("input", { type: "range", ...range, "aria-label": `${name} of ${layer.query}`, oninput });
    };
    const reset = () => {
      layer.threshold = layer.ownThreshold;
      act.changed(layer);
    };
    this.thresholdNow = el("output", { class: "now" });
    this.own = el("button", { type: "button", class: "link", title: "Back to the model's own threshold", onclick: reset }, "reset");
    this.threshold = slider("Threshold", { min: "1", max: "99", step: "1" }, (value) => (layer.threshold = value));
    this.opacity = slider("Opacity", { min: "10", max: "100", step: "5" }, (value) => (layer.opacity = value));
    return el(
      "div",
      { class: "sliders" },
      el("div", {}, el("span", {}, "Threshold ", this.thresholdNow, " ", this.own), this.threshold),
      el("div", {}, el("span", {}, "Opacity"), this.opacity),
    );
  }
}
