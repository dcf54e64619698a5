"""Write small DICOM files from arrays, for tests: radiographs, CT series, enhanced CT, with any tag set or removed.

`None` as the value of a keyword removes the tag: `write_radiograph(path, pixels, WindowWidth=None)`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

SOP_CLASSES = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "DX-PROCESSING": DigitalXRayImageStorageForProcessing,
    "SC": SecondaryCaptureImageStorage,
    "OT": SecondaryCaptureImageStorage,
    "CT": CTImageStorage,
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def lut_item(table: list[int], first: int = 0, bits: int = 8) -> Dataset:
    """One item of a Modality LUT or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table), first, bits])
    item.add_new("LUTData", "US", table)
    return item


def bare_dataset(modality: str, sop_class: str, syntax: UID = ExplicitVRLittleEndian) -> FileDataset:
    """A dataset with identifiers, a made-up patient, and a transfer syntax."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = UID(syntax)
    encoding = {"is_implicit_VR": meta.TransferSyntaxUID.is_implicit_VR}
    encoding["is_little_endian"] = meta.TransferSyntaxUID.is_little_endian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, **encoding)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.1"
    ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
    ds.Modality = modality
    return ds


def set_tags(ds: Dataset, tags: dict[str, Any]) -> None:
    """Set each keyword; None removes it, a Dataset or list of them becomes a sequence."""
    for keyword, value in tags.items():
        if value is None:
            if keyword in ds:
                del ds[keyword]
        elif isinstance(value, Dataset) or (isinstance(value, list) and value and isinstance(value[0], Dataset)):
            setattr(ds, keyword, Sequence([value] if isinstance(value, Dataset) else value))
        elif keyword.startswith("PixelPadding"):
            ds.add_new(keyword, "SS" if ds.get("PixelRepresentation", 0) else "US", value)
        else:
            setattr(ds, keyword, value)


def put_pixels(ds: Dataset, pixels: np.ndarray, bits: int | None = None) -> None:
    """Rows, Columns, bit tags and PixelData for `rows columns [3]` or `frames rows columns` integer pixels."""
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.Rows, ds.Columns = (int(n) for n in shape)
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and not colour:
        ds.NumberOfFrames = len(pixels)
    big = ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))


def save(ds: FileDataset, path: Path) -> Path:
    """Write the file as its transfer syntax says; encapsulated RLE and JPEG 2000 are encoded here."""
    syntax = ds.file_meta.TransferSyntaxUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bad values are the point of many tests
        if syntax.is_encapsulated and ds.PixelData[:4] != b"\xfe\xff\x00\xe0":
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pylibjpeg")
        ds.save_as(path, enforce_file_format=True)
    return path


def compress_with_gdcm(path: Path, syntax: str) -> Path:
    """Rewrite a file in a transfer syntax that pydicom cannot encode, by its gdcm name, e.g. "JPEGLSLossless"."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    assert reader.Read()
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def write_radiograph(
    path: Path,
    pixels: np.ndarray,
    *,
    kind: str = "DX",
    syntax: str = ExplicitVRLittleEndian,
    bits: int | None = None,
    **tags: Any,
) -> Path:
    """Write a CR, DX, DX-PROCESSING, SC or OT file; `pixels` are stored values, `rows columns` or with 3 channels."""
    ds = bare_dataset(kind.partition("-")[0], SOP_CLASSES[kind], UID(syntax))
    put_pixels(ds, pixels, bits)
    ds.BodyPartExamined = "CHEST"
    set_tags(ds, tags)
    return save(ds, path)


def phantom_hu(depth: int = 12, height: int = 16, width: int = 20) -> np.ndarray:
    """An asymmetric chest in HU, int16 `depth height width`: air outside, tissue, two lungs, and one bright cube.

    Index order is that of an axial series fed in increasing z: depth to the head, height to the back, width to the
    patient's left. The cube (HU 900) lies low, in front and on the patient's left.
    """
    hu = np.full((depth, height, width), -1000, np.int16)
    hu[:, 2:-2, 2:-2] = 40
    hu[:, 4:-4, 4:8] = -800
    hu[:, 4:-4, -8:-5] = -850
    hu[1:3, 3:5, -5:-3] = 900
    return hu + np.arange(depth, dtype=np.int16)[:, None, None]


def ct_dataset(
    hu: np.ndarray, position: tuple[float, float, float], *, syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> FileDataset:
    """One classic CT slice, stored as int16 with slope 1 and intercept -1024 unless the tags say otherwise."""
    ds = bare_dataset("CT", CTImageStorage, UID(syntax))
    ds.SeriesNumber, ds.SeriesDescription = 2, "chest"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [float(x) for x in position]
    ds.ImageOrientationPatient = list(AXIAL)
    ds.PixelSpacing, ds.SliceThickness = [1.5, 1.0], 2.0
    slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", -1024)
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    stored = np.rint((hu - float(intercept or 0)) / float(slope or 1)).astype(np.int16)
    put_pixels(ds, stored)
    set_tags(ds, tags)
    return ds


def write_ct_series(
    folder: Path,
    hu: np.ndarray | None = None,
    *,
    step: tuple[float, float, float] = (0.0, 0.0, 2.0),
    origin: tuple[float, float, float] = (-10.0, -20.0, -30.0),
    skip: tuple[int, ...] = (),
    per_slice: dict[int, dict[str, Any]] | None = None,
    prefix: str = "slice",
    **tags: Any,
) -> list[Path]:
    """Write one file for each slice of `depth height width` HU; slice d lies at origin + d * step (LPS mm).

    Args:
        folder: made if missing.
        hu: the volume, `phantom_hu()` if None.
        step: from slice to slice.
        origin: of slice 0.
        skip: slices that are not written.
        per_slice: tags of single slices, over `tags`.
        prefix: of the file names.
        **tags: tags of every slice; None removes one.

    Returns:
        The paths in order of d.
    """
    hu = phantom_hu() if hu is None else hu
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for d, plane in enumerate(hu):
        if d in skip:
            continue
        position = tuple(o + d * s for o, s in zip(origin, step, strict=True))
        ds = ct_dataset(plane, position, **{**tags, **(per_slice or {}).get(d, {})})
        paths.append(save(ds, folder / f"{prefix}_{d:03d}.dcm"))
    return paths


def _group(**macros: dict[str, Any]) -> Dataset:
    """One functional group: each keyword a sequence of one item with these tags."""
    group = Dataset()
    for name, tags in macros.items():
        item = Dataset()
        set_tags(item, tags)
        setattr(group, name, Sequence([item]))
    return group


def write_enhanced_ct(
    path: Path,
    hu: np.ndarray | None = None,
    *,
    step: tuple[float, float, float] = (0.0, 0.0, 2.0),
    origin: tuple[float, float, float] = (-10.0, -20.0, -30.0),
    order: list[int] | None = None,
    intercepts: list[float] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """Write an enhanced multi-frame CT; frames in `order`, per-frame intercepts if given, else -1024 shared."""
    hu = phantom_hu() if hu is None else hu
    order = list(range(len(hu))) if order is None else order
    ds = bare_dataset("CT", EnhancedCTImageStorage, UID(syntax))
    ds.SeriesNumber, ds.SeriesDescription = 5, "enhanced"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared: dict[str, dict[str, Any]] = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": list(AXIAL)},
        "PixelMeasuresSequence": {"PixelSpacing": [1.5, 1.0], "SliceThickness": 2.0},
    }
    if intercepts is None:
        shared["PixelValueTransformationSequence"] = _rescale(-1024)
    frames, groups = [], []
    for d in order:
        intercept = -1024 if intercepts is None else intercepts[d]
        frames.append(np.rint(hu[d] - intercept).astype(np.int16))
        position = [o + d * s for o, s in zip(origin, step, strict=True)]
        macros: dict[str, dict[str, Any]] = {"PlanePositionSequence": {"ImagePositionPatient": position}}
        if intercepts is not None:
            macros["PixelValueTransformationSequence"] = _rescale(intercept)
        groups.append(_group(**macros))
    put_pixels(ds, np.stack(frames))
    ds.SharedFunctionalGroupsSequence = Sequence([_group(**shared)])
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    set_tags(ds, tags)
    return save(ds, path)


def _rescale(intercept: float) -> dict[str, Any]:
    return {"RescaleSlope": 1, "RescaleIntercept": intercept, "RescaleType": "HU"}
