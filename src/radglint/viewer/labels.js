// Patient sides and plane names over the picture. NiiVue's own letters have no halo and vanish on bright bone.

import { byId, el } from "./dom.js";

const NAMES = ["Axial", "Coronal", "Sagittal"];
const ACROSS = [2, 1, 0];
const SIDES = [
  { left: "R", right: "L", top: "A", bottom: "P" },
  { left: "R", right: "L", top: "S", bottom: "I" },
  { left: "A", right: "P", top: "S", bottom: "I" },
];

/** Keeps the labels of a stage's tiles in place. */
export function labelTiles(stage) {
  const box = byId("labels");
  let shown = "";
  stage.addEventListener("draw", () => {
    const tiles = stage.volume && !stage.flat ? stage.nv.screenSlices : [];
    const ratio = stage.canvas.clientWidth / stage.canvas.width;
    const places = tiles.map((tile) => [tile.axCorSag, ...tile.leftTopWidthHeight.map((n) => Math.round(n * ratio))]);
    const key = JSON.stringify(places);
    if (key !== shown) {
      shown = key;
      box.replaceChildren(...places.map(tileLabels));
    }
    tiles.forEach((tile, n) => {
      const { native } = stage.axisAlong(ACROSS[tile.axCorSag]);
      box.children[n].querySelector(".slice-number").textContent = String(stage.index[native]);
    });
  });
}

function tileLabels([kind, left, top, width, height]) {
  const sides = Object.entries(SIDES[kind]).map(([side, letter]) => el("span", { class: `side ${side}` }, letter));
  const name = el("span", { class: "plane" }, `${NAMES[kind]} `, el("span", { class: "slice-number" }));
  const node = el("div", { class: "tile" }, name, ...sides);
  Object.assign(node.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  return node;
}
