"""One way in: content decides, folders and zips are searched, nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from radglint import reading
from radglint.errors import ImageError
from radglint.reading import list_files, read_image, sniff
from test_archive import make_zip
from test_nifti import chest, write

CT_CLASS, CR_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1"


def dicom_file(path: Path, pixels: np.ndarray, modality: str, **tags) -> Path:
    """Write one uncompressed 16-bit DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_CLASS if modality == "CT" else CR_CLASS
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{abs(hash(path.name)) % 10**9}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = modality, "1.2.3", "1.2.4", "1"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(pixels.dtype.kind == "i")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.PixelData = pixels.astype("<i2" if pixels.dtype.kind == "i" else "<u2").tobytes()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def ct_series(folder: Path, count: int = 8) -> np.ndarray:
    """A CT of `count` slices, 2.5 mm apart, as files; returns HU, depth feet to head."""
    folder.mkdir(exist_ok=True, parents=True)
    volume = chest((40, 36, count)).transpose(2, 1, 0)
    for number, pixels in enumerate(volume):
        dicom_file(
            folder / f"{number}.dcm",
            pixels,
            "CT",
            InstanceNumber=number + 1,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            RescaleSlope=1,
            RescaleIntercept=0,
            PixelSpacing=[0.8, 0.8],
            SliceThickness=2.5,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-100, -80, 2.5 * number],
        )
    return volume


def radiograph(path: Path) -> Path:
    pixels = np.linspace(0, 4095, 48 * 50).reshape(48, 50).astype(np.uint16)
    return dicom_file(path, pixels, "CR", BitsStored=12, HighBit=11)


def png(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    return path


def test_kinds_are_told_by_content(tmp_path):
    nifti = write(tmp_path, chest())
    cases = {
        "raster": png(tmp_path / "a.nii.gz.txt"),
        "nifti": nifti.rename(tmp_path / "b.png"),
        "dicom": radiograph(tmp_path / "c"),
        "zip": make_zip(tmp_path / "d.jpg", {"a": b"x"}),
        "folder": tmp_path,
    }
    assert {kind: sniff(path) for kind, path in cases.items()} == {kind: kind for kind in cases}


def test_each_kind_reads(tmp_path):
    assert read_image(png(tmp_path / "a.jpeg")).source_format == "png"
    assert read_image(str(write(tmp_path, chest()))).source_format == "nifti"
    image = read_image(radiograph(tmp_path / "b.png"))
    assert (image.source_format, image.modality, image.shape) == ("dicom", "CXR", (48, 50))


def test_folder_and_zip_of_a_ct_series_give_the_same_volume(tmp_path):
    volume = ct_series(tmp_path / "study" / "deep")
    (tmp_path / "study" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "study" / ".hidden").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "study" / "notes.txt").write_text("hello")
    image = read_image(tmp_path / "study")
    np.testing.assert_array_equal(image.array, volume)
    assert image.orientation == "SPL"
    assert image.spacing_mm == pytest.approx((2.5, 0.8, 0.8))
    files = {f"s/{f.name}": f.read_bytes() for f in (tmp_path / "study" / "deep").iterdir()}
    zipped = read_image(make_zip(tmp_path / "study.zip", files))
    np.testing.assert_array_equal(zipped.array, volume)
    np.testing.assert_array_equal(zipped.affine, image.affine)
    assert zipped.path == str(tmp_path / "study.zip")


@pytest.mark.parametrize("kind", ["png", "nifti", "radiograph"])
def test_folder_and_zip_with_one_image(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    make = {"png": lambda: png(folder / "a"), "nifti": lambda: write(folder, chest())}
    make.get(kind, lambda: radiograph(folder / "a"))()
    (folder / "readme.txt").write_text("text beside it")
    image = read_image(folder)
    zipped = read_image(make_zip(tmp_path / "a.zip", {f.name: f.read_bytes() for f in folder.iterdir()}))
    np.testing.assert_array_equal(image.array, zipped.array)
    assert (image.path, zipped.path) == (str(folder), str(tmp_path / "a.zip"))


def test_zip_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    read_image(make_zip(tmp_path / "a.zip", {"a.png": png(tmp_path / "a.png").read_bytes()}))
    with pytest.raises(ImageError, match="no image among 1 files"):
        read_image(make_zip(tmp_path / "b.zip", {"a.txt": b"hello"}))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_errors_from_inside_a_zip_name_the_zip_and_the_member(tmp_path):
    data = png(tmp_path / "a.png").read_bytes()[:200]
    with pytest.raises(ImageError) as caught:
        read_image(make_zip(tmp_path / "b.zip", {"cut.png": data}))
    assert str(caught.value).startswith(f"{tmp_path / 'b.zip'}: 00000_cut.png: ")
    assert "radglint-" not in str(caught.value)


def test_series_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ImageError, match="has no series"):
        read_image(png(tmp_path / "a.png"), series="2")
    with pytest.raises(ImageError, match="leave out series '2'"):
        read_image(tmp_path, series="2")


def test_series_number_picks(tmp_path):
    volume = ct_series(tmp_path / "a")
    np.testing.assert_array_equal(read_image(tmp_path / "a", series="1").array, volume)
    with pytest.raises(ImageError, match="7"):
        read_image(tmp_path / "a", series="7")


def test_listing_skips_hidden_folders_and_follows_no_links(tmp_path):
    for name in ("b/2", "b/1", ".git/x", "__MACOSX/y", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    os.symlink(tmp_path / "gone", tmp_path / "b" / "dangling")
    assert [str(f.relative_to(tmp_path)) for f in list_files(tmp_path)] == ["a", "b/1", "b/2"]


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_text("x")
    with pytest.raises(ImageError, match="more than 2 files"):
        read_image(tmp_path)


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="folder cannot be read \\(Permission denied\\)"):
        read_image(tmp_path)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"a.png: cannot be read \(Permission denied\)"):
        read_image(path)


def test_several_radiographs_and_other_modalities_are_listed(tmp_path):
    radiograph(tmp_path / "pa.dcm")
    radiograph(tmp_path / "lateral.dcm")
    with pytest.raises(ImageError, match=r"2 radiographs \(lateral.dcm, pa.dcm\); give one"):
        read_image(tmp_path)
    mr = tmp_path / "mr"
    mr.mkdir()
    for name in "ab":
        dicom_file(mr / name, np.ones((40, 40), np.uint16), "MR")
    with pytest.raises(ImageError, match="no CT and no radiograph among 2 DICOM files \\(2 x MR\\)"):
        read_image(mr)


def test_one_radiograph_beside_another_object(tmp_path):
    radiograph(tmp_path / "pa.dcm")
    dicom_file(tmp_path / "sr.dcm", np.ones((40, 40), np.uint16), "SR")
    assert read_image(tmp_path).modality == "CXR"


def test_real_series_agrees_with_the_nifti_of_the_same_scan(shared_data):
    case = shared_data / "ct_chest" / "fourd_lung_113"
    image = read_image(case / "dicom")
    assert image.modality == "CT"
    assert image.shape[0] > 1
    assert image.orientation == "SPL"
    assert nib.load(case / "ct.nii.gz").shape[2] == image.shape[0]
