"""Hand-made bad image files, one row each: a clear one-line error that names the file, or the right answer."""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from radglint.errors import GeometryError, ImageError, InputError
from radglint.inspection import inspect_image
from radglint.reading import read_image
from test_archive import make_zip
from test_nifti import chest, write
from test_raster import png_bytes
from test_reading import ct_series, dicom_file, png, radiograph

Make = Callable[[Path], Path]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)


def raw(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def picture(name: str, array: np.ndarray, **options) -> Make:
    def make(folder: Path) -> Path:
        Image.fromarray(array).save(folder / name, **options)
        return folder / name

    return make


def cut(make: Make, share: float) -> Make:
    """The same file, only its first part."""

    def make_cut(folder: Path) -> Path:
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        return path

    return make_cut


def patched(make: Make, offset: int, data: bytes) -> Make:
    """The same file with some bytes overwritten."""

    def make_patched(folder: Path) -> Path:
        path = make(folder)
        content = bytearray(path.read_bytes())
        content[offset : offset + len(data)] = data
        path.write_bytes(content)
        return path

    return make_patched


def nifti(values: np.ndarray | None = None, name: str = "ct.nii", **options) -> Make:
    return lambda folder: write(folder, chest() if values is None else values, name=name, **options)


def zipped(members: dict[str, bytes]) -> Make:
    return lambda folder: make_zip(folder / "a.zip", members)


def with_value(value: float) -> np.ndarray:
    values = chest().astype(np.float32)
    values[1, 2, 3] = value
    return values


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def pages(name: str, count: int, **options) -> Make:
    def make(folder: Path) -> Path:
        frames = [Image.fromarray(np.roll(NOISE, k)) for k in range(count)]
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], **options)
        return folder / name

    return make


def rgb_nifti(folder: Path) -> Path:
    values = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "rgb.nii")
    return folder / "rgb.nii"


def complex_nifti(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(chest().astype(np.complex64), np.eye(4)), folder / "c.nii")
    return folder / "c.nii"


def nifti_pair(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(chest(), np.eye(4)), folder / "pair.img")
    return folder / "pair.hdr"


def flat_affine(column: int, values: tuple[float, float, float]) -> Make:
    """A NIfTI whose sform has one column overwritten."""

    def make(folder: Path) -> Path:
        path = write(folder, chest(), name="flat.nii")
        content = bytearray(path.read_bytes())
        for row, value in enumerate(values):
            struct.pack_into("<f", content, 280 + 16 * row + 4 * column, value)
        path.write_bytes(content)
        return path

    return make


def folder_of(*makes: Make) -> Make:
    def make(folder: Path) -> Path:
        inner = folder / "in"
        inner.mkdir()
        for one in makes:
            one(inner)
        return inner

    return make


def cr_file(folder: Path) -> Path:
    return radiograph(folder / "a.dcm")


def one_slice(folder: Path) -> Path:
    ct_series(folder / "s", count=5)
    return folder / "s" / "1.dcm"


def one_slice_folder(folder: Path) -> Path:
    path = one_slice(folder)
    for other in (0, 2, 3, 4):
        (path.parent / f"{other}.dcm").unlink()
    return path.parent


def series_with_a_cut_slice(folder: Path) -> Path:
    ct_series(folder / "s", count=6)
    path = folder / "s" / "3.dcm"
    path.write_bytes(path.read_bytes()[:-500])
    return folder / "s"


def series_without_one_slice(folder: Path) -> Path:
    ct_series(folder / "s", count=12)
    for name in ("5.dcm", "6.dcm", "7.dcm"):
        (folder / "s" / name).unlink()
    return folder / "s"


def unscaled_series(folder: Path) -> Path:
    (folder / "s").mkdir()
    volume = (chest((40, 36, 6)).transpose(2, 1, 0) + 1024).astype(np.uint16)
    for number, pixels in enumerate(volume):
        dicom_file(
            folder / "s" / f"{number}.dcm",
            pixels,
            "CT",
            RescaleSlope=1,
            RescaleIntercept=0,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            PixelSpacing=[1, 1],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 2 * number],
        )
    return folder / "s"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def unix_socket(folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as short:
        path = Path(short, "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        return path.rename(folder / "s")


def two_pngs(folder: Path) -> Path:
    png(folder / "a.png")
    png(folder / "b.png")
    return folder


def npy(folder: Path) -> Path:
    np.save(folder / "ct.npy", chest())
    return folder / "ct.npy"


def gz(data: bytes) -> bytes:
    return gzip.compress(data)


def promising_gzip(folder: Path) -> Path:
    """A small .nii.gz whose header announces two gigabytes."""
    content = bytearray(write(folder, chest(), name="small.nii").read_bytes())
    content[40:48] = struct.pack("<4h", 3, 1000, 1000, 1000)
    return raw("ct.nii.gz", gz(bytes(content)))(folder)


def inner_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "x")
    return buffer.getvalue()


GREY16 = np.linspace(0, 60000, 4096).reshape(64, 64).astype(np.uint16)
FLOAT_NAN = np.where(np.eye(64) > 0, np.nan, 0.5).astype(np.float32)
SIGNED = np.linspace(-1000, 1000, 4096).reshape(64, 64).astype(np.int32)
LABELS = np.random.default_rng(0).integers(0, 5, (20, 20, 20)).astype(np.uint8)

BAD: dict[str, tuple[Make, type[InputError], str]] = {
    # files and folders
    "missing": (lambda f: f / "none.png", ImageError, "no such file"),
    "empty file": (raw("a.png", b""), ImageError, "empty (0 bytes)"),
    "empty folder": (folder_of(), ImageError, "folder is empty"),
    "folder with text only": (folder_of(raw("a.txt", b"hi")), ImageError, "no image among 1 files (a.txt)"),
    "folder with two images": (two_pngs, ImageError, "2 other images (a.png, b.png); give one"),
    "named pipe does not hang": (fifo, ImageError, "neither a file nor a folder"),
    "socket": (unix_socket, ImageError, "neither a file nor a folder"),
    "name too long": (lambda f: f / ("x" * 300), ImageError, "name"),
    # not an image
    "text named png": (raw("a.png", b"this is not a picture\n" * 9), ImageError, "text file"),
    "web page named jpg": (raw("a.jpg", b"<html>404</html>" * 9), ImageError, "a web page"),
    "random bytes": (raw("a.dcm", bytes(range(255, 0, -1)) * 4), ImageError, "no image that is known"),
    "numpy array": (npy, ImageError, "a NumPy array, which is not read: save it as NIfTI"),
    "pdf": (raw("a.pdf", b"%PDF-1.7 " * 20), ImageError, "a PDF"),
    "gif": (picture("a.gif", NOISE), ImageError, "a GIF, which is not read: save it as PNG"),
    "bmp": (picture("a.bmp", NOISE), ImageError, "a BMP"),
    "webp": (picture("a.webp", NOISE), ImageError, "a WebP"),
    "nrrd": (raw("a.nrrd", b"NRRD0004\ntype: short\n"), ImageError, "an NRRD"),
    "metaimage": (raw("a.mha", b"ObjectType = Image\nNDims = 3\n"), ImageError, "a MetaImage"),
    "tar": (raw("a.tar", bytes(257) + b"ustar" + bytes(300)), ImageError, "a tar archive"),
    "gzip of text": (raw("a.nii.gz", gz(b"hello " * 100)), ImageError, "inside is no NIfTI: this is a text file"),
    # PNG, JPEG, TIFF
    "png cut in the pixels": (cut(picture("a.png", NOISE), 0.6), ImageError, "truncated or damaged"),
    "png cut in the header": (raw("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0"), ImageError, "truncated or damaged"),
    "png with a wrong checksum": (patched(picture("a.png", NOISE), 60, b"zz"), ImageError, "damaged"),
    "jpeg cut": (cut(picture("a.jpg", NOISE), 0.5), ImageError, "truncated or damaged"),
    "tiff cut": (cut(picture("a.tif", NOISE), 0.4), ImageError, "damaged"),
    "tiff of noise": (raw("a.tif", b"II*\0" + bytes(range(200))), ImageError, "a.tif"),
    "png of 10 gigapixels": (raw("a.png", huge_png(100_000, 100_000)), ImageError, "pixels"),
    "png of 121 megapixels": (raw("a.png", huge_png(11_000, 11_000)), ImageError, "11000 x 11000 pixels, at most"),
    "png of 65536 x 1": (raw("a.png", huge_png(65536, 1)), ImageError, "needs 32 on each side"),
    "too small": (picture("a.png", NOISE[:20, :20]), ImageError, "20 x 20 pixels"),
    "tiff of 3 pages": (pages("a.tif", 3), ImageError, "3 pages or frames, expected one"),
    "animated png": (pages("a.png", 2), ImageError, "2 pages or frames"),
    "black": (picture("a.png", NOISE * 0), ImageError, "every pixel is 0"),
    "constant 16-bit": (picture("a.png", np.full((64, 64), 900, np.uint16)), ImageError, "every pixel is 900"),
    "1 bit": (picture("a.png", NOISE > 128), ImageError, "black and white only (1 bit)"),
    "float tiff with nan": (picture("a.tif", FLOAT_NAN), ImageError, "64 pixels are NaN"),
    "signed tiff": (picture("a.tif", SIGNED), ImageError, "is it a CT slice?"),
    "transparent everywhere": (picture("a.png", np.dstack([NOISE] * 3 + [NOISE * 0])), ImageError, "every pixel is 0"),
    # NIfTI
    "nifti cut": (cut(nifti(), 0.5), ImageError, "truncated, shape (14, 12, 10) needs 3360 bytes"),
    "nifti.gz cut": (cut(nifti(name="ct.nii.gz"), 0.6), ImageError, "truncated or damaged"),
    "nifti.gz cut in the header": (cut(nifti(name="ct.nii.gz"), 0.02), ImageError, "truncated or damaged"),
    "nifti.gz damaged": (patched(nifti(name="ct.nii.gz"), 900, bytes(60)), ImageError, "truncated or damaged"),
    "nifti without a mark": (patched(nifti(), 344, b"xxxx"), ImageError, "no image that is known"),
    "nifti of unknown type": (patched(nifti(), 70, struct.pack("<h", 77)), ImageError, "damaged NIfTI"),
    "nifti with 9 axes": (patched(nifti(), 40, struct.pack("<h", 9)), ImageError, "ct.nii"),
    "nifti with a negative axis": (patched(nifti(), 42, struct.pack("<h", -5)), ImageError, "ct.nii"),
    "nifti of 27 teravoxels": (
        patched(nifti(), 40, struct.pack("<4h", 3, 30000, 30000, 30000)),
        ImageError,
        "27000000000000 voxels, at most",
    ),
    "nifti.gz that promises too much": (
        promising_gzip,
        ImageError,
        "truncated, shape (1000, 1000, 1000) needs 2000000000 bytes",
    ),
    "nifti of one slice": (nifti(chest()[:, :, :1]), ImageError, "one slice"),
    "nifti 2-D": (nifti(chest()[:, :, 0]), ImageError, "one slice"),
    "nifti 4-D": (nifti(np.stack([chest()] * 3, axis=-1)), ImageError, "4-D, shape (14, 12, 10, 3)"),
    "nifti rgb": (rgb_nifti, ImageError, "colour or complex"),
    "nifti complex": (complex_nifti, ImageError, "colour or complex"),
    "nifti pair": (nifti_pair, ImageError, "one half of a NIfTI pair"),
    "nifti with nan": (nifti(with_value(np.nan)), ImageError, "1 of 1680 voxels are NaN"),
    "nifti with inf": (nifti(with_value(np.inf)), ImageError, "1 of 1680 voxels are NaN or infinite"),
    "nifti with an axis of no length": (flat_affine(1, (0, 0, 0)), GeometryError, "axis 1 has no length"),
    "nifti with two equal axes": (flat_affine(1, (1.5, 0, 0)), GeometryError, "same way"),
    "nifti with nan in the affine": (flat_affine(0, (np.nan, 0, 0)), GeometryError, "NaN"),
    "nifti constant": (nifti(np.zeros((9, 9, 9), np.int16)), ImageError, "every voxel is the same"),
    "nifti mask": (nifti((chest() > 0).astype(np.uint8)), ImageError, "2 whole numbers only"),
    "nifti label map": (nifti(LABELS), ImageError, "a label map"),
    "nifti of stored values": (nifti((chest() + 1024).astype(np.uint16)), ImageError, "rescale is missing"),
    "nifti rescaled twice": (nifti((chest() - 1024).astype(np.int16)), ImageError, "rescale was applied twice"),
    "nifti normalised": (nifti(((chest() + 1024) / 4000).astype(np.float32)), ImageError, "normalised"),
    "nifti windowed": (nifti(chest().clip(-160, 240)), ImageError, "scale was cut at -160"),
    # zip
    "zip of text": (zipped({"readme.txt": b"hello"}), ImageError, "no image among 1 files"),
    "empty zip": (zipped({}), ImageError, "holds no file"),
    "zip cut": (cut(zipped({"a.png": NOISE.tobytes()}), 0.5), ImageError, "truncated"),
    "zip with path traversal": (zipped({"../../a.png": b"x"}), ImageError, "points outside the archive"),
    "zip with absolute path": (zipped({"/tmp/a.png": b"x"}), ImageError, "points outside the archive"),
    "zip in a zip": (zipped({"inner.zip": inner_zip()}), ImageError, "holds only the archive 'inner.zip'"),
    "zip bomb": (zipped({"a.dcm": bytes(70 * 2**20)}), ImageError, "a zip bomb"),
    "zip with a broken png": (zipped({"a.png": b"\x89PNG\r\n\x1a\n" + b"x" * 50}), ImageError, "00000_a.png"),
    # DICOM
    "dicom cut in the header": (cut(cr_file, 0.05), ImageError, "a.dcm"),
    "dicom cut in the pixels": (cut(cr_file, 0.7), ImageError, "a.dcm"),
    "one ct slice": (one_slice, ImageError, "one CT slice"),
    "folder of one ct slice": (one_slice_folder, ImageError, "one CT slice"),
    "ct with a cut slice": (series_with_a_cut_slice, ImageError, "3.dcm"),
    "ct with missing slices": (series_without_one_slice, GeometryError, "missing"),
    "ct without rescale": (unscaled_series, ImageError, "rescale is missing"),
}


def test_there_are_enough_cases():
    assert len(BAD) >= 60


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gives_one_clear_line(tmp_path, case):
    make, error, words = BAD[case]
    path = make(tmp_path)
    with pytest.raises(error) as caught:
        read_image(path)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert str(path) in message
    assert "Traceback" not in message
    assert len(message) < 700


@pytest.mark.parametrize("case", ["empty file", "jpeg cut", "nifti cut", "zip bomb", "ct with missing slices"])
def test_inspection_never_raises(tmp_path, case):
    make, _, words = BAD[case]
    inspection = inspect_image(make(tmp_path))
    assert inspection.verdict == "not usable"
    assert words in inspection.reasons[0]


def renamed(make: Make, name: str) -> Make:
    return lambda folder: make(folder).rename(folder / name)


GOOD: dict[str, tuple[Make, tuple[str, int]]] = {
    "png named dcm": (renamed(picture("a.png", NOISE), "a.dcm"), ("png", 2)),
    "jpeg named nii.gz": (renamed(picture("a.jpg", NOISE), "a.nii.gz"), ("jpeg", 2)),
    "nifti named png": (renamed(nifti(), "a.png"), ("nifti", 3)),
    "gzipped nifti named nii": (renamed(nifti(name="ct.nii.gz"), "b.nii"), ("nifti", 3)),
    "dicom named jpg": (lambda f: radiograph(f / "a.jpg"), ("dicom", 2)),
    "dicom without suffix": (lambda f: radiograph(f / "IM000001"), ("dicom", 2)),
    "zip named png": (renamed(zipped({"a": png_bytes(GREY16.astype(">u2"), 0)}), "a.png"), ("png", 2)),
    "name with spaces and umlauts": (picture("Thorax Röntgen 1.png", NOISE), ("png", 2)),
    "16-bit png": (picture("a.png", GREY16), ("png", 2)),
    "one row of junk after a png": (lambda f: appended(picture("a.png", NOISE)(f)), ("png", 2)),
    "folder with a stray text": (folder_of(raw("a.txt", b"x"), picture("a.png", NOISE)), ("png", 2)),
    "4-D nifti of one volume": (nifti(chest()[..., None]), ("nifti", 3)),
    "nifti without form codes": (lambda f: uncoded(f), ("nifti", 3)),
}


def appended(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + b"junk" * 20)
    return path


def uncoded(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(chest(), None), folder / "u.nii")
    return folder / "u.nii"


@pytest.mark.parametrize("case", GOOD)
def test_odd_but_good_file_is_read(tmp_path, case):
    make, (source_format, ndim) = GOOD[case]
    image = read_image(make(tmp_path))
    assert (image.source_format, image.array.ndim) == (source_format, ndim)
    assert np.ptp(image.array) > 0
    assert image.steps
