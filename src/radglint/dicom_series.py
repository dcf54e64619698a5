"""CT series in DICOM (classic files or enhanced multi-frame) to one volume in HU with its affine.

Order of work: read all headers without pixels, group them into stacks, choose one (`series_choice`), sort and check it
in space (`slice_stack`), then decode slice by slice into one preallocated float32 volume with each slice's own rescale.

The affine: ImagePositionPatient is the centre of the first voxel in LPS mm, the row direction times the spacing between
columns is one step in width, the column direction times the spacing between rows one step in height (PS3.3 equation
C.7.6.2.1-1), the step from slice to slice one step in depth; the whole is turned to RAS+. Depth grows along row
direction x column direction: toward the head for a standard axial series. A tilted gantry gives a sheared affine, which
is exact; nothing is resampled for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from radglint.dicom_file import decode_frame, open_dicom, padding_mask, stored_values
from radglint.errors import GeometryError, ImageError
from radglint.geometry import lps_to_ras, spacing_from_affine
from radglint.hounsfield import LOWEST_HU, check_hu, clamp_padding
from radglint.image import MedicalImage, SourceFrame
from radglint.series_choice import SeriesSummary, choose_series, group_series, list_in_words
from radglint.slice_headers import SliceHeader, read_slice_headers
from radglint.slice_stack import StackPlan, plan_stack, same_place_groups, slice_axes

MAX_VOXELS = 2**31  # 8 GiB as float32
MAX_LISTED = 12


def read_dicom_ct(paths: list[Path], *, name: str, series: str | None = None) -> MedicalImage:
    """Read one CT series as a volume.

    Args:
        paths: the files of a folder or zip, in any order; other DICOM objects and other files are left out.
        name: the folder or zip, for messages and as the path of the image.
        series: which series, if there are several: SeriesNumber (or a label that `list_series` gives, e.g. "3:2"),
            SeriesInstanceUID, or the end of it. None chooses the chest CT by the rule in `series_choice`.

    Returns:
        HU, float32 `depth height width`, depth along the slice normal, with the affine to RAS+ mm; sheared if the
            gantry was tilted, resampled along depth only if `steps` and `warnings` say so.

    Raises:
        ImageError: no CT, not one clear choice, damaged pixel data, no rescale, or values that are not HU.
        GeometryError: position, orientation or spacing missing or contradictory, one slice only, slices missing,
            doubled with different pixels, or tilted too far.
    """
    headers, skipped = read_slice_headers([Path(p) for p in paths])
    chosen, note = choose_series(_ct_stacks(headers, name), series, name)
    for header in headers:
        if header.series_uid == chosen.uid and not header.is_localizer:
            header.require_geometry()
    slices, doubled = _sorted_without_doubles(chosen, name)
    plan, affine = _place(slices, name)
    volume, notes = _fill(slices, name)
    if plan.grid is not None:
        volume = _resample_depth(volume, plan.grid)
    warnings = [note] if note else []
    warnings += [*notes, *plan.warnings, *check_hu(volume, name)]
    volume, clamped = clamp_padding(volume)
    steps = (_origin_step(chosen, slices, skipped), *doubled, _rescale_step(slices), *plan.steps, *clamped)
    return MedicalImage(
        array=volume,
        modality="CT",
        value_unit="HU",
        spacing_mm=spacing_from_affine(affine),
        affine=affine,
        path=name,
        steps=steps,
        warnings=tuple(warnings),
        source_format="dicom",
        source_frames=tuple(SourceFrame(h.path.absolute(), h.sop_instance_uid, h.frame) for h in slices),
        is_resampled=plan.grid is not None,
    )


def list_series(paths: list[Path]) -> list[SeriesSummary]:
    """Every stack of image slices among the files, CT or not, by series number; localizers are left out.

    Args:
        paths: files in any order.

    Raises:
        ImageError: a DICOM file is damaged.
    """
    return group_series(read_slice_headers([Path(p) for p in paths])[0])


def _ct_stacks(headers: list[SliceHeader], name: str) -> list[SeriesSummary]:
    """The CT stacks; refuse if there is none and say what there is."""
    stacks = group_series(headers)
    found = [s for s in stacks if s.modality == "CT"]
    if found:
        return found
    if stacks:
        raise ImageError(
            f"{name}: no CT among the series, found {list_in_words(stacks)}; radglint reads volumes of CT only"
        )
    if headers:
        raise ImageError(f"{name}: only localizer images, no CT slices; give the folder of the axial series")
    raise ImageError(f"{name}: no DICOM image found; expected the files of one CT series")


def _sorted_without_doubles(chosen: SeriesSummary, name: str) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Slices along the normal; identical copies dropped, contradicting ones refused."""
    first = chosen.headers[0]
    if first.orientation is None:
        raise GeometryError(f"{first.path}: ImageOrientationPatient (0020,0037) is missing")
    normal = slice_axes(first.orientation, str(first.path))[2]
    depths = np.array([h.position_mm @ normal for h in chosen.headers if h.position_mm is not None])
    kept: list[SliceHeader] = []
    dropped: list[str] = []
    clashes: list[str] = []
    for group in same_place_groups(depths):
        same = [chosen.headers[i] for i in group]
        kept.append(same[0])
        if len(same) > 1:
            equal = _all_equal(same)
            (dropped if equal else clashes).extend(h.label for h in (same[1:] if equal else same))
    if clashes:
        raise GeometryError(
            f"{name}: {len(clashes)} slices lie at one place with different pixels (several phases or scans in one "
            f"series): {_shorten(clashes)}; keep one of each, or export the phases as series"
        )
    return kept, (f"dropped {len(dropped)} identical copies: {_shorten(dropped)}",) if dropped else ()


def _all_equal(headers: list[SliceHeader]) -> bool:
    """Whether slices are the same picture at the same place."""
    hu = _read_slice(headers[0], _Cache())[0]
    first = np.asarray(headers[0].position_mm)
    return all(
        np.allclose(first, np.asarray(other.position_mm), atol=0.01)
        and np.array_equal(hu, _read_slice(other, _Cache())[0])
        for other in headers[1:]
    )


def _place(slices: list[SliceHeader], name: str) -> tuple[StackPlan, np.ndarray]:
    """The plan of the stack and its affine, index (d, h, w, 1) to RAS+ mm."""
    first = slices[0]
    if first.orientation is None or first.spacing_mm is None:
        raise GeometryError(f"{first.path}: orientation or pixel spacing is missing")
    row, column, normal = slice_axes(first.orientation, str(first.path))
    positions = np.array([h.position_mm for h in slices])
    plan = plan_stack(positions, normal, [h.label for h in slices], name)
    affine = np.eye(4)
    affine[:3, 0] = plan.step_mm
    affine[:3, 1] = column * first.spacing_mm[0]
    affine[:3, 2] = row * first.spacing_mm[1]
    affine[:3, 3] = plan.origin_mm
    return plan, lps_to_ras(affine)


class _Cache:
    """The dataset that was opened last, so that a multi-frame file is read once."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.dataset = Dataset()

    def open(self, path: Path) -> Dataset:
        if path != self.path:
            self.dataset, self.path = open_dicom(path), path
        return self.dataset


def _fill(slices: list[SliceHeader], name: str) -> tuple[np.ndarray, list[str]]:
    """Decode every slice into one volume in HU; also warnings."""
    shape = (len(slices), *slices[0].shape)
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ImageError(f"{name}: {shape} voxels are more than {MAX_VOXELS}; give a thinner or smaller series")
    volume = np.empty(shape, dtype=np.float32)
    cache = _Cache()
    odd: list[str] = []
    for out, header in zip(volume, slices, strict=True):
        hu, dropped = _read_slice(header, cache)
        if hu.shape != out.shape:
            raise ImageError(f"{header.path}: the pixel data is {hu.shape}, the header says {out.shape}; re-export it")
        out[...] = hu
        if dropped:
            odd.append(header.label)
    notes = [f"bits outside BitsStored were set and ignored in {_shorten(odd)}"] if odd else []
    # Seen in the wild beside HU: "HOUNDSFIELD UNIT", "HOUNSFIELD".
    types = sorted({h.rescale_type for h in slices if h.rescale_type[:1] not in ("", "H")})
    if types:
        notes.append(f"RescaleType is {', '.join(types)}, not HU")
    return volume, notes


def _read_slice(header: SliceHeader, cache: _Cache) -> tuple[np.ndarray, bool]:
    """HU of one slice, float32, padding at -1024; and whether bits were dropped."""
    ds = cache.open(header.path)
    frame = decode_frame(ds, header.path, header.frame)
    if frame.ndim != 2:
        raise ImageError(f"{header.path}: a CT slice must be grey, one sample per pixel, got shape {frame.shape}")
    stored, dropped = stored_values(frame, ds, header.path)
    if header.slope is None or header.intercept is None:
        raise ImageError(f"{header.path}: the rescale is missing")
    hu = stored.astype(np.float32)
    if header.slope != 1:
        hu *= np.float32(header.slope)
    hu += np.float32(header.intercept)
    padding = padding_mask(stored, frame, ds, header.path)
    if padding is not None:
        hu[padding] = LOWEST_HU
    return hu, dropped


def _resample_depth(volume: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Linear interpolation between neighbouring slices at fractional slice indices."""
    result = np.empty((len(grid), *volume.shape[1:]), dtype=np.float32)
    for depth, place in enumerate(grid):
        low = min(int(place), len(volume) - 1)
        high = min(low + 1, len(volume) - 1)
        part = np.float32(place - low)
        result[depth] = (1 - part) * volume[low] + part * volume[high]
    return result


def _origin_step(chosen: SeriesSummary, slices: list[SliceHeader], skipped: int) -> str:
    scouts = f", {chosen.localizers} localizers left out" if chosen.localizers else ""
    other = f", {skipped} files that hold no image passed over" if skipped else ""
    kind = "enhanced multi-frame" if slices[0].frame is not None else "one file a slice"
    return f"dicom CT series {chosen.label}, {len(slices)} slices sorted along the normal ({kind}){scouts}{other}"


def _rescale_step(slices: list[SliceHeader]) -> str:
    pairs = sorted({(h.slope, h.intercept) for h in slices if h.slope is not None and h.intercept is not None})
    if len(pairs) == 1:
        return f"modality: rescale slope {pairs[0][0]:g}, intercept {pairs[0][1]:g}"
    return f"modality: rescale of each slice, {len(pairs)} different pairs of slope and intercept"


def _shorten(parts: list[str]) -> str:
    more = f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return ", ".join(parts[:MAX_LISTED]) + more
