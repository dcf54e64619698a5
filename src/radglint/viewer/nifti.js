// NIfTI-1 in: what the server sends for display, read whole. Voxels stay in the file's order (i fastest).

const TYPES = {
  2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array,
};

/** Bytes of a .nii or .nii.gz file to {size, values, slope, intercept, affine}; affine as three rows of four, RAS mm. */
export async function readNifti(bytes) {
  const buffer = await unpacked(bytes);
  const view = new DataView(buffer);
  if (buffer.byteLength < 352 || view.getInt32(0, true) !== 348) throw new Error("The server sent no NIfTI-1 file.");
  const size = [1, 2, 3].map((axis) => Math.max(1, view.getInt16(40 + 2 * axis, true)));
  const Kind = TYPES[view.getInt16(70, true)];
  const count = size[0] * size[1] * size[2];
  const start = view.getFloat32(108, true);
  if (!Kind || start + count * Kind.BYTES_PER_ELEMENT > buffer.byteLength) {
    throw new Error("The image from the server is cut off or of an unknown type. Load it again.");
  }
  const aligned = start % Kind.BYTES_PER_ELEMENT ? buffer.slice(start) : buffer;
  const values = new Kind(aligned, aligned === buffer ? start : 0, count);
  return { size, values, ...scaling(view), affine: affineOf(view) };
}

async function unpacked(bytes) {
  const head = new Uint8Array(bytes, 0, 2);
  if (head[0] !== 0x1f || head[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function scaling(view) {
  const slope = view.getFloat32(112, true);
  const useful = Number.isFinite(slope) && slope !== 0;
  return { slope: useful ? slope : 1, intercept: useful ? view.getFloat32(116, true) : 0 };
}

function affineOf(view) {
  const float = (at) => view.getFloat32(at, true);
  if (view.getInt16(254, true) > 0) {
    return [280, 296, 312].map((row) => [0, 4, 8, 12].map((column) => float(row + column)));
  }
  if (view.getInt16(252, true) > 0) return fromQuaternion(float);
  const step = [80, 84, 88].map(float);
  return [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => (row === column ? step[row] : 0)));
}

function fromQuaternion(float) {
  const [b, c, d] = [256, 260, 264].map(float);
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const [dx, dy, dz] = [80, 84, 88].map(float);
  const k = float(76) < 0 ? -dz : dz;
  return [
    [(a * a + b * b - c * c - d * d) * dx, 2 * (b * c - a * d) * dy, 2 * (b * d + a * c) * k, float(268)],
    [2 * (b * c + a * d) * dx, (a * a + c * c - b * b - d * d) * dy, 2 * (c * d - a * b) * k, float(272)],
    [2 * (b * d - a * c) * dx, 2 * (c * d + a * b) * dy, (a * a + d * d - b * b - c * c) * k, float(276)],
  ];
}

/** The voxel of `whole` that the first voxel of `part`, cut out of it, is; both as from `readNifti`. */
export function cornerOf(part, whole) {
  const [a, b, c] = [0, 1, 2].map((axis) => whole.affine.map((row) => row[axis]));
  const away = part.affine.map((row, r) => row[3] - whole.affine[r][3]);
  const all = triple(a, b, c);
  return [triple(away, b, c), triple(a, away, c), triple(a, b, away)].map((share) => Math.round(share / all));
}

function triple(a, b, c) {
  return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
}

/** Value of voxel [i, j, k] in the file's unit. */
export function valueAt(volume, [i, j, k]) {
  const [width, height] = volume.size;
  return volume.values[i + width * (j + height * k)] * volume.slope + volume.intercept;
}

/** World millimetres of voxel [i, j, k]. */
export function worldOf(affine, [i, j, k]) {
  return affine.map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);
}

/** Volume of one voxel in millilitres. */
export function voxelMl(affine) {
  return Math.abs(triple(...affine)) / 1000;
}
