// Downloads: of the selected finding, and of all findings in the list as one job of the server.

import * as api from "./api.js";
import { byId, el, guarded } from "./dom.js";
import { message } from "./messages.js";

const ALL = [
  { label: "Report", kind: "HTML page", name: "report.html", file: "report.html" },
  { label: "Findings", kind: "JSON", name: "report.json", file: "findings.json" },
  { label: "Segmentation", kind: "DICOM SEG", name: "seg.dcm", file: "seg.dcm", dicom: true },
  { label: "Structured report", kind: "DICOM SR", name: "sr.dcm", file: "sr.dcm", dicom: true },
  { label: "Everything", kind: "zip", name: "all.zip", file: "all.zip" },
];

const MOST_QUERIES = 32; // of one job

const ONE = {
  CT: [
    { label: "Mask", kind: "NIfTI", link: "mask_nifti", file: "mask.nii.gz" },
    { label: "Probability", kind: "NIfTI", link: "probability", file: "probability.nii.gz" },
    { label: "Overlay", kind: "PNG", link: "overlay", file: "overlay.png" },
  ],
  CXR: [
    { label: "Mask", kind: "PNG", link: "mask_png", file: "mask.png" },
    { label: "Probability", kind: "NIfTI", link: "probability", file: "probability.nii.gz" },
    { label: "Overlay", kind: "PNG", link: "overlay", file: "overlay.png" },
  ],
};

export class SaveDialog {
  constructor(findings) {
    this.findings = findings;
    this.dialog = byId("save-dialog");
    this.jobs = new Map();
  }

  /** Opens for a study {id, name, modality}. */
  open(study) {
    const answered = this.findings.layers.filter((layer) => layer.state === "answered");
    if (!answered.length) return;
    byId("save-messages").replaceChildren();
    const possible = ALL.filter((item) => !item.dicom || study.isDicom !== false);
    byId("save-all").replaceChildren(...possible.map((item) => this.#choice(item, () => this.#all(study, item))));
    byId("save-dicom").hidden = possible.length === ALL.length;
    const layer = this.findings.current?.state === "answered" ? this.findings.current : answered[0];
    byId("save-one-title").textContent = layer.query;
    byId("save-one").replaceChildren(
      ...ONE[study.modality].map((item) => this.#choice(item, () => this.#one(study, layer, item))),
    );
    this.dialog.showModal();
  }

  #choice(item, work) {
    const button = el("button", { type: "button", class: "choice", "data-save": item.name ?? item.link }, el("b", {}, item.label), el("span", {}, item.kind));
    button.addEventListener("click", async () => {
      button.disabled = true;
      button.classList.add("busy");
      byId("save-messages").replaceChildren();
      await guarded(work, (error) => message(byId("save-messages"), error));
      button.disabled = false;
      button.classList.remove("busy");
    });
    return button;
  }

  async #all(study, item) {
    const queries = this.findings.layers.filter((layer) => layer.state === "answered").map((layer) => layer.query).reverse();
    if (queries.length > MOST_QUERIES) {
      throw new api.Problem(0, "Too many findings", `One file holds at most ${MOST_QUERIES} findings; remove some from the list.`);
    }
    const key = JSON.stringify([study.id, queries]);
    if (!this.jobs.has(key)) this.jobs.set(key, (await api.ask(study.id, queries)).id);
    save(await api.bytes(`/jobs/${this.jobs.get(key)}/${item.name}`), `${stem(study.name)}_${item.file}`);
  }

  async #one(study, layer, item) {
    save(await api.bytes(layer.finding.links[item.link]), `${stem(study.name)}_${stem(layer.query)}_${item.file}`);
  }
}

function save(bytes, name) {
  const address = URL.createObjectURL(new Blob([bytes]));
  const link = el("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** A file name part: letters, digits and underscores. */
export function stem(text) {
  const plain = text.replace(/\.(nii\.gz|nii|dcm|zip|png|jpe?g|tiff?)$/i, "").replace(/[^A-Za-z0-9]+/g, "_");
  return plain.replace(/^_+|_+$/g, "").slice(0, 48) || "radglint";
}
