"""Step 1 of `nano` CXR: radiographs with simulated findings, and real labelled ones, as cached trunk tokens.

Command: python recipes/nano_features_cxr.py NIH_FOLDER runs/trunk runs/cxr --shard 0/2    (and 1/2 beside it)
Time:    about 25 minutes for both shards together on 2 cores.
Needs:   a folder with records.json and images of NIH ChestX-ray14 (labels, view, patient).
Writes:  train_*, val_* (simulated, other patients) and real_train_*, real_test_* (real labels, split by patient).
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Model

from radglint.cases import Case, save_cases
from radglint.encoders.features import grey_to_channels
from radglint.encoders.vit import VitEncoder
from radglint.image import MedicalImage
from radglint.preprocess import CxrPreprocess, preprocess
from radglint.quantize import quantize_in_place
from radglint.simulation.anatomy_cxr import find_lungs, fit_lung_tokens
from radglint.simulation.radiograph import make_image
from radglint.simulation.sentences import Fact

NUM_TRAIN, NUM_VAL, SHARD_CASES = 2600, 320, 100
GRID = (28, 28)
NIH_CONCEPTS = {
    "Pneumonia": "consolidation", "Infiltration": "consolidation", "Consolidation": "consolidation",
    "Atelectasis": "atelectasis", "Effusion": "pleural effusion", "Edema": "interstitial pattern",
    "Cardiomegaly": "cardiomegaly", "Nodule": "nodule", "Mass": "mass", "Emphysema": "emphysema",
    "Hernia": "hiatal hernia", "Pneumothorax": "pneumothorax", "Fibrosis": "interstitial pattern",
}  # fmt: skip


def fold(patient: str) -> int:
    """A stable number from 0 to 9 for a patient."""
    return zlib.crc32(patient.encode()) % 10


def read_grey(path: Path) -> np.ndarray:
    """An 8-bit radiograph as float32 in [0, 1]."""
    return np.asarray(Image.open(path).convert("L"), np.float32) / 255


class Trunk:
    """Frozen trunk as it will ship: int8-rounded weights, bfloat16 arithmetic."""

    def __init__(self, folder: Path) -> None:
        self.encoder = VitEncoder(quantize_in_place(Dinov2Model.from_pretrained(folder)).eval())

    @torch.inference_mode()
    def tokens(self, pixels: np.ndarray) -> torch.Tensor:
        """`images height width` in [0, 1] to `images patches embed`, bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.encoder(grey_to_channels(torch.from_numpy(pixels))).tokens.bfloat16()


def model_pixels(image: np.ndarray, name: str) -> np.ndarray:
    """The pixels that the model sees, by the one preprocessing, `1 height width`."""
    return preprocess(MedicalImage(image.astype(np.float32), "CXR", "display", path=name), CxrPreprocess()).pixels


def coverage(masks: list[np.ndarray]) -> torch.Tensor | None:
    """Share of each token inside each mask, `masks patches`."""
    if not masks:
        return None
    stack = torch.from_numpy(np.stack(masks).astype(np.float32))[:, None]
    return torch.nn.functional.interpolate(stack, size=GRID, mode="area").flatten(1).half()


def simulated(bases: list, seeds: range, trunk: Trunk) -> Iterator[Case]:
    """One case per seed; the base is chosen by the seed."""
    for seed in seeds:
        rng = np.random.default_rng([20261121, seed])
        record, image, lungs = bases[int(rng.integers(len(bases)))]
        made = make_image(image, lungs, rng)
        tokens = trunk.tokens(model_pixels(made.image, record["image"]))
        yield Case(tokens, tuple(made.facts), coverage(made.masks), group=record["patient"])


def real(records: list, folder: Path, trunk: Trunk) -> Iterator[Case]:
    """One case per labelled radiograph; a fact has no side, zone or size because the label has none."""
    for record in records:
        concepts = sorted({NIH_CONCEPTS[label] for label in record["labels"] if label in NIH_CONCEPTS})
        tokens = trunk.tokens(model_pixels(read_grey(folder / record["image"]), record["image"]))
        group = f"{record['patient']}|{record['view']}|{'+'.join(record['labels'])}"
        yield Case(tokens, tuple(Fact(c) for c in concepts), None, group, real=True)


def write_shards(out: Path, prefix: str, cases: Iterator[Case], part: int) -> None:
    """Collect cases into shards; a shard on disk is complete."""
    batch: list[Case] = []
    number = 0
    for case in cases:
        batch.append(case)
        if len(batch) == SHARD_CASES:
            save_cases(out / f"{prefix}_{part}_{number:03d}", batch)
            print(prefix, part, number, flush=True)
            batch, number = [], number + 1
    if batch:
        save_cases(out / f"{prefix}_{part}_{number:03d}", batch)


def prepare_bases(records: list, folder: Path, trunk: Trunk) -> list:
    """Normal radiographs with usable lungs: (record, image, lungs)."""
    images = [read_grey(folder / record["image"]) for record in records]
    tokens = [trunk.tokens(model_pixels(image, "base"))[0].float().numpy() for image in images]
    features = np.stack(tokens).reshape(len(tokens), *GRID, -1)
    lung_tokens = fit_lung_tokens(features)
    found = [find_lungs(image, lung_tokens.score(f)) for image, f in zip(images, features, strict=True)]
    return [(r, i, lungs) for r, i, lungs in zip(records, images, found, strict=True) if lungs is not None]


def main() -> None:
    """Split by patient, simulate, encode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nih", type=Path)
    parser.add_argument("trunk", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1", help="part/parts")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    torch.set_num_threads(1)
    trunk = Trunk(args.trunk)
    records = json.loads((args.nih / "records.json").read_text())
    test_patients = {r["patient"] for r in records if fold(r["patient"]) < 4}
    normal = [r for r in records if r["labels"] == ["No Finding"]]
    diseased = {r["patient"] for r in records if r["labels"] != ["No Finding"]}
    bases = prepare_bases([r for r in normal if r["patient"] not in diseased], args.nih, trunk)
    train_bases = [b for b in bases if b[0]["patient"] not in test_patients]
    val_bases = [b for b in bases if b[0]["patient"] in test_patients]
    print(f"{len(train_bases)} training bases, {len(val_bases)} validation bases", flush=True)
    if part == 0:
        keep = [r for r in records if r["patient"] not in test_patients]
        write_shards(args.out, "real_train", real(keep, args.nih, trunk), 0)
        held = [r for r in records if r["patient"] in test_patients]
        write_shards(args.out, "real_test", real(held, args.nih, trunk), 0)
    write_shards(args.out, "val", simulated(val_bases, range(10**6 + part, 10**6 + NUM_VAL, parts), trunk), part)
    write_shards(args.out, "train", simulated(train_bases, range(part, NUM_TRAIN, parts), trunk), part)


if __name__ == "__main__":
    main()
