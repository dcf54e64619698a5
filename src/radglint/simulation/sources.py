"""From files to bases: normal radiographs with their lungs found, CT on the canonical grid, or phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radglint.errors import ImageError, InputError
from radglint.image import MedicalImage
from radglint.pipeline import load
from radglint.preprocess import CxrPreprocess, preprocess
from radglint.reading import list_files, read_image, sniff
from radglint.simulation.anatomy_cxr import LungFields, find_lungs, fit_lung_tokens, heart_between
from radglint.simulation.base_names import base_name, patients_of
from radglint.simulation.canvas import resize
from radglint.simulation.case import FilmSource, VolumeSource
from radglint.simulation.ct import CtBase, make_base
from radglint.simulation.ct_base import base_from_image, canonical_volume
from radglint.simulation.film import FILM_PX, Film, drr_film
from radglint.simulation.label_maps import LabelMaps
from radglint.simulation.phantom import make_phantom

MIN_RADIOGRAPHS = 8
"""Fewer are too few to tell by their features which part is lung."""
VIEWS = 8
"""Reconstructed radiographs of each CT."""


def radiograph_source(
    folders: Sequence[Path], *, model: str = "nano", label_maps: LabelMaps | None = None
) -> FilmSource:
    """Normal radiographs; those whose lungs are not found with confidence are left out.

    Args:
        folders: searched with their subfolders; a `records.json` (a list of `{"image": path in the folder, "patient":
            id}`) names patients, else each file is a patient of its own.
        model: whose trunk gives the features that lungs are found by.
        label_maps: give the lungs and hearts in place of the features; then no radiograph is left out, and one is
            enough.

    Raises:
        InputError: fewer than `MIN_RADIOGRAPHS` images, or none with lungs; or see `label_maps`.
        ImageError: an image cannot be read.
    """
    found = [entry for folder in folders for entry in _radiographs(folder, label_maps)]
    least = MIN_RADIOGRAPHS if label_maps is None else 1
    if len(found) < least:
        where = ", ".join(map(str, folders))
        raise InputError(f"{where}: {len(found)} radiographs, but at least {least} are needed; or --phantom")
    images = [read_image(path) for path, _, _ in found]
    wrong = [image.path for image in images if image.modality != "CXR"]
    if wrong:
        raise InputError(f"{wrong[0]}: is a CT; give radiographs, or use `simulate ct` or `simulate drr`")
    pictures = [film_sized(image.array) for image in images]
    if label_maps is None:
        regions = [(field, ()) for field in lungs_by_features(pictures, model)]
    else:
        stems = [Path(below).with_suffix("").as_posix() for _, _, below in found]
        shapes = [(image.shape, picture.shape) for image, picture in zip(images, pictures, strict=True)]
        regions = [label_maps.fields(stem, *shape) for stem, shape in zip(stems, shapes, strict=True)]
    films = [
        Film(picture, field, patient, name=path.name, labelled=labelled)
        for picture, (field, labelled), (path, patient, _) in zip(pictures, regions, found, strict=True)
        if field is not None
    ]
    if not films:
        raise InputError(
            f"{folders[0]}: lungs were found on none of {len(found)} images; are they frontal and upright?"
        )
    return FilmSource(films)


def _radiographs(folder: Path, label_maps: LabelMaps | None) -> list[tuple[Path, str, str]]:
    """Image files of a folder, sorted, with their patients and their paths below it; label maps are none of them."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of normal radiographs")
    patients = patients_of(folder / "records.json")
    files = [path for path in list_files(folder) if not (label_maps and path.is_relative_to(label_maps.folder))]
    below = {path: path.relative_to(folder).as_posix() for path in files if _is_image(path)}
    return [(path, patients.get(name, path.stem), name) for path, name in below.items()]


def _is_image(path: Path) -> bool:
    try:
        return sniff(path) in ("raster", "dicom")
    except ImageError:
        return False


def film_sized(picture: np.ndarray) -> np.ndarray:
    """A radiograph with `FILM_PX` pixels on its longer side, float32 in [0, 1]."""
    scale = FILM_PX / max(picture.shape)
    shape = [max(16, round(length * scale)) for length in picture.shape]
    return picture if shape == list(picture.shape) else resize(picture, shape).clip(0, 1)


def lungs_by_features(pictures: Sequence[np.ndarray], model: str = "nano") -> list[LungFields | None]:
    """Lungs of many radiographs, from the patch features of a model's trunk.

    Args:
        pictures: gray values `height width` in [0, 1].
        model: name or folder of the model.

    Returns:
        One per picture; None where they were not found with confidence.
    """
    answerer: Any = load(model, device="cpu").model
    grids = [_features(answerer, picture) for picture in pictures]
    side = min(min(grid.shape[:2]) for grid in grids)
    tokens = fit_lung_tokens(np.stack([_squared(grid, side) for grid in grids]))
    return [find_lungs(p, tokens.score(grid)) for p, grid in zip(pictures, grids, strict=True)]


def _squared(grid: np.ndarray, side: int) -> np.ndarray:
    """Rows and columns picked so that there are `side` of each: pictures may differ in shape."""
    rows, columns = (np.linspace(0, n - 1, side).round().astype(int) for n in grid.shape[:2])
    return grid[rows][:, columns]


@torch.inference_mode()
def _features(answerer: Any, picture: np.ndarray) -> np.ndarray:
    """Patch features `rows columns embed`."""
    prepared = preprocess(MedicalImage(picture.astype(np.float32), "CXR", "display"), CxrPreprocess())
    pixels = torch.from_numpy(prepared.pixels)[None].to(answerer.dtype)
    tokens = answerer.model.trunk_features(pixels).tokens[0, 0].float().numpy()
    return tokens.reshape(*prepared.record.grid_shape[-2:], -1)


def ct_source(
    paths: Sequence[Path], *, slice_step_mm: float = 2.5, label_maps: LabelMaps | None = None
) -> VolumeSource:
    """CT volumes on the canonical grid; each is a patient of its own, named by its file.

    Args:
        paths: NIfTI files, folders or zips of one DICOM series, or folders of NIfTI files.
        slice_step_mm: slice step of what comes out.
        label_maps: give the lungs and hearts in place of our own estimate.

    Raises:
        InputError: see `label_maps`; or two bases have one name and so one map.
        ImageError: one cannot be read, is no CT, or shows no lungs.
    """
    files = ct_files(paths)
    names = [base_name(path) for path in files]
    twice = [name for name in names if names.count(name) > 1]
    if twice and label_maps is not None:
        raise InputError(
            f"--labels: {names.count(twice[0])} bases are named {twice[0]}; rename them to tell their maps"
        )
    bases = [_ct_base(path, slice_step_mm, label_maps) for path in files]
    return VolumeSource(bases, names)


def ct_files(paths: Sequence[Path]) -> list[Path]:
    """Files and DICOM folders; a folder of NIfTI files stands for all of them."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.nii*")) if path.is_dir() else []
        found += inside or [path]
    return found


def _ct_base(path: Path, step_mm: float, label_maps: LabelMaps | None) -> CtBase:
    image, name = read_image(path), base_name(path)
    if image.modality != "CT":
        raise InputError(f"{path}: is a radiograph; give a chest CT")
    if label_maps is None:
        return replace(base_from_image(image, step_mm=step_mm), name=name)
    volume, _ = canonical_volume(image, step_mm=step_mm)
    anatomy, labelled = label_maps.anatomy(name, image, volume, step_mm)
    return replace(make_base(volume, (step_mm, 1.0, 1.0), name=name, anatomy=anatomy), labelled=labelled)


def phantom_bases(count: int, seed: int, *, slice_step_mm: float = 2.5, pixel_mm: float = 1.0) -> VolumeSource:
    """Procedural chests.

    Args:
        count: how many bodies.
        seed: of the run.
        slice_step_mm: slice step.
        pixel_mm: pixel size in the slice.
    """
    names = [f"phantom{number}" for number in range(count)]
    made = [
        make_phantom(np.random.default_rng([seed, 7, k]), name, step_mm=slice_step_mm, pixel_mm=pixel_mm)
        for k, name in enumerate(names)
    ]
    return VolumeSource(made, names)


def drr_source(volumes: VolumeSource, seed: int, *, views: int = VIEWS) -> FilmSource:
    """Reconstructed radiographs of CT: several views of each, stretched, from several distances and exposures.

    Args:
        volumes: the CT.
        seed: of the run.
        views: radiographs of each CT.

    Raises:
        ImageError: a CT shows nothing that attenuates.
    """
    films = []
    for number, (volume, patient) in enumerate(zip(volumes.volumes, volumes.patients, strict=True)):
        for view in range(views):
            rng = np.random.default_rng([seed, 8, number, view])
            film = drr_film(volume, patient, (), rng)
            heart = heart_between(film.lungs.left, film.lungs.right)  # the heart found in a CT reaches into the liver
            lungs = film.lungs if "heart" in volume.labelled else replace(film.lungs, heart=heart)
            name = f"{volume.name}_view{view:02d}"
            films.append(Film(film.picture, lungs, patient, name=name, labelled=volume.labelled))
    return FilmSource(films, "drr")
