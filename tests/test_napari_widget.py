"""The dock widget in a real napari viewer, drawn with OpenGL on an X server without a screen."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

import radglint
from findings_phantom import answer, collect, corner, ct_affine, ct_image, radiograph, upper_right
from radglint import registry
from radglint.finding import Finding
from radglint.napari_widget.layers import to_layer, to_native
from radglint.napari_widget.reader import read_layers
from radglint.pipeline import Pipeline
from tiny_models import write_tiny_checkpoint
from x_display import x_display

MANIFEST = Path(radglint.__file__).parent / "napari_widget" / "napari.yaml"
PATIENCE_S = 60
QUERIES = "nodule\nno effusion\n"

pytestmark = [
    # npe2 0.10 declares its models as pydantic 2 has deprecated it; the warnings come while it is imported.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]


@pytest.fixture(scope="module")
def napari_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Napari with settings of its own, on a display of its own, with radglint's manifest."""
    with pytest.MonkeyPatch.context() as patch, x_display() as display:
        patch.setenv("DISPLAY", display)
        patch.setenv("QT_QPA_PLATFORM", "xcb")
        patch.setenv("QT_API", "pyqt6")
        patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("napari") / "settings.yaml"))
        patch.setenv("RADGLINT_HOME", str(tmp_path_factory.mktemp("home")))
        write_tiny_checkpoint(Path(os.environ["RADGLINT_HOME"]) / "models" / "tiny")
        import napari
        from npe2 import PluginManager, PluginManifest

        manager = PluginManager.instance()
        manager.discover()
        if "radglint" not in manager:
            manager.register(PluginManifest.from_file(MANIFEST))
        yield napari


@pytest.fixture(scope="module")
def only_viewer(napari_module: Any) -> Iterator[Any]:
    viewer = napari_module.Viewer(show=False)
    yield viewer
    viewer.close()


@pytest.fixture
def viewer(only_viewer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The viewer, empty. An exception in a Qt slot, which would end the process, fails the test instead."""
    in_slots: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: in_slots.append(error))
    only_viewer.layers.clear()
    only_viewer.dims.ndisplay = 2
    only_viewer.dims.order = (0, 1, 2)[: only_viewer.dims.ndim]
    yield only_viewer
    if in_slots:
        raise in_slots[0]


@pytest.fixture(scope="module")
def docked(only_viewer: Any) -> Any:
    """The widget as a user docks it, from the plug-in's menu entry."""
    return only_viewer.window.add_plugin_dock_widget("radglint", "Ask a chest image")[1]


@pytest.fixture
def widget(docked: Any, viewer: Any) -> Iterator[Any]:
    docked.model_box.setCurrentText("tiny")
    docked.status.setText("")
    yield docked
    wait_for(lambda: not docked.running)


@pytest.fixture(scope="module")
def pipeline(napari_module: Any) -> Pipeline:
    return radglint.load("tiny")


def wait_for(done: Callable[[], bool]) -> None:
    """Let Qt work until something is so."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end, "the widget did not finish in time"
        QApplication.processEvents()
        time.sleep(0.002)
    QApplication.processEvents()


def ask(widget: Any, text: str = QUERIES) -> None:
    widget.query_box.setPlainText(text)
    widget.ask_button.click()
    wait_for(lambda: not widget.running)


def write_ct(path: Path, affine: np.ndarray) -> Path:
    image = ct_image(affine)
    nib.Nifti1Image(image.array.transpose(2, 1, 0), image.nifti_affine).to_filename(path)
    return path


def show(widget: Any, viewer: Any, finding: Finding) -> Any:
    """An image layer and a finding whose place is known, as if it had been answered."""
    from radglint.napari_widget.layers import image_layer

    data, settings, _ = image_layer(finding.image)
    layer = viewer.add_image(data, **settings)
    widget._show_answer(layer, collect(finding), [finding.mask()])
    return layer


def world_of(layer: Any, index: tuple[int, ...]) -> np.ndarray:
    return np.array(layer.data_to_world(index))


AXIAL, CORONAL, SAGITTAL = (2, 1, 0), (1, 2, 0), (0, 2, 1)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("order", [AXIAL, CORONAL, SAGITTAL])
def test_a_file_opened_in_napari_and_its_mask_lie_where_the_patient_has_them(
    viewer: Any, widget: Any, tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """The phantom's finding is in the left, front, lower corner: world axes are head, back, left in mm."""
    path = write_ct(tmp_path / "ct.nii.gz", ct_affine(order, signs))
    [layer] = viewer.open(path, plugin="radglint")
    image = layer.metadata["radglint_image"]
    finding = answer(image, corner(image))
    widget._show_answer(layer, collect(finding), [finding.mask()])
    [mask] = widget.masks
    marked = np.argwhere(mask.data)
    assert len(marked) == corner(image).sum() > 0
    for index in (tuple(marked[0]), tuple(marked[-1])):
        head, back, left = world_of(mask, index)
        assert head < -9
        assert back < -9
        assert left > 9
        np.testing.assert_array_equal(world_of(mask, index), world_of(layer, index))
    np.testing.assert_array_equal(layer.data, to_layer(image.array, image))
    assert [str(unit) for unit in mask.units] == ["millimeter"] * 3


@pytest.mark.parametrize("order", [AXIAL, CORONAL, SAGITTAL])
@pytest.mark.parametrize("ndisplay", [2, 3])
def test_the_jump_brings_the_peak_into_view(viewer: Any, widget: Any, order: tuple[int, ...], ndisplay: int) -> None:
    image = ct_image(ct_affine(order, (-1, 1, 1)))
    show(widget, viewer, answer(image, corner(image)))
    viewer.dims.ndisplay = ndisplay
    widget.jump_button.click()
    index = widget.findings[0].peak.index
    where = np.array(viewer.dims.point)
    where[list(viewer.dims.displayed)] = viewer.scene.camera.center[-ndisplay:]
    right, front, head = image.affine[:3] @ (*index, 1)
    np.testing.assert_allclose(where, (head, -front, -right), atol=1e-6)
    assert widget.masks[0].get_value(where, world=True) == 1 or ndisplay == 3


def test_asking_runs_in_another_thread_and_gives_what_the_pipeline_gives(
    viewer: Any, widget: Any, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    plain_ask = widget.desk.ask

    def watched(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return plain_ask(*args)

    monkeypatch.setattr(widget.desk, "ask", watched)
    path = write_ct(tmp_path / "ct.nii.gz", ct_affine(CORONAL, (1, 1, -1)))
    widget.open(path)
    assert not viewer.layers
    wait_for(lambda: not widget.running)
    widget.query_box.setPlainText(QUERIES)
    widget.ask_button.click()
    assert len(viewer.layers) == 1
    assert not widget.ask_button.isEnabled()
    assert not widget.busy_bar.isHidden()
    wait_for(lambda: not widget.running)
    assert threads
    assert threads[0] is not threading.main_thread()
    expected = pipeline.ask(path, ["nodule", "no effusion"])
    assert [mask.name for mask in widget.masks] == [f"{f.query} ({f.probability:.2f})" for f in expected]
    for mask, finding in zip(widget.masks, expected, strict=True):
        np.testing.assert_array_equal(to_native(mask.data > 0, finding.image), finding.mask())
    cells = [[widget.table.item(row, column).text() for column in range(4)] for row in range(2)]
    assert cells == [[f.query, f"{f.probability:.2f}", f.verdict, f.remark] for f in expected]
    assert widget.ask_button.isEnabled()
    assert widget.busy_bar.isHidden()


def test_a_second_question_encodes_nothing_and_replaces_the_answers(
    viewer: Any, widget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.open(write_ct(tmp_path / "ct.nii.gz", ct_affine(AXIAL, (1, 1, 1))), plugin="radglint")
    ask(widget)
    first = list(widget.masks)
    monkeypatch.setattr(Pipeline, "encode_image", lambda *_, **__: pytest.fail("encoded again"))
    ask(widget, "mass")
    assert len(widget.masks) == 1
    assert widget.table.rowCount() == 1
    assert not any(mask in viewer.layers for mask in first)


def test_the_threshold_marks_anew_and_can_be_taken_back(viewer: Any, widget: Any) -> None:
    image = ct_image(ct_affine(SAGITTAL, (1, -1, 1)))
    finding = answer(image, corner(image), threshold=0.5, probability=0.95)
    logits = np.random.default_rng(0).normal(0, 2, image.shape).astype(np.float32)
    finding = answer(image, corner(image), threshold=0.5, probability=0.95)
    finding.token_logits[...] = logits
    show(widget, viewer, finding)
    assert widget.slider.value() == 500
    for position in (200, 900):
        widget.slider.setValue(position)
        wait_for(lambda: not widget._settle.isActive() and not widget.running)
        np.testing.assert_array_equal(widget.masks[0].data > 0, to_layer(finding.mask(position / 1000), image))
    widget.slider.setValue(990)  # above the finding's own probability
    wait_for(lambda: not widget._settle.isActive() and not widget.running)
    assert not widget.masks[0].data.any()
    widget.reset_button.click()
    wait_for(lambda: not widget.running)
    assert widget.slider.value() == 500
    np.testing.assert_array_equal(widget.masks[0].data > 0, to_layer(finding.mask(), image))


def test_what_was_negated_or_is_out_of_scope_has_no_threshold_and_no_peak(viewer: Any, widget: Any) -> None:
    image = radiograph()
    for finding in (
        answer(image, upper_right(image), "no nodule"),
        answer(image, upper_right(image), in_scope=False, note="not a chest finding"),
    ):
        show(widget, viewer, finding)
        assert not widget.slider.isEnabled()
        assert not widget.jump_button.isEnabled()
        assert not widget.masks[0].data.any()
    assert widget.table.item(0, 3).text() == "not a chest finding"
    assert widget.remark.text() == "nodule: not asked; not a chest finding"


def test_strokes_of_the_brush_are_saved_in_the_geometry_of_the_file(viewer: Any, widget: Any, tmp_path: Path) -> None:
    path = write_ct(tmp_path / "ct.nii.gz", ct_affine(CORONAL, (-1, 1, 1), tilt_deg=0.0))
    [layer] = viewer.open(path, plugin="radglint")
    image = layer.metadata["radglint_image"]
    finding = answer(image, corner(image))
    widget._show_answer(layer, collect(finding), [finding.mask()])
    native = (9, 11, 13)
    stroke = to_layer(np.arange(image.array.size).reshape(image.shape), image)
    [voxel] = np.argwhere(stroke == np.ravel_multi_index(native, image.shape))
    widget.masks[0].data_setitem(tuple(voxel[:, None]), 1)
    widget.save(tmp_path / "out")
    wait_for(lambda: not widget.running)
    saved, source = nib.load(tmp_path / "out" / "01_nodule_mask.nii.gz"), nib.load(path)
    expected = finding.mask()
    assert not expected[native]
    expected[native] = True
    np.testing.assert_array_equal(np.asarray(saved.dataobj).transpose(2, 1, 0) > 0, expected)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(saved.affine, source.affine)  # type: ignore[attr-defined]
    assert widget.status.text() == f"1 mask in {tmp_path / 'out'}"


def test_a_picture_that_napari_opened_itself_is_asked_too(
    viewer: Any, widget: Any, pipeline: Pipeline, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (80, 60), dtype=np.uint8)
    path = tmp_path / "chest.png"
    Picture.fromarray(pixels).save(path)
    [layer] = viewer.open(path, plugin="napari")
    layer.scale = (0.5, 0.5)  # the mask follows
    ask(widget, "nodule")
    np.testing.assert_array_equal(widget.masks[0].data > 0, pipeline.ask(path, ["nodule"])[0].mask())
    np.testing.assert_array_equal(widget.masks[0].scale, layer.scale)


@pytest.mark.parametrize("turned", [True, False])
def test_what_is_not_known_is_not_guessed(viewer: Any, widget: Any, tmp_path: Path, turned: bool) -> None:
    """An array without a file, and a picture whose orientation tag napari's reader leaves out."""
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)
    if turned:
        path, exif = tmp_path / "turned.jpg", Picture.Exif()
        exif[0x0112] = 3
        Picture.fromarray(pixels).save(path, exif=exif)
        viewer.open(path, plugin="napari")
    else:
        viewer.add_image(pixels.astype(np.float32), name="noise")
    ask(widget)
    assert len(viewer.layers) == 1
    assert ("does not show the file" if turned else "HU and geometry are not known") in widget.status.text()


def test_refusals_are_said_in_the_status_line(viewer: Any, widget: Any, tmp_path: Path) -> None:
    ask(widget)
    assert widget.status.text() == "no image: open one first"
    (tmp_path / "text.nii").write_text("no image at all")
    widget.open(tmp_path / "text.nii")
    wait_for(lambda: not widget.running)
    assert "text.nii" in widget.status.text()
    assert not viewer.layers
    viewer.open(write_ct(tmp_path / "ct.nii.gz", ct_affine(AXIAL, (1, 1, 1))), plugin="radglint")
    ask(widget, "  \n")
    assert "no query given" in widget.status.text()
    widget.model_box.setCurrentText("no-such-model")
    ask(widget)
    assert "no-such-model" in widget.status.text()
    assert widget.ask_button.isEnabled()


def test_a_defect_is_said_and_shown_by_napari(viewer: Any, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised in the thread of the user interface, where napari's hook takes it up."""
    shown: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: shown.append(error))
    monkeypatch.setattr(widget.desk, "ask_layer", lambda *_: 1 / 0)
    viewer.add_image(np.zeros((40, 40)))
    ask(widget)
    assert "internal error: ZeroDivisionError" in widget.status.text()
    assert [type(error) for error in shown] == [ZeroDivisionError]
    assert widget.ask_button.isEnabled()


def test_layers_that_are_removed_are_not_asked_shown_or_saved(viewer: Any, widget: Any, tmp_path: Path) -> None:
    image = radiograph()
    layer = show(widget, viewer, answer(image, upper_right(image)))
    assert widget.layer_box.currentData() is layer
    assert widget.save_button.isEnabled()
    viewer.layers.remove(widget.masks[0])
    assert not widget.save_button.isEnabled()
    assert not widget.jump_button.isEnabled()
    viewer.layers.remove(layer)
    assert widget.layer_box.count() == 0
    ask(widget)
    assert widget.status.text() == "no image: open one first"


def test_an_answer_that_comes_after_closing_is_dropped(viewer: Any, tmp_path: Path) -> None:
    from radglint.napari_widget.widget import AskWidget

    widget = AskWidget(viewer)
    widget.model_box.setCurrentText("tiny")
    viewer.open(write_ct(tmp_path / "ct.nii.gz", ct_affine(AXIAL, (1, 1, 1))), plugin="radglint")
    widget.query_box.setPlainText(QUERIES)
    widget.ask()
    widget.close()
    wait_for(lambda: not widget.running)
    assert len(viewer.layers) == 1
    assert not widget.masks


def test_the_shipped_model_marks_a_real_radiograph(viewer: Any, widget: Any, shared_data: Path) -> None:
    path = sorted((shared_data / "nih_cxr" / "images512").iterdir())[0]
    [(data, settings, _)] = read_layers(str(path))
    viewer.add_image(data, **settings)
    assert "nano" in [model.name for model in registry.list_models()]
    widget.model_box.setCurrentText("nano")
    ask(widget, "heart\npleural effusion")
    expected = radglint.load("nano").ask(path, ["heart", "pleural effusion"])
    for mask, finding in zip(widget.masks, expected, strict=True):
        np.testing.assert_array_equal(mask.data > 0, finding.mask())
        assert mask.data.shape == data.shape


@pytest.fixture
def drawn(viewer: Any) -> Any:
    """The viewer with a small window open: what is not shown is not drawn."""
    viewer.window.resize(700, 500)
    viewer.show()
    return viewer


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")  # napari's own notice, which is right
@pytest.mark.parametrize("tilt_deg", [0.0, 20.0, -33.0])
def test_the_picture_shows_the_mask_at_the_peak(drawn: Any, widget: Any, tilt_deg: float) -> None:
    """What is drawn in the middle is orange after the jump, and grey once the mask is hidden."""
    image = ct_image(ct_affine(SAGITTAL, (1, -1, 1), tilt_deg))
    finding = answer(image, corner(image))
    show(widget, drawn, finding)
    assert ("tilted" in widget.status.text()) == (tilt_deg != 0)
    drawn.dims.order = (1, 0, 2)  # a view of the coronal slices, which a turn about the long axis tilts
    widget.jump_button.click()
    widget.masks[0].opacity = 1
    middle = [colour_in_the_middle(drawn)]
    widget.masks[0].visible = False
    middle.append(colour_in_the_middle(drawn))
    assert np.abs(middle[0] - (255, 159, 28)).max() <= 3
    assert np.ptp(middle[1]) <= 3


def test_slices_stand_upright_in_every_view(drawn: Any, widget: Any) -> None:
    """The finding is left, front and low: on the right of the picture; at the top in axial, at the bottom else."""
    image = ct_image(ct_affine(CORONAL, (1, 1, 1)))
    show(widget, drawn, answer(image, corner(image)))
    widget.masks[0].opacity = 1
    widget.jump_button.click()
    drawn.reset_view()
    assert marked_at(drawn) == ("top", "right")
    drawn.dims.order = (1, 0, 2)
    widget.jump_button.click()
    drawn.reset_view()
    assert marked_at(drawn) == ("bottom", "right")
    drawn.dims.order = (2, 0, 1)  # sagittal, the front on the left
    widget.jump_button.click()
    drawn.reset_view()
    assert marked_at(drawn) == ("bottom", "left")


def marked_at(drawn: Any) -> tuple[str, str]:
    """Where in the canvas the orange pixels are."""
    picture = drawn.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    rows, columns = np.nonzero(np.abs(picture - (255, 159, 28)).max(axis=2) <= 3)
    height, width = picture.shape[:2]
    return "top" if rows.mean() < height / 2 else "bottom", "left" if columns.mean() < width / 2 else "right"


def colour_in_the_middle(drawn: Any) -> np.ndarray:
    picture = drawn.screenshot(canvas_only=True, flash=False)
    return picture[picture.shape[0] // 2, picture.shape[1] // 2, :3].astype(int)
