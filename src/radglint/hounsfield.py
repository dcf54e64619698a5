"""Is it really HU? Checks of a CT's value range, shared by the NIfTI and the DICOM reader.

A chest CT in HU has air or lung between -1100 and -400, soft tissue between -200 and 250, and nothing but padding
below -1300. A volume that only fits after adding or taking off 1024 was rescaled never or twice. What is
certainly not HU is refused: a wrong range gives a confident wrong answer.
"""

from __future__ import annotations

import numpy as np

from radglint.errors import ImageError

LOWEST_HU = -1024.0
"""Air and padding are set to this value; nothing in a patient is lower."""
HIGHEST_COMMON_HU = 3071.0
"""Top of the usual 12-bit scale; more than that is metal or an extended scale."""

_RESCALE = 1024.0
_MAX_SAMPLES = 2_000_000
_MAX_LABELS = 256
_AIR_HU = (-1100.0, -400.0)
_SOFT_HU = (-200.0, 250.0)
_VOID_HU = -1300.0
_MIN_AIR, _MIN_SOFT, _MAX_VOID = 0.01, 0.03, 0.02
_TISSUES_HU = {
    "air": (-np.inf, -950.0),
    "lung": (-950.0, -500.0),
    "fat": (-150.0, -30.0),
    "soft_tissue": (-30.0, 150.0),
    "bone": (250.0, np.inf),
}


def sample_voxels(array: np.ndarray) -> np.ndarray:
    """At most two million voxels, evenly spread: enough for shares and percentiles.

    Args:
        array: any shape.

    Returns:
        1D float32.
    """
    flat = array.reshape(-1)
    step = -(-flat.size // _MAX_SAMPLES)
    step += int(step > 1 and step % 2 == 0)
    return flat[::step].astype(np.float32, copy=False)


def tissue_shares(array: np.ndarray) -> dict[str, float]:
    """Share of voxels, 0 to 1, in the HU bands air, lung, fat, soft_tissue and bone (gaps between them count nowhere).

    Args:
        array: HU, any shape.
    """
    values = sample_voxels(array)
    return {name: _share(values, low, high) for name, (low, high) in _TISSUES_HU.items()}


def clamp_padding(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Set everything below -1024 HU (padding outside the scan circle, noise in air) to -1024 HU.

    Args:
        array: HU, float32, any shape.

    Returns:
        The array (the same one when nothing was to do) and the step taken, or no step.
    """
    low = array < LOWEST_HU
    count = int(np.count_nonzero(low))
    if not count:
        return array, ()
    step = (
        f"padding: {count} voxels ({100 * count / array.size:.1f} %) below {LOWEST_HU:.0f} HU, "
        f"lowest {float(array.min()):.0f}, set to {LOWEST_HU:.0f} HU"
    )
    return np.maximum(array, np.float32(LOWEST_HU)), (step,)


def check_hu(array: np.ndarray, path: str) -> tuple[str, ...]:
    """Refuse values that are certainly not HU; warn about what is odd. Run it before `clamp_padding`.

    Args:
        array: supposed HU, finite, any shape.
        path: the file, for the message.

    Returns:
        Warnings, in plain words; empty if the range looks right.

    Raises:
        ImageError: constant, a label map, normalised, 8-bit, rescale missing, rescale applied twice, cut to a
            window, or not CT. The message says what to do.
    """
    low, high = float(array.min()), float(array.max())
    values = sample_voxels(array)
    problem = _not_a_scan(values, low, high)
    if problem is None and not _fits(values):
        problem = _rescale_problem(values, low, high)
    if problem is not None:
        raise ImageError(f"{path}: expected HU, got values from {low:.6g} to {high:.6g}: {problem}")
    return _oddities(values, high)


def _not_a_scan(values: np.ndarray, low: float, high: float) -> str | None:
    if low == high:
        return "every voxel is the same; the export is empty, write it again"
    if high <= LOWEST_HU:
        return f"nothing lies above {LOWEST_HU:.0f} HU, where only padding is; check the rescale"
    if low >= 0 and _num_labels(values) <= _MAX_LABELS and not _fits(values - _RESCALE):
        return f"{_num_labels(values)} whole numbers only, a mask, a label map or an 8-bit picture; give the CT itself"
    if low >= -10 and high <= 10:
        return "the volume was normalised; give the original in HU"
    if low >= 0 and high <= 255:
        return "the volume was windowed to 8 bits and its HU are lost; give the original in HU"
    return None


def _rescale_problem(values: np.ndarray, low: float, high: float) -> str | None:
    if _fits(values - _RESCALE) and _has_soft_peak(values - _RESCALE):
        return "stored values, the rescale is missing: add -1024 (or the RescaleIntercept of the DICOM) and save again"
    if _fits(values + _RESCALE):
        return "the rescale was applied twice: add 1024 and save again"
    if low >= -50 and _share(values, -50, 20) > 0 and high > 255:
        return "no air at -1000, so no CT in HU (MR, PET, or stored values with another rescale); convert it to HU"
    if -700 < low < 200 and float(np.mean(values == low)) > 0.05:
        return f"the scale was cut at {low:.0f}, so lung and air cannot be told apart; give the uncut volume"
    if low >= 0:
        return "no value is negative, so this is not HU; apply RescaleSlope and RescaleIntercept and save again"
    if _void_share(values) > _MAX_VOID:
        return f"{100 * _void_share(values):.0f} % lie below -1300, where no tissue is; check the rescale"
    return None


def _oddities(values: np.ndarray, high: float) -> tuple[str, ...]:
    found = []
    air, soft = _share(values, *_AIR_HU), _share(values, *_SOFT_HU)
    if air < _MIN_AIR:
        found.append(f"hardly any air or lung in view ({100 * air:.1f} % of voxels): is this a chest CT?")
    if soft < _MIN_SOFT:
        found.append(f"hardly any soft tissue in view ({100 * soft:.1f} % of voxels): are these values HU?")
    if high > HIGHEST_COMMON_HU:
        found.append(f"values up to {high:.0f} HU (metal or an extended scale) were kept")
    return tuple(found)


def _share(values: np.ndarray, low: float, high: float) -> float:
    return float(np.mean((values >= low) & (values < high)))


def _void_share(values: np.ndarray) -> float:
    """Share of voxels lower than any tissue, without the two commonest such values, which are padding."""
    void = values[values < _VOID_HU]
    if not len(void):
        return 0.0
    counts = np.sort(np.unique(void, return_counts=True)[1])
    return float(counts[:-2].sum()) / len(values)


def _fits(values: np.ndarray) -> bool:
    enough = _share(values, *_AIR_HU) >= _MIN_AIR and _share(values, *_SOFT_HU) >= _MIN_SOFT
    return enough and _void_share(values) <= _MAX_VOID


def _has_soft_peak(values: np.ndarray) -> bool:
    """Soft tissue is a narrow peak on CT: denser than the 400 HU on either side of it."""
    around = _share(values, -600, -200) + _share(values, 250, 650)
    return _share(values, *_SOFT_HU) > around


def _num_labels(values: np.ndarray) -> int:
    """Number of distinct values if all are whole numbers, else more than any label map has."""
    if not np.array_equal(values, np.rint(values)):
        return _MAX_LABELS + 1
    return len(np.unique(values))
