// The viewer's page: joins the picture, the list of findings, the studies and the keyboard.

import * as api from "./api.js";
import { byId, el, guarded, two } from "./dom.js";
import { FindingList } from "./findings.js";
import { listenToKeys } from "./keys.js";
import { labelTiles } from "./labels.js";
import { message } from "./messages.js";
import { readNifti } from "./nifti.js";
import { listen } from "./pointer.js";
import { Readout } from "./readout.js";
import { SaveDialog } from "./save.js";
import { Stage } from "./stage.js";
import { Studies } from "./studies.js";
import { adjusted, dragged, fullScale, PRESETS } from "./windows.js";

const MOST_CHIPS = 14;

const RESTORED_MS = 10_000; // browsers give a graphics card back within a second or two, or not at all
const LOST = new api.Problem(
  0, "The picture is lost", "The browser took its graphics memory back. Reload the page: the study is still on the server.",
);

const tell = (error) => message(byId("messages"), error);

class Page {
  /** Files can be given at once; the picture follows when the graphics card is ready. */
  async start() {
    api.onKeyNeeded(askForKey);
    this.study = null;
    this.studies = new Studies((study, isPast) => this.show(study, isPast), encodingLine, tell);
    const listed = this.studies.refresh("recent-list", "recent");
    this.joined = this.#join();
    await this.joined;
    await listed;
    await this.#model().catch(tell);
  }

  async #join() {
    this.stage = await Stage.on(byId("canvas"));
    this.findings = new FindingList(this.stage, tell);
    this.readout = new Readout(this.stage);
    this.saving = new SaveDialog(this.findings);
    labelTiles(this.stage);
    this.#graphics();
    listen(this.stage, (dx, dy) => this.setWindow(dragged(this.range, dx, dy), null));
    this.#buttons();
    listenToKeys(this.#keys());
  }

  /** A graphics card that is taken away, and mostly comes back. */
  #graphics() {
    const { stage, findings, studies } = this;
    let patience = 0;
    stage.addEventListener("lost", () => {
      findings.lose();
      studies.waiting("The browser took the graphics card away; waiting for it");
      patience = setTimeout(() => studies.trouble(LOST), RESTORED_MS);
    });
    const back = (act) => (event) => {
      clearTimeout(patience);
      guarded(() => act(event), (error) => studies.trouble(error));
    };
    stage.addEventListener("restored", back(async () => {
      await findings.restore();
      studies.settled(this.study !== null);
    }));
    stage.addEventListener("unrestored", back(({ error }) => Promise.reject(error)));
  }

  async #model() {
    this.model = await api.model();
    const { name, fingerprint, notice } = this.model;
    byId("model-line").textContent = `${name}, fingerprint ${fingerprint}`;
    if (notice) byId("notice").textContent = notice;
    byId("pacs").hidden = !this.model.dicomweb;
    if (this.study) this.#chips();
  }

  /** Puts a study on the screen, unless another was opened meanwhile. */
  async show(study, isPast) {
    await this.joined;
    this.findings.setStudy(study.id);
    const volume = await readNifti(await api.bytes(`/studies/${study.id}/volume.nii`));
    if (isPast()) return;
    await this.stage.holding(() => this.#put(study, volume));
    byId("messages").replaceChildren();
    if (matchMedia("(pointer: fine)").matches) byId("query").focus(); // on a tablet this would open its keyboard
  }

  async #put(study, volume) {
    const flat = study.image.modality !== "CT";
    await this.stage.show(volume, flat);
    this.stage.fullScale = flat ? fullScale(volume) : null;
    const { modality, is_dicom: isDicom } = study.image;
    this.study = { id: study.id, name: study.name ?? "study", modality, isDicom };
    this.setView(flat ? "axial" : "planes");
    byId("views").hidden = flat;
    byId("contrast-pair").hidden = !flat;
    byId("tools").hidden = false;
    this.readout.setStudy(study.image);
    this.#presets();
    this.preset(PRESETS[this.study.modality][0].name);
    this.#line(study);
    this.#chips();
    for (const id of ["query", "ask-button"]) byId(id).disabled = false;
    byId("no-findings").textContent = "Ask something in plain words. What is found becomes a coloured layer.";
  }

  #line({ name, image }) {
    const size = image.shape.join(" \u00d7 ");
    const spacing = image.spacing_mm ? `, ${image.spacing_mm.map(two).join(" \u00d7 ")} mm` : "";
    byId("study-line").replaceChildren(el("b", {}, name ?? ""), el("span", {}, `${image.modality === "CT" ? "CT" : "Radiograph"}, ${size}${spacing}`));
  }

  #chips() {
    const known = this.model?.findings[this.study.modality] ?? [];
    byId("query").placeholder = known[0] ?? "";
    byId("chips").replaceChildren(
      ...known.slice(0, MOST_CHIPS).map((text) => el("button", { type: "button", class: "chip", onclick: () => this.findings.ask(text) }, text)),
    );
  }

  #presets() {
    const buttons = PRESETS[this.study.modality].map(({ name, label }) =>
      el("button", { type: "button", "data-window": name, "aria-pressed": "false", title: `${label} (W for the next)`, onclick: () => this.preset(name) }, label));
    byId("windows").replaceChildren(...buttons);
  }

  /** One of the modality's named windows. */
  preset(name) {
    this.base = PRESETS[this.study.modality].find((each) => each.name === name).range(this.stage.volume);
    byId("brightness").value = byId("contrast").value = "0";
    this.setWindow(this.base, name);
  }

  nextPreset() {
    const names = PRESETS[this.study.modality].map((each) => each.name);
    this.preset(names[(names.indexOf(this.presetName) + 1) % names.length]);
  }

  setWindow(range, name) {
    this.range = range;
    this.presetName = name;
    this.stage.setWindow(...range);
    for (const button of byId("windows").children) button.setAttribute("aria-pressed", String(button.dataset.window === name));
    this.readout.window(range);
  }

  setView(name) {
    this.stage.setView(name);
    for (const button of byId("views").children) button.setAttribute("aria-pressed", String(button.dataset.view === name));
    this.readout.update();
  }

  #buttons() {
    const { stage, findings } = this;
    const press = (id, on) => byId(id).setAttribute("aria-pressed", String(on));
    this.invert = () => press("invert", (stage.setInverted(!stage.inverted), stage.inverted));
    this.cross = () => {
      stage.crosshair = !stage.crosshair;
      stage.redraw();
      press("cross", stage.crosshair);
    };
    byId("invert").addEventListener("click", this.invert);
    byId("cross").addEventListener("click", this.cross);
    byId("reset").addEventListener("click", () => stage.resetView());
    for (const button of byId("views").children) button.addEventListener("click", () => this.setView(button.dataset.view));
    for (const id of ["brightness", "contrast"]) {
      byId(id).addEventListener("input", () =>
        this.setWindow(adjusted(this.base, byId("brightness").value / 100, byId("contrast").value / 100), null));
    }
    byId("query").addEventListener("keydown", (event) => event.key === "Escape" && byId("canvas").focus());
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const query = byId("query").value.trim();
      if (!query) return;
      byId("query").value = "";
      findings.ask(query);
    });
    byId("toggle-all").addEventListener("click", () => findings.toggleAll());
    byId("open-save").addEventListener("click", () => this.saving.open(this.study));
    byId("open-studies").addEventListener("click", () => this.studies.openDialog());
    byId("open-help").addEventListener("click", () => byId("help-dialog").showModal());
    for (const button of document.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => button.closest("dialog").close());
    }
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.id !== "key-dialog" && dialog.close());
    }
  }

  #keys() {
    const { stage, findings } = this;
    const shown = (run) => (event) => this.study && run(event);
    const inPlane = [[1, 2], [0, 2], [0, 1]];
    const arrow = (upright, step) => shown((event) => {
      if (stage.flat || event.shiftKey) stage.step(inPlane[stage.across][upright], step);
      else stage.step(stage.across, step);
    });
    const slices = "next slice (with Shift: crosshair in the plane)";
    const keys = {
      "/": { words: "write a question (Esc: back to the picture)", run: () => byId("query").focus() },
      ArrowUp: { words: slices, run: arrow(1, 1) },
      ArrowDown: { words: slices, run: arrow(1, -1) },
      ArrowLeft: { words: "crosshair to the left or right of the picture", run: shown(() => this.sideways(-1)) },
      ArrowRight: { words: "crosshair to the left or right of the picture", run: shown(() => this.sideways(1)) },
      PageUp: { words: "ten slices", run: shown(() => stage.step(stage.across, 10)) },
      PageDown: { words: "ten slices", run: shown(() => stage.step(stage.across, -10)) },
      m: { words: "all planes, axial, coronal, sagittal", run: shown(() => stage.flat || this.setView("planes")) },
      a: { words: "all planes, axial, coronal, sagittal", run: shown(() => stage.flat || this.setView("axial")) },
      c: { words: "all planes, axial, coronal, sagittal", run: shown(() => stage.flat || this.setView("coronal")) },
      s: { words: "all planes, axial, coronal, sagittal", run: shown(() => stage.flat || this.setView("sagittal")) },
      w: { words: "next window preset", run: shown(() => this.nextPreset()) },
      i: { words: "invert grey", run: shown(() => this.invert()) },
      x: { words: "crosshair on or off", run: shown(() => this.cross()) },
      "+": { words: "zoom, fit", run: shown(() => stage.zoom(1.25)) },
      "-": { words: "zoom, fit", run: shown(() => stage.zoom(0.8)) },
      r: { words: "zoom, fit", run: shown(() => stage.resetView()) },
      j: { words: "next or previous finding", run: () => findings.selectBeside(1) },
      k: { words: "next or previous finding", run: () => findings.selectBeside(-1) },
      p: { words: "go to the peak of the selected finding", run: () => findings.toPeak(findings.current) },
      "[": { words: "lower or raise its threshold", run: () => findings.nudge(-0.01) },
      "]": { words: "lower or raise its threshold", run: () => findings.nudge(0.01) },
      v: { words: "show or hide its layer", run: () => findings.toggle(findings.current) },
      h: { words: "hide or show all layers", run: () => findings.toggleAll() },
      Delete: { words: "remove it from the list", run: () => findings.current && findings.remove(findings.current) },
      d: { words: "download", run: shown(() => this.saving.open(this.study)) },
      o: { words: "studies", run: () => this.studies.openDialog() },
      "?": { words: "this help", run: () => byId("help-dialog").showModal() },
    };
    return keys;
  }

  /** Moves the crosshair to the left (-1) or right (1) of the picture as it is shown. */
  sideways(step) {
    const { stage } = this;
    if (stage.across === 0) stage.step(1, -step); // sagittal: the front is on the left
    else stage.step(0, -step); // the patient's right is on the left
  }
}

/** Says how much of the image is encoded, 0 to 1, or that it is over (null). */
function encodingLine(share) {
  byId("encoding").hidden = share === null;
  const percent = share ? `, ${Math.round(100 * share)} %` : "";
  byId("encoding-text").textContent = `Encoding the image${percent}. Once per study; ask meanwhile, answers follow.`;
}

/** Asks for a key; null if the user gives up. */
function askForKey(wasRefused) {
  const dialog = byId("key-dialog");
  byId("key-text").textContent = wasRefused ? "The server refused this key." : "This server needs a key.";
  byId("key-input").value = "";
  byId("key-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "given" ? byId("key-input").value : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

const page = new Page();
globalThis.radglint = { page, ready: page.start() };
globalThis.radglint.ready.then(
  () => (document.documentElement.dataset.ready = "true"),
  (error) => {
    document.documentElement.dataset.ready = "failed";
    byId("trouble-title").textContent = "The viewer cannot start";
    byId("trouble-text").textContent = error.message;
    byId("welcome").hidden = true;
    byId("trouble").hidden = false;
    byId("trouble-again").hidden = true;
  },
);
