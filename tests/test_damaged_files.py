"""Damaged and hostile files that the fuzz harness found: each ends with one clear error, in little time and memory."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from dicom_files import lut_item, phantom_hu, write_ct_series, write_enhanced_ct, write_radiograph
from radglint import dicom_stream
from radglint.dicom_stream import BoundedReader, check_deflated
from radglint.errors import ConfigError, GeometryError, ImageError, InputError, shown
from radglint.evaluation.suite import load_suite
from radglint.pretraining.config import load_config as load_pretraining
from radglint.prompt_banks import load_bank
from radglint.reading import read_image
from radglint.train_config import load_config as load_training

RAMP = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit little endian element, its length as given."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    long = vr in (b"OB", b"OW", b"SQ", b"UN")
    return head + (b"\0\0" + struct.pack("<I", size) if long else struct.pack("<H", size)) + value


def nested(tag: int, depth: int) -> bytes:
    """Sequences of open length inside each other, in one of stated length, which is parsed when it is asked for."""
    start = element(tag, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    inner = start * depth + element(0x00280010, b"US", b"\x20\0") + end * depth
    return element(tag, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner)


def insert(path, before: int, extra: bytes):
    """Put bytes before the first element with this tag."""
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", before >> 16, before & 0xFFFF), 132)
    path.write_bytes(data[:at] + extra + data[at:])
    return path


def read_or_refused(path) -> None:
    with contextlib.suppress(ImageError):  # any other error fails the test
        assert read_image(path).shape == RAMP.shape


def refused(path, words: str, kind: type[Exception] = ImageError) -> str:
    with pytest.raises(kind, match=words) as caught:
        read_image(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- DICOM


def test_an_element_that_claims_four_gigabytes_allocates_nothing(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm", RAMP)
    insert(path, 0x00280002, element(0x00271001, b"OB", b"", 0xFFFFFFF0))
    tracemalloc.start()
    refused(path, "damaged or cut off|is missing")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_bounded_reader_reads_what_a_file_reads(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    with BoundedReader(tmp_path / "a") as file:
        assert file.read(3) == b"\0\1\2"
        assert len(file.read(2**40)) == 256_000 - 3
        assert file.read(2**40) == b""
        file.seek(0)
        assert len(file.read()) == 256_000


def deflated(tmp_path, plain: bytes):
    """A deflated DICOM file whose data set is `plain`."""
    path = write_radiograph(tmp_path / "a.dcm", RAMP, syntax="1.2.840.10008.1.2.1.99")
    data = path.read_bytes()
    meta = 144 + struct.unpack("<I", data[140:144])[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:meta] + squeeze.compress(plain) + squeeze.flush())
    return path


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_stream, "RATIO_FROM_BYTES", 2**20)
    path = deflated(tmp_path, bytes(12 * 2**20))
    tracemalloc.start()
    refused(path, "deflated data set unpacks to more than")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20


def test_an_honest_deflated_file_is_read(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm", RAMP, syntax="1.2.840.10008.1.2.1.99")
    check_deflated(path)
    assert read_image(path).shape == RAMP.shape


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.1", "1.2.3", "hello", "1.2.840.10008.1.2.1\\1.2"])
def test_what_is_no_transfer_syntax_is_refused(tmp_path, syntax):
    path = write_radiograph(tmp_path / "a.dcm", RAMP)
    data = path.read_bytes()
    old = element(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")
    new = element(0x00020010, b"UI", syntax.encode().ljust(20 + len(syntax) % 2, b"\0"))
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    refused(path, "transfer syntax|TransferSyntaxUID|damaged")


def test_a_panic_in_a_decoder_is_no_crash(tmp_path):
    """More bytes than the rows hold: the decoder written in Rust panics, the next one drops them."""
    path = write_radiograph(tmp_path / "a.dcm", RAMP, syntax=RLELossless)
    ds = dcmread(path)
    ds.Rows = 20
    ds.save_as(path)
    assert read_image(path).shape == (20, 48)


@pytest.mark.parametrize("tag", [0x00283010, 0x00283000])
def test_sequences_without_end_are_refused(tmp_path, tag):
    path = insert(write_radiograph(tmp_path / "a.dcm", RAMP), 0x7FE00010, nested(tag, 1_500))
    refused(path, "Sequence|damaged")


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00080016, b"FD", b"1.2.840.10008.5.1.4.1.1.1.1\0"),
        (0x00080068, b"XX", b"FOR PROCESSING"),
        (0x00185101, b"IS", b"1e400 "),
        (0x00185101, b"US", b"a"),
    ],
)
def test_a_text_of_another_kind_counts_as_unreadable(tmp_path, tag, vr, value):
    path = write_radiograph(tmp_path / "a.dcm", RAMP, SOPClassUID=None)
    insert(path, 0x00280002 if tag > 0x00100000 else 0x00080060, element(tag, vr, value))
    read_or_refused(path)


def test_a_table_of_odd_length_is_refused(tmp_path):
    item = lut_item(list(range(256)))
    item.add_new("LUTData", "OW", b"\1" * 513)
    path = write_radiograph(tmp_path / "a.dcm", RAMP, VOILUTSequence=item)
    read_or_refused(path)


def test_a_file_meta_group_of_wrong_kinds(tmp_path):
    paths = write_ct_series(tmp_path / "ct", phantom_hu(3))
    data = paths[1].read_bytes()
    at = data.index(b"\2\0\2\0UI") + 4
    paths[1].write_bytes(data[:at] + b"FD" + data[at + 2 :])
    with contextlib.suppress(ImageError):
        assert read_image(tmp_path / "ct").shape == phantom_hu(3).shape


@pytest.mark.parametrize("spacing", [[1e-30, 1e-30], [1e200, 1e200]])
def test_impossible_spacing_of_a_radiograph_is_not_used(tmp_path, spacing):
    path = write_radiograph(tmp_path / "a.dcm", RAMP, ImagerPixelSpacing=spacing)
    image = read_image(path)
    assert image.spacing_mm is None
    assert any("ImagerPixelSpacing" in note for note in image.warnings)


@pytest.mark.parametrize("tags", [{"PixelSpacing": [1e-30, 1e-30]}, {"PixelSpacing": [1e200, 1e200]}])
def test_impossible_voxels_of_a_ct_are_refused(tmp_path, tags):
    write_ct_series(tmp_path / "ct", phantom_hu(4), **tags)
    with pytest.raises(GeometryError, match=r"cannot be a chest|singular|finite"):
        read_image(tmp_path / "ct")


def test_a_frame_count_that_no_file_can_hold(tmp_path):
    path = write_enhanced_ct(tmp_path / "a.dcm", phantom_hu(3))
    ds = dcmread(path)
    ds.NumberOfFrames = 2**31 - 1
    ds.save_as(path)
    refused(path, "2147483647 frames but 3 items")


# --- NIfTI


def nifti(path, affine=None, kind=nib.Nifti1Image):
    image = kind(phantom_hu(6).transpose(2, 1, 0), np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine)
    nib.save(image, path)
    return path


def test_unknown_units_of_a_nifti(tmp_path):
    path = nifti(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[123] = 0x85
    path.write_bytes(data)
    assert read_image(path).shape == phantom_hu(6).shape


def test_a_nifti_2_header_that_is_cut(tmp_path):
    path = nifti(tmp_path / "a.nii", kind=nib.Nifti2Image)
    path.write_bytes(path.read_bytes()[:400])
    refused(path, "truncated or damaged NIfTI")


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_impossible_voxels_of_a_nifti_are_refused(tmp_path, scale):
    path = nifti(tmp_path / "a.nii", np.diag([scale, scale, scale, 1.0]))
    refused(path, "cannot be a chest", GeometryError)


def test_an_origin_beyond_the_building_is_refused(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[2, 3] = 1e30
    refused(nifti(tmp_path / "a.nii", affine), "cannot be a chest", GeometryError)


# --- zip


def test_a_member_that_lzma_cannot_unpack(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(range(256)) * 20)
    raw = bytearray(data.getvalue())
    raw[60:70] = b"\xff" * 10
    (tmp_path / "a.zip").write_bytes(raw)
    refused(tmp_path / "a.zip", "cannot be unpacked")


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a"), b"x")
    raw = (tmp_path / "a.zip").read_bytes().replace(b"\x01\0\0\0\0\0\0\0\0\0\0\0", b"\0" * 12)
    table = raw.index(b"PK\x01\x02")
    raw = raw[:28] + b"" + raw[28:] if raw[28:30] == b"\0\0" else raw
    changed = bytearray(raw)
    struct.pack_into("<H", changed, table + 28, 0)  # length of the name
    del changed[table + 46]
    end = changed.index(b"PK\x05\x06")
    struct.pack_into("<I", changed, end + 12, end - table)
    (tmp_path / "a.zip").write_bytes(changed)
    refused(tmp_path / "a.zip", "no name|not a zip")


# --- configurations


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 50_000, "x = " + "{a = " * 5_000, "x = " + "9" * 5_000, "x." * 50_000 + "y = 1"]
)
@pytest.mark.parametrize("load", [load_training, load_pretraining, load_suite])
def test_toml_without_end(tmp_path, text, load):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        load(tmp_path / "a.toml")


def test_a_nested_value_of_a_wrong_kind_is_shown_in_short(tmp_path):
    (tmp_path / "a.toml").write_text(f"name = {'[' * 150}{']' * 150}")
    with pytest.raises(ConfigError, match=r"a\.toml") as caught:
        load_suite(tmp_path / "a.toml")
    assert len(str(caught.value)) < 1_000
    assert len(shown({"a": ["x" * 500] * 500})) <= 100


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": ' * 20_000, '{"name": ' + "9" * 5_000 + "}"])
def test_a_prompt_bank_without_end(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        load_bank(tmp_path / "a.json")
