// What lies under the crosshair, the slice slider and the window, in words and numbers.

import { byId, signed } from "./dom.js";
import { valueAt, worldOf } from "./nifti.js";
import { windowWords } from "./windows.js";

const AXES = ["Sagittal", "Coronal", "Axial"];

export class Readout {
  constructor(stage) {
    this.stage = stage;
    stage.addEventListener("move", () => this.update());
    byId("slice").addEventListener("input", (event) => {
      const { native } = this.stage.axisAlong(this.stage.across);
      const index = [...this.stage.index];
      index[native] = this.#fromSlider(Number(event.target.value));
      this.stage.moveTo(index);
    });
  }

  /** Takes the modality of a new study. */
  setStudy(image) {
    const flat = image.modality !== "CT";
    this.flat = flat;
    this.full = flat ? this.stage.fullScale : null;
    byId("mm-cell").hidden = flat;
    byId("slice-label").hidden = flat;
    byId("voxel-name").textContent = flat ? "Row, column" : "Voxel z, y, x";
    byId("value-name").textContent = flat ? "Brightness" : "HU";
    byId("readout").hidden = false;
    this.update();
  }

  update() {
    const { stage } = this;
    if (!stage.volume || !stage.index) return;
    const array = [...stage.index].reverse();
    byId("voxel").textContent = (this.flat ? array.slice(1) : array).join(", ");
    const value = valueAt(stage.volume, stage.index);
    byId("value").textContent = this.flat ? `${Math.round((100 * value) / this.full)} %` : signed(value, 0);
    if (this.flat) return;
    byId("mm").textContent = worldOf(stage.affine, stage.index).map((mm) => signed(mm, 1)).join(", ");
    this.#slider();
  }

  #slider() {
    const { stage } = this;
    const { native } = stage.axisAlong(stage.across);
    const count = stage.volume.size[native];
    const slider = byId("slice");
    slider.max = String(count - 1);
    slider.value = String(this.#fromSlider(stage.index[native]));
    byId("slice-name").textContent = `${AXES[stage.across]} slice`;
    slider.setAttribute("aria-valuetext", `${AXES[stage.across]} slice ${stage.index[native]} of 0 to ${count - 1}`);
  }

  /** Slider to voxel index and back: to the right means towards the right, the front, the head. */
  #fromSlider(value) {
    const { native, sign } = this.stage.axisAlong(this.stage.across);
    return sign > 0 ? value : this.stage.volume.size[native] - 1 - value;
  }

  window(range) {
    byId("window-now").textContent = windowWords(range, this.full);
  }
}
