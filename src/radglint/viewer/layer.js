// One query and what came of it: the answer, its probability map, and how it is drawn. No page elements here.

import { valueAt, voxelMl } from "./nifti.js";

// Told apart with any colour vision, and on grey: orange, sky blue, yellow, pink, green, vermilion, violet, white.
export const COLOURS = [
  { name: "orange", hex: "#ff9f1c" },
  { name: "sky blue", hex: "#58b4e9" },
  { name: "yellow", hex: "#f0e442" },
  { name: "pink", hex: "#e78ac3" },
  { name: "green", hex: "#2fc398" },
  { name: "vermilion", hex: "#e8602c" },
  { name: "violet", hex: "#9d8cff" },
  { name: "white", hex: "#f4f7fa" },
];

const BEYOND = 2; // a level that no probability reaches: nothing is marked

export class Layer {
  /** A query that is being asked. */
  constructor(query) {
    this.query = query;
    this.state = "asking"; // then "answered" or "failed"
    this.stage = "queued";
    this.visible = true;
    this.opacity = 0.75;
    this.finding = null;
    this.map = null;
    this.texture = null;
    this.colour = null;
  }

  /** Takes the server's answer. */
  answer(job, finding) {
    this.state = "answered";
    this.jobId = job.id;
    this.finding = finding;
    this.threshold = this.ownThreshold;
  }

  fail(problem) {
    this.state = "failed";
    this.problem = problem;
  }

  /** Whether the answer has a place in the image, and so a layer. */
  get isMarked() {
    return this.finding !== null && this.finding.peak !== null;
  }

  /** The probability from which the server marks a voxel. */
  get ownThreshold() {
    return this.finding.mask_threshold;
  }

  get isMoved() {
    return Math.abs(this.threshold - this.ownThreshold) > 1e-9;
  }

  /** What the model says: {word, kind}; kind is "present", "absent", "uncertain" or "unasked". */
  get verdict() {
    const { decision, verdict } = this.finding;
    return { word: verdict, kind: decision === "out of scope" ? "unasked" : decision };
  }

  /** Takes the part of the map that is not 0, from voxel `corner` on; counts how many voxels reach each of 255 values. */
  takeMap(map, corner, texture) {
    const { values } = map;
    const counts = new Uint32Array(257);
    for (let n = 0; n < values.length; n++) counts[values[n]]++;
    for (let value = 254; value >= 0; value--) counts[value] += counts[value + 1];
    this.reached = counts;
    this.map = map;
    this.corner = corner;
    this.texture = texture;
  }

  /** The least of the map's values, 1 to 255, that is marked at the threshold. */
  get leastByte() {
    return Math.min(255, Math.max(1, Math.ceil(this.threshold * 255 - 1e-6)));
  }

  /** Whether the finding itself is below a threshold that the user moved: then nothing is marked, as on the server. */
  get isBelow() {
    return this.isMoved && this.finding.probability < this.threshold;
  }

  /** Marked voxels at the threshold. */
  get voxels() {
    return this.map && !this.isBelow ? this.reached[this.leastByte] : 0;
  }

  /** "12.3 ml" or "4120 px" at the threshold; the server's own number at its own threshold. */
  get size() {
    const { area_px: area, volume_ml: volume } = this.finding;
    if (area !== undefined) return `${(this.isMoved ? this.voxels : area).toLocaleString("en-GB")} px`;
    const ml = this.isMoved ? this.voxels * voxelMl(this.map.affine) : volume;
    return `${ml >= 100 ? ml.toFixed(0) : ml >= 1 ? ml.toFixed(1) : ml.toFixed(2)} ml`;
  }

  /** Probability at voxel [i, j, k], or null without a map. */
  at(index) {
    if (!this.map) return null;
    const inside = index.map((n, axis) => n - this.corner[axis]);
    if (!inside.every((n, axis) => n >= 0 && n < this.map.size[axis])) return 0;
    return valueAt({ ...this.map, slope: 1, intercept: 0 }, inside) / 255;
  }

  /** What the stage needs to draw it. */
  get drawing() {
    const level = this.isBelow ? BEYOND : (this.leastByte - 0.5) / 255;
    const { texture, corner, opacity } = this;
    return { texture, corner, size: this.map.size, rgb: channels(this.colour.hex), opacity, level };
  }

  get isDrawn() {
    return this.texture !== null && this.visible;
  }

  /** The peak as voxel [i, j, k]; the server names it in array order, last axis fastest. */
  get peakIndex() {
    const index = [...this.finding.peak.index].reverse();
    return index.length === 2 ? [...index, 0] : index;
  }
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
}
