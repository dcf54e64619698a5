"""Small images that differ on every side, with answers whose place is known in patient terms."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np

from radglint.finding import Finding
from radglint.findings import Findings
from radglint.image import MedicalImage
from radglint.preprocess import PreprocessRecord
from radglint.query import parse_query

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
SHAPE = (18, 22, 26)
SPACING = (3.0, 2.0, 2.5)


def ct_affine(
    order: tuple[int, ...], signs: tuple[float, ...], tilt_deg: float = 0.0, shear: float = 0.0
) -> np.ndarray:
    """Array axis a points along world axis order[a]; the middle of the array lies at the origin."""
    linear = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        linear[world, axis] = sign * SPACING[axis]
    angle = np.radians(tilt_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    linear = (turn + shear * np.eye(3, k=1)) @ linear
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ ((np.array(SHAPE) - 1) / 2)
    return affine


def ct_image(affine: np.ndarray, header: Any = None) -> MedicalImage:
    rng = np.random.default_rng(0)
    array = rng.normal(-700, 60, SHAPE).astype(np.float32)
    return MedicalImage(
        array, "CT", "HU", tuple(np.linalg.norm(affine[:3, :3], axis=0)), affine, "phantom.nii.gz", ("read as it is",),
        (), "array" if header is None else "nifti", header,
    )  # fmt: skip


def corner(image: MedicalImage) -> np.ndarray:
    """True in the patient's left, front, lower corner."""
    index = np.indices(image.shape).reshape(3, -1)
    world = image.affine[:3, :3] @ index + image.affine[:3, 3:]  # type: ignore[index]
    return ((world[0] < -9) & (world[1] > 9) & (world[2] < -9)).reshape(image.shape)


def unit_record(shape: tuple[int, ...], unseen: int = 0) -> PreprocessRecord:
    """One token a voxel; the last `unseen` positions of the first axis lie outside the token grid."""
    return PreprocessRecord(shape, (shape[0] - unseen, *shape[1:]), np.eye(len(shape) + 1), ("one token a voxel",))


def answer(image: MedicalImage, where: np.ndarray, query: str = "nodule", unseen: int = 0, **changes: Any) -> Finding:
    """A finding whose probability is high in `where` and low elsewhere."""
    parsed = parse_query(query)
    record = unit_record(image.shape, unseen)
    logits = np.where(where, 5.0, -5.0).astype(np.float32)[: record.grid_shape[0]]
    values: dict[str, Any] = {"score": 0.25, "probability": 0.9, "threshold": 0.5, **changes}
    return Finding(
        query=query,
        phrase=parsed.phrase,
        assertion=parsed.assertion,
        token_logits=logits,
        image=image,
        record=record,
        **values,
    )


def radiograph(height: int = 40, width: int = 60) -> MedicalImage:
    ramp = np.linspace(0.1, 0.9, height * width, dtype=np.float32).reshape(height, width)
    return MedicalImage(ramp, "CXR", "display", None, None, "chest <1>.png", ("8 bit grey",), (), "png")


def upper_right(image: MedicalImage) -> np.ndarray:
    """True in the upper right part of the picture."""
    where = np.zeros(image.shape, dtype=bool)
    where[4:14, 42:54] = True
    return where


def collect(*findings: Finding, **changes: Any) -> Findings:
    return Findings(findings, findings[0].image, **{"model_name": "tiny", "model_fingerprint": "abc123", **changes})
