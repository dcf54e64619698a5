// The list of queries: asks the server, keeps the layers, draws them, and answers the buttons of the cards.

import * as api from "./api.js";
import { Card } from "./card.js";
import { byId, two } from "./dom.js";
import { COLOURS, Layer } from "./layer.js";
import { cornerOf, readNifti } from "./nifti.js";

export class FindingList {
  /** `stage` draws, `tell` shows a problem. */
  constructor(stage, tell) {
    this.stage = stage;
    this.tell = tell;
    this.layers = [];
    this.cards = new Map();
    this.selected = null;
    this.allHidden = false;
    this.act = {
      select: (layer) => this.select(this.selected === layer ? null : layer),
      toggle: (layer) => this.toggle(layer),
      remove: (layer) => this.remove(layer),
      peak: (layer) => this.toPeak(layer),
      changed: (layer) => this.#changed(layer),
      retry: (layer) => this.#retry(layer),
    };
    stage.addEventListener("move", () => this.#here());
  }

  /** Takes another study; what was asked of the last one goes. */
  setStudy(id) {
    for (const layer of [...this.layers]) this.remove(layer);
    this.studyId = id;
  }

  /** Asks one query; resolves with its layer once it is answered, drawn or failed. */
  async ask(query) {
    const known = this.layers.find((layer) => layer.query.toLowerCase() === query.toLowerCase() && layer.state !== "failed");
    if (known) {
      this.select(known);
      return known;
    }
    const layer = new Layer(query);
    this.layers.unshift(layer);
    const card = new Card(layer, this.act);
    this.cards.set(layer, card);
    byId("findings").prepend(card.node);
    this.#refresh();
    await this.#answer(layer);
    return layer;
  }

  async #answer(layer) {
    layer.abort = new AbortController();
    const { signal } = layer.abort;
    try {
      const onChange = (job) => {
        layer.jobId = job.id;
        layer.stage = job.state;
        this.cards.get(layer)?.update();
      };
      const job = await api.ask(this.studyId, [layer.query], { signal, onChange });
      layer.answer(job, job.findings[0]);
      if (layer.isMarked) layer.colour = this.#freeColour();
      this.#rebuild(layer);
      this.select(layer);
      byId("spoken").textContent = spoken(layer);
      if (layer.isMarked) await this.#loadMap(layer, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      layer.fail(error);
      this.#rebuild(layer);
    }
  }

  async #loadMap(layer, signal) {
    if (this.drawn.length >= COLOURS.length) layer.visible = false;
    const map = await readNifti(await api.bytes(layer.finding.links.probability_box, signal));
    if (signal.aborted) return;
    const texture = await this.stage.addMap(map);
    if (signal.aborted) {
      this.stage.freeMap(texture);
      return;
    }
    layer.takeMap(map, cornerOf(map, this.stage.volume), texture);
    this.toPeak(layer);
    this.#changed(layer);
    this.#here();
  }

  /** The graphics card forgot all maps. */
  lose() {
    for (const layer of this.layers) {
      layer.texture = null;
      this.#changed(layer);
    }
  }

  /** Puts all maps on the graphics card again. */
  async restore() {
    for (const layer of this.layers.filter((each) => each.map)) {
      layer.texture = await this.stage.addMap(layer.map);
      this.#changed(layer);
    }
  }

  #retry(layer) {
    Object.assign(layer, new Layer(layer.query));
    this.#rebuild(layer);
    return this.#answer(layer);
  }

  #freeColour() {
    const used = this.layers.map((layer) => layer.colour);
    return COLOURS.find((colour) => !used.includes(colour)) ?? COLOURS[used.filter(Boolean).length % COLOURS.length];
  }

  #rebuild(layer) {
    this.cards.get(layer)?.build();
    this.#refresh();
  }

  /** Layers that are drawn, newest first. */
  get drawn() {
    return this.layers.filter((layer) => layer.isDrawn);
  }

  select(layer) {
    this.selected = layer;
    for (const [each, card] of this.cards) card.setSelected(each === layer);
  }

  /** The layer that keys act on. */
  get current() {
    return this.selected ?? this.layers[0] ?? null;
  }

  /** Selects the next (1) or previous (-1) card. */
  selectBeside(step) {
    if (!this.layers.length) return;
    const now = this.layers.indexOf(this.selected);
    const next = now < 0 ? 0 : (now + step + this.layers.length) % this.layers.length;
    this.select(this.layers[next]);
    this.cards.get(this.layers[next]).node.scrollIntoView({ block: "nearest" });
  }

  toggle(layer) {
    if (!layer?.texture) return;
    if (!layer.visible && this.drawn.length >= COLOURS.length) {
      this.tell(new api.Problem(0, "Too many layers", `At most ${COLOURS.length} layers are shown at once; hide one first.`));
      return;
    }
    layer.visible = !layer.visible;
    this.allHidden = false;
    this.#changed(layer);
  }

  toggleAll() {
    this.allHidden = !this.allHidden;
    this.#refresh();
  }

  remove(layer) {
    layer.abort?.abort();
    if (layer.state === "asking" && layer.jobId) api.cancelJob(layer.jobId).catch(this.tell);
    this.layers = this.layers.filter((each) => each !== layer);
    this.cards.get(layer)?.node.remove();
    this.cards.delete(layer);
    if (this.selected === layer) this.select(null);
    this.#refresh();
    if (layer.texture) this.stage.freeMap(layer.texture);
  }

  toPeak(layer) {
    if (layer?.isMarked) this.stage.moveTo(layer.peakIndex);
  }

  /** Moves the threshold of the current layer by a step. */
  nudge(step) {
    const layer = this.current;
    if (!layer?.texture) return;
    layer.threshold = Math.min(0.99, Math.max(0.01, Math.round((layer.threshold + step) * 100) / 100));
    this.#changed(layer);
  }

  #changed(layer) {
    this.cards.get(layer)?.update();
    this.#refresh();
  }

  #refresh() {
    this.stage.setLayers(this.allHidden ? [] : this.drawn.reverse().map((layer) => layer.drawing));
    byId("no-findings").hidden = this.layers.length > 0;
    byId("foot").hidden = this.layers.length === 0;
    const button = byId("toggle-all");
    button.hidden = !this.layers.some((layer) => layer.isMarked);
    button.textContent = this.allHidden ? "Show all layers" : "Hide all layers";
    button.setAttribute("aria-pressed", String(this.allHidden));
  }

  #here() {
    if (!this.stage.index) return;
    for (const card of this.cards.values()) card.showHere(this.stage.index);
  }
}

function spoken(layer) {
  const { word, kind } = layer.verdict;
  const size = layer.isMarked ? `, marked ${layer.size}` : "";
  return `${layer.query}: ${word}${kind === "unasked" ? "" : `, probability ${two(layer.finding.probability)}`}${size}`;
}
