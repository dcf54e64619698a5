// Grey windows: presets of a CT, brightness and contrast of a radiograph, and one that fits the image.

const SAMPLES = 400_000;

/** Presets by modality: name, label, and [low, high] made from the volume. */
export const PRESETS = {
  CT: [
    { name: "lung", label: "Lung", range: () => [-1350, 150] },
    { name: "mediastinum", label: "Mediastinum", range: () => [-160, 240] },
    { name: "bone", label: "Bone", range: () => [-500, 1300] },
    { name: "auto", label: "Auto", range: (volume) => spread(volume, -1000) },
  ],
  CXR: [
    { name: "stored", label: "As stored", range: (volume) => [0, fullScale(volume)] },
    { name: "auto", label: "Auto", range: (volume) => spread(volume, -Infinity) },
  ],
};

/** The value that is white in a radiograph as the server sends it. */
export function fullScale(volume) {
  const { values, slope, intercept } = volume;
  if (values instanceof Uint8Array || values instanceof Uint16Array) {
    return (2 ** (8 * values.BYTES_PER_ELEMENT) - 1) * slope + intercept;
  }
  return extent(volume)[1];
}

/** Values between which 98 % of the image lies, leaving out what is at or below `floor` (air around a patient). */
function spread(volume, floor) {
  const { values, slope, intercept } = volume;
  const step = Math.max(1, Math.floor(values.length / SAMPLES));
  const some = [];
  for (let n = 0; n < values.length; n += step) {
    const value = values[n] * slope + intercept;
    if (value > floor) some.push(value);
  }
  if (some.length < 2) return extent(volume);
  some.sort((a, b) => a - b);
  const at = (share) => some[Math.round(share * (some.length - 1))];
  return at(0.01) < at(0.99) ? [at(0.01), at(0.99)] : extent(volume);
}

function extent({ values, slope, intercept }) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const [least, most] = [low * slope + intercept, high * slope + intercept];
  return least < most ? [least, most] : [least, least + 1];
}

/** A window moved by brightness and contrast, each from -1 to 1. */
export function adjusted([low, high], brightness, contrast) {
  const width = (high - low) * 2 ** (-2 * contrast);
  const middle = (low + high) / 2 - brightness * (high - low) * 0.75;
  return [middle - width / 2, middle + width / 2];
}

/** A window after a drag of some pixels: across changes its width, up and down its level. */
export function dragged([low, high], dx, dy) {
  const width = high - low;
  const wider = Math.max(width * 2 ** (dx / 150), 1e-3);
  const middle = (low + high) / 2 + (dy / 300) * width;
  return [middle - wider / 2, middle + wider / 2];
}

/** "W 1500 L -600" on a CT, percent of full scale on a radiograph. */
export function windowWords([low, high], full) {
  const scale = full ? 100 / full : 1;
  const whole = (value) => Math.round(value * scale).toString().replace("-", "\u2212");
  return `W ${whole(high - low)} L ${whole((low + high) / 2)}${full ? " %" : ""}`;
}
