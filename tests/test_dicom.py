"""Radiographs in DICOM: a golden table of pixels worked by hand, transfer syntaxes, colour, spacing, warnings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    RLELossless,
)

from dicom_files import compress_with_gdcm, lut_item, write_ct_series, write_radiograph
from dicom_results import dcmtk
from radglint.dicom import read_dicom_radiograph
from radglint.dicom_file import decode_frame, open_dicom
from radglint.dicom_series import read_dicom_ct

U8, U16, I16 = np.uint8, np.uint16, np.int16
M1, M2 = {"PhotometricInterpretation": "MONOCHROME1"}, {}
INVERSE, IDENTITY = {"PresentationLUTShape": "INVERSE"}, {"PresentationLUTShape": "IDENTITY"}
WINDOW = {"WindowCenter": 50.5, "WindowWidth": 101}  # LINEAR: 0 at 0, 1 at 100
RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -100}  # 50 -> 0, 75 -> 50, 100 -> 100
NEGATIVE = {"RescaleSlope": -1, "RescaleIntercept": 100}  # 0 -> 100, 100 -> 0
VOI = {"VOILUTSequence": lut_item([255, 51, 0])}
MODALITY_LUT = {"ModalityLUTSequence": lut_item([0, 100, 50])}
PAD = {"PixelPaddingValue": 0}

GOLDEN = [
    # stored, dtype, BitsStored, tags, expected brightness
    # full range 0 to 200
    ([0, 50, 200], U8, 8, M2, [0, 0.25, 1]),
    # full range, inverted
    ([0, 50, 200], U8, 8, M1, [1, 0.75, 0]),
    # 12 of 16 bits, full range 0 to 4000, not 0 to 4095
    ([0, 1000, 4000], U16, 12, M2, [0, 0.25, 1]),
    # signed, full range -1000 to 1000
    ([-1000, 0, 1000], I16, 16, M2, [0, 0.5, 1]),
    # signed and inverted
    ([-1000, -500, 1000], I16, 16, M1, [1, 0.75, 0]),
    # signed 12 of 16 bits without sign extension: 0xF38 is -200, 0x0C8 is 200
    ([0xF38 - 0x1000 & 0xFFF, 0, 200], I16, 12, M2, [0, 0.5, 1]),
    # window: below, quarter, above
    ([0, 25, 180], U8, 8, WINDOW, [0, 0.25, 1]),
    # window, then inversion
    ([0, 25, 180], U8, 8, {**M1, **WINDOW}, [1, 0.75, 0]),
    # rescale 2x-100 gives 0, 50, 100; window takes it as it is
    ([50, 75, 100], U16, 12, {**RESCALE, **WINDOW}, [0, 0.5, 1]),
    # the same, inverted
    ([50, 60, 100], U16, 12, {**M1, **RESCALE, **WINDOW}, [1, 0.8, 0]),
    # negative slope: 100, 80, 0; it inverts by itself
    ([0, 20, 100], U8, 8, {**NEGATIVE, **WINDOW}, [1, 0.8, 0]),
    # negative slope and MONOCHROME1: two inversions give the stored order back
    ([0, 20, 100], U8, 8, {**M1, **NEGATIVE, **WINDOW}, [0, 0.2, 1]),
    # negative slope, no window: full range of 100 - x
    ([0, 20, 80], U8, 8, NEGATIVE, [1, 0.75, 0]),
    # slope without intercept
    ([0, 10, 50], U8, 8, {"RescaleSlope": 2, **WINDOW}, [0, 0.2, 1]),
    # intercept without slope
    ([10, 35, 110], U8, 8, {"RescaleIntercept": -10, **WINDOW}, [0, 0.25, 1]),
    # MONOCHROME1 with INVERSE: one fact said twice, inverted once
    ([0, 50, 200], U8, 8, {**M1, **INVERSE}, [1, 0.75, 0]),
    # MONOCHROME2 with IDENTITY: kept
    ([0, 50, 200], U8, 8, {**M2, **IDENTITY}, [0, 0.25, 1]),
    # MONOCHROME2 with INVERSE: inverted once
    ([0, 50, 200], U8, 8, {**M2, **INVERSE}, [1, 0.75, 0]),
    # MONOCHROME1 with IDENTITY: the photometric interpretation wins
    ([0, 50, 200], U8, 8, {**M1, **IDENTITY}, [1, 0.75, 0]),
    # negative slope, MONOCHROME1 and INVERSE: slope inverts, polarity inverts once
    ([0, 20, 100], U8, 8, {**M1, **INVERSE, **NEGATIVE, **WINDOW}, [0, 0.2, 1]),
    # VOI LUT of 8 bits
    ([0, 1, 2], U8, 8, VOI, [1, 0.2, 0]),
    # VOI LUT goes before the window
    ([0, 1, 2], U8, 8, {**VOI, **WINDOW}, [1, 0.2, 0]),
    # VOI LUT then MONOCHROME1
    ([0, 1, 2], U8, 8, {**VOI, **M1}, [0, 0.8, 1]),
    # VOI LUT that starts at -1, after the rescale; the last entry holds beyond its end
    ([4, 5, 9], U8, 8, {"RescaleIntercept": -5, "VOILUTSequence": lut_item([255, 51, 0], first=-1)}, [1, 0.2, 0]),
    # VOI LUT of 10 bits: 1023 is white
    ([0, 1, 2], U8, 8, {"VOILUTSequence": lut_item([0, 341, 1023], bits=10)}, [0, 1 / 3, 1]),
    # modality LUT 0, 100, 50, then window; the rescale beside it is not used as well
    ([0, 1, 2], U8, 8, {**MODALITY_LUT, **WINDOW}, [0, 1, 0.5]),
    # LINEAR_EXACT: (x - 50) / 100 + 0.5
    ([0, 25, 100], U8, 8, {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}, [0, 0.25, 1]),
    # SIGMOID: 1 / (1 + exp(-4 (x - 50) / 100))
    (
        [0, 50, 100],
        U8,
        8,
        {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"},
        [0.1192029, 0.5, 0.8807971],
    ),
    # several windows: the first
    ([0, 25, 180], U8, 8, {"WindowCenter": [50.5, 500], "WindowWidth": [101, 10]}, [0, 0.25, 1]),
    # width 1: a step at centre - 0.5
    ([9, 10, 11], U8, 8, {"WindowCenter": 10, "WindowWidth": 1}, [0, 1, 1]),
    # width 0 is not allowed: full range instead
    ([0, 50, 200], U8, 8, {"WindowCenter": 10, "WindowWidth": 0}, [0, 0.25, 1]),
    # a window beside the data would give one colour: full range instead
    ([0, 50, 200], U8, 8, {"WindowCenter": 5000, "WindowWidth": 10}, [0, 0.25, 1]),
    # padding is left out of the full range (100 to 200) and black
    ([0, 100, 125, 200], U8, 8, PAD, [0, 0, 0.25, 1]),
    # padding is black after the inversion too
    ([0, 100, 125, 200], U8, 8, {**PAD, **M1}, [0, 1, 0.75, 0]),
    # padding range 0 to 10
    ([0, 10, 100, 150, 200], U8, 8, {**PAD, "PixelPaddingRangeLimit": 10}, [0, 0, 0, 0.5, 1]),
    # signed padding
    ([-2000, 0, 50, 200], I16, 16, {"PixelPaddingValue": -2000}, [0, 0, 0.25, 1]),
]


@pytest.mark.parametrize(("stored", "dtype", "bits", "tags", "expected"), GOLDEN)
def test_golden_pixels(tmp_path, stored, dtype, bits, tags, expected):
    pixels = np.array([stored, stored], dtype)
    image = read_dicom_radiograph(write_radiograph(tmp_path / "x.dcm", pixels, bits=bits, **tags))
    np.testing.assert_allclose(image.array, [expected, expected], atol=1e-6)
    assert (image.modality, image.value_unit, image.source_format) == ("CXR", "display", "dicom")
    assert image.array.dtype == np.float32


RAMP = (np.arange(40 * 48).reshape(40, 48) * 2).astype(U16)
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [U8, U16, I16])
def test_every_transfer_syntax_gives_the_same_picture(tmp_path, syntax, dtype):
    pixels = (RAMP // 16).astype(dtype) - (100 if dtype is I16 else 0)
    image = read_dicom_radiograph(write_radiograph(tmp_path / "x.dcm", pixels, syntax=syntax, **M1))
    low, high = float(pixels.min()), float(pixels.max())
    np.testing.assert_allclose(image.array, 1 - (pixels - low) / (high - low), atol=1e-6)
    assert syntax.name in image.steps[0]


@pytest.mark.parametrize("name", ["JPEGLSLossless", "JPEGLosslessProcess14_1", "JPEG2000Lossless"])
def test_jpeg_families_read_back(tmp_path, name):
    path = compress_with_gdcm(write_radiograph(tmp_path / "x.dcm", RAMP, bits=12), name)
    np.testing.assert_allclose(read_dicom_radiograph(path).array, RAMP / RAMP.max(), atol=1e-6)


def test_extended_jpeg_of_12_bits_is_what_dcmtk_makes_of_it(tmp_path, capfd):
    pixels = (np.add.outer(np.arange(61) ** 2, np.arange(83)) + 37).astype(U16)
    plain = write_radiograph(tmp_path / "plain.dcm", pixels, bits=12)
    dcmtk("dcmcjpeg", "+ee", plain, tmp_path / "jpeg.dcm")
    dcmtk("dcmdjpeg", tmp_path / "jpeg.dcm", tmp_path / "back.dcm")
    ds, back = open_dicom(tmp_path / "jpeg.dcm"), open_dicom(tmp_path / "back.dcm")
    assert ds.file_meta.TransferSyntaxUID == JPEGExtended12Bit
    decoded = decode_frame(ds, tmp_path / "jpeg.dcm")
    np.testing.assert_array_equal(decoded, back.pixel_array)
    assert decoded.max() > 3000
    assert 0 < np.abs(decoded.astype(int) - pixels).max() < 40  # it is lossy
    image = read_dicom_radiograph(tmp_path / "jpeg.dcm")
    np.testing.assert_array_equal(image.array, read_dicom_radiograph(tmp_path / "back.dcm").array)
    assert "JPEG Extended" in image.steps[0]
    assert capfd.readouterr().err == ""  # gdcm's own complaints would come here


def test_extended_jpeg_of_a_ct_series(tmp_path):
    (tmp_path / "jpeg").mkdir()
    for path in write_ct_series(tmp_path / "ct", BitsStored=12, HighBit=11, PixelRepresentation=0):
        dcmtk("dcmcjpeg", "+ee", "+q", 100, path, tmp_path / "jpeg" / path.name)
    hu = read_dicom_ct(list((tmp_path / "ct").iterdir()), name="ct").array
    lossy = read_dicom_ct(list((tmp_path / "jpeg").iterdir()), name="jpeg").array
    assert np.abs(lossy - hu).max() <= 3


def test_high_bit_above_stored_bits_is_shifted_and_old_overlays_are_dropped(tmp_path):
    values = np.array([[0, 1000, 4000]], U16)
    shifted = write_radiograph(tmp_path / "a.dcm", values << 4, bits=12, HighBit=15)
    np.testing.assert_allclose(read_dicom_radiograph(shifted).array, [[0, 0.25, 1]], atol=1e-6)
    overlay = write_radiograph(tmp_path / "b.dcm", values | 0x8000, bits=12)
    image = read_dicom_radiograph(overlay)
    np.testing.assert_allclose(image.array, [[0, 0.25, 1]], atol=1e-6)
    assert any("BitsStored" in note for note in image.warnings)


def test_colour_is_collapsed_to_luminance_and_equal_channels_are_not_a_warning(tmp_path):
    red_blue = np.array([[[255, 0, 0], [0, 0, 255], [255, 255, 255]]], U8)
    image = read_dicom_radiograph(write_radiograph(tmp_path / "a.dcm", red_blue, kind="SC"))
    np.testing.assert_allclose(image.array, [[0.299, 0.114, 1]], atol=1e-6)
    assert any("colour" in note for note in image.warnings)
    grey = np.repeat(np.array([[0, 51, 255]], U8)[..., None], 3, axis=2)
    image = read_dicom_radiograph(write_radiograph(tmp_path / "b.dcm", grey, kind="OT"))
    np.testing.assert_allclose(image.array, [[0, 0.2, 1]], atol=1e-6)
    assert image.warnings == ()


def test_ybr_is_converted_to_rgb_first(tmp_path):
    ybr = np.array([[[0, 128, 128], [51, 128, 128], [255, 128, 128]]], U8)  # grey has Cb = Cr = 128
    path = write_radiograph(tmp_path / "a.dcm", ybr, kind="SC", PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_dicom_radiograph(path).array, [[0, 0.2, 1]], atol=1e-6)


def test_palette_is_looked_up(tmp_path):
    tags = {f"{c}PaletteColorLookupTableDescriptor": [4, 0, 8] for c in ("Red", "Green", "Blue")}
    tags |= {f"{c}PaletteColorLookupTableData": bytes([0, 51, 102, 255]) for c in ("Red", "Green", "Blue")}
    path = write_radiograph(
        tmp_path / "a.dcm", np.array([[0, 3, 1]], U8), kind="SC", PhotometricInterpretation="PALETTE COLOR", **tags
    )
    np.testing.assert_allclose(read_dicom_radiograph(path).array, [[0, 1, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "spacing", "word"),
    [
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.3, 0.3]}, (0.2, 0.1), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.3, 0.15]}, (0.3, 0.15), "detector"),
        ({"NominalScannedPixelSpacing": [0.4, 0.4]}, (0.4, 0.4), "film"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.3]}, (0.3, 0.3), "detector"),
        ({}, None, None),
    ],
)
def test_spacing_is_rows_then_columns_with_its_source(tmp_path, tags, spacing, word):
    image = read_dicom_radiograph(write_radiograph(tmp_path / "a.dcm", RAMP, kind="CR", **tags))
    assert image.spacing_mm == spacing
    told = [step for step in image.steps if step.startswith("spacing")]
    assert (word in told[0]) if word else not told


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["R", "F"]}, "mirrored"),
        ({"PatientOrientation": ["L", "H"]}, "upside down"),
        ({"BodyPartExamined": "KNEE"}, "KNEE"),
        ({"BurnedInAnnotation": "YES"}, "burned"),
        ({**M1, **IDENTITY}, "contradictory"),
        ({"WindowCenter": 9e4, "WindowWidth": 2}, "window"),
    ],
)
def test_warnings(tmp_path, tags, word):
    image = read_dicom_radiograph(write_radiograph(tmp_path / "a.dcm", RAMP, **tags))
    assert len(image.warnings) == 1
    assert word in image.warnings[0]


def test_an_ordinary_frontal_view_has_no_warning(tmp_path):
    tags = {"ViewPosition": "PA", "PatientOrientation": ["L", "F"], "BurnedInAnnotation": "NO"}
    assert read_dicom_radiograph(write_radiograph(tmp_path / "a.dcm", RAMP, **tags)).warnings == ()


def test_intent_is_recorded_and_raw_polarity_is_warned_of(tmp_path):
    path = write_radiograph(
        tmp_path / "a.dcm", RAMP, kind="DX-PROCESSING", PresentationIntentType="FOR PROCESSING",
        PixelIntensityRelationshipSign=1,
    )  # fmt: skip
    image = read_dicom_radiograph(path)
    assert "FOR PROCESSING" in image.steps[0]
    assert any("bone" in note for note in image.warnings)


def test_steps_name_every_stage_once_in_order(tmp_path):
    path = write_radiograph(tmp_path / "a.dcm", RAMP, **M1, **RESCALE, **WINDOW, PixelSpacing=[1, 1])
    stages = [step.partition(" ")[0] for step in read_dicom_radiograph(path).steps]
    assert stages == ["dicom", "modality:", "voi:", "polarity:", "spacing:"]


def test_nothing_of_the_patient_leaks(tmp_path):
    image = read_dicom_radiograph(write_radiograph(tmp_path / "a.dcm", RAMP, ViewPosition="LL"))
    told = json.dumps([image.steps, image.warnings]) + repr(image).replace(str(tmp_path), "")
    assert "SECRET" not in told.upper()
