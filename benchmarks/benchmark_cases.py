"""Mixed cases for benchmarks of batch runs: radiographs and small CT in every format, and ten ways to be broken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

SIDE_PX, CT_SIDE_PX, CT_SLICES = 192, 48, 4
UID_ROOT = "1.2.826.0.1.3680043.10.1"
ONE_BROKEN_IN = 10


def make_cases(folder: Path, count: int, seed: int) -> tuple[int, dict[str, str]]:
    """Write cases; every tenth is broken.

    Args:
        folder: made here.
        count: how many cases.
        seed: of the pictures.

    Returns:
        How many can be answered, and the id of each broken one with its kind.
    """
    rng, good = np.random.default_rng(seed), 0
    broken: dict[str, str] = {}
    writers, kinds = list(GOOD), list(BROKEN)
    for number in range(count):
        place = folder / f"ward_{number % 7}"
        place.mkdir(parents=True, exist_ok=True)
        if number % ONE_BROKEN_IN == ONE_BROKEN_IN - 1:
            kind = kinds[len(broken) % len(kinds)]
            broken[BROKEN[kind](place / f"{number:04d}", number, rng)] = kind
        else:
            writers[good % len(writers)](place / f"{number:04d}", number, rng)
            good += 1
    return good, broken


def radiograph(rng: np.random.Generator) -> np.ndarray:
    """Two dark lungs in a bright body, with smooth noise; uint8 `height width`."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    body = 190.0 - 110 * sum(np.exp(-(((x - at) / 0.13) ** 2) - ((y - 0.5) / 0.28) ** 2) for at in (0.3, 0.7))
    small = Image.fromarray(rng.integers(0, 60, (12, 12)).astype(np.uint8))
    return np.clip(body + np.asarray(small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)), 0, 255).astype(
        np.uint8
    )


def chest_hu(rng: np.random.Generator, depth: int = CT_SLICES) -> np.ndarray:
    """Air, a body, two lungs and noise in HU; int16 `depth height width`."""
    hu = np.full((depth, CT_SIDE_PX, CT_SIDE_PX), -1000.0)
    hu[:, 4:-4, 4:-4] = 40
    hu[:, 10:-10, 9:21] = hu[:, 10:-10, -21:-9] = -820
    return (hu + rng.normal(0, 12, hu.shape)).astype(np.int16)


def write_png(stem: Path, number: int, rng: np.random.Generator) -> None:
    """A radiograph as PNG."""
    Image.fromarray(radiograph(rng)).save(stem.with_suffix(".png"))


def write_jpeg(stem: Path, number: int, rng: np.random.Generator) -> None:
    """A radiograph as JPEG."""
    Image.fromarray(radiograph(rng)).save(stem.with_suffix(".jpg"), quality=92)


def write_dx(stem: Path, number: int, rng: np.random.Generator, **tags: object) -> None:
    """A radiograph as DICOM."""
    ds = dataset(DigitalXRayImageStorageForPresentation, "DX", number, 0)
    ds.PresentationIntentType, ds.BodyPartExamined, ds.ViewPosition = "FOR PRESENTATION", "CHEST", "PA"
    put_pixels(ds, radiograph(rng).astype(np.uint16) * 16, 12)
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    save(ds, stem.with_suffix(".dcm"), tags)


def write_nifti(stem: Path, number: int, rng: np.random.Generator) -> None:
    """A CT as NIfTI."""
    save_nifti(chest_hu(rng).transpose(2, 1, 0), stem.with_suffix(".nii.gz"))


def write_series(
    stem: Path,
    number: int,
    rng: np.random.Generator,
    depth: int = CT_SLICES,
    leave_out: tuple[int, ...] = (),
    **tags: object,
) -> str:
    """A CT as a series of DICOM slices; its UID."""
    stem.mkdir()
    for k, plane in enumerate(chest_hu(rng, depth)):
        if k in leave_out:
            continue
        ds = dataset(CTImageStorage, "CT", number, k)
        ds.ImageType, ds.SeriesNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 2
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-150.0, -150.0, 5.0 * k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [6.0, 6.0], 5.0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        put_pixels(ds, (plane + 1024).astype(np.int16), 16)
        save(ds, stem / f"{k:03d}.dcm", tags)
    return f"{UID_ROOT}.{number}"


def dataset(sop_class: str, modality: str, number: int, k: int) -> Dataset:
    """Identifiers of a made-up patient's image."""
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.Modality = ExplicitVRLittleEndian, sop_class, modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}.0.{number}", f"{UID_ROOT}.{number}"
    ds.SOPInstanceUID, ds.InstanceNumber = f"{UID_ROOT}.{number}.{k}", k + 1
    ds.PatientName, ds.PatientID = "Made^Up", f"case {number}"
    return ds


def put_pixels(ds: Dataset, pixels: np.ndarray, bits: int) -> None:
    """Pixels and what describes them."""
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = (
        1,
        "MONOCHROME2",
        int(pixels.dtype.kind == "i"),
    )
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
    ds.PixelData = pixels.tobytes()


def save(ds: Dataset, path: Path, tags: dict[str, object]) -> None:
    """Write a DICOM file; a tag of None is taken out."""
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, ds, enforce_file_format=True)


def save_nifti(hu: np.ndarray, path: Path) -> None:
    """Write a NIfTI of 6 x 6 x 5 mm."""
    nib.save(nib.Nifti1Image(hu.astype(np.float32), np.diag([-6.0, -6.0, 5.0, 1.0])), path)  # type: ignore[attr-defined]


def named(path: Path) -> str:
    """The id of the case that a file becomes."""
    return f"{path.parent.name}/{path.name}"


def empty(stem: Path, number: int, rng: np.random.Generator) -> str:
    """No byte."""
    stem.with_suffix(".png").write_bytes(b"")
    return named(stem.with_suffix(".png"))


def note(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A text with the name of a picture."""
    stem.with_suffix(".jpg").write_text("see the other folder\n", encoding="utf-8")
    return named(stem.with_suffix(".jpg"))


def cut_jpeg(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A JPEG that ends early."""
    write_jpeg(stem, number, rng)
    return cut(stem.with_suffix(".jpg"))


def cut_dx(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A DICOM radiograph that ends in its pixels."""
    write_dx(stem, number, rng)
    return cut(stem.with_suffix(".dcm"))


def cut_nifti(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A compressed NIfTI that ends early."""
    write_nifti(stem, number, rng)
    return cut(stem.with_suffix(".nii.gz"))


def cut(path: Path) -> str:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return named(path)


def magnetic(stem: Path, number: int, rng: np.random.Generator) -> str:
    """An MR image."""
    write_dx(stem, number, rng, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    return named(stem.with_suffix(".dcm"))


def holed(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A NIfTI with a value that is none."""
    hu = chest_hu(rng).transpose(2, 1, 0).astype(np.float32)
    hu[7, 7, 1] = np.nan
    save_nifti(hu, stem.with_suffix(".nii.gz"))
    return named(stem.with_suffix(".nii.gz"))


def gap(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A CT series with a hole in the middle."""
    return write_series(stem, number, rng, depth=10, leave_out=(3, 4, 5, 6))


def no_rescale(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A CT series whose values cannot be turned into HU."""
    return write_series(stem, number, rng, RescaleSlope=None, RescaleIntercept=None)


def no_place(stem: Path, number: int, rng: np.random.Generator) -> str:
    """A CT series whose slices do not say where they lie."""
    return write_series(stem, number, rng, ImagePositionPatient=None)


Writer = Callable[[Path, int, np.random.Generator], object]
GOOD: list[Writer] = [write_png, write_jpeg, write_dx, write_png, write_jpeg, write_dx, write_nifti]
GOOD += [write_png, write_jpeg, write_dx, write_png, write_jpeg, write_dx, write_series]
BROKEN: dict[str, Callable[[Path, int, np.random.Generator], str]] = {
    kind.__name__: kind
    for kind in (empty, note, cut_jpeg, cut_dx, cut_nifti, magnetic, holed, gap, no_rescale, no_place)
}
