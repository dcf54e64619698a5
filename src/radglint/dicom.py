"""Radiographs in DICOM (CR, DX, secondary capture) to display brightness in [0, 1], bright = dense.

The grey pipeline, each stage once and in the order of PS3.3 section C.7.6.3.1.2 and PS3.4 section N.2:

1. stored value: bits HighBit-BitsStored+1 to HighBit, with sign;
2. modality: Modality LUT Sequence, else RescaleSlope and RescaleIntercept, else identity;
3. VOI: VOI LUT Sequence, else the first window (LINEAR, LINEAR_EXACT or SIGMOID), else the full range of
   the data without padding;
4. polarity: inverted once if PhotometricInterpretation is MONOCHROME1 or PresentationLUTShape is INVERSE;
5. padding is set to 0 (black).

On stage 4: PS3.3 (General Image Module C.7.6.1, DX Image Module C.8.11.3) says that PresentationLUTShape
*shall* be INVERSE for MONOCHROME1 and IDENTITY for MONOCHROME2. The two tags state one fact, so MONOCHROME1 with
INVERSE is inverted once, not twice. MONOCHROME2 with INVERSE breaks that rule and is inverted once too.
MONOCHROME1 with IDENTITY breaks it as well; there PhotometricInterpretation wins (inverted, with a warning). A negative
RescaleSlope is part of stage 2 and needs nothing more.

Overlays are ignored: only the pixel data is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from radglint.dicom_file import (
    SECONDARY_CAPTURE_UID,
    decode_frame,
    frame_shape,
    items,
    number,
    numbers,
    open_dicom,
    padding_mask,
    quiet_pydicom,
    stored_values,
    tag_name,
    text,
    transfer_syntax,
)
from radglint.errors import ImageError
from radglint.image import MedicalImage, SourceFrame

RADIOGRAPH_MODALITIES = ("CR", "DX", "RG", "SC", "OT")
LATERAL_VIEWS = ("LL", "RL", "LLO", "RLO", "LATERAL", "LAT")
CHEST_WORDS = ("CHEST", "THORAX", "THORACIC", "LUNG", "RIB", "STERNUM", "HEART", "BODY", "TORSO", "TRUNK")
SPACING_LIMITS_MM = (0.001, 100.0)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in the standard's YBR_FULL (C.7.6.3.1.2)
SPACING_TAGS = {
    "PixelSpacing": "calibrated",
    "ImagerPixelSpacing": "at the detector, so objects are magnified by a few per cent",
    "NominalScannedPixelSpacing": "of the scanned film",
}


def read_dicom_radiograph(path: Path | str) -> MedicalImage:
    """Read one radiograph in DICOM; see the module for the order of the grey stages.

    Args:
        path: a DICOM file of modality CR, DX, RG or SC, or a secondary capture of modality OT.

    Returns:
        The image, float32 `height width` in [0, 1], bright = dense. `spacing_mm` is PixelSpacing, else
        ImagerPixelSpacing (at the detector), else NominalScannedPixelSpacing, else None.

    Raises:
        ImageError: another modality, several frames, constant, unreadable, or a needed tag is missing.
    """
    path = Path(path)
    ds = open_dicom(path)
    _check_kind(ds, path)
    rows, columns = frame_shape(ds, path)
    frame = decode_frame(ds, path)
    if frame.shape[:2] != (rows, columns):
        raise ImageError(
            f"{path}: the pixel data is {frame.shape[:2]}, the header says {(rows, columns)}; re-export it"
        )
    notes, steps = _content_warnings(ds), [_origin_step(ds, path)]
    photometric = text(ds, "PhotometricInterpretation").upper()
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        array = _grey_to_display(frame, ds, path, steps, notes)
    else:
        array = _colour_to_display(frame, ds, path, steps, notes)
    if array.min() == array.max():
        raise ImageError(f"{path}: every pixel has the same value; this is not a radiograph")
    return MedicalImage(
        array=array.astype(np.float32),
        modality="CXR",
        value_unit="display",
        spacing_mm=_spacing(ds, path, steps, notes),
        path=str(path),
        steps=tuple(steps),
        warnings=tuple(notes),
        source_format="dicom",
        source_frames=(SourceFrame(path.absolute(), text(ds, "SOPInstanceUID")),),
    )


def _check_kind(ds: Dataset, path: Path) -> None:
    """Refuse what is not a single-frame radiograph."""
    modality = text(ds, "Modality").upper()
    sop_class = text(ds, "SOPClassUID")
    supported = "supported: radiographs of modality CR, DX, RG or SC, secondary captures (OT), and CT series"
    if not modality:
        raise ImageError(f"{path}: tag {tag_name('Modality')} is missing; {supported}")
    if modality == "CT":
        raise ImageError(f"{path}: this is CT, not a radiograph; give the folder or zip of the whole series")
    if modality not in RADIOGRAPH_MODALITIES or (modality == "OT" and not sop_class.startswith(SECONDARY_CAPTURE_UID)):
        raise ImageError(f"{path}: modality {modality} in {tag_name('Modality')} is not supported; {supported}")
    if "PhotometricInterpretation" not in ds:
        raise ImageError(
            f"{path}: tag {tag_name('PhotometricInterpretation')} is missing, so black and white cannot be told apart; "
            "re-export the file or convert it to PNG with bone shown bright"
        )
    frames = number(ds, "NumberOfFrames", path)
    if frames is not None and frames > 1:
        raise ImageError(
            f"{path}: {frames:.0f} frames in {tag_name('NumberOfFrames')}, expected one radiograph; "
            "export the frame that you want as its own file"
        )


def _origin_step(ds: Dataset, path: Path) -> str:
    """Modality, intent and transfer syntax in words."""
    intent = text(ds, "PresentationIntentType").upper()
    if not intent and "For Processing" in UID(text(ds, "SOPClassUID")).name:
        intent = "FOR PROCESSING"
    return f"dicom {text(ds, 'Modality')}{', ' + intent if intent else ''}, {transfer_syntax(ds, path).name}"


def _grey_to_display(frame: np.ndarray, ds: Dataset, path: Path, steps: list[str], notes: list[str]) -> np.ndarray:
    """Stages 1 to 5 of the module docstring; float64 `height width` in [0, 1]."""
    if frame.ndim != 2:
        raise ImageError(f"{path}: a MONOCHROME image must have one sample per pixel, got shape {frame.shape}")
    stored, dropped = stored_values(frame, ds, path)
    if dropped:
        notes.append("bits outside BitsStored were set and ignored (an old overlay, or BitsStored is wrong)")
    padding = padding_mask(stored, frame, ds, path)
    if padding is not None and (padding.all() or not padding.any()):
        padding = None
    values = _modality(stored, ds, path, steps)
    display = _voi(values, padding, ds, path, (steps, notes))
    display = _polarity(display, ds, steps, notes)
    if padding is not None:
        steps.append(f"padding: {int(padding.sum())} pixels set to black")
        display = np.where(padding, 0.0, display)
    return display


def _modality(stored: np.ndarray, ds: Dataset, path: Path, steps: list[str]) -> np.ndarray:
    """Modality LUT Sequence, else rescale, else identity (C.11.1)."""
    luts = items(ds, "ModalityLUTSequence", path)
    if luts:
        steps.append("modality: LUT sequence")
        return _apply_lut(stored, luts[0], ds, path)[0]
    slope, intercept = number(ds, "RescaleSlope", path), number(ds, "RescaleIntercept", path)
    if slope is None and intercept is None:
        steps.append("modality: none in the file, stored values used")
        return stored.astype(np.float64)
    slope = 1.0 if slope is None else slope
    intercept = 0.0 if intercept is None else intercept
    if slope == 0:
        raise ImageError(f"{path}: tag {tag_name('RescaleSlope')} is 0, which erases the image; re-export the file")
    steps.append(f"modality: rescale slope {slope:g}, intercept {intercept:g}")
    return stored * np.float64(slope) + intercept


def _voi(
    values: np.ndarray, padding: np.ndarray | None, ds: Dataset, path: Path, log: tuple[list[str], list[str]]
) -> np.ndarray:
    """VOI LUT Sequence, else the first window, else the full range (C.11.2); [0, 1]."""
    steps, notes = log
    luts = items(ds, "VOILUTSequence", path)
    seen = values if padding is None else values[~padding]
    if luts:
        steps.append("voi: LUT sequence" + (f", first of {len(luts)}" if len(luts) > 1 else ""))
        output, top = _apply_lut(values, luts[0], ds, path)
        return np.clip(output / top, 0, 1)
    windowed = _window(values, ds, path, steps, notes)
    if windowed is not None:
        inside = windowed if padding is None else windowed[~padding]
        if inside.min() < inside.max() or seen.min() == seen.max():
            return windowed
        steps.pop()
        notes.append("the window of the file lies outside its pixel values and was not used")
    low, high = float(seen.min()), float(seen.max())
    steps.append(f"voi: no usable window in the file, full range {low:g} to {high:g}")
    return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)


def _window(values: np.ndarray, ds: Dataset, path: Path, steps: list[str], notes: list[str]) -> np.ndarray | None:
    """The first window (C.11.2.1.2, C.11.2.1.3), or None if there is no valid one."""
    centres, widths = numbers(ds, "WindowCenter", path), numbers(ds, "WindowWidth", path)
    if centres is None or widths is None:
        return None
    centre, width = float(centres[0]), float(widths[0])
    function = text(ds, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(
            f"{path}: {function} in {tag_name('VOILUTFunction')} is unknown; expected LINEAR, LINEAR_EXACT or SIGMOID"
        )
    if width < 1 if function == "LINEAR" else width <= 0:
        notes.append(f"window width {width:g} is not allowed with {function} and was not used")
        return None
    several = f", first of {len(centres)}" if len(centres) > 1 else ""
    steps.append(f"voi: window centre {centre:g}, width {width:g}, {function}{several}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _apply_lut(values: np.ndarray, item: Dataset, ds: Dataset, path: Path) -> tuple[np.ndarray, float]:
    """Look values up in one LUT item (C.11.1.1, C.11.2.1.1); also the top of its output range, 2**bits - 1."""
    descriptor, data = numbers(item, "LUTDescriptor", path, 3), _lut_data(item, path)
    if descriptor is None or data is None:
        raise ImageError(f"{path}: a LUT item lacks {tag_name('LUTDescriptor')} or {tag_name('LUTData')}; re-export it")
    count, first, bits = (int(v) for v in descriptor)
    count = (count & 0xFFFF) or 2**16
    if isinstance(data, bytes):
        order = "<" if transfer_syntax(ds, path).is_little_endian else ">"
        data = np.frombuffer(data[: len(data) // 2 * 2], np.uint8 if len(data) < 2 * count else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.float64)).astype(np.int64) & 0xFFFF
    if table.size < count or not 1 <= bits <= 16:
        raise ImageError(
            f"{path}: {tag_name('LUTData')} has {table.size} entries of {bits} bits, {tag_name('LUTDescriptor')} "
            f"promises {count} of 1 to 16 bits; re-export the file"
        )
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return table[index].astype(np.float64), float(2**bits - 1)


def _lut_data(item: Dataset, path: Path) -> Any:
    """LUTData as bytes or numbers, None if it is absent."""
    try:
        with quiet_pydicom():
            data = item.get("LUTData")
    except Exception as exc:
        raise ImageError(f"{path}: tag {tag_name('LUTData')} is damaged; re-export the file") from exc
    return data if isinstance(data, bytes) or data is None else numbers(item, "LUTData", path)


def _polarity(display: np.ndarray, ds: Dataset, steps: list[str], notes: list[str]) -> np.ndarray:
    """Invert once for MONOCHROME1 or PresentationLUTShape INVERSE."""
    photometric = text(ds, "PhotometricInterpretation").upper()
    shape = text(ds, "PresentationLUTShape").upper()
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        notes.append(f"{photometric} with PresentationLUTShape {shape} is contradictory: check that bone is bright")
    reasons = [photometric] if photometric == "MONOCHROME1" else []
    reasons += ["PresentationLUTShape INVERSE"] if shape == "INVERSE" else []
    if not reasons:
        steps.append(f"polarity: kept ({photometric})")
        return display
    steps.append(f"polarity: inverted once ({' and '.join(reasons)})")
    return 1.0 - display


def _colour_to_display(frame: np.ndarray, ds: Dataset, path: Path, steps: list[str], notes: list[str]) -> np.ndarray:
    """RGB, YBR or palette colour to luminance in [0, 1]."""
    photometric = text(ds, "PhotometricInterpretation").upper()
    if photometric == "PALETTE COLOR":
        frame, top = _palette(frame, ds, path)
    elif photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT") and frame.ndim == 3:
        top = float(2 ** int(number(ds, "BitsStored", path) or 8) - 1)
    else:
        raise ImageError(
            f"{path}: {photometric} in {tag_name('PhotometricInterpretation')} with pixel shape {frame.shape} is not "
            "supported; expected MONOCHROME1, MONOCHROME2, RGB, YBR_* or PALETTE COLOR"
        )
    colour = frame[..., :3].astype(np.float64)
    if (colour == colour[..., :1]).all():
        steps.append(f"colour: {photometric}, all channels equal, one taken")
        return np.clip(colour[..., 0] / top, 0, 1)
    steps.append(f"colour: {photometric} collapsed to luminance (0.299 R + 0.587 G + 0.114 B)")
    notes.append("the file is in colour; coloured marks became grey and may be read as anatomy")
    return np.clip(colour @ LUMA / top, 0, 1)


def _palette(frame: np.ndarray, ds: Dataset, path: Path) -> tuple[np.ndarray, float]:
    """Palette indices to RGB, and the top of its range."""
    try:
        with quiet_pydicom():
            colour = apply_color_lut(frame, ds)
    except Exception as exc:
        raise ImageError(f"{path}: the colour palette is missing or damaged ({exc}); re-export the file") from exc
    return colour, float(np.iinfo(colour.dtype).max)


def _spacing(ds: Dataset, path: Path, steps: list[str], notes: list[str]) -> tuple[float, float] | None:
    """(row, column) spacing in mm with its source recorded, or None."""
    for keyword, meaning in SPACING_TAGS.items():
        spacing = numbers(ds, keyword, path)
        if spacing is None:
            continue
        low, high = SPACING_LIMITS_MM
        if spacing.size != 2 or spacing.min() < low or spacing.max() > high:
            notes.append(f"{tag_name(keyword)} is not two numbers from {low:g} to {high:g} mm and was not used")
            continue
        kind = text(ds, "PixelSpacingCalibrationType") if keyword == "PixelSpacing" else ""
        steps.append(f"spacing: {keyword} ({kind.lower() or meaning})")
        return float(spacing[0]), float(spacing[1])
    return None


def _content_warnings(ds: Dataset) -> list[str]:
    """What the tags say against an upright frontal chest radiograph."""
    notes = []
    view, body = text(ds, "ViewPosition").upper(), text(ds, "BodyPartExamined").upper()
    row, _, column = text(ds, "PatientOrientation").upper().partition("\\")
    if view in LATERAL_VIEWS or (not view and row[:1] in ("A", "P")):
        notes.append("this is a lateral view; the model knows frontal chest radiographs")
    elif row.startswith("R"):
        notes.append("PatientOrientation says that the patient's right is on the right: mirrored, sides are swapped")
    if column.startswith("H"):
        notes.append("PatientOrientation says that the head is at the bottom: the image is upside down")
    if body and not any(word in body for word in CHEST_WORDS):
        notes.append(f"BodyPartExamined is {body}, not chest")
    if text(ds, "BurnedInAnnotation").upper() == "YES":
        notes.append("the file says that text is burned into the image; it may identify the patient")
    sign = text(ds, "PixelIntensityRelationshipSign")
    if text(ds, "PresentationIntentType").upper() == "FOR PROCESSING" and sign in ("1", "-1"):
        bright_dense = (sign == "-1") == (text(ds, "PhotometricInterpretation").upper() == "MONOCHROME2")
        if not bright_dense:
            notes.append("FOR PROCESSING values grow with x-ray intensity as shown: check that bone is bright")
    return notes
