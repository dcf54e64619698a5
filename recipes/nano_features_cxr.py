"""Step 1 of `nano` CXR: radiographs with simulated findings, and real labelled ones, as cached trunk tokens.

Command: python recipes/nano_features_cxr.py NIH_FOLDER CT_FOLDER runs/trunk runs/cxr
Time:    about 40 minutes on 2 cores (`--shard 0/2` and `1/2` side by side).
Needs:   a folder with records.json and images of NIH ChestX-ray14 (labels, view, patient), and the CT of the CT recipe.
Writes:  lungs.safetensors (tokens of painted radiographs and where their lungs are, for the lung field),
         train_*, val_* (simulated, other patients) and real_train_*, real_test_* (real labels, split by patient).
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
from safetensors.torch import save_file
from transformers import Dinov2Model

from radglint.cases import Case, save_cases
from radglint.encoders.features import grey_to_channels, join_layers
from radglint.encoders.vit import VitEncoder
from radglint.image import MedicalImage
from radglint.nifti import read_nifti
from radglint.preprocess import CxrPreprocess, preprocess
from radglint.quantize import quantize_in_place
from radglint.simulation.anatomy_cxr import find_lungs, fit_lung_tokens
from radglint.simulation.ct_base import base_from_image
from radglint.simulation.facts import Fact
from radglint.simulation.film import Film, drr_film
from radglint.simulation.radiograph import FULL_WEIGHTS, make_image

NUM_TRAIN, NUM_VAL, SHARD_CASES = 2100, 200, 100  # bodies; each is painted twice
SEED = 20261122
GRID = (28, 28)
TRUNK_LAYERS = (6,)  # beside the last one: a linear probe finds nodules and masks better in it than in block 9
NUM_LUNGS = 300  # radiographs for the lung field
HARD_SHARE = 0.3  # of the images show what only looks like a finding, in the wrong place
# "No Finding" radiographs with a port, a pacemaker, disease or a bad position to our own eye: patient, follow-ups.
NOT_NORMAL = {
    347: "000", 1281: "000", 1401: "001", 1697: "014", 1841: "000", 2104: "006", 2376: "001", 3361: "004 012",
    3393: "030", 3417: "000", 3426: "018", 3478: "002", 3490: "010 011", 3580: "001", 3611: "007", 3623: "000",
    3628: "000", 3698: "000", 3837: "004",
}  # fmt: skip
# CT whose reconstructed radiographs are bases too, with the side of a real mass that a sentence states.
DRR_TRAIN = {"lungdx_a0001": "left", "fourd_lung_113": "left"}
DRR_VIEWS, DRR_SHARE = 10, 0.2
NIH_CONCEPTS = {
    "Pneumonia": "consolidation", "Infiltration": "consolidation", "Consolidation": "consolidation",
    "Atelectasis": "atelectasis", "Effusion": "pleural effusion", "Edema": "interstitial pattern",
    "Cardiomegaly": "cardiomegaly", "Nodule": "nodule", "Mass": "mass", "Emphysema": "emphysema",
    "Hernia": "hiatal hernia", "Pneumothorax": "pneumothorax", "Fibrosis": "interstitial pattern",
}  # fmt: skip


def fold(patient: str) -> int:
    """A stable number from 0 to 9 for a patient."""
    return zlib.crc32(patient.encode()) % 10


def looks_normal(name: str) -> bool:
    """Whether our own look at the radiograph `patient_followup` agreed with its label."""
    patient, follow_up = name.split("_")
    return follow_up not in NOT_NORMAL.get(int(patient), "").split()


def read_grey(path: Path) -> np.ndarray:
    """An 8-bit radiograph as float32 in [0, 1]."""
    return np.asarray(Image.open(path).convert("L"), np.float32) / 255


class Trunk:
    """Frozen trunk as it will ship: int8-rounded weights, bfloat16 arithmetic."""

    def __init__(self, folder: Path, layers: tuple[int, ...] = ()) -> None:
        self.layers = layers
        self.encoder = VitEncoder(quantize_in_place(Dinov2Model.from_pretrained(folder)).eval())

    @torch.inference_mode()
    def tokens(self, pixels: np.ndarray) -> torch.Tensor:
        """`images height width` in [0, 1] to `images patches embed`, bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.encoder(grey_to_channels(torch.from_numpy(pixels)), self.layers)
        return join_layers(features.tokens, list(features.layers.values())).bfloat16()


def model_pixels(image: np.ndarray, name: str) -> np.ndarray:
    """The pixels that the model sees, by the one preprocessing, `1 height width`."""
    return preprocess(MedicalImage(image.astype(np.float32), "CXR", "display", path=name), CxrPreprocess()).pixels


def coverage(masks: list[np.ndarray]) -> torch.Tensor | None:
    """Share of each token inside each mask, `masks patches`."""
    if not masks:
        return None
    stack = torch.from_numpy(np.stack(masks).astype(np.float32))[:, None]
    return torch.nn.functional.interpolate(stack, size=GRID, mode="area").flatten(1).half()


def draw_base(films: list[Film], drrs: list[Film], rng: np.random.Generator) -> Film:
    """A real radiograph or a reconstructed one (if there are any), now and then as its mirror image."""
    pool = drrs if drrs and rng.random() < DRR_SHARE else films
    base = pool[int(rng.integers(len(pool)))]
    return base.mirrored() if rng.random() < 0.2 else base


def simulated(films: list[Film], drrs: list[Film], bodies: range, trunk: Trunk) -> Iterator[Case]:
    """Two images per body: the same base, geometry and exposure with other findings."""
    for body in bodies:
        for twin in (0, 1):
            rng = np.random.default_rng([SEED, body])
            base = draw_base(films, drrs, rng)
            painter = np.random.default_rng([SEED, 1, body, twin])
            hard = painter.random() < HARD_SHARE
            made = make_image(base.picture, base.lungs, rng, painter, weights=FULL_WEIGHTS, hard=hard)
            tokens = trunk.tokens(model_pixels(made.image, base.patient))
            masks = [*made.masks, *(np.zeros_like(base.lungs.left) for _ in base.facts)]
            yield Case(tokens, (*made.facts, *base.facts), coverage(masks), f"{base.patient}/{body}")


def lung_fields(films: list[Film], trunk: Trunk) -> dict[str, torch.Tensor]:
    """Tokens of painted radiographs, and how much of each lies in a lung."""
    rows = []
    for number in range(NUM_LUNGS):
        rng = np.random.default_rng([SEED, 3, number])
        base = films[int(rng.integers(len(films)))]
        made = make_image(base.picture, base.lungs, rng, weights=FULL_WEIGHTS, hard=True)
        share = coverage([made.lungs.both])
        assert share is not None
        rows.append((trunk.tokens(model_pixels(made.image, base.patient)), share[0]))
    return {"tokens": torch.stack([tokens for tokens, _ in rows]), "lungs": torch.stack([share for _, share in rows])}


def drr_bases(folder: Path, patients: dict[str, str | None]) -> list[Film]:
    """Several views of every CT."""
    made = []
    for patient, side in patients.items():
        volume = base_from_image(read_nifti(folder / patient / "ct.nii.gz"))
        facts = () if side is None else (Fact("mass", side),)  # pyright: ignore[reportArgumentType]
        rng = np.random.default_rng([SEED, 2, zlib.crc32(patient.encode())])
        made += [drr_film(volume, patient, facts, rng) for _ in range(DRR_VIEWS)]
    return made


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


def prepare_films(records: list, folder: Path, trunk: Trunk) -> list[Film]:
    """Normal radiographs with usable lungs."""
    images = [read_grey(folder / record["image"]) for record in records]
    tokens = [trunk.tokens(model_pixels(image, "base"))[0].float().numpy() for image in images]
    features = np.stack(tokens).reshape(len(tokens), *GRID, -1)
    lung_tokens = fit_lung_tokens(features)
    found = [find_lungs(image, lung_tokens.score(f)) for image, f in zip(images, features, strict=True)]
    rows = zip(records, images, found, strict=True)
    return [Film(image, lungs, record["patient"]) for record, image, lungs in rows if lungs is not None]


def main() -> None:
    """Split by patient, simulate, encode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nih", type=Path)
    parser.add_argument("ct", type=Path)
    parser.add_argument("trunk", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1", help="part/parts")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    torch.set_num_threads(1)
    last, trunk = Trunk(args.trunk), Trunk(args.trunk, TRUNK_LAYERS)
    records = json.loads((args.nih / "records.json").read_text())
    test_patients = {r["patient"] for r in records if fold(r["patient"]) < 4}
    normal = [r for r in records if r["labels"] == ["No Finding"]]
    diseased = {r["patient"] for r in records if r["labels"] != ["No Finding"]}
    usable = [r for r in normal if r["patient"] not in diseased and looks_normal(Path(r["image"]).stem)]
    films = prepare_films(usable, args.nih, last)
    train_films = [b for b in films if b.patient not in test_patients]
    val_films = [b for b in films if b.patient in test_patients]
    drrs = drr_bases(args.ct, DRR_TRAIN)
    print(f"{len(train_films)} + {len(drrs)} training bases, {len(val_films)} for validation", flush=True)
    if part == 0:
        save_file(lung_fields(train_films, trunk), args.out / "lungs.safetensors")
        keep = [r for r in records if r["patient"] not in test_patients]
        write_shards(args.out, "real_train", real(keep, args.nih, trunk), 0)
        held = [r for r in records if r["patient"] in test_patients]
        write_shards(args.out, "real_test", real(held, args.nih, trunk), 0)
    write_shards(args.out, "val", simulated(val_films, [], range(10**6 + part, 10**6 + NUM_VAL, parts), trunk), part)
    write_shards(args.out, "train", simulated(train_films, drrs, range(part, NUM_TRAIN, parts), trunk), part)


if __name__ == "__main__":
    main()
