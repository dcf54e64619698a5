// Voxels to the graphics card: the image as half floats (HU or brightness), a probability map as bytes.

import { FIRST_UNIT } from "./shader.js";

const BATCH_BYTES = 8 * 2 ** 20; // uploaded between two pauses, so that the page stays alive

/** The texture target of a volume, and whether the graphics card takes its size; throws in plain words if not. */
export function targetFor(gl, size, flat) {
  const most = gl.getParameter(flat ? gl.MAX_TEXTURE_SIZE : gl.MAX_3D_TEXTURE_SIZE);
  if (Math.max(...size) > most) {
    throw new Error(`The image is ${size.join(" x ")}, this browser's graphics shows at most ${most} along a side.`);
  }
  return flat ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_3D;
}

/** A texture of grey values as half floats, multiplied by `scale`. */
export async function imageTexture(gl, target, volume, scale) {
  const toHalf = halfMaker(volume, scale);
  return upload(gl, target, volume.size, gl.R16F, gl.HALF_FLOAT, (start, stop) => toHalf(volume.values, start, stop));
}

/** A texture of a uint8 map; it reads 0 to 1 in the shader. */
export async function mapTexture(gl, target, map) {
  return upload(gl, target, map.size, gl.R8, gl.UNSIGNED_BYTE, (start, stop) => map.values.subarray(start, stop));
}

/** Makes a texture the one of a unit; null leaves the unit empty. */
export function bind(gl, target, slot, texture) {
  gl.activeTexture(gl.TEXTURE0 + FIRST_UNIT + slot);
  gl.bindTexture(target, texture);
}

async function upload(gl, target, [width, height, depth], format, type, part) {
  const texture = gl.createTexture();
  const rows = Math.max(1, Math.floor(BATCH_BYTES / (width * height * 2)));
  const begin = () => {
    bind(gl, target, 0, texture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  };
  begin();
  gl.texStorage3D(target, 1, format, width, height, depth);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
    gl.texParameteri(target, name, gl.CLAMP_TO_EDGE);
  }
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, gl.LINEAR);
  for (let z = 0; z < depth; z += rows) {
    const many = Math.min(rows, depth - z);
    const data = part(z * width * height, (z + many) * width * height);
    begin();
    gl.texSubImage3D(target, 0, 0, 0, z, width, height, many, gl.RED, type, data);
    await new Promise((go) => setTimeout(go, 0));
  }
  const error = gl.getError();
  if (error !== gl.NO_ERROR) throw new Error(`The graphics card refused the image (WebGL error ${error}); close other tabs.`);
  return texture;
}

/** Turns stretches of voxels into half floats; integers go through a table. */
function halfMaker(volume, scale) {
  const { values, slope, intercept } = volume;
  const half = (value) => floatToHalf((value * slope + intercept) * scale);
  const bytes = values.BYTES_PER_ELEMENT;
  if (values instanceof Float32Array || values instanceof Float64Array || bytes > 2) {
    return (all, start, stop) => Uint16Array.from(all.subarray(start, stop), half);
  }
  const count = 2 ** (8 * bytes);
  const table = new Uint16Array(count);
  const signed = values instanceof Int16Array || values instanceof Int8Array;
  for (let n = 0; n < count; n++) table[n] = half(signed && n >= count / 2 ? n - count : n);
  return (all, start, stop) => {
    const out = new Uint16Array(stop - start);
    for (let n = start; n < stop; n++) out[n - start] = table[all[n] & (count - 1)];
    return out;
  };
}

const floats = new Float32Array(1);
const bits = new Uint32Array(floats.buffer);

/** IEEE half float of a number; what does not fit becomes the largest half. */
export function floatToHalf(value) {
  floats[0] = Math.max(-65504, Math.min(65504, Number.isFinite(value) ? value : 0));
  const sign = (bits[0] >>> 16) & 0x8000;
  const exponent = ((bits[0] >>> 23) & 0xff) - 112;
  const mantissa = bits[0] & 0x7fffff;
  if (exponent <= 0) {
    if (exponent < -10) return sign;
    return sign | (((mantissa | 0x800000) >> (14 - exponent)) + ((mantissa >> (13 - exponent)) & 1));
  }
  return Math.min(sign | 0x7bff, sign + ((exponent << 10) | (mantissa >> 13)) + ((mantissa >> 12) & 1));
}
