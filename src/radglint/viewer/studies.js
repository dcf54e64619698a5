// Studies: files in, the list on the server, and the way from upload to a picture with its progress.

import * as api from "./api.js";
import { byId, el, guarded, icon } from "./dom.js";

const WORDS = {
  sending: "Sending", queued: "Waiting for the server", reading: "Reading the files", encoding: "Encoding the image",
  ready: "Ready", failed: "Failed", picture: "Loading the picture",
};
const READABLE = new Set(["encoding", "ready", "failed"]);
const ENDED = new Set(["ready", "failed"]);

export class Studies {
  /**
   * `shown(study)` puts a study on the screen once it is read; `encoding(share)` hears how much of it is encoded
   * meanwhile, null when that is over; `tell` hears of problems with the list.
   */
  constructor(shown, encoding, tell) {
    this.shown = shown;
    this.encoding = encoding;
    this.tell = tell;
    this.turn = 0; // grows with each study that is opened; a slower one before it then stops
    this.#listen();
  }

  #listen() {
    const pick = (input) => () => {
      byId("studies-dialog").close();
      byId(input).click();
    };
    for (const id of ["pick-files", "dialog-files"]) byId(id).addEventListener("click", pick("file-input"));
    for (const id of ["pick-folder", "dialog-folder"]) byId(id).addEventListener("click", pick("folder-input"));
    for (const id of ["file-input", "folder-input"]) {
      byId(id).addEventListener("change", (event) => {
        const files = [...event.target.files];
        event.target.value = "";
        if (files.length) this.open(files.map(named));
      });
    }
    byId("trouble-again").addEventListener("click", () => this.#cover("welcome"));
    window.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      byId("drop-hint").hidden = false;
    });
    window.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) byId("drop-hint").hidden = true;
    });
    window.addEventListener("drop", (event) => {
      if (!event.dataTransfer) return;
      event.preventDefault();
      byId("drop-hint").hidden = true;
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      const loose = [...event.dataTransfer.files];
      guarded(async () => {
        const files = entries.some((entry) => entry.isDirectory) ? (await Promise.all(entries.map(filesOf))).flat() : loose;
        if (files.length) await this.open(files.map(named));
      }, this.tell);
    });
    byId("pacs").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("studies-dialog").close();
      this.#follow(() => api.fromArchive(byId("study-uid").value.trim(), byId("series-uid").value.trim()));
    });
  }

  /** Sends files and opens the study they make. */
  open(files) {
    const name = files.length === 1 ? files[0].name : `${files.length} files`;
    return this.#follow((turn) => api.upload(files, (share) => turn === this.turn && this.#progress("sending", name, share)), name);
  }

  /** Opens a study of the server's list. */
  openKnown(study) {
    byId("studies-dialog").close();
    return this.#follow(() => api.study(study.id), study.name);
  }

  async #follow(begin, name = "") {
    const turn = ++this.turn;
    const isPast = () => turn !== this.turn;
    this.encoding(null);
    this.#progress("sending", name, null);
    try {
      const first = await begin(turn);
      const began = performance.now();
      const read = () => api.study(first.id);
      const show = (study) => isPast() || this.#progress(study.state, study.name ?? name, null, began);
      const study = usable(await api.until(read, ({ state }) => isPast() || READABLE.has(state), show, first));
      if (isPast()) return;
      this.#progress("picture", study.name ?? name, null);
      await this.shown(study, isPast);
      if (isPast()) return;
      this.#cover(null);
      const tick = ({ state, progress }) => isPast() || this.encoding(state === "encoding" ? (progress ?? 0) : null);
      usable(await api.until(read, ({ state }) => isPast() || ENDED.has(state), tick, study));
    } catch (error) {
      if (isPast()) return;
      this.encoding(null);
      this.trouble(error);
    }
  }

  #progress(state, name, share, began) {
    this.#cover("progress");
    byId("progress").dataset.state = state;
    const seconds = began === undefined ? 0 : Math.floor((performance.now() - began) / 1000);
    const percent = share === null ? "" : ` ${Math.round(100 * share)} %`;
    byId("progress-text").textContent = `${WORDS[state] ?? state}${percent}${seconds > 2 ? `, ${seconds} s` : ""}`;
    byId("progress-hint").textContent = name;
    const bar = byId("progress-bar");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
  }

  /** Covers the picture while something outside the page is waited for. */
  waiting(words) {
    this.#cover("progress");
    byId("progress-text").textContent = words;
    byId("progress-hint").textContent = "";
    byId("progress-bar").removeAttribute("value");
  }

  /** Uncovers the picture, or the choice of a study where none is open. */
  settled(isOpen) {
    this.#cover(isOpen ? null : "welcome");
  }

  /** Shows why nothing is on the screen. */
  trouble(error) {
    byId("trouble-title").textContent = error.title ?? "The picture cannot be shown";
    byId("trouble-text").textContent = error.message;
    byId("trouble").dataset.status = error.status ?? "";
    this.#cover("trouble");
  }

  #cover(name) {
    byId("cover").hidden = name === null;
    for (const each of ["welcome", "progress", "trouble"]) byId(each).hidden = each !== name;
    byId("desk").dataset.state = { welcome: "empty", progress: "busy", trouble: "trouble" }[name] ?? "ready";
    if (name === "welcome") this.refresh("recent-list", "recent");
  }

  /** Opens the dialog with the list. */
  async openDialog() {
    byId("studies-dialog").showModal();
    await this.refresh("study-list", null);
    byId("no-studies").hidden = byId("study-list").children.length > 0;
  }

  /** Fills a list with the server's studies, newest first; hides its box while it is empty. */
  async refresh(listId, boxId) {
    await guarded(async () => {
      const studies = await api.studies();
      byId(listId).replaceChildren(...studies.map((study) => this.#row(study, listId, boxId)));
      if (boxId) byId(boxId).hidden = studies.length === 0;
    }, this.tell);
  }

  #row(study, listId, boxId) {
    const what = study.image ? `${study.image.modality === "CT" ? "CT" : "Radiograph"}, ${study.image.shape.join(" \u00d7 ")}` : "";
    const state = study.state === "ready" ? what : (WORDS[study.state] ?? study.state);
    const open = el("button", { type: "button", class: "open", onclick: () => this.openKnown(study) }, el("b", {}, study.name || "Study"), el("span", { class: "quiet" }, state));
    const bin = el("button", { type: "button", class: "plain", title: "Delete from the server", "aria-label": `Delete ${study.name} from the server`, onclick: () => this.#remove(study, listId, boxId, bin) }, icon("bin"));
    return el("li", { "data-id": study.id }, open, bin);
  }

  /** Deletes at the second press. */
  async #remove(study, listId, boxId, bin) {
    if (!bin.classList.contains("sure")) {
      bin.classList.add("sure");
      bin.replaceChildren("Delete?");
      setTimeout(() => {
        bin.classList.remove("sure");
        bin.replaceChildren(icon("bin"));
      }, 4000);
      return;
    }
    await guarded(() => api.removeStudy(study.id), this.tell);
    await this.refresh(listId, boxId);
  }
}

/** The study, or what went wrong with it thrown. */
function usable(study) {
  if (study.state !== "failed") return study;
  throw new api.Problem(0, "This study cannot be opened", study.problem ?? "The server could not read it.");
}

/** A file with its path in the name, so that slices of one name in two folders stay apart. */
function named(file) {
  const path = file.webkitRelativePath || file.pathInDrop || "";
  return path.includes("/") ? new File([file], path.replaceAll("/", "_"), { type: file.type }) : file;
}

/** All files of a dropped file or folder. */
async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.pathInDrop = entry.fullPath.slice(1);
    return [file];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
