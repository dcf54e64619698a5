// The fragment shader of every slice: grey window, coloured layers and crosshair, all from uniforms.
//
// NiiVue draws the quad of a slice and hands over `texPos`, the place in the volume as fractions of its right,
// front and head direction. Image and probability maps are textures of our own, in the file's voxel order, so a new
// window, threshold, colour or opacity costs one redraw and no upload.

export const MAX_LAYERS = 8;
export const FIRST_UNIT = 16; // NiiVue uses the texture units below

const layerDeclaration = (kind, n) => `uniform ${kind} layer${n};`;
const layerStep = (n, at) => `if (${n} < layerCount) rgb = withLayer(rgb, texture(layer${n}, ${at}).r, tints[${n}], levels[${n}]);`;
const eachLayer = (make) => Array.from({ length: MAX_LAYERS }, (_, n) => make(n)).join("\n");

/** GLSL for a volume ("sampler3D") or a single picture ("sampler2DArray", which may be larger than a 3D texture). */
export function fragmentShader(kind) {
  const inVolume = (at) => (kind === "sampler3D" ? at : `vec3((${at}).xy, 0.0)`);
  const inPart = (n) => inVolume(`place * stretch[${n}] - before[${n}]`); // a layer is a part of the volume, 0 at its rim
  return `#version 300 es
precision highp int;
precision highp float;
precision highp sampler3D;
precision highp sampler2DArray;
uniform int axCorSag;
uniform ${kind} image;
${eachLayer((n) => layerDeclaration(kind, n))}
uniform mat3 turn;
uniform vec3 shift;
uniform vec2 range;
uniform float inverted;
uniform int layerCount;
uniform vec4 tints[${MAX_LAYERS}];
uniform float levels[${MAX_LAYERS}];
uniform vec3 stretch[${MAX_LAYERS}];
uniform vec3 before[${MAX_LAYERS}];
uniform vec3 cross3;
uniform vec4 crossTint;
in vec3 texPos;
out vec4 color;

vec3 withLayer(vec3 under, float value, vec4 tint, float level) {
  float steps = (value - level) / max(fwidth(value), 1e-5); // distance from the contour, in screen pixels
  float inside = clamp(steps + 0.5, 0.0, 1.0);
  float edge = 1.0 - smoothstep(0.7, 1.7, abs(steps));
  return mix(under, tint.rgb, tint.a * max(inside * 0.45, edge));
}

vec2 inPlane(vec3 place) {
  return axCorSag == 0 ? place.xy : axCorSag == 1 ? place.xz : place.yz;
}

float crosshair() {
  vec2 at = inPlane(texPos);
  vec2 off = abs(at - inPlane(cross3)) / max(fwidth(at), vec2(1e-7));
  vec2 line = 1.0 - smoothstep(0.4, 1.0, off);
  vec2 gap = step(14.0, off.yx); // the middle stays free
  return max(line.x * gap.x, line.y * gap.y);
}

void main() {
  vec3 place = turn * texPos + shift;
  float grey = clamp((texture(image, ${inVolume("place")}).r - range.x) * range.y, 0.0, 1.0);
  vec3 rgb = vec3(mix(grey, 1.0 - grey, inverted));
  ${eachLayer((n) => layerStep(n, inPart(n)))}
  color = vec4(mix(rgb, crossTint.rgb, crossTint.a * crosshair()), 1.0);
}`;
}
