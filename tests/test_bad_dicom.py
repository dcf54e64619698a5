"""Bad DICOM, one line a case: the error class, a telling word, one line of text, and no patient data in it."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from dicom_files import (
    compress_with_gdcm,
    ct_dataset,
    lut_item,
    phantom_hu,
    save,
    write_ct_series,
    write_enhanced_ct,
    write_radiograph,
)
from dicom_results import dcmtk
from radglint.dicom import read_dicom_radiograph
from radglint.dicom_series import read_dicom_ct
from radglint.errors import GeometryError, ImageError

START, SCAN = b"\xff\xd8", b"\xff\xda"
JFIF_2, FRAME = b"\xff\xe0\0\x10JFIF\0\2\1\0\0\1\0\1\0\0", b"\xff\xc3\0\x0b\x10\0\x28\0\x30\1\1\x11\0"
RAMP = (np.arange(40 * 48).reshape(40, 48)).astype(np.uint16)


def cut(path, keep=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def header_only(path):
    """Cut in the middle of the header, after Modality."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"CHEST")])
    return path


def text_file(path):
    path.write_text("hello, I am no image " * 20)
    return path


def empty_file(path):
    path.write_bytes(b"")
    return path


def with_syntax(path, syntax):
    """Say another transfer syntax than the one the pixels have."""
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = encapsulate([ds.PixelData])
    ds.save_as(path, enforce_file_format=True)
    return path


def damaged(path):
    """Overwrite the compressed bytes, keeping their length."""
    data = bytearray(path.read_bytes())
    data[-200:-20] = b"\x7f" * 180
    path.write_bytes(bytes(data))
    return path


def raw_tag(path, old, new):
    """Change bytes of equal length, for values that pydicom would not write."""
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def slope_zero(path):
    ds = dcmread(path)
    ds.RescaleSlope = 0
    ds.save_as(path)
    return path


def jpeg(path, offset, value):
    """JPEG Lossless with one byte of its frame header (SOF3) changed; some of these end the process inside gdcm."""
    compress_with_gdcm(write_radiograph(path, RAMP), "JPEGLosslessProcess14_1")
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xc3\x00\x0b") + offset] = value
    path.write_bytes(bytes(data))
    return path


def extended_jpeg(path, *, stored=None, change=None):
    """JPEG Extended of 12 bits; or of 8, and BitsStored says 12; or with its compressed bytes changed."""
    dx(path, RAMP if stored is None else RAMP.astype(np.uint8))
    dcmtk("dcmcjpeg", "+ee", path, path)
    ds = dcmread(path)
    ds.BitsStored, ds.HighBit = (stored, stored - 1) if stored else (ds.BitsStored, ds.HighBit)
    ds.BitsAllocated = 16
    if change:
        ds.PixelData = encapsulate([change(get_frame(ds.PixelData, 0, number_of_frames=1))])
    ds.save_as(path, enforce_file_format=True)
    return path


def with_segment(path, segment, *, after):
    """JPEG Lossless with bytes put in after the start of the stream, or of its coded pixels."""
    ds = dcmread(compress_with_gdcm(write_radiograph(path, RAMP), "JPEGLosslessProcess14_1"))
    data = get_frame(ds.PixelData, 0, number_of_frames=1)
    at = data.index(after) + (2 if after == START else 20)
    ds.PixelData = encapsulate([data[:at] + segment + data[at:]])
    ds.save_as(path, enforce_file_format=True)
    return path


def colour_jpeg(path, transform):
    """JPEG Lossless in colour, with another number in Adobe's segment."""
    compress_with_gdcm(write_radiograph(path, np.stack([RAMP.astype(np.uint8)] * 3, -1)), "JPEGLosslessProcess14_1")
    data = bytearray(path.read_bytes())
    data[data.index(b"Adobe") + 11] = transform
    path.write_bytes(bytes(data))
    return path


def no_end_marker(path):
    data = compress_with_gdcm(write_radiograph(path, RAMP), "JPEGLSLossless").read_bytes()
    at = data.rindex(b"\xff\xd9")
    path.write_bytes(data[:at] + b"\0\0" + data[at + 2 :])
    return path


def dx(path, pixels=RAMP, **kwargs):
    return write_radiograph(path, pixels, **kwargs)


RADIOGRAPHS = [
    ("empty", empty_file, "not a DICOM file"),
    ("text", text_file, "not a DICOM file"),
    ("missing", lambda p: p, "cannot be opened"),
    ("a folder", lambda p: p.parent, "cannot be opened"),
    ("cut in the pixels", lambda p: cut(dx(p)), "PixelData|pixel data"),
    ("cut in the header", lambda p: header_only(dx(p)), "damaged|missing"),
    ("cut in the preamble", lambda p: cut(dx(p), 0.01), "not a DICOM file"),
    ("cut RLE", lambda p: cut(dx(p, syntax=RLELossless)), "cut off in its pixel data"),
    ("damaged JPEG 2000", lambda p: damaged(dx(p, syntax=JPEG2000Lossless)), "cannot be decoded"),
    ("JPEG of 139 bits", lambda p: jpeg(p, 4, 139), "139 bits"),
    ("JPEG of another height", lambda p: jpeg(p, 6, 41), "41 x 48 pixels"),
    ("JPEG of two samples", lambda p: jpeg(p, 9, 2), "wrong length"),
    ("JPEG without its frame header", lambda p: jpeg(p, 1, 0xC5), "before the frame header"),
    ("JPEG segment too long", lambda p: jpeg(p, 2, 0x7F), "longer than the frame"),
    ("JPEG with a lost marker", lambda p: jpeg(p, 0, 0), "no JPEG marker"),
    ("JPEG of a JFIF that is not there", lambda p: with_segment(p, JFIF_2, after=START),
     "version 2 of JFIF"),
    ("JPEG of an odd colour transform", lambda p: colour_jpeg(p, 2), "colour transform 2"),
    ("JPEG with a segment in its pixels", lambda p: with_segment(p, b"\xff\xe1\xff\xf0", after=SCAN), "E1 is longer"),
    ("JPEG with a frame header in its pixels", lambda p: with_segment(p, FRAME, after=SCAN), "two frame headers"),
    ("JPEG-LS without its end", no_end_marker, "before its end marker"),
    ("12-bit JPEG without its end", lambda p: extended_jpeg(p, change=lambda data: data[:-60]), "before its end"),
    ("12-bit JPEG without its tables", lambda p: extended_jpeg(p, change=lambda data: data.replace(b"\xff\xc4",
     b"\xff\xfe")), "12-bit JPEG is damaged"),
    ("12-bit JPEG with a segment in its pixels", lambda p: extended_jpeg(p, change=lambda data: data[:-60] +
     b"\xff\xe1" + data[-58:]), "E1 is longer than the frame"),
    ("8-bit JPEG that says 12", lambda p: extended_jpeg(p, stored=12), "JPEG of 1 x 8 bits, but BitsStored"),
    ("no pixel data", lambda p: dx(p, PixelData=None), "PixelData"),
    ("pixels are not what the syntax says", lambda p: with_syntax(dx(p), JPEGBaseline8Bit), "damaged|decoded"),
    ("video", lambda p: with_syntax(dx(p), "1.2.840.10008.1.2.4.102"), "no decoder.*MPEG-4.*pip install"),
    ("no photometric interpretation", lambda p: dx(p, PhotometricInterpretation=None), "PhotometricInterpretation"),
    ("unknown photometric", lambda p: dx(p, PhotometricInterpretation="HSV"), "HSV"),
    ("monochrome with 3 samples", lambda p: dx(p, np.zeros((8, 8, 3), np.uint8) + np.arange(3, dtype=np.uint8),
                                               PhotometricInterpretation="MONOCHROME2"), "one sample|decoded"),
    ("no modality", lambda p: dx(p, Modality=None), "Modality"),
    ("mammography", lambda p: dx(p, Modality="MG"), "MG"),
    ("MR", lambda p: dx(p, Modality="MR"), "supported"),
    ("OT that is no secondary capture", lambda p: dx(p, Modality="OT"), "OT"),
    ("one CT slice", lambda p: save(ct_dataset(phantom_hu()[0], (0, 0, 0)), p), "whole series"),
    ("several frames", lambda p: dx(p, np.stack([RAMP] * 3)), "3 frames"),
    ("no Rows", lambda p: dx(p, Rows=None), "Rows"),
    ("zero Columns", lambda p: dx(p, Columns=0), "not a usable size"),
    ("huge dimensions", lambda p: dx(p, Rows=65535, Columns=65535), "not a usable size"),
    ("more rows than pixels", lambda p: dx(p, Rows=400), "pixel data"),
    ("no BitsAllocated", lambda p: dx(p, BitsAllocated=None), "decoded|BitsAllocated"),
    ("more bits stored than allocated", lambda p: dx(p, BitsStored=20), "BitsStored|decoded"),
    ("HighBit below BitsStored", lambda p: dx(p, HighBit=3), "HighBit"),
    ("rescale slope 0", lambda p: dx(p, RescaleSlope=0, RescaleIntercept=5), "RescaleSlope.*is 0"),
    ("rescale is text", lambda p: raw_tag(dx(p, RescaleSlope="1.2345"), b"1.2345", b"abcdef"), "RescaleSlope"),
    ("unknown VOI function", lambda p: dx(p, WindowCenter=5, WindowWidth=9, VOILUTFunction="CUBIC"), "CUBIC"),
    ("VOI LUT without data", lambda p: dx(p, VOILUTSequence=lut_item([0, 9], bits=40)), "LUTDescriptor"),
    ("palette without its tables", lambda p: dx(p, RAMP.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR"),
     "palette"),
    ("constant", lambda p: dx(p, np.full((9, 9), 7, np.uint16)), "same value"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in RADIOGRAPHS], ids=[case[0] for case in RADIOGRAPHS])
def test_bad_radiograph(tmp_path, make, words):
    path = make(tmp_path / "x.dcm")
    with pytest.raises(ImageError, match=words) as error:
        read_dicom_radiograph(path)
    check_message(error.value, path)


def check_message(error, path):
    message = str(error)
    assert "\n" not in message
    assert str(path) in message
    assert "SECRET" not in message.upper()


def ct(folder, hu=None, **kwargs):
    return write_ct_series(folder, hu, **kwargs)


def changed(paths, index, change):
    paths[index] = change(paths[index])
    return paths


def one(folder, **tags):
    """A good series in which slice 3 has these tags."""
    return ct(folder, per_slice={3: tags})


def twins(folder):
    return [*ct(folder, prefix="a"), *ct(folder, prefix="b", SeriesInstanceUID="1.9", SeriesNumber=9)]


def doubled(folder):
    return [*ct(folder), *ct(folder, phantom_hu()[3:4] + 7, prefix="x", origin=(-10.0, -20.0, -24.0))]


STEEP = {"step": (0.0, 3.0, 2.0)}
BENT = {"ImageOrientationPatient": [1.0, 0, 0, 0.5, 0.5, 0]}
SERIES = [
    # name, files, series, class, words; the file or the study must be named
    ("nothing", lambda f: [], None, ImageError, "no DICOM image"),
    ("only text", lambda f: [text_file(f / "a.txt")], None, ImageError, "no DICOM image"),
    ("an empty slice", lambda f: changed(ct(f), 3, empty_file), None, ImageError, "slice_003.*not a DICOM"),
    ("truncated pixels", lambda f: changed(ct(f), 3, lambda p: cut(p, 0.9)), None, ImageError, "slice_003"),
    ("truncated header", lambda f: changed(ct(f), 3, lambda p: cut(p, 0.4)), None, ImageError, "slice_003"),
    ("MR", lambda f: ct(f, Modality="MR"), None, ImageError, "no CT.*MR"),
    ("PET", lambda f: ct(f, Modality="PT"), None, ImageError, "no CT.*PT"),
    ("only scouts", lambda f: ct(f, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), None, ImageError, "localizer"),
    ("one slice", lambda f: ct(f, phantom_hu(1)), None, GeometryError, "1 slice"),
    ("no position", lambda f: one(f, ImagePositionPatient=None), None, GeometryError,
     r"slice_003.*ImagePositionPatient \(0020,0032\)"),
    ("no orientation in one", lambda f: one(f, ImageOrientationPatient=None), None, GeometryError,
     r"slice_003.*ImageOrientationPatient \(0020,0037\)"),
    ("no orientation at all", lambda f: ct(f, ImageOrientationPatient=None), None, GeometryError, "0020,0037"),
    ("no pixel spacing", lambda f: one(f, PixelSpacing=None), None, GeometryError, r"PixelSpacing \(0028,0030\)"),
    ("pixel spacing 0", lambda f: ct(f, PixelSpacing=[0, 0]), None, GeometryError, "must be positive"),
    ("pixel spacing has one number", lambda f: one(f, PixelSpacing=[1]), None, GeometryError, "2 finite numbers"),
    ("position is not a number", lambda f: changed(one(f, ImagePositionPatient=["1.25", "77.77", "3"]), 3,
     lambda p: raw_tag(p, b"77.77", b"7a.77")), None, GeometryError, "slice_003.*ImagePositionPatient"),
    ("no slope", lambda f: one(f, RescaleSlope=None), None, ImageError, r"slice_003.*RescaleSlope \(0028,1053\)"),
    ("no intercept", lambda f: one(f, RescaleIntercept=None), None, ImageError, "RescaleIntercept"),
    ("slope 0", lambda f: changed(ct(f), 2, slope_zero), None, ImageError, "slice_002.*is 0"),
    ("intercept never applied", lambda f: ct(f, phantom_hu() + 1024), None, ImageError, "expected HU"),
    ("constant", lambda f: ct(f, np.zeros((6, 8, 8), np.int16)), None, ImageError, "every voxel is the same"),
    ("cosines not at a right angle", lambda f: ct(f, **BENT), None, GeometryError, "right angle"),
    ("cosines all zero", lambda f: ct(f, ImageOrientationPatient=[0.0] * 6), None, GeometryError, "unit vectors"),
    ("all slices at one place", lambda f: ct(f, step=(0.0, 0.0, 0.0)), None, GeometryError, "different pixels"),
    ("two missing side by side", lambda f: ct(f, skip=(5, 6)), None, GeometryError,
     "slice_004.dcm to slice_007.dcm 6.00 mm"),
    ("many missing", lambda f: ct(f, skip=(2, 5, 8)), None, GeometryError, "3 missing"),
    ("doubled with other pixels", doubled, None, GeometryError, "slice_003.dcm, x_000.dcm"),
    ("tilted too far", lambda f: ct(f, **STEEP), None, GeometryError, "56.3 degrees"),
    ("one slice shifted sideways", lambda f: one(f, ImagePositionPatient=[5.0, -20.0, -24.0]), None, GeometryError,
     r"sideways.*slice_003.dcm \(15.00 mm\)"),
    ("two equal series", twins, None, ImageError, "--series N.*2 'chest'.*9 'chest'"),
    ("a series that is not there", twins, "4", ImageError, "no series '4'"),
    ("an empty series name", twins, "", ImageError, "no series ''"),
    ("colour slices", lambda f: one(f, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
     None, ImageError, "slice_003"),
    ("huge dimensions", lambda f: one(f, Rows=65535, Columns=65535), None, ImageError, "not a usable size"),
    ("frames without functional groups", lambda f: [write_enhanced_ct(
        f / "e.dcm", PerFrameFunctionalGroupsSequence=None)], None, ImageError, "PerFrameFunctionalGroupsSequence"),
    ("frames and groups differ", lambda f: [write_enhanced_ct(f / "e.dcm", NumberOfFrames=11)], None, ImageError,
     "11 frames but 12 items"),
    ("enhanced without orientation", lambda f: [write_enhanced_ct(
        f / "e.dcm", SharedFunctionalGroupsSequence=None)], None, GeometryError, "frame 1.*ImageOrientationPatient"),
    ("enhanced, cut", lambda f: [cut(write_enhanced_ct(f / "e.dcm"), 0.9)], None, ImageError, "e.dcm"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "series", "kind", "words"), [case[1:] for case in SERIES], ids=[case[0] for case in SERIES]
)
def test_bad_series(tmp_path, make, series, kind, words):
    with pytest.raises(kind, match=words) as error:
        read_dicom_ct(make(tmp_path), name=str(tmp_path), series=series)
    check_message(error.value, tmp_path)
