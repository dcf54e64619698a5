"""Step 1 of `nano` CT: slabs of real chest CT with simulated findings, as cached trunk tokens.

Command: python recipes/nano_features_ct.py CT_FOLDER LIDC_NODULES runs/trunk runs/ct --shard 0/2    (and 1/2 beside it)
Writes:  train_*, val_* (slabs), lungs.safetensors (slices and where their lungs are, for the place field).
Time:    about 50 minutes for both shards together on 2 cores, 6 GB of files.
Needs:   a folder with lungdx_a0001, fourd_lung_113, partial_acrin_flt_breast_001, partial_lungfcp_01_0001 (training)
         and lidc_0314 (validation only). Slices with real disease of the training scans are left out.
         lidc_0001 is never read: it is the test of `make demo`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import save_file

from nano_features_cxr import Trunk, write_shards
from radglint.cases import Case
from radglint.nifti import read_nifti
from radglint.preprocess import CtPreprocess
from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG
from radglint.simulation.ct import CtBase, SimulatedVolume, make_base, make_slab
from radglint.simulation.ct_base import base_from_image
from radglint.simulation.ct_real import read_lesions
from radglint.simulation.ct_scene import Lesion

NUM_TRAIN, NUM_VAL, NUM_SLICES, NUM_LUNGS = (
    2300,
    150,
    3,
    200,
)  # bodies; each is painted twice. The middle slice of three is the bag
SEED = 20261122
LESIONS_FROM, OFF_LUNGS_SHARE = 1200, 0.15  # bodies from here on show real nodules too, and also neck and abdomen
TEST_PATIENTS = frozenset({"LIDC-IDRI-0001", "LIDC-IDRI-0314"})
GRID = (22, 28)
# Where our own look at the slices found haze, atelectasis or scars beside the outlined tumours (RAS+ z, mm).
HAZY = {"lungdx_a0001": (-264, -121), "fourd_lung_113": (-1042, -894), "partial_lungfcp_01_0001": (30, 93)}
# Scan: how often its clean slices, their mirror images, and all slices without an outlined tumour are drawn.
TRAIN_WEIGHTS = {
    "lungdx_a0001/ct": (1.0, 0.5, 0.15), "lungdx_a0001/ct_lungkernel": (0.7, 0.3, 0.1),
    "partial_acrin_flt_breast_001/ct": (1.0, 0.6, 0.0), "fourd_lung_113/ct": (0.4, 0.2, 0.35),
    "partial_lungfcp_01_0001/ct": (0.4, 0.2, 0.3),
}  # fmt: skip
VAL_BASE = "lidc_0314/ct"


def mask_range_mm(path: Path) -> tuple[float, float]:
    """RAS+ z range of a mask."""
    image = nib.load(path)
    points = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))
    return float(points[:, 2].min()), float(points[:, 2].max())


def diseased_ranges(folder: Path, name: str) -> list[tuple[float, float]]:
    """Where a scan shows real disease."""
    masks = {"fourd_lung_113": ("mask_tumor_c40",), "partial_lungfcp_01_0001": ("mask_blood_vessels_manual",),
             "lidc_0314": ("mask_nodules_consensus",)}  # fmt: skip
    patient = name.split("/")[0]
    if patient == "lungdx_a0001":
        boxes = json.loads((folder / patient / "tumour_boxes.json").read_text())["boxes"]
        heights = [box["ras_mm_corner0"][2] for box in boxes]
        return [(min(heights), max(heights))]
    return [mask_range_mm(folder / patient / f"{mask}.nii.gz") for mask in masks.get(patient, ())]


def load_base(folder: Path, name: str, *, clean: bool = False, mirrored: bool = False) -> CtBase:
    """Read a scan and prepare it for the simulator; `clean` leaves out more than the outlined disease."""
    ranges = diseased_ranges(folder, name)
    if clean and (hazy := HAZY.get(name.split("/")[0])):
        ranges = [*ranges, hazy]
    base = base_from_image(read_nifti(folder / f"{name}.nii.gz"), diseased_z_mm=ranges)
    if not mirrored:
        return base
    flipped = np.ascontiguousarray(base.volume_hu[..., ::-1])
    return make_base(flipped, base.anatomy.spacing_mm, excluded=base.excluded, name=base.name)


def train_bases(folder: Path) -> tuple[list[CtBase], np.ndarray]:
    """Every base of the training scans and how often it is drawn."""
    kinds = ({"clean": True}, {"clean": True, "mirrored": True}, {})
    drawn = [(name, kind, w) for name, ws in TRAIN_WEIGHTS.items() for kind, w in zip(kinds, ws, strict=True) if w]
    chances = np.array([w for *_, w in drawn])
    return [load_base(folder, name, **kind) for name, kind, _ in drawn], chances / chances.sum()


def window(volume_hu: np.ndarray) -> np.ndarray:
    """HU to the pixels of the CT preprocessing."""
    config = CtPreprocess()
    return ((volume_hu - config.window_low_hu) / (config.window_high_hu - config.window_low_hu)).clip(0, 1)


def coverage(masks: tuple[np.ndarray, ...]) -> torch.Tensor | None:
    """Share of each token inside each mask, `masks (slices * patches)`."""
    if not masks:
        return None
    stack = torch.from_numpy(np.stack(masks).astype(np.float32))
    return torch.nn.functional.interpolate(stack, size=GRID, mode="area").flatten(1).half()


def make_body(
    bases: list[CtBase], chances: np.ndarray, body: int, twin: int, lesions: Sequence[Lesion]
) -> tuple[str, SimulatedVolume]:
    """One of the two slabs of a body: the same slices, deformation and noise, other findings; and its base's name."""
    rng = np.random.default_rng([SEED, 3, body])
    base = bases[int(rng.choice(len(bases), p=chances))]
    slab = make_slab(
        base, rng, NUM_SLICES, facts=[] if is_off_lungs(body) else None, normal_share=0.2,
        painter=np.random.default_rng([SEED, 4, body, twin]), with_lung=not is_off_lungs(body),
        lesions=lesions if LESIONS_FROM <= body < NUM_TRAIN else (),
    )  # fmt: skip
    return base.name, slab


def is_off_lungs(body: int) -> bool:
    """Whether a body is cut anywhere, neck and abdomen too, and shows nothing."""
    later = LESIONS_FROM <= body < NUM_TRAIN
    return later and np.random.default_rng([SEED, 5, body]).random() < OFF_LUNGS_SHARE


def simulated(
    bases: list[CtBase], chances: np.ndarray, bodies: range, trunk: Trunk, lesions: Sequence[Lesion]
) -> Iterator[Case]:
    """Two slabs per body; one without a finding, off the lungs."""
    for body in bodies:
        for twin in (0,) if is_off_lungs(body) else (0, 1):
            name, slab = make_body(bases, chances, body, twin, lesions)
            tokens = trunk.tokens(window(slab.volume_hu).astype(np.float32))
            yield Case(tokens, tuple(slab.facts), coverage(slab.masks), f"{Path(name).parent.name}/{body}")


def lung_fields(bases: list[CtBase], chances: np.ndarray, trunk: Trunk) -> dict[str, torch.Tensor]:
    """Tokens of painted slices, and how much of each lies in the right and in the left lung."""
    rows = []
    for number in range(NUM_LUNGS):
        rng = np.random.default_rng([SEED, 6, number])
        base = bases[int(rng.choice(len(bases), p=chances))]
        slab = make_slab(base, rng, 1, normal_share=0.2, with_lung=number % 4 > 0)
        share = coverage(tuple(slab.labels == label for label in (RIGHT_LUNG, LEFT_LUNG)))
        assert share is not None
        rows.append((trunk.tokens(window(slab.volume_hu).astype(np.float32)), share))
    return {"tokens": torch.stack([tokens for tokens, _ in rows]), "lungs": torch.stack([share for _, share in rows])}


def main() -> None:
    """Simulate, encode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("lesions", type=Path)
    parser.add_argument("trunk", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1", help="part/parts")
    parser.add_argument("--held-out", action="store_true", help="only what calibrating a trained branch needs")
    args = parser.parse_args()
    part, parts = map(int, args.shard.split("/"))
    torch.set_num_threads(1)
    trunk = Trunk(args.trunk)
    val_base = load_base(args.ct, VAL_BASE)
    val_bodies = range(10**6 + part, 10**6 + NUM_VAL, parts)
    write_shards(args.out, "val", simulated([val_base], np.ones(1), val_bodies, trunk, ()), part)
    bases, chances = train_bases(args.ct)
    if part == 0:
        save_file(lung_fields(bases, chances, trunk), args.out / "lungs.safetensors")
    if args.held_out:
        return
    lesions = read_lesions(args.lesions, bases[0].anatomy.spacing_mm, TEST_PATIENTS)
    write_shards(args.out, "train", simulated(bases, chances, range(part, NUM_TRAIN, parts), trunk, lesions), part)


if __name__ == "__main__":
    main()
