"""One asymmetric phantom through every route: left stays left, and the mask lies where the lesion is in the patient.

The model is `Brightness`, a few lines behind the seam of `pipeline.py` that mark bright tokens; so the place of every
mark is known beforehand, from the scene alone, and all geometry between the file and the answer is the real one.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import random
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from dicom_files import write_ct_series, write_radiograph
from radglint import cli, pipeline, render, writing
from radglint.checkpoint import Calibration, LogisticMap, ModalityCalibration, save_checkpoint
from radglint.display import MASK_RGB
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.image import MedicalImage
from radglint.pipeline import EncodedImage, Pipeline
from radglint.preprocess import CtPreprocess, CxrPreprocess, preprocess
from radglint.query import Query
from radglint.render import MARGIN_PX, overlay_views, panel_size
from tiny_models import PROVENANCE, tiny_model

LESION_MM, RADIUS_MM = np.array([-58.0, 45.0, -35.0]), 17.0  # RAS+: the patient's left, front, low
LESION_PX, RADIUS_PX, SIZE_PX = (72, 181), 24, (300, 240)  # row, column; the upper right of the picture
CT = CtPreprocess(mm_per_px=2.0, height_px=98, width_px=126, slice_step_mm=5.0, patch_px=7)
CXR = CxrPreprocess(long_side_px=140, patch_px=7)
HALF_PATCH_MM, HALF_PATCH_PX = np.array([7.0, 7.0, 2.5]), 7.5
QUERIES = ["calcified nodule", "no calcified nodule"]


class Brightness:
    """An `Answerer`: a token is marked if its patch is mostly brighter than soft tissue."""

    name, fingerprint = "brightness", "phantom"

    def encode(self, image: MedicalImage) -> EncodedImage:
        prepared = preprocess(image, CT if image.modality == "CT" else CXR)
        means = torch.nn.functional.avg_pool2d(torch.from_numpy(prepared.pixels)[:, None], 7)
        return EncodedImage(image, prepared.record, means.reshape(1, -1, 1), self.fingerprint)

    def answer(self, encoded: EncodedImage, queries: Sequence[Query], threshold: float | None) -> list[Finding]:
        level = 0.87 if encoded.image.modality == "CT" else 0.7
        logits = 40 * (encoded.tokens.numpy().reshape(encoded.record.grid_shape) - level)
        return [
            Finding(q.text, q.phrase, q.assertion, 0.5, 0.9, threshold or 0.5, logits, encoded.image, encoded.record)
            for q in queries
        ]


def scene(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """HU of the phantom at the voxels of any grid, int16: a body, two unlike lungs, and the lesion."""
    x, y, z = np.einsum("ab,b...->a...", affine[:3], np.concatenate([np.indices(shape), np.ones((1, *shape))]))
    hu = np.where((x / 120) ** 2 + (y / 85) ** 2 < 1, 40, -1000)
    hu[((x - 60) / 40) ** 2 + ((y + 15) / 38) ** 2 + (z / 80) ** 2 < 1] = -820
    hu[((x + 58) / 34) ** 2 + ((y + 18) / 36) ** 2 + ((z - 15) / 60) ** 2 < 1] = -860
    hu[(x - LESION_MM[0]) ** 2 + (y - LESION_MM[1]) ** 2 + (z - LESION_MM[2]) ** 2 < RADIUS_MM**2] = 900
    return hu.astype(np.int16)


def grid(linear: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An affine whose middle lies near the middle of the body."""
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([2.0, -3.0, 1.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


# Depth up, rows to the back, columns to the patient's left: the usual axial series.
SERIES_SHAPE = (46, 73, 85)
SERIES = grid([[0, 0, -3.0], [0, -2.5, 0], [4.0, 0, 0]], SERIES_SHAPE)
ANGLE = np.radians(9)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
NIFTI_GRIDS = {  # linear part and shape in the file's own order (i, j, k)
    "RAS": (np.diag([3.0, 2.5, 4.0]), (85, 73, 46)),
    "LPI": (np.diag([-3.0, -2.5, -4.0]), (84, 74, 47)),
    "oblique PSR": (TURN @ np.array([[0, 0, 3.0], [-2.5, 0, 0], [0, 4.0, 0]]), (80, 46, 90)),
}


def write_series(folder: Path) -> Path:
    """Slices with random names, written so that no order of names is the order of places."""
    origin = (-SERIES[0, 3], -SERIES[1, 3], SERIES[2, 3])  # LPS
    paths = write_ct_series(
        folder, scene(SERIES, SERIES_SHAPE), step=(0.0, 0.0, 4.0), origin=origin, PixelSpacing=[2.5, 3.0],
        SliceThickness=4.0,
    )  # fmt: skip
    names = [f"{n:04d}" for n in range(len(paths))]
    random.Random(3).shuffle(names)
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / f"IM{name}")
    return folder


def write_zip(folder: Path, path: Path) -> Path:
    files = sorted(folder.iterdir())
    random.Random(4).shuffle(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"study/{file.name}")
    return path


def write_nifti(path: Path, name: str) -> Path:
    linear, shape = NIFTI_GRIDS[name]
    affine = grid(linear, shape)
    nifti = nib.Nifti1Image(scene(affine, shape), affine)
    nifti.set_qform(affine, code=1)
    nifti.set_sform(affine, code=2)
    nib.save(nifti, path)
    return path


def picture() -> np.ndarray:
    """Display values in [0, 1]: a ramp that grows downward, and one bright disc."""
    row, column = np.indices(SIZE_PX)
    shown = 0.1 + 0.4 * row / SIZE_PX[0]
    shown[(row - LESION_PX[0]) ** 2 + (column - LESION_PX[1]) ** 2 < RADIUS_PX**2] = 0.95
    return shown


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same scene in every format that is read."""
    root = tmp_path_factory.mktemp("inputs")
    series = write_series(root / "series")
    paths = {"DICOM series": series, "zip": write_zip(series, root / "study.zip")}
    for name in NIFTI_GRIDS:
        paths[name] = write_nifti(root / f"{name.replace(' ', '_')}.nii.gz", name)
    Image.fromarray(np.rint(picture() * 255).astype(np.uint8)).save(root / "chest.png")
    Image.fromarray(np.rint(picture() * 65535).astype(np.uint16)).save(root / "chest16.png")
    dark = np.rint((1 - picture()) * 4095).astype(np.uint16)
    write_radiograph(root / "chest.dcm", dark, kind="CR", bits=12, PhotometricInterpretation="MONOCHROME1")
    return paths | {"PNG": root / "chest.png", "PNG 16": root / "chest16.png", "MONOCHROME1": root / "chest.dcm"}


CT_ROUTES = ["DICOM series", "zip", *NIFTI_GRIDS]
CXR_ROUTES = ["PNG", "PNG 16", "MONOCHROME1"]


def saved(path: Path, out: Path) -> tuple[Findings, list[Path]]:
    """Ask, save, and give the mask files in the order of the queries, as findings.json names them."""
    findings = Pipeline(Brightness()).ask(path, QUERIES)
    findings.save(out)
    document = json.loads((out / "findings.json").read_text())
    return findings, [out / item["mask"] for item in document["findings"]]


def is_orange(rgb: np.ndarray, tolerance: int = 40) -> np.ndarray:
    return np.abs(rgb[..., :3].astype(int) - MASK_RGB).max(axis=-1) <= tolerance


def centre(where: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is marked, as shares of the picture."""
    assert where.any()
    return (np.argwhere(where).mean(axis=0) + 0.5) / where.shape


def panels(findings: Findings, path: Path) -> list[np.ndarray]:
    """The views of an overlay picture, cut out of it."""
    rgb = np.asarray(Image.open(path).convert("RGB"))
    views = overlay_views(findings[0])
    sizes = [panel_size(view, views) for view in views]
    height = max(h for _, h in sizes)
    x = (rgb.shape[1] - sum(w for w, _ in sizes) - MARGIN_PX * (len(sizes) + 1)) // 2 + MARGIN_PX
    cut = []
    for width, tall in sizes:
        top = MARGIN_PX + (height - tall) // 2
        cut.append(rgb[top : top + tall, x : x + width])
        x += width + MARGIN_PX
    return cut


def page_layers(out: Path, number: int = 0) -> dict[str, Any]:
    """What the page holds for one query."""
    page = (out / "index.html").read_text()
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])["queries"][number]


def layer_mask(uri: str) -> np.ndarray:
    """Where a layer of the page is coloured."""
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))
    return is_orange(rgba, 0) & (rgba[..., 3] > 0)


def assert_radiological(axial: np.ndarray, coronal: np.ndarray, sagittal: np.ndarray) -> None:
    """Left of the patient on the right of the picture, front or head on top; of a sagittal view, front on the left."""
    assert centre(axial)[0] < 0.4
    assert centre(axial)[1] > 0.6
    assert centre(coronal)[0] > 0.6
    assert centre(coronal)[1] > 0.6
    assert centre(sagittal)[0] > 0.6
    assert centre(sagittal)[1] < 0.4


def corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World places of the eight corner voxels, sorted."""
    index = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return np.array(sorted(np.round(nib.affines.apply_affine(affine, index), 2).tolist()))


@pytest.mark.parametrize("route", CT_ROUTES)
def test_ct_mask_lies_on_the_lesion(inputs: dict[str, Path], tmp_path: Path, route: str) -> None:
    findings, (mask_path, negated_path) = saved(inputs[route], tmp_path / "out")
    mask = nib.load(mask_path)
    data = np.asarray(mask.dataobj)
    assert set(np.unique(data)) == {0, 1}
    world = nib.affines.apply_affine(mask.affine, np.argwhere(data))
    assert (np.abs(world.mean(axis=0) - LESION_MM) <= HALF_PATCH_MM).all()
    assert (world[:, 0] < 0).all()  # the patient's left
    volume_ml = float(data.sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000)
    assert 0.5 < volume_ml / (4 / 3 * np.pi * RADIUS_MM**3 / 1000) < 2
    assert findings[0].volume_ml == pytest.approx(volume_ml, rel=1e-5)
    assert np.linalg.norm(np.array(findings[0].peak.world_mm) - LESION_MM) < RADIUS_MM  # type: ignore[union-attr]
    assert not np.asarray(nib.load(negated_path).dataobj).any()
    if route in NIFTI_GRIDS:
        source = nib.load(inputs[route])
        assert mask.shape == source.shape
        assert np.array_equal(mask.affine, source.affine)
        for form in ("get_qform", "get_sform"):
            (got, got_code), (wanted, code) = (getattr(i, form)(coded=True) for i in (mask, source))
            assert got_code == code
            assert np.array_equal(got, wanted)
    else:
        assert sorted(mask.shape) == sorted(SERIES_SHAPE)
        np.testing.assert_allclose(corners(mask.affine, mask.shape), corners(SERIES, SERIES_SHAPE), atol=0.02)


@pytest.mark.parametrize("route", CT_ROUTES)
def test_ct_pictures_show_the_lesion_on_its_side(inputs: dict[str, Path], tmp_path: Path, route: str) -> None:
    findings, _ = saved(inputs[route], tmp_path / "out")
    overlay, plain = sorted((tmp_path / "out").glob("*_overlay.png"))
    assert_radiological(*[is_orange(panel) for panel in panels(findings, overlay)])
    assert not any(is_orange(panel, 3).any() for panel in panels(findings, plain))
    layers = page_layers(tmp_path / "out")
    stack = [layer_mask(uri) for uri in layers["stack"]["mask"] if uri]
    assert 1 < len(stack) < len(layers["stack"]["mask"])
    for plane in stack:
        assert_radiological(plane, *[layer_mask(p["mask"][0]) for p in layers["planes"]])
    marked = [k for k, uri in enumerate(layers["stack"]["mask"]) if uri]
    assert np.mean(marked) < (len(layers["stack"]["mask"]) - 1) / 2 + 4  # feet first, more slices near the mark
    assert not any(page_layers(tmp_path / "out", 1)["stack"]["mask"])


def test_all_routes_of_one_scan_give_one_answer(inputs: dict[str, Path]) -> None:
    """Folder and zip are the same scan; the NIfTI grids differ, the place in the patient does not."""
    answers = {route: Pipeline(Brightness()).ask(inputs[route], QUERIES)[0] for route in CT_ROUTES}
    assert np.array_equal(answers["DICOM series"].mask(), answers["zip"].mask())
    places = [finding.peak.world_mm for finding in answers.values() if finding.peak is not None]
    assert len(places) == len(CT_ROUTES)
    assert np.ptp(np.array(places), axis=0).max() < 2 * HALF_PATCH_MM[0]
    volumes = [float(finding.volume_ml or 0) for finding in answers.values()]
    assert max(volumes) < 1.3 * min(volumes)


@pytest.mark.parametrize("route", CXR_ROUTES)
def test_radiograph_mask_lies_on_the_lesion(inputs: dict[str, Path], tmp_path: Path, route: str) -> None:
    findings, (mask_path, negated_path) = saved(inputs[route], tmp_path / "out")
    mask = np.asarray(Image.open(mask_path))
    assert mask.shape == SIZE_PX
    assert set(np.unique(mask)) == {0, 255}
    place = np.argwhere(mask)
    assert (np.abs(place.mean(axis=0) - LESION_PX) <= HALF_PATCH_PX).all()
    assert 0.5 < len(place) / (np.pi * RADIUS_PX**2) < 2
    assert findings[0].area_px == len(place)
    assert not np.asarray(Image.open(negated_path)).any()
    wanted = (np.array(LESION_PX) + 0.5) / SIZE_PX
    overlay = sorted((tmp_path / "out").glob("*_overlay.png"))[0]
    (panel,) = panels(findings, overlay)
    np.testing.assert_allclose(centre(is_orange(panel)), wanted, atol=0.05)
    np.testing.assert_allclose(centre(layer_mask(page_layers(tmp_path / "out")["stack"]["mask"][0])), wanted, atol=0.05)
    first = re.search(r'<img class="layer mask" alt="" src="([^"]+)"', (tmp_path / "out" / "index.html").read_text())
    assert first is not None
    np.testing.assert_allclose(centre(layer_mask(first[1])), wanted, atol=0.05)


def test_a_mirrored_radiograph_has_a_mirrored_mask(inputs: dict[str, Path], tmp_path: Path) -> None:
    shown = np.asarray(Image.open(inputs["PNG"]))
    Image.fromarray(np.ascontiguousarray(shown[:, ::-1])).save(tmp_path / "mirrored.png")
    ask = Pipeline(Brightness()).ask
    original, mirrored = (ask(path, QUERIES)[0].mask() for path in (inputs["PNG"], tmp_path / "mirrored.png"))
    assert (mirrored != original[:, ::-1]).mean() < 0.002
    assert np.argwhere(mirrored)[:, 1].max() < SIZE_PX[1] / 2 < np.argwhere(original)[:, 1].min()


# The command line, with a tiny GLINT checkpoint by its path.


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that is sure of "nodule" and marks a good part of every image."""
    line = LogisticMap(slope=0.1, bias=4.0)
    entry = ModalityCalibration(presence={"nodule": line}, presence_default=line, pixel=LogisticMap(slope=1, bias=2))
    calibration = Calibration(modalities={"CXR": entry, "CT": entry}, scope_threshold=0.999, origin="made up")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(
        folder, tiny_model(), prompts={"nodule": ["nodule"]}, calibration=calibration, provenance=PROVENANCE
    )
    return folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RADGLINT_DEBUG", raising=False)
    monkeypatch.setenv("RADGLINT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pipeline, "trunk_dtype", lambda device: torch.float32)


def ask_args(image: Path, model: Path, *more: str) -> list[str]:
    return ["ask", str(image), "nodule", "no nodule", "--model", str(model), "--device", "cpu", *more]


IMAGE_KEYS = {"path", "modality", "shape", "spacing_mm", "orientation", "value_unit", "steps"}
FINDING_KEYS = {"query", "assertion", "score", "probability", "present", "peak", "boxes", "mask", "threshold", "note"}


@pytest.mark.parametrize("route", ["DICOM series", "zip", "oblique PSR", "PNG", "MONOCHROME1"])
def test_ask_writes_files_and_one_json_document(
    inputs: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], route: str
) -> None:
    out = tmp_path / "answers"
    assert cli.main(ask_args(inputs[route], tiny_folder, "--out", str(out), "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(document) == {"image", "model", "findings", "warnings"}
    assert set(document["image"]) == IMAGE_KEYS
    assert set(document["model"]) == {"name", "fingerprint"}
    is_ct = route not in CXR_ROUTES
    assert document["image"]["modality"] == ("CT" if is_ct else "CXR")
    assert document["image"]["path"] == str(inputs[route])
    suffix, size = ("mask.nii.gz", "volume_ml") if is_ct else ("mask.png", "area_px")
    nodule, negated = document["findings"]
    assert set(nodule) == set(negated) == FINDING_KEYS | {size}
    assert (nodule["assertion"], negated["assertion"]) == ("present", "absent")
    assert nodule["probability"] == negated["probability"] > 0.9
    assert nodule[size] > 0
    assert negated[size] == 0
    names = [f"01_nodule_{suffix}", "01_nodule_overlay.png", f"02_no_nodule_{suffix}", "02_no_nodule_overlay.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "findings.json", "index.html"])
    assert [Path(item["mask"]) for item in document["findings"]] == [out / names[0], out / names[2]]
    if is_ct:
        mask: Any = nib.load(out / names[0])
        shape, count = mask.shape[::-1], np.asarray(mask.dataobj).sum()
        measured = count * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    else:
        pixels = np.asarray(Image.open(out / names[0]))
        shape, measured = pixels.shape, (pixels == 255).sum()
    assert list(shape) == document["image"]["shape"]
    assert measured == pytest.approx(nodule[size], rel=1e-4)


def test_table_and_json_tell_the_same(
    inputs: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--threshold", "0.3")) == 0
    table = capsys.readouterr().out
    assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--threshold", "0.3", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["threshold"] for item in document["findings"]] == [0.3, 0.3]
    assert [item["mask"] for item in document["findings"]] == [None, None]
    for item in document["findings"]:
        line = next(row for row in table.splitlines() if row.startswith(f"{item['query']} "))
        assert f"{item['probability']:.2f}" in line
    assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--threshold", "0.999", "--json")) == 0
    assert not any(item["present"] for item in json.loads(capsys.readouterr().out)["findings"])


def test_bad_input_is_one_line_and_leaves_no_folder(
    inputs: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(inputs["RAS"].read_bytes()[:2000])
    assert cli.main(ask_args(cut, tiny_folder, "--out", str(tmp_path / "deep" / "out"))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "cut.nii.gz" in captured.err
    assert not (tmp_path / "deep").exists()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def full_after(real: Any, count: int) -> Any:
    """The real call `count` times, then a full disk."""
    left = iter(range(count))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(("name", "count"), [("write", 0), ("write", 3), ("write", 5), ("replace", 2), ("replace", 8)])
def test_full_disk_leaves_what_was_there(
    inputs: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, name: str, count: int
) -> None:
    """Into a new folder and over older answers: nothing half written, nothing lost, exit code 2."""
    out, fresh = tmp_path / "out", tmp_path / "fresh" / "deep"
    assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--out", str(out), "--threshold", "0.2")) == 0
    (out / "mine.txt").write_text("keep")
    before = tree(out)
    capsys.readouterr()
    for target in (out, fresh):
        with monkeypatch.context() as patch:
            if name == "write":
                patch.setattr(writing, "write_bytes", full_after(writing.write_bytes, count))
            else:
                patch.setattr(os, "replace", full_after(os.replace, count))
            assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--out", str(target), "--json")) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert "no space left" in captured.err.lower()
    assert tree(out) == before
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [(RuntimeError("boom"), 1, "internal error"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_our_own_fault_and_an_interrupt_leave_nothing(
    inputs: dict[str, Path], tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, failure: BaseException,
    code: int, words: str,
) -> None:  # fmt: skip
    def fail(finding: Finding) -> None:
        raise failure

    monkeypatch.setattr(render, "render_overlay", fail)
    assert cli.main(ask_args(inputs["PNG"], tiny_folder, "--out", str(tmp_path / "out"))) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
