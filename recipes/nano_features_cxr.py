"""Step 1 of `nano` CXR: radiographs with simulated findings, and real labelled ones, as cached trunk tokens.

Command: python recipes/nano_features_cxr.py NIH_FOLDER COVID_FOLDER CT_FOLDER runs/trunk runs/cxr
Time:    about 25 minutes on 2 cores (`--shard 0/2` and `1/2` side by side).
Needs:   records.json and images of NIH ChestX-ray14 (labels, view, patient) and of the COVID-19 image data (patientid,
         finding, view), and the CT of the CT recipe.
Writes:  lungs.safetensors (tokens of painted radiographs and where their lungs are, for the place field),
         train_*, val_* (simulated, other patients) and real_train_*, real_test_* (real labels, split by patient).

Bases are normal radiographs, and diseased ones with what is known of them as facts: two images of one body differ in
what is painted alone, so that disease nobody named is no clue, and a finding is told from sick lungs too.
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
from radglint.simulation.canvas import resize
from radglint.simulation.ct_base import base_from_image
from radglint.simulation.facts import CONCEPTS, Fact
from radglint.simulation.film import FILM_PX, Film, drr_film
from radglint.simulation.radiograph import FULL_WEIGHTS, make_image
from radglint.train import NOT_IN_LABELS, native_autocast

NUM_TRAIN, NUM_VAL, SHARD_CASES = 1500, 200, 100  # bodies; each is painted twice
SEED = 20261124
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
DRR_VIEWS = 10
BASE_SHARES = {"normal": 0.45, "labelled": 0.25, "covid": 0.1, "drr": 0.1}  # of the bodies
FREE_LICENCES = ("CC BY 3.0", "CC BY 4.0", "listed as authorized for everyone")
NIH_CONCEPTS = {
    "Pneumonia": "consolidation", "Infiltration": "consolidation", "Consolidation": "consolidation",
    "Atelectasis": "atelectasis", "Effusion": "pleural effusion", "Edema": "interstitial pattern",
    "Cardiomegaly": "cardiomegaly", "Nodule": "nodule", "Mass": "mass", "Emphysema": "emphysema",
    "Hernia": "hiatal hernia", "Pneumothorax": "pneumothorax", "Fibrosis": "interstitial pattern",
}  # fmt: skip


# The labels of NIH name no other concept; the notes of the COVID-19 image data may be silent on anything.
UNSAID = {"labelled": tuple(sorted(NOT_IN_LABELS)), "covid": CONCEPTS}


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
    """Frozen trunk as it will ship: int8-rounded weights, bfloat16 arithmetic where the processor has it."""

    def __init__(self, folder: Path, layers: tuple[int, ...] = ()) -> None:
        self.layers = layers
        self.encoder = VitEncoder(quantize_in_place(Dinov2Model.from_pretrained(folder)).eval())

    @torch.inference_mode()
    def tokens(self, pixels: np.ndarray) -> torch.Tensor:
        """`images height width` in [0, 1] to `images patches embed`, bfloat16."""
        with native_autocast():
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


def draw_base(pools: dict[str, list[Film]], rng: np.random.Generator) -> tuple[str, Film]:
    """The kind of base and one of it, now and then as its mirror image."""
    chances = np.array([BASE_SHARES[kind] for kind in pools])
    kind = str(rng.choice(list(pools), p=chances / chances.sum()))
    base = pools[kind][int(rng.integers(len(pools[kind])))]
    return kind, base.mirrored() if rng.random() < 0.2 else base


def simulated(pools: dict[str, list[Film]], bodies: range, trunk: Trunk) -> Iterator[Case]:
    """Two images per body: the same base, geometry and exposure with other findings."""
    for body in bodies:
        for twin in (0, 1):
            rng = np.random.default_rng([SEED, body])
            kind, base = draw_base(pools, rng)
            painter = np.random.default_rng([SEED, 1, body, twin])
            hard = painter.random() < HARD_SHARE
            made = make_image(base.picture, base.lungs, rng, painter, weights=FULL_WEIGHTS, hard=hard)
            tokens = trunk.tokens(model_pixels(made.image, base.patient))
            masks = [*made.masks, *(np.zeros_like(base.lungs.left) for _ in base.facts)]
            facts, unsaid = (*made.facts, *base.facts), UNSAID.get(kind, ())
            yield Case(tokens, facts, coverage(masks), f"{base.patient}/{body}", unsaid)


def lung_fields(pools: dict[str, list[Film]], trunk: Trunk) -> dict[str, torch.Tensor]:
    """Tokens of painted radiographs, and how much of each lies in the right and in the left lung."""
    rows = []
    for number in range(NUM_LUNGS):
        rng = np.random.default_rng([SEED, 3, number])
        _, base = draw_base(pools, rng)
        made = make_image(base.picture, base.lungs, rng, weights=FULL_WEIGHTS, hard=True)
        share = coverage([made.lungs.right, made.lungs.left])
        assert share is not None
        rows.append((trunk.tokens(model_pixels(made.image, base.patient)), share))
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


def label_facts(record: dict) -> tuple[Fact, ...]:
    """What the labels of NIH say; without side, zone or size, because a label has none."""
    return tuple(Fact(c) for c in sorted({NIH_CONCEPTS[label] for label in record["labels"] if label in NIH_CONCEPTS}))


def covid_facts(record: dict) -> tuple[Fact, ...]:
    """What the kind of case says: an infection of the lung shows as airspace opacity."""
    return () if record["finding"] == "No Finding" else (Fact("consolidation"),)


def real(records: list, folder: Path, trunk: Trunk) -> Iterator[Case]:
    """One case per labelled radiograph."""
    for record in records:
        tokens = trunk.tokens(model_pixels(read_grey(folder / record["image"]), record["image"]))
        group = f"{record['patient']}|{record['view']}|{'+'.join(record['labels'])}"
        yield Case(tokens, label_facts(record), None, group, UNSAID["labelled"])


def real_covid(films: list[Film], trunk: Trunk) -> Iterator[Case]:
    """One case per film, as it is."""
    for film in films:
        yield Case(trunk.tokens(model_pixels(film.picture, film.patient)), film.facts, None, film.patient, CONCEPTS)


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


def read_square(path: Path) -> np.ndarray:
    """A radiograph as a square film: a stretched thorax is a thorax, a black margin would be a clue."""
    return resize(read_grey(path), (FILM_PX, FILM_PX)).clip(0, 1)


def features_of(images: list[np.ndarray], trunk: Trunk) -> np.ndarray:
    """Features of the last block, `images rows columns embed`."""
    tokens = [trunk.tokens(model_pixels(image, "base"))[0].float().numpy() for image in images]
    return np.stack(tokens).reshape(len(tokens), *GRID, -1)


def prepare_films(groups: dict[str, list[tuple[Path, str, tuple[Fact, ...]]]], trunk: Trunk) -> dict[str, list[Film]]:
    """Films with usable lungs of each group; what lung looks like is taken from the first group.

    Args:
        groups: path, patient and facts of each radiograph.
        trunk: without earlier blocks.
    """
    made: dict[str, list[Film]] = {}
    lung_tokens = None
    for name, rows in groups.items():
        images = [read_square(path) for path, *_ in rows]
        features = features_of(images, trunk)
        lung_tokens = lung_tokens or fit_lung_tokens(features)
        found = [find_lungs(image, lung_tokens.score(f)) for image, f in zip(images, features, strict=True)]
        parts = zip(rows, images, found, strict=True)
        made[name] = [Film(im, lungs, patient, facts) for (_, patient, facts), im, lungs in parts if lungs is not None]
        print(f"{name}: lungs in {len(made[name])} of {len(rows)}", flush=True)
    return made


def covid_rows(folder: Path) -> list[tuple[Path, str, tuple[Fact, ...]]]:
    """Frontal radiographs of the training patients of the COVID-19 image data."""
    records = json.loads((folder / "records.json").read_text())
    patients = covid_training_patients(records)
    kept = [r for r in records if r["view"] != "L" and r["patientid"] in patients]
    return [(folder / r["image"], f"covid {r['patientid']}", covid_facts(r)) for r in kept]


def covid_training_patients(records: list[dict]) -> set[str]:
    """Patients that are trained on: of the training folds, with images that anyone may build on; the others judge."""
    bound = {r["patientid"] for r in records if not r["license"].startswith(FREE_LICENCES)}
    return {r["patientid"] for r in records if fold(f"covid {r['patientid']}") >= 4} - bound


def main() -> None:
    """Split by patient, simulate, encode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("nih", "covid", "ct", "trunk", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--shard", default="0/1", help="part/parts")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    torch.set_num_threads(1)
    last, trunk = Trunk(args.trunk), Trunk(args.trunk, TRUNK_LAYERS)
    records = json.loads((args.nih / "records.json").read_text())
    test = [r for r in records if fold(r["patient"]) < 4]
    train = [r for r in records if fold(r["patient"]) >= 4]
    diseased = {r["patient"] for r in records if r["labels"] != ["No Finding"]}

    def rows(chosen: list, *, normal: bool) -> list[tuple[Path, str, tuple[Fact, ...]]]:
        kept = [r for r in chosen if (r["patient"] not in diseased and looks_normal(Path(r["image"]).stem)) == normal]
        kept = kept if normal else [r for r in kept if r["labels"] != ["No Finding"]]
        return [(args.nih / r["image"], r["patient"], label_facts(r)) for r in kept]

    pools = prepare_films(
        {"normal": rows(train, normal=True), "labelled": rows(train, normal=False), "covid": covid_rows(args.covid),
         "val": rows(test, normal=True)}, last)  # fmt: skip
    val_films = {"normal": pools.pop("val")}
    pools["drr"] = drr_bases(args.ct, DRR_TRAIN)
    if part == 0:
        save_file(lung_fields(pools, trunk), args.out / "lungs.safetensors")
        write_shards(args.out, "real_train", real(train, args.nih, trunk), 0)
        write_shards(args.out, "covid_train", real_covid(pools["covid"], trunk), 0)
    else:
        write_shards(args.out, "real_test", real(test, args.nih, trunk), 0)
    write_shards(args.out, "val", simulated(val_films, range(10**6 + part, 10**6 + NUM_VAL, parts), trunk), part)
    write_shards(args.out, "train", simulated(pools, range(part, NUM_TRAIN, parts), trunk), part)


if __name__ == "__main__":
    main()
