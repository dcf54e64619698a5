"""`radglint calibrate`: from scores in memory, and whole runs of a tiny model on images that the test writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import radglint
from radglint import cli
from radglint.calibrate import Source, Wishes, calibrate_class, calibrate_scores, concepts_of_labels, labels_of
from radglint.calibrate_answers import side_file
from radglint.calibrate_run import calibrate
from radglint.calibration_fit import ClassCases
from radglint.checkpoint import Calibration, ModalityCalibration, load_checkpoint, save_checkpoint
from radglint.decisions import Abstention, Rate, Threshold
from radglint.errors import InputError, OutputError
from radglint.manifest import ManifestRow, write_manifest
from radglint.pipeline import GlintAnswerer, level_of
from radglint.score_maps import KnotMap, LogisticMap, probability
from tiny_models import PROVENANCE, tiny_calibration, tiny_model, write_tiny_checkpoint

COUNT = 48
LINE = LogisticMap(slope=5.0, bias=-1.0)
SOURCE = Source("cases.jsonl", "0" * 64, "val", "tiny", "0123456789ab", "cpu, float32", 80)
RATE = Rate(share=0.9, low=0.8, high=0.95, num_patients=60)
THRESHOLD = Threshold(probability=0.2, goal="sensitivity", wanted=0.8, sensitivity=RATE, specificity=RATE)
ABSTENTION = Abstention(alpha=0.1, present_from=0.3, absent_to=0.7, num_present=50, num_absent=50)


def cases(count: int = 80, seed: int = 0) -> ClassCases:
    rng = np.random.default_rng(seed)
    present = np.arange(count) % 2 == 0
    return ClassCases.of(rng.normal(0.3, 0.1, count) + 0.2 * present, present.tolist())


def entry(**changes: Any) -> ModalityCalibration:
    return ModalityCalibration(presence={"nodule": LINE, "mass": LINE}, presence_default=LINE, pixel=LINE, **changes)


# --- from scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature", "auto"])
def test_a_class_is_fitted_and_better_on_other_patients(method: str) -> None:
    part = cases(400)
    result = calibrate_class(part, LogisticMap(slope=2.0, bias=-4.0), Wishes(method))  # type: ignore[arg-type]
    record = result.record
    assert record.method == (method if method != "auto" else "platt")
    assert (record.num_present, record.num_absent, record.patients_present) == (200, 200, 200)
    assert record.before is not None
    assert record.after is not None
    assert record.after.log_loss < record.before.log_loss
    assert record.after.auroc == record.before.auroc
    assert record.auroc_interval is not None
    assert record.auroc_interval[0] < (record.before.auroc or 0) < record.auroc_interval[1]
    assert result.threshold is None
    assert result.abstention is None


def test_thresholds_and_sets_hold_on_the_cases_that_they_were_chosen_on() -> None:
    part = cases(160)
    result = calibrate_class(part, LINE, Wishes(sensitivity=0.9, alpha=0.1))
    assert result.to_logit is not None
    assert result.threshold is not None
    assert result.abstention is not None
    p = np.array([probability(score, result.to_logit) for score in part.scores])
    sensitivity = (p[part.present] >= result.threshold.probability).mean()
    assert sensitivity == pytest.approx(result.threshold.sensitivity.share)
    assert sensitivity > 0.9  # promised, so above what is wanted
    assert result.threshold.sensitivity.low <= 0.9 <= result.threshold.sensitivity.high or sensitivity > 0.95
    assert result.threshold.specificity.share == (p[~part.present] < result.threshold.probability).mean()
    assert (p[part.present] >= result.abstention.present_from).mean() >= 0.9
    assert (p[~part.present] <= result.abstention.absent_to).mean() >= 0.9
    assert result.record.abstained is not None
    assert 0 < result.record.abstained < 1


def test_a_stated_prevalence_moves_probabilities_and_no_decision() -> None:
    part, wishes = cases(160), Wishes(specificity=0.8, alpha=0.2)
    plain, rare = calibrate_class(part, LINE, wishes), calibrate_class(part, LINE, wishes, stated=0.02)
    assert plain.to_logit is not None
    assert rare.to_logit is not None
    assert rare.to_logit.logit(0.4) - plain.to_logit.logit(0.4) == pytest.approx(np.log(0.02 / 0.98))
    assert rare.record.stated_prevalence == 0.02
    assert rare.record.after == plain.record.after
    for result in (plain, rare):
        assert result.threshold is not None
    said = [
        [probability(s, r.to_logit) >= r.threshold.probability for s in part.scores]  # type: ignore[arg-type, union-attr]
        for r in (plain, rare)
    ]
    assert said[0] == said[1]
    assert rare.record.abstained == plain.record.abstained


def test_too_few_cases_keep_the_map_and_say_so() -> None:
    maps = entry(thresholds={"mass": THRESHOLD})
    few = ClassCases.of([0.1, 0.2, 0.9, 0.8], [False, False, True, True], ["a", "b", "c", "d"])
    new = calibrate_scores({"nodule": cases(), "mass": few}, maps, Wishes(), SOURCE, {"mass": 3})
    assert new.presence["mass"] == LINE
    assert new.presence["nodule"] != LINE
    assert new.thresholds == {"mass": THRESHOLD}  # nothing about it has changed
    assert new.local is not None
    record = new.local.classes["mass"]
    assert record.method == "unchanged"
    assert "2 patients with and 2 without the finding, 10 of each are needed" in record.note
    assert record.num_uncertain == 3


def test_a_new_map_takes_the_old_threshold_and_sets_away() -> None:
    maps = entry(thresholds={"nodule": THRESHOLD, "mass": THRESHOLD}, abstention={"nodule": ABSTENTION})
    new = calibrate_scores({"nodule": cases()}, maps, Wishes(), SOURCE)
    assert new.thresholds == {"mass": THRESHOLD}
    assert new.abstention == {}


def test_a_promise_that_one_class_can_keep_leaves_a_note_at_the_other() -> None:
    parts = {"nodule": cases(80), "mass": cases(24)}
    new = calibrate_scores(parts, entry(), Wishes(sensitivity=0.9, alpha=0.1), SOURCE)
    assert set(new.thresholds) == {"nodule"}
    assert set(new.abstention) == {"nodule", "mass"}
    assert new.local is not None
    assert "29 patients with the finding are needed, there are 12" in new.local.classes["mass"].note


@pytest.mark.parametrize(
    ("parts", "wishes", "words"),
    [
        ({}, Wishes(), "got none"),
        ({"femur": cases()}, Wishes(), "got femur"),
        ({"nodule": cases(10)}, Wishes(), "no class can be calibrated"),
        ({"nodule": cases(80)}, Wishes(sensitivity=0.99), "enough cases for sensitivity 0.99.*299 patients"),
        ({"nodule": cases(80)}, Wishes(alpha=0.01), "no class has enough cases for alpha 0.01.*99 patients"),
        ({"nodule": ClassCases.of(-cases().scores, cases().present.tolist())}, Wishes(), "do not rise"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(parts: dict, wishes: Wishes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibrate_scores(parts, entry(), wishes, SOURCE)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"method": "magic"}, "expected auto, platt"),
        ({"sensitivity": 1.0}, "sensitivity: expected a share"),
        ({"alpha": 0.6}, "alpha: expected a share above 0 and below 0.5"),
        ({"sensitivity": 0.9, "specificity": 0.9}, "give one of them"),
        ({"prevalence": {"nodule": 0.0}}, "prevalence nodule: expected"),
        ({"prevalence": {"": 0.1}, "method": "temperature"}, "keeps the prior"),
    ],
)
def test_wishes_that_cannot_be_met(wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Wishes(**wishes)


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_are_taken_as_they_are() -> None:
    row = ManifestRow("1", "a.png", "CXR", labels={"nodule": "uncertain", "mass": "absent"})
    assert labels_of(row) == {"nodule": "uncertain", "mass": "absent"}
    assert labels_of(ManifestRow("1", "a.png", "CXR")) == {}


def test_a_simulated_case_has_the_labels_of_its_facts() -> None:
    facts = [{"concept": "pneumothorax", "side": "left", "zone": None, "size": "small", "mask": 0}]
    labels = labels_of(ManifestRow("1", "a.png", "CXR", extra={"facts": facts, "doubted": ["nodule", "pneumothorax"]}))
    assert labels["pneumothorax"] == "present"
    assert labels["nodule"] == "uncertain"
    assert labels["pleural effusion"] == labels["cardiomegaly"] == "absent"


def test_labels_find_their_concept_by_name_or_prompt_only() -> None:
    prompts = {"mass": ["lung mass", "tumour"], "nodule": ["pulmonary nodule"], "outside": ["femur fracture"]}
    taken, left = concepts_of_labels(["mass", "tumour", "pulmonary nodule", "femur fracture", "xyz"], entry(), prompts)
    assert taken == {"mass": "mass", "nodule": "pulmonary nodule"}
    assert left["tumour"].startswith("one of several labels for 'mass'")
    assert left["xyz"] == left["femur fracture"] == "the model does not answer it"
    assert concepts_of_labels(["tumour", "lung mass"], entry(), prompts)[0] == {}  # which of them is not for us to say


# --- in the checkpoint and in answers -----------------------------------------------------------------------------


def test_a_checkpoint_without_local_calibration_is_written_as_ever() -> None:
    document = tiny_calibration().model_dump(mode="json")
    assert set(document["modalities"]["CXR"]) == {
        "presence", "presence_default", "pixel", "pixel_by_concept", "in_lungs", "density"
    }  # fmt: skip


def test_a_local_calibration_comes_back_from_json() -> None:
    knots = KnotMap(scores=(0.1, 0.2), logits=(-1.0, 1.0), outer_slope=0.1)
    maps = calibrate_scores({"nodule": cases(160)}, entry(), Wishes("isotonic", sensitivity=0.9, alpha=0.1), SOURCE)
    maps = maps.model_copy(update={"presence": maps.presence | {"mass": knots}})
    calibration = Calibration(modalities={"CXR": maps}, scope_threshold=0.1, origin="here")
    assert Calibration.model_validate(json.loads(json.dumps(calibration.model_dump(mode="json")))) == calibration


def test_the_users_threshold_wins_then_the_stored_one_then_one_half() -> None:
    maps = entry(thresholds={"nodule": THRESHOLD}, abstention={"nodule": ABSTENTION, "mass": ABSTENTION})
    stored = level_of(maps, "nodule", None)
    assert (stored.presence, stored.mask, stored.abstention) == (0.2, 0.5, ABSTENTION)
    assert stored.source == "calibrated for sensitivity 0.8"
    given = level_of(maps, "nodule", 0.4)
    assert (given.presence, given.mask, given.abstention) == (0.4, 0.4, None)
    assert given.source == "given, in place of 0.2 (calibrated for sensitivity 0.8)"
    assert level_of(maps, "mass", None).presence == 0.5
    assert level_of(maps, "effusion", None) == level_of(entry(), "nodule", 0.5)
    assert level_of(maps, "effusion", None).source == ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", modalities=("CXR",), quantize="int8_trunk")


@pytest.fixture(scope="module")
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder of small pictures, and what the model scores each for a nodule."""
    folder = tmp_path_factory.mktemp("images")
    pipe, scores, rng = radglint.load(model, device="cpu"), [], np.random.default_rng(0)
    for k in range(COUNT):
        steps = rng.integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(np.kron(steps, np.ones((16, 16), np.uint8))).save(folder / f"{k}.png")
        scores.append(pipe.ask(folder / f"{k}.png", ["nodule"])[0].score)
    return folder, np.array(scores)


@pytest.fixture
def manifest(scored: tuple[Path, np.ndarray]) -> Path:
    """Rows whose labels go with the scores, with every sixth turned round; one uncertain, some of no use."""
    folder, scores = scored
    there = (scores > np.median(scores)) ^ (np.arange(COUNT) % 6 == 0)
    rows = [
        ManifestRow(f"case {k}", f"{k}.png", "CXR", patient=f"p{k}", split="val",
                    labels={"nodule": "present" if there[k] else "absent", "bone age": "absent"})
        for k in range(COUNT - 1)
    ]  # fmt: skip
    rows += [ManifestRow("doubt", f"{COUNT - 1}.png", "CXR", patient="q", split="val", labels={"nodule": "uncertain"})]
    nodule = {"nodule": "absent"}
    rows += [ManifestRow("side", "0.png", "CXR", patient="p0", split="val", view="LATERAL", labels=nodule)]
    rows += [ManifestRow("other", "1.png", "CXR", patient="t", split="test", labels={"nodule": "present"})]
    return write_manifest(folder / "cases.jsonl", rows)


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are encoded."""
    seen: list[str] = []
    original = GlintAnswerer.encode

    def watch(self: GlintAnswerer, image: Any) -> Any:
        seen.append(Path(image.path).name)
        return original(self, image)

    monkeypatch.setattr(GlintAnswerer, "encode", watch)
    return seen


def test_a_whole_run(model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = tmp_path / "here", files(model)
    options = ["--sensitivity", "0.8", "--alpha", "0.2", "--device", "cpu"]
    assert cli.main(["calibrate", str(model), str(manifest), "--out", str(out), *options]) == 0
    printed = capsys.readouterr()
    assert files(model) == before
    assert files(out)["model.safetensors"] == before["model.safetensors"]
    assert "nodule" in printed.out
    assert "->" in printed.out
    assert "bone age" in printed.err
    assert "1 images left out: lateral" in printed.err
    loaded = load_checkpoint(out)
    maps = loaded.calibration.modalities["CXR"]
    assert loaded.name == "tiny-calibrated"
    assert loaded.fingerprint != load_checkpoint(model).fingerprint
    assert maps.local is not None
    assert maps.local.manifest_sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert (maps.local.manifest, maps.local.split, maps.local.num_images) == ("cases.jsonl", "val", COUNT)
    assert (maps.local.base_name, maps.local.base_fingerprint) == ("tiny", load_checkpoint(model).fingerprint)
    record = maps.local.classes["nodule"]
    assert record.num_present + record.num_absent == COUNT - 1
    assert record.num_uncertain == 1
    assert "cases.jsonl" in loaded.calibration.origin
    card = (out / "README.md").read_text()
    assert record.method in card
    assert not any(f"p{k}" in path.read_text() for path in out.glob("*.json") for k in (10, 21))  # no patient is named


def test_answers_of_the_new_model_agree_in_every_output(model: Path, manifest: Path, tmp_path: Path) -> None:
    calibrate(model, manifest, tmp_path / "here", Wishes(sensitivity=0.8, alpha=0.1), device="cpu")
    pipe = radglint.load(tmp_path / "here", device="cpu")
    maps = load_checkpoint(tmp_path / "here").calibration.modalities["CXR"]
    said = set()
    for k in range(COUNT):
        findings = pipe.ask(manifest.parent / f"{k}.png", ["nodule", "no nodule"])
        finding, document = findings[0], findings.to_dict()["findings"][0]
        stored, sets = maps.thresholds["nodule"], maps.abstention["nodule"]
        assert finding.threshold == stored.probability
        assert finding.mask_level == 0.5
        assert finding.probability == probability(finding.score, maps.presence["nodule"])
        reached = finding.probability >= stored.probability
        wanted = {"present" if reached else "absent"}
        assert finding.decision == (next(iter(wanted)) if sets.kept(finding.probability) == wanted else "uncertain")
        assert finding.present == (finding.decision == "present")
        assert (document["decision"], document["threshold_source"]) == (finding.decision, finding.threshold_source)
        assert document["undecided"] == list(sets.undecided)
        assert "threshold" in findings.to_table().splitlines()[0]
        assert "calibrated for sensitivity 0.8" in findings.to_table()
        assert not findings[1].mask().any()
        if not reached:
            assert not finding.mask().any()
        said.add(finding.decision)
    assert said >= {"uncertain", "present"} or said >= {"uncertain", "absent"}
    plain = pipe.ask(manifest.parent / "0.png", ["nodule"], threshold=0.5)[0]
    assert plain.decision in ("present", "absent")
    assert plain.threshold_source.startswith("given, in place of")


def test_a_stopped_run_goes_on_where_it_was(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    out, watched = tmp_path / "here", GlintAnswerer.encode

    def stop(self: GlintAnswerer, image: Any) -> Any:
        if len(encoded) == 7:
            raise KeyboardInterrupt
        return watched(self, image)

    monkeypatch.setattr(GlintAnswerer, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, manifest, out, Wishes(), device="cpu")
    assert not out.exists()
    side = side_file(out)
    assert len(side.read_text().splitlines()) == 8
    with side.open("a") as file:
        file.write('{"id": "case 7", "image": "7.png", "sco')  # killed while writing
    monkeypatch.setattr(GlintAnswerer, "encode", watched)
    outcome = calibrate(model, manifest, out, Wishes(), device="cpu")
    assert encoded == [f"{k}.png" for k in range(COUNT)]  # each once
    whole = calibrate(model, manifest, tmp_path / "again", Wishes(), device="cpu")
    assert outcome.fingerprint != ""
    assert outcome.calibrations == whole.calibrations
    assert files(out)["calibration.json"] == files(tmp_path / "again")["calibration.json"]


def test_another_goal_asks_nothing_again(model: Path, manifest: Path, tmp_path: Path, encoded: list[str]) -> None:
    outcome = calibrate(model, manifest, tmp_path / "one", Wishes(), device="cpu")
    outcome.answers.rename(side_file(tmp_path / "two"))
    encoded.clear()
    calibrate(model, manifest, tmp_path / "two", Wishes("isotonic", alpha=0.2), device="cpu")
    assert not encoded
    maps = load_checkpoint(tmp_path / "two").calibration.modalities["CXR"]
    assert isinstance(maps.presence["nodule"], KnotMap)
    answers = radglint.load(tmp_path / "two", device="cpu").ask(manifest.parent / "3.png", ["nodule"])
    assert 0 < answers[0].probability < 1


def test_answers_of_another_model_are_not_mixed_in(model: Path, manifest: Path, tmp_path: Path) -> None:
    side = side_file(tmp_path / "here")
    side.write_text('{"format": "radglint-answers 1", "model": "0123", "device": "cpu, float32"}\n')
    with pytest.raises(InputError, match="holds answers of model 0123"):
        calibrate(model, manifest, tmp_path / "here", Wishes(), device="cpu")
    for text in ("mine\n", '{"format": "other"}\n', "[]\n"):
        side.write_text(text)
        with pytest.raises(InputError, match=r"line 1: expected an answer of `radglint calibrate`"):
            calibrate(model, manifest, tmp_path / "here", Wishes(), device="cpu")
        assert side.read_text() == text


def test_an_unreadable_image_is_left_out_and_said(model: Path, manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[3]["image"] = "gone.png"
    broken = manifest.with_name("broken.jsonl")
    broken.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = calibrate(model, broken, tmp_path / "here", Wishes(), device="cpu")
    assert any("1 of 48 images could not be read" in remark and "gone.png" in remark for remark in outcome.remarks)
    local = outcome.calibrations["CXR"].local
    assert local is not None
    assert (local.num_images, local.num_unreadable) == (COUNT - 1, 1)


def bad_split(folder: Path, manifest: Path) -> list[str]:
    return [str(manifest), "--split", "train"]


def only_ct(folder: Path, manifest: Path) -> list[str]:
    rows = [ManifestRow("1", "a.nii.gz", "CT", split="val", labels={"nodule": "present"})]
    return [str(write_manifest(folder / "ct.jsonl", rows))]


def unknown_labels(folder: Path, manifest: Path) -> list[str]:
    rows = [ManifestRow("1", "a.png", "CXR", split="val", labels={"bone age": "present"})]
    return [str(write_manifest(folder / "bones.jsonl", rows))]


def all_gone(folder: Path, manifest: Path) -> list[str]:
    rows = [ManifestRow("1", "a.png", "CXR", split="val", labels={"nodule": "present"})]
    return [str(write_manifest(folder / "gone.jsonl", rows))]


def in_the_way(folder: Path, manifest: Path) -> list[str]:
    (folder / "here").mkdir()
    (folder / "here" / "mine").write_text("mine")
    return [str(manifest)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (bad_split, "no row has the split 'train'; there are val (49), test (1)"),
        (only_ct, "no image for tiny, which answers CXR"),
        (unknown_labels, "no image has a label that tiny answers: CXR labels left out"),
        (all_gone, "1 of 1 images could not be read"),
        (in_the_way, "here: is in the way"),
        (lambda folder, _: [str(folder / "none.jsonl")], "none.jsonl: no such file; give a manifest"),
        (lambda _, manifest: [str(manifest), "--sensitivity", "1.5"], "expected a share between 0 and 1"),
        (lambda _, manifest: [str(manifest), "--sensitivity", "0.8", "--specificity", "0.8"], "not allowed with"),
        (lambda _, manifest: [str(manifest), "--prevalence", "femur=0.1"], "tiny does not know femur"),
        (lambda _, manifest: [str(manifest), "--prevalence", "0.1", "--prevalence", "0.2"], "given twice"),
        (lambda _, manifest: [str(manifest), "--sensitivity", "0.99"], "299 patients with the finding are needed"),
    ],
)
def test_one_line_says_what_is_wrong_and_nothing_is_left(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[str]], words: str,
) -> None:  # fmt: skip
    out = tmp_path / "here"
    rest = arguments(tmp_path, manifest)
    assert cli.main(["calibrate", str(model), *rest, "--out", str(out), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (out / "config.json").exists()


def test_a_file_in_the_place_of_the_folder(model: Path, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        calibrate(model, manifest, tmp_path / "here", Wishes(), device="cpu")


def test_a_concept_that_is_not_known_by_its_name_is_left_out(tmp_path: Path, manifest: Path) -> None:
    """The bank's words decide what a phrase is taken for, so a name that is not in it cannot be calibrated."""
    maps = tiny_calibration(("CXR",)).model_copy(update={"scope_threshold": 0.999})
    folder = tmp_path / "model"
    prompts = {"nodule": ["a pneumothorax"], "effusion": ["a pleural effusion"]}
    save_checkpoint(folder, tiny_model(modalities=("CXR",)), prompts=prompts, calibration=maps, provenance=PROVENANCE)
    with pytest.raises(InputError, match="takes it for out of scope: nodule"):
        calibrate(folder, manifest, tmp_path / "here", Wishes(), device="cpu")
