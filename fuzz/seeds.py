"""Small valid files to start from: every reader takes each of them, which the harness checks before it begins."""

from __future__ import annotations

import gzip
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the makers of small files that the tests use

import dicom_files  # noqa: E402

GDCM_SYNTAXES = (
    "JPEGBaselineProcess1", "JPEGExtendedProcess2_4", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEGLSNearLossless",
)  # fmt: skip
PYDICOM_SYNTAXES = {
    "little": "1.2.840.10008.1.2.1", "implicit": "1.2.840.10008.1.2", "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99", "rle": "1.2.840.10008.1.2.5", "jpeg2000": "1.2.840.10008.1.2.4.90",
}  # fmt: skip


def picture(dtype: type = np.uint8, side: int = 33) -> np.ndarray:
    """A smooth picture with some noise, `side + 7` by `side`."""
    y, x = np.mgrid[: side + 7, :side]
    noise = np.random.default_rng(0).integers(0, 12, y.shape)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    return ((5 * y + 2 * x + noise) / 400 * top).astype(dtype)


def raster_files() -> dict[str, bytes]:
    """PNG, JPEG and TIFF in the modes that are read."""
    grey, deep = Image.fromarray(picture()), Image.fromarray(picture(np.uint16))
    colour, alpha = grey.convert("RGB"), grey.convert("LA")
    exif = Image.Exif()
    exif[0x0112] = 6
    plans: list[tuple[str, Image.Image, str, dict]] = [
        ("grey.png", grey, "PNG", {}), ("deep.png", deep, "PNG", {}), ("colour.png", colour, "PNG", {}),
        ("alpha.png", alpha, "PNG", {}), ("palette.png", grey.convert("P"), "PNG", {"transparency": 0}),
        ("exif.png", grey, "PNG", {"exif": exif}), ("grey.jpg", grey, "JPEG", {}), ("colour.jpg", colour, "JPEG", {}),
        ("progressive.jpg", colour, "JPEG", {"progressive": True, "exif": exif}),
        ("cmyk.jpg", colour.convert("CMYK"), "JPEG", {}), ("grey.tif", grey, "TIFF", {}),
        ("deep.tif", deep, "TIFF", {"compression": "tiff_lzw"}),
        ("deflate.tif", grey, "TIFF", {"compression": "tiff_deflate"}),
        ("jpeg.tif", colour, "TIFF", {"compression": "jpeg"}),
        ("bits.tif", colour, "TIFF", {"compression": "packbits"}),
        ("float.tif", Image.fromarray(picture(np.float32)), "TIFF", {}),
    ]  # fmt: skip
    files = {}
    for name, image, form, options in plans:
        data = io.BytesIO()
        image.save(data, form, **options)
        files[name] = data.getvalue()
    return files


def nifti_files() -> dict[str, bytes]:
    """NIfTI-1 and -2, plain and gzipped, integers with scaling and floats."""
    hu = dicom_files.phantom_hu(4, 12, 14).transpose(2, 1, 0)
    affine = np.diag([-1.0, -1.5, 2.0, 1.0])
    files = {}
    for name, kind, data in (
        ("one.nii", nib.Nifti1Image, hu), ("float.nii", nib.Nifti1Image, hu.astype(np.float32)),
        ("double.nii", nib.Nifti1Image, hu.astype(np.float64)), ("two.nii", nib.Nifti2Image, hu),
    ):  # fmt: skip
        image = kind(data, affine)
        image.header.set_xyzt_units("mm")
        files[name] = image.to_bytes()
    shifted = nib.Nifti1Image((hu + 1024).astype(np.uint16), affine)
    shifted.header.set_slope_inter(1, -1024)
    files["scaled.nii"] = shifted.to_bytes()
    files |= {f"{name}.gz": gzip.compress(files[name], 1, mtime=0) for name in ("one.nii", "two.nii", "scaled.nii")}
    return files


def radiograph_files() -> dict[str, bytes]:
    """One radiograph in every transfer syntax that is decoded, and with each stage of the grey pipeline."""
    grey, deep = picture(), picture(np.uint16) >> 4
    files = {
        f"{name}.dcm": _written(lambda path, s=syntax: dicom_files.write_radiograph(path, deep, syntax=s, bits=12))
        for name, syntax in PYDICOM_SYNTAXES.items()
    }
    for syntax in GDCM_SYNTAXES:
        pixels = grey if syntax in ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4") else deep
        bits = 8 if pixels is grey else 12
        files[f"{syntax}.dcm"] = _written(
            lambda path, p=pixels, b=bits, s=syntax: dicom_files.compress_with_gdcm(
                dicom_files.write_radiograph(path, p, bits=b), s
            )
        )
    lut = dicom_files.lut_item(list(range(256)))
    colour = np.repeat(grey[..., None], 3, axis=2)
    tags = {
        "window": {"WindowCenter": [120, 60], "WindowWidth": [200, 10], "RescaleSlope": 1, "RescaleIntercept": -5},
        "luts": {"VOILUTSequence": [lut, lut], "ModalityLUTSequence": lut},
        "padding": {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 20, "PhotometricInterpretation": "MONOCHROME1"},
    }
    files |= {
        f"{name}.dcm": _written(lambda path, t=tag: dicom_files.write_radiograph(path, grey, **t))
        for name, tag in tags.items()
    }
    files["colour.dcm"] = _written(lambda path: dicom_files.write_radiograph(path, colour, kind="SC"))
    files["colour_rle.dcm"] = _written(
        lambda path: dicom_files.write_radiograph(path, colour, kind="SC", syntax=PYDICOM_SYNTAXES["rle"])
    )
    return files


def enhanced_files() -> dict[str, bytes]:
    """Multi-frame CT: native, RLE, and with a rescale for each frame."""
    hu = dicom_files.phantom_hu(3, 12, 14)
    makers: dict[str, Callable[[Path], object]] = {
        "enhanced.dcm": lambda path: dicom_files.write_enhanced_ct(path, hu),
        "frames.dcm": lambda path: dicom_files.write_enhanced_ct(path, hu, intercepts=[-1024, -1000, -1024]),
        "rle.dcm": lambda path: dicom_files.write_enhanced_ct(path, hu, syntax=PYDICOM_SYNTAXES["rle"]),
    }
    return {name: _written(maker) for name, maker in makers.items()}


def series_folders() -> dict[str, bytes]:
    """Three slices of CT as a stored zip, which the harness unpacks into a folder."""
    hu = dicom_files.phantom_hu(3, 12, 14)
    return {
        name: packed_folder(lambda folder, s=syntax: dicom_files.write_ct_series(folder, hu, syntax=s))
        for name, syntax in (("series", PYDICOM_SYNTAXES["little"]), ("series_rle", PYDICOM_SYNTAXES["rle"]))
    }


def zip_files() -> dict[str, bytes]:
    """Zips of a picture, of a CT series and of a NIfTI file."""
    files = {"picture.zip": zipped({"a/chest.png": raster_files()["grey.png"], ".hidden": b"x"})}
    files["nifti.zip"] = zipped({"ct.nii.gz": nifti_files()["one.nii.gz"]})
    files["series.zip"] = zipped(unzipped(series_folders()["series"]), zipfile.ZIP_DEFLATED)
    return files


def manifest_rows() -> list[dict]:
    """Rows with everything that a manifest can hold."""
    phrase = {"text": "left effusion", "label": "effusion", "boxes": [[1, 2, 30, 40]], "masks": ["m/1.png", "m.npz#3"]}
    row = {
        "id": "a", "image": "a.png", "modality": "CXR", "dataset": "d", "patient": "p1", "study": "s", "series": "1",
        "split": "train", "view": "PA", "report": {"findings": "No nodule.", "impression": "Clear."},
        "labels": {"effusion": "present", "nodule": "absent"}, "phrases": [phrase], "size_px": [200, 300], "other": 1,
    }  # fmt: skip
    ct = {"image": "b.nii.gz", "modality": "CT", "patient": "p2", "split": "val", "report": "Clear.", "group": "g"}
    ct |= {"phrases": [{"text": "nodule", "boxes": [[0, 1, 2, 3, 4, 5]]}], "size_px": [3, 200, 300]}
    return [row, ct]


def csv_table() -> bytes:
    """The same kind of rows as a table."""
    header = "id,image,modality,patient,split,view,findings,labels,phrases,size_px,label:mass,site"
    cells = 'a,a.png,CXR,7,train,PA,"No ""big"" nodule, none","{""nodule"": ""absent""}","[]","[200, 300]",1,x'
    return f"{header}\r\n{cells}\r\nb,b.png,CXR,8,val,,,,,,-1,\r\n".encode()


def parquet_table() -> bytes:
    """The same as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({
        "id": ["a", "b"], "image": ["a.png", "b.png"], "modality": ["CXR", "CXR"], "patient": [7, 8],
        "labels": ['{"nodule": "absent"}', None], "label:mass": [1.0, None], "size_px": [[200, 300], None],
    })  # fmt: skip
    data = io.BytesIO()
    parquet.write_table(table, data)
    return data.getvalue()


@cache
def checkpoint_folder() -> bytes:
    """A complete checkpoint of a tiny model, as a stored zip."""
    import tiny_models

    return packed_folder(lambda folder: tiny_models.write_tiny_checkpoint(folder, modalities=("CXR",)))


def bank() -> dict:
    """A prompt bank of two classes."""
    return json.loads((ROOT / "src/radglint/data/prompts/nodule_types5.json").read_text(encoding="utf-8"))


def packed_folder(make: Callable[[Path], object]) -> bytes:
    """Let `make` fill a folder and pack it as a stored zip."""
    with TemporaryDirectory() as name:
        folder = Path(name, "folder")
        folder.mkdir()
        make(folder)
        return zipped({str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()})


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of files by name."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, body in files.items():
            archive.writestr(zipfile.ZipInfo(name), body, method)
    return data.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """The files of a zip by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _written(make: Callable[[Path], object]) -> bytes:
    with TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(name, "file.dcm")
        make(path)
        return path.read_bytes()
