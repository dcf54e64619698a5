// The picture: NiiVue keeps the geometry (views, zoom, crosshair, patient sides) and draws one quad per slice; our
// shader fills it from textures in the file's own voxel grid.
//
// NiiVue is given a small stand-in volume with the edges of the real one. Its own colouring of a whole volume into a
// second texture takes seconds without a fast graphics card; here a new window or threshold only redraws the slices.
// It also draws at every small change of its own: here all drawing waits for the next frame, and for `held` to be over.

import { fragmentShader, FIRST_UNIT, MAX_LAYERS } from "./shader.js";
import { bind, imageTexture, mapTexture, targetFor } from "./textures.js";
import { worldOf } from "./nifti.js";

const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER } = globalThis.niivue;

const STAND_IN_SIDE = 4;
const OPTIONS = {
  interactive: false, dragAndDropEnabled: false, logLevel: "error", isRadiologicalConvention: true,
  crosshairWidth: 0, multiplanarShowRender: SHOW_RENDER.NEVER, sagittalNoseLeft: true, loadingText: "",
  backColor: [0, 0, 0, 1], isOrientationTextVisible: false,
};
const PLANES = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
const ACROSS = [2, 1, 0]; // by NiiVue's slice type: which of right, front, head lies across the plane
const IN_PLANE = [[0, 1], [0, 2], [1, 2]];
const ZOOM = { least: 0.5, most: 20 };
const CROSS_TINT = [0.45, 0.8, 0.92, 0.75];

export class Stage extends EventTarget {
  /** A stage on a canvas; throws if the browser has no WebGL 2. */
  static async on(canvas) {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("This browser offers no WebGL 2, which the picture needs. Try a current Firefox, Chrome or Safari.");
    }
    const stage = new Stage();
    Object.assign(stage, {
      canvas, volume: null, image: null, layers: [], inverted: false, range: [0, 1], crosshair: true, held: false,
    });
    await stage.#begin();
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault(); // else it never comes back
      stage.dispatchEvent(new Event("lost"));
    });
    canvas.addEventListener("webglcontextrestored", () => stage.holding(() => stage.#again()).then(
      () => stage.dispatchEvent(new Event("restored")),
      (error) => stage.dispatchEvent(new ErrorEvent("unrestored", { error })),
    ));
    new ResizeObserver(() => stage.#resized()).observe(canvas.parentElement);
    return stage;
  }

  async #begin() {
    const nv = new Niivue(OPTIONS);
    nv.drawScene = () => this.redraw();
    await nv.attachToCanvas(this.canvas, false);
    Object.assign(this, { nv, gl: nv.gl, shaders: new Map() });
    this.#shader(false); // a CT's, before one is opened
  }

  /** Draws on a context that was lost and is back, in which nothing is left of what was made before. */
  async #again() {
    const { volume, index, view } = this;
    const pan = this.nv.scene.pan2Dxyzmm;
    this.nv.cleanup();
    this.image = null;
    this.layers = [];
    this.volume = null;
    await this.#begin();
    if (volume) {
      await this.show(volume, this.flat);
      this.setView(view);
      this.nv.scene.pan2Dxyzmm = pan;
      this.moveTo(index);
    }
  }

  /** Shows a volume from `readNifti`; `flat` is a radiograph, shown as the file stores it. */
  async show(volume, flat) {
    this.clear();
    const { gl } = this;
    this.target = targetFor(gl, volume.size, flat);
    const affine = flat ? pictureAffine(volume.affine) : volume.affine;
    this.scale = halfScale(volume);
    this.image = await imageTexture(gl, this.target, volume, this.scale);
    this.flat = flat;
    this.affine = affine;
    this.#shader(flat);
    await this.#standIn(volume.size, affine);
    this.volume = volume;
    this.#turn();
    this.resetView();
    this.moveTo(volume.size.map((n) => Math.floor(n / 2)));
  }

  /** Takes the picture off the stage and frees its memory. */
  clear() {
    for (const texture of [this.image, ...this.layers.map((layer) => layer.texture)]) this.gl.deleteTexture(texture ?? null);
    this.image = null;
    this.layers = [];
    this.volume = null;
    for (const old of [...this.nv.volumes]) this.nv.removeVolume(old);
    this.redraw();
  }

  /** Draws nothing until `work` is done: what is covered nobody sees, and without a graphics card each picture costs. */
  async holding(work) {
    this.held = true;
    try {
      await work();
      await new Promise((go) => requestAnimationFrame(go)); // the page's own changes of size come before
    } finally {
      this.held = false;
      this.redraw();
    }
  }

  async #standIn(size, affine) {
    const small = size.map((n) => Math.min(n, STAND_IN_SIDE));
    const step = size.map((n, axis) => n / small[axis]);
    const origin = worldOf(affine, step.map((s) => (s - 1) / 2));
    const matrix = affine.flatMap((row, r) => [...step.map((s, axis) => row[axis] * s), origin[r]]);
    const spacing = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])) * step[axis]);
    const ramp = Uint8Array.from({ length: small[0] * small[1] * small[2] }, (_, n) => 1 + (n % 200));
    const bytes = NVImage.createNiftiArray(small, spacing, [...matrix, 0, 0, 0, 1], 2, ramp);
    const image = await NVImage.loadFromUrl({ url: bytes.buffer, name: "stand-in.nii", cal_min: 0, cal_max: 255 });
    this.perm = image.permRAS;
    this.nv.addVolume(image);
  }

  /** Draws with the shader of radiographs (flat) or CT, made once each. */
  #shader(flat) {
    const { nv, shaders } = this;
    nv.customSliceShader = shaders.get(flat) ?? null; // NiiVue deletes the one before, unless it knows of none
    if (!shaders.has(flat)) {
      nv.setCustomSliceShader(fragmentShader(flat ? "sampler2DArray" : "sampler3D"));
      shaders.set(flat, nv.customSliceShader);
    }
    this.program = nv.customSliceShader.program;
    this.places = new Map();
  }

  /** Tells the shader how the file's voxels lie in the patient. */
  #turn() {
    const { gl } = this;
    gl.useProgram(this.program);
    const turn = new Float32Array(9);
    const shift = [0, 0, 0];
    this.perm.forEach((axis, r) => {
      const native = Math.abs(axis) - 1;
      turn[r * 3 + native] = Math.sign(axis);
      if (axis < 0) shift[native] = 1;
    });
    gl.uniformMatrix3fv(this.#place("turn"), false, turn);
    gl.uniform3fv(this.#place("shift"), shift);
    gl.uniform1i(this.#place("image"), FIRST_UNIT);
    for (let n = 0; n < MAX_LAYERS; n++) gl.uniform1i(this.#place(`layer${n}`), FIRST_UNIT + 1 + n);
  }

  #place(name) {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.program, name));
    return this.places.get(name);
  }

  /** A probability map on the graphics card: pass what it returns in `setLayers`, free it with `freeMap`. */
  async addMap(map) {
    return mapTexture(this.gl, this.target, map);
  }

  /** Frees a map of `addMap`. */
  freeMap(texture) {
    this.gl.deleteTexture(texture);
  }

  /**
   * The layers to draw, lowest first, at most MAX_LAYERS: {texture, corner, size, rgb in 0..1, opacity, level in 0..1};
   * corner and size, in voxels, tell which part of the volume a texture covers.
   */
  setLayers(layers) {
    this.layers = layers.slice(0, MAX_LAYERS);
    this.redraw();
  }

  /** The grey window in the volume's unit. */
  setWindow(low, high) {
    this.range = [low, Math.max(high, low + 1e-6)];
    this.redraw();
  }

  setInverted(inverted) {
    this.inverted = inverted;
    this.redraw();
  }

  /** "planes" for all three, "axial", "coronal" or "sagittal"; a radiograph has "axial" only. */
  setView(name) {
    this.view = this.flat ? "axial" : name;
    this.#layOut();
  }

  #resized() {
    this.#layOut();
    if (!this.held) this.#draw(); // at once: NiiVue has just emptied the canvas
  }

  #layOut() {
    if (!this.volume) return;
    this.movedTiles = true;
    const { nv, canvas } = this;
    if (this.view !== "planes") {
      nv.clearCustomLayout();
      nv.setSliceType(PLANES[this.view]);
    } else {
      const wide = canvas.clientWidth >= canvas.clientHeight;
      const split = 0.62;
      const side = 1 - split;
      const tile = (sliceType, x, y, w, h) => ({ sliceType, position: [x, y, w, h] });
      nv.opts.sliceType = SLICE_TYPE.MULTIPLANAR;
      nv.setCustomLayout(wide
        ? [tile(0, 0, 0, split, 1), tile(1, split, 0, side, 0.5), tile(2, split, 0.5, side, 0.5)]
        : [tile(0, 0, 0, 1, split), tile(1, 0, split, 0.5, side), tile(2, 0.5, split, 0.5, side)]);
    }
    this.redraw();
  }

  /** Whole image in view, no zoom. */
  resetView() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.redraw();
  }

  /** Moves the crosshair to voxel [i, j, k]; values outside are brought inside. */
  moveTo(index) {
    if (!this.volume) return;
    this.index = index.map((n, axis) => Math.max(0, Math.min(this.volume.size[axis] - 1, Math.round(n))));
    this.nv.scene.crosshairPos = this.#fraction(this.index);
    this.redraw();
    this.dispatchEvent(new Event("move"));
  }

  #fraction(index) {
    return this.perm.map((axis) => {
      const native = Math.abs(axis) - 1;
      const share = (index[native] + 0.5) / this.volume.size[native];
      return axis > 0 ? share : 1 - share;
    });
  }

  /** The voxel axis that points (nearly) to the right, front or head (0, 1, 2), and its sign. */
  axisAlong(world) {
    const axis = this.perm[world];
    return { native: Math.abs(axis) - 1, sign: Math.sign(axis) };
  }

  /** World axis across the plane that arrow keys and the slice slider move through. */
  get across() {
    return ACROSS[PLANES[this.view] ?? 0];
  }

  /** Moves the crosshair `slices` to the right, front or head (world 0, 1, 2). */
  step(world, slices) {
    if (!this.volume) return;
    const { native, sign } = this.axisAlong(world);
    const index = [...this.index];
    index[native] += sign * slices;
    this.moveTo(index);
  }

  /** The tile under a point of the page: {tile, x, y} in canvas pixels, or null. */
  #at(clientX, clientY) {
    if (!this.volume) return null;
    this.#settle();
    const box = this.canvas.getBoundingClientRect();
    const x = (clientX - box.left) * (this.canvas.width / box.width);
    const y = (clientY - box.top) * (this.canvas.height / box.height);
    const number = this.nv.tileIndex(x, y);
    return number < 0 ? null : { number, tile: this.nv.screenSlices[number], x, y };
  }

  /** World axis across the plane under a point, or null. */
  planeAt(clientX, clientY) {
    const at = this.#at(clientX, clientY);
    return at && ACROSS[at.tile.axCorSag];
  }

  /** Voxel [i, j, k] under a point, or null beside the image. */
  voxelAt(clientX, clientY) {
    const at = this.#at(clientX, clientY);
    if (!at) return null;
    const place = this.nv.screenXY2TextureFrac(at.x, at.y, at.number, false);
    const across = ACROSS[at.tile.axCorSag];
    const inside = [0, 1, 2].every((world) => world === across || (place[world] >= 0 && place[world] <= 1));
    if (!inside) return null;
    const index = [...this.index];
    for (const world of IN_PLANE[at.tile.axCorSag]) {
      const { native, sign } = this.axisAlong(world);
      const share = sign > 0 ? place[world] : 1 - place[world];
      index[native] = Math.min(this.volume.size[native] - 1, Math.floor(share * this.volume.size[native]));
    }
    return index;
  }

  /** NiiVue knows where its tiles lie once it has drawn them. */
  #settle() {
    if (this.movedTiles) this.#draw();
  }

  /** Where on the page voxel [i, j, k] lies in a plane that shows it, or null. */
  pointOf(index) {
    this.#settle();
    const place = this.nv.frac2canvasPos(this.#fraction(index));
    if (!place) return null;
    const box = this.canvas.getBoundingClientRect();
    return [box.left + place[0] * (box.width / this.canvas.width), box.top + place[1] * (box.height / this.canvas.height)];
  }

  /** Zooms by a factor; what lies under the point stays there. Without a point, around the crosshair. */
  zoom(factor, clientX, clientY) {
    if (!this.volume) return;
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.max(ZOOM.least, Math.min(ZOOM.most, pan[3] * factor));
    const at = clientX === undefined ? null : this.#at(clientX, clientY);
    const place = at
      ? this.nv.screenXY2TextureFrac(at.x, at.y, at.number, false)
      : this.nv.scene.crosshairPos;
    const mm = this.nv.frac2mm(place);
    this.nv.scene.pan2Dxyzmm = [0, 1, 2].map((axis) => pan[axis] + mm[axis] * (pan[3] - zoom)).concat(zoom);
    this.redraw();
  }

  /** Moves the picture in the plane under the point by some page pixels. */
  pan(dx, dy, clientX, clientY) {
    const at = this.#at(clientX, clientY);
    if (!at) return;
    const [, , width, height] = at.tile.leftTopWidthHeight;
    const ratio = this.canvas.width / this.canvas.clientWidth;
    const [along, up] = IN_PLANE[at.tile.axCorSag];
    const pan = [...this.nv.scene.pan2Dxyzmm];
    pan[along] += ((dx * ratio) / width) * at.tile.fovMM[0] * pan[3];
    pan[up] -= ((dy * ratio) / height) * at.tile.fovMM[1] * pan[3];
    this.nv.scene.pan2Dxyzmm = pan;
    this.redraw();
  }

  /** Draws with the next frame; many calls make one drawing. */
  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    if (this.held || !this.gl || this.gl.isContextLost()) return;
    this.movedTiles = false;
    if (this.volume) this.#setUniforms();
    Niivue.prototype.drawScene.call(this.nv);
    this.dispatchEvent(new Event("draw"));
  }

  #setUniforms() {
    const { gl, layers, scale } = this;
    const [low, high] = this.range;
    gl.useProgram(this.program);
    gl.uniform2f(this.#place("range"), low * scale, 1 / ((high - low) * scale));
    gl.uniform1f(this.#place("inverted"), this.inverted ? 1 : 0);
    gl.uniform1i(this.#place("layerCount"), layers.length);
    const tints = new Float32Array(4 * MAX_LAYERS);
    const levels = new Float32Array(MAX_LAYERS);
    const stretch = new Float32Array(3 * MAX_LAYERS);
    const before = new Float32Array(3 * MAX_LAYERS);
    layers.forEach((layer, n) => {
      tints.set([...layer.rgb, layer.opacity], 4 * n);
      levels[n] = layer.level;
      stretch.set(layer.size.map((size, axis) => this.volume.size[axis] / size), 3 * n);
      before.set(layer.size.map((size, axis) => layer.corner[axis] / size), 3 * n);
    });
    gl.uniform4fv(this.#place("tints"), tints);
    gl.uniform1fv(this.#place("levels"), levels);
    gl.uniform3fv(this.#place("stretch"), stretch);
    gl.uniform3fv(this.#place("before"), before);
    gl.uniform3fv(this.#place("cross3"), this.nv.scene.crosshairPos);
    gl.uniform4fv(this.#place("crossTint"), this.crosshair ? CROSS_TINT : [0, 0, 0, 0]);
    for (let n = 0; n <= MAX_LAYERS; n++) {
      bind(gl, this.target, n, n === 0 ? this.image : (layers[n - 1]?.texture ?? this.image));
    }
  }
}

/** The affine that shows a picture as it is stored: first row on top, first column on the left. */
function pictureAffine(affine) {
  const side = [0, 1].map((axis) => Math.hypot(...affine.map((row) => row[axis])) || 1);
  return [[-side[0], 0, 0, 0], [0, -side[1], 0, 0], [0, 0, 1, 0]];
}

/** Half floats are whole to 2048 and end at 65504; a picture with a wider range than HU is shrunk. */
function halfScale({ values, slope }) {
  const top = values instanceof Uint16Array ? 65535 * Math.abs(slope) : 0;
  return top > 4096 ? 2048 / top : 1;
}
