"""PNG, JPEG, TIFF: golden small pictures; every choice is in the steps."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from radglint.errors import ImageError
from radglint.raster import read_raster

RAMP = (np.arange(40 * 50).reshape(40, 50) % 256).astype(np.uint8)


def save(folder, picture, name="a.png", **options):
    path = folder / name
    picture.save(path, **options)
    return path


def ramp16(top: int) -> np.ndarray:
    return np.linspace(0, top, 40 * 50).round().astype(np.uint16).reshape(40, 50)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_8_bit_grey_is_divided_by_255(tmp_path, name):
    image = read_raster(save(tmp_path, Image.fromarray(RAMP), name))
    np.testing.assert_array_equal(image.array, RAMP.astype(np.float32) / np.float32(255))
    assert (image.modality, image.value_unit, image.spacing_mm) == ("CXR", "display", None)
    assert image.steps[-1] == "8-bit values divided by 255"


def test_8_bit_range_comes_from_the_container_and_not_the_content(tmp_path):
    image = read_raster(save(tmp_path, Image.fromarray(RAMP // 4)))
    assert image.array.max() == pytest.approx(63 / 255)


@pytest.mark.parametrize(("top", "bits"), [(200, 8), (1023, 10), (1024, 12), (3500, 12), (9000, 14), (65535, 16)])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_files_use_the_smallest_range_that_holds_the_largest_value(tmp_path, name, top, bits):
    values = ramp16(top)
    image = read_raster(save(tmp_path, Image.fromarray(values), name))
    np.testing.assert_allclose(image.array, values / (2**bits - 1), atol=1e-6)
    assert f"fits {bits} bits: divided by {2**bits - 1}" in image.steps[-1]


def test_dark_16_bit_image_is_warned_about(tmp_path):
    image = read_raster(save(tmp_path, Image.fromarray(ramp16(4200))))
    assert any("26 % of its 14-bit range" in note for note in image.warnings)


def tiff_bytes(values: np.ndarray, photometric: int, order: str = "<") -> bytes:
    """An uncompressed grey TIFF written by hand, so that no library touches the values."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, 8 + 2 + 12 * 9 + 4), (277, 1), (278, height), (279, values.nbytes)]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return head + body + bytes(4) + values.astype(values.dtype.newbyteorder(order)).tobytes()


def test_big_endian_16_bit_tiff(tmp_path):
    values = ramp16(4095)
    (tmp_path / "be.tif").write_bytes(tiff_bytes(values, 1, ">"))
    np.testing.assert_allclose(read_raster(tmp_path / "be.tif").array, values / 4095, atol=1e-6)


@pytest.mark.parametrize(("values", "top"), [(ramp16(4095), 4095), (RAMP, 255)])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_zero_tiff_is_inverted_once(tmp_path, values, top, photometric):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(values, photometric))
    expected = values / top if photometric == 1 else 1 - values / top
    np.testing.assert_allclose(read_raster(tmp_path / "a.tif").array, expected, atol=1e-6)


def test_float_tiff_in_unit_range_is_kept(tmp_path):
    values = (RAMP / 255).astype(np.float32)
    image = read_raster(save(tmp_path, Image.fromarray(values), "f.tif"))
    np.testing.assert_array_equal(image.array, values)


def test_32_bit_int_tiff(tmp_path):
    values = ramp16(4095).astype(np.int32)
    image = read_raster(save(tmp_path, Image.fromarray(values), "i.tif"))
    np.testing.assert_allclose(image.array, values / 4095, atol=1e-6)


def test_more_than_16_bits_is_divided_by_the_maximum_with_a_warning(tmp_path):
    values = ramp16(65535).astype(np.int32) * 10
    image = read_raster(save(tmp_path, Image.fromarray(values), "i.tif"))
    assert image.array.max() == 1
    assert any("no usual bit range" in note for note in image.warnings)


def test_equal_channels_collapse_without_a_warning(tmp_path):
    image = read_raster(save(tmp_path, Image.fromarray(np.stack([RAMP] * 3, axis=-1))))
    np.testing.assert_array_equal(image.array, RAMP.astype(np.float32) / np.float32(255))
    assert image.warnings == ()
    assert any("equal channels" in step for step in image.steps)


def test_nearly_equal_channels_give_green(tmp_path):
    channels = np.stack([RAMP // 2, RAMP // 2 + 3, RAMP // 2 + 1], axis=-1)
    image = read_raster(save(tmp_path, Image.fromarray(channels)))
    np.testing.assert_allclose(image.array, (RAMP // 2 + 3) / 255, atol=1e-6)
    assert image.warnings == ()


def test_coloured_pixels_become_luminance_and_are_counted(tmp_path):
    channels = np.stack([RAMP] * 3, axis=-1)
    channels[0, :10] = (255, 0, 0)
    image = read_raster(save(tmp_path, Image.fromarray(channels)))
    np.testing.assert_allclose(image.array[0, :10], 0.299, atol=1e-6)
    np.testing.assert_allclose(image.array[1:], RAMP[1:] / 255, atol=1e-6)
    assert "10 pixels (0.5 %) are coloured" in image.warnings[0]


def test_grey_palette_is_the_same_as_grey(tmp_path):
    picture = Image.fromarray(RAMP).convert("P")
    image = read_raster(save(tmp_path, picture))
    np.testing.assert_allclose(image.array, RAMP / 255, atol=1e-6)
    assert "palette expanded" in image.steps


def test_opaque_alpha_is_ignored(tmp_path):
    picture = Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (50, 40), 255)))
    image = read_raster(save(tmp_path, picture))
    np.testing.assert_allclose(image.array, RAMP / 255, atol=1e-6)
    assert image.warnings == ()


def test_transparent_pixels_are_laid_on_black(tmp_path):
    alpha = np.full_like(RAMP, 255)
    alpha[:20] = 0
    picture = Image.merge("RGBA", [*(Image.fromarray(RAMP),) * 3, Image.fromarray(alpha)])
    image = read_raster(save(tmp_path, picture))
    assert image.array[:20].max() == 0
    np.testing.assert_allclose(image.array[20:], RAMP[20:] / 255, atol=1e-6)
    assert "50.0 % of the pixels are transparent" in image.warnings[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_brings_the_picture_upright(tmp_path, orientation, name):
    upright = np.zeros((40, 64), np.uint8)
    upright[:20, :32], upright[:20, 32:], upright[20:, :32] = 240, 160, 80
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif)
    image = read_raster(path)
    assert image.shape == (40, 64)
    np.testing.assert_allclose(image.array, upright / 255, atol=0.05)
    assert any("orientation tag" in step for step in image.steps) == (orientation != 1)


def test_16_bit_colour_png_says_that_bits_were_lost(tmp_path):
    path = save(tmp_path, Image.fromarray(np.stack([RAMP] * 3, axis=-1)))
    data = bytearray(path.read_bytes())
    assert data[24] == 8
    values = np.stack([RAMP.astype(">u2") * 257] * 3, axis=-1)
    path.write_bytes(png_bytes(values, colour_type=2))
    image = read_raster(path)
    np.testing.assert_allclose(image.array, RAMP / 255, atol=1e-6)
    assert "8 bits" in image.warnings[0]


def png_bytes(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG of any colour type, written by hand (Pillow cannot)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match="cannot be read"):
        read_raster(tmp_path / "none.png")


def test_real_radiographs_decode_without_warnings(shared_data):
    paths = sorted((shared_data / "covid_cxr_notes" / "cc").glob("*.jpg"))[:5]
    assert len(paths) == 5
    for path in paths:
        image = read_raster(path)
        assert image.warnings == ()
        assert image.array.max() > 0.5
