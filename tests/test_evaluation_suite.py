"""A whole evaluation on made-up radiographs with a tiny model: from the manifest to the page, numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radglint.cli import main
from radglint.errors import ConfigError, InputError
from radglint.evaluation import suite
from radglint.evaluation.answers import collect, kept_lines
from radglint.evaluation.classification import auroc
from radglint.evaluation.classify import classify, prompt_sensitivity
from radglint.evaluation.locate import Placer, pointing, segmentation, sweep
from radglint.evaluation.protocols import ALL, CLASSIFICATION
from radglint.evaluation.results import read_results
from radglint.evaluation.suite import SUITES, SuiteConfig, chosen_rows, named_suite, what_to_ask
from radglint.evaluation.tables import answer_of, class_table, protocol_score
from radglint.evaluation.truth import place_of_class, side_of, with_simulated_truth
from radglint.evaluation.worst_cases import TRUTH_RGB
from radglint.manifest import ManifestRow, Phrase, write_manifest
from radglint.pipeline import load
from radglint.prompt_banks import list_banks, load_bank
from textures import textured
from tiny_models import write_tiny_checkpoint

STATES = ("present", "absent", "uncertain", "absent")
BANK = {
    "name": "two", "title": "Two classes", "modality": "CXR", "source": "made up",
    "classes": [
        {
            "own_name": name, "label": label, "positive": [f"a {label}", f"there is a {label}"],
            "negative": [f"no {label}"], "synonyms": [f"{label} shadow"],
            "attributes": {"shape": ["round shape"], "density": ["soft density"], "location": ["in the lung"],
                           "severity": ["small"]},
            "look_alikes": ["vessel"],
        }
        for name, label in (("Nodule", "nodule"), ("Effusion", "pleural effusion"))
    ],
}  # fmt: skip


def write_rows(folder: Path, count: int = 12) -> Path:
    """Radiographs of 48 x 60 px of six patients, half of them validation; a nodule's box wherever it is present."""
    rows = []
    for k in range(count):
        pixels = (textured((48, 60), np.random.default_rng(k))[0].clip(0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        state = STATES[k % 4]
        box = ((10, 5, 30, 25),)
        rows.append(
            ManifestRow(
                id=f"case{k}", image=f"{k}.png", modality="CXR", patient=f"p{k // 2}",
                split="test" if k < count // 2 else "val",
                findings=f"There is a {'nodule' if state == 'present' else 'mass'}.",
                labels={"nodule": state} | ({"pleural effusion": "present" if k % 3 else "absent"}),
                phrases=(Phrase("left nodule", label="nodule", boxes=box),) if state == "present" else (),
            )
        )  # fmt: skip
    return write_manifest(folder / "manifest.jsonl", rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A configuration of every protocol, with its data and model on disk."""
    folder = tmp_path_factory.mktemp("evaluation")
    bank = folder / "bank.json"
    bank.write_text(json.dumps(BANK))
    model = write_tiny_checkpoint(folder / "model", modalities=("CXR",))
    manifest = write_rows(folder)
    return SuiteConfig(name="made up", manifest=manifest, out=folder / "out", bank=str(bank), model=str(model),
                       draws=20, shown_cases=1)  # fmt: skip


@pytest.fixture(scope="module")
def finished(run: SuiteConfig) -> suite.Results:
    return suite.evaluate(run, "radglint evaluate CONFIG")


def test_every_protocol_is_measured_and_shown(run: SuiteConfig, finished: suite.Results) -> None:
    assert [protocol.name for protocol in finished.protocols] == list(ALL)
    assert not finished.left_out
    assert read_results(run.out / suite.RESULTS) == finished
    page = (run.out / suite.PAGE).read_text()
    assert finished.model.fingerprint in page
    assert "Not a medical device" in page
    assert all(protocol.title.split(":")[0] in page for protocol in finished.protocols)
    assert finished.manifest.rows == 6
    assert finished.manifest.patients == 3


def test_an_auroc_is_that_of_the_answers(run: SuiteConfig, finished: suite.Results) -> None:
    lines = [line for line in kept_lines(run.out / suite.ANSWERS) if line["split"] == "test"]
    found = finished.protocol("radglint")
    assert found is not None
    by_name = {one.name: one for one in found.classes}
    kept = [line for line in lines if answer_of(line, "Effusion")["truth"] in ("present", "absent")]
    scores = [answer_of(line, "Effusion")["probability"] for line in kept]
    positive = np.array([answer_of(line, "Effusion")["truth"] == "present" for line in kept])
    assert by_name["Effusion"].measures["honest"]["auroc"].value == pytest.approx(auroc(np.array(scores), positive))
    assert by_name["Effusion"].n == len(kept)


def test_an_uncertain_label_counts_on_neither_side(run: SuiteConfig, finished: suite.Results) -> None:
    bank = load_bank(run.bank)
    lines = [line for line in kept_lines(run.out / suite.ANSWERS) if line["split"] == "test"]
    table = class_table(lines, ["Nodule"], lambda line, name: answer_of(line, name)["score"], "patient")
    states = [answer_of(line, "Nodule")["truth"] for line in lines]
    assert list(table.known[:, 0]) == [state in ("present", "absent") for state in states]
    assert "uncertain" in states
    assert bank.classes[0].own_name == "Nodule"


def test_the_published_threshold_looks_at_the_test_split_and_the_honest_one_does_not(run: SuiteConfig) -> None:
    bank = load_bank(run.bank)
    lines = list(kept_lines(run.out / suite.ANSWERS))
    test, val = ([line for line in lines if line["split"] == split] for split in ("test", "val"))
    many = {"unit": "patient", "scale": 1.0, "draws": 5, "seed": 0}
    one = classify(CLASSIFICATION["radzero"], bank, test, val, **many)
    two = classify(CLASSIFICATION["radzero"], bank, test, test, **many)
    for first, second in zip(one.classes, two.classes, strict=True):
        assert first.measures["published"]["threshold"] == second.measures["published"]["threshold"]
        assert second.measures["published"]["threshold"].value == second.measures["honest"]["threshold"].value
    without = classify(CLASSIFICATION["radzero"], bank, test, [], **many)
    assert all("threshold" not in row.measures["honest"] for row in without.classes)


def test_a_pair_is_a_softmax_and_an_ensemble_a_difference() -> None:
    line = {"scores": {"X": {"chexzero": [[0.3], [0.1]], "merlin": [[0.2, 0.4], [0.1]], "hlip": [[0.3], [0.1]]}}}
    pair = protocol_score(CLASSIFICATION["chexzero"], 10.0)(line, "X")
    assert pair == pytest.approx(np.exp(0.3) / (np.exp(0.3) + np.exp(0.1)))
    assert protocol_score(CLASSIFICATION["hlip"], 10.0)(line, "X") == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert protocol_score(CLASSIFICATION["merlin"], 10.0)(line, "X") == pytest.approx(0.2)


def test_places_by_hand() -> None:
    """Two positives and one negative with known numbers."""
    bank = replace(load_bank("simfind_cxr"), classes=(load_bank("simfind_cxr").find("nodule"),))
    curve = np.linspace(0, 1, 101)

    def line(name: str, truth: str, place: dict) -> dict:
        return {"id": name, "patient": name, "answers": [{"class": "nodule", "truth": truth, "place": place}]}

    def there(hit: bool, dice: float) -> dict:
        counts = np.zeros(102, int)
        counts[60] = 5
        return {"hit": hit, "chance": 0.1, "curve": list(dice * (curve >= 0.5)), "inside": list(counts),
                "outside": list(np.roll(counts, -40)), "sweep_iou": [0.2] * 5, "sweep_dice": [0.4] * 5,
                "plain_iou": [0.1] * 5, "plain_dice": [0.3, 0.3, 0.3, 0.3, 0.8]}  # fmt: skip

    lines = [line("a", "present", there(True, 0.8)), line("b", "present", there(False, 0.4)),
             line("c", "absent", {"peak": 0.3, "marked": False, "area": 0.0}),
             line("d", "absent", {"peak": 0.7, "marked": True, "area": 0.2})]  # fmt: skip
    placer = Placer(bank, lines, "patient", 10, 0)
    assert pointing(placer).means["honest"]["pointing"].value == 0.5
    overlap = sweep(placer)
    assert overlap.means["published"]["iou"].value == pytest.approx(0.2)
    assert overlap.means["honest"]["dice"].value == pytest.approx(0.4)
    found = segmentation(placer, lines[:1])
    assert found.means["oracle"]["dice"].value == pytest.approx(0.6)
    assert found.means["oracle"]["specificity"].value == 0.5
    assert found.means["fixed"]["dice"].value == pytest.approx(0.6)
    assert found.classes[0].measures["fixed"]["pixel_auroc"].value == 1.0


def test_a_stopped_run_goes_on_and_gives_the_same_answers(
    run: SuiteConfig, finished: suite.Results, tmp_path: Path
) -> None:
    whole = (run.out / suite.ANSWERS).read_text().splitlines()
    cut = tmp_path / suite.ANSWERS
    cut.write_text("\n".join(whole[:4]) + "\n" + whole[4][:50])
    bank, pipe = load_bank(run.bank), load(run.model)
    rows = chosen_rows(run, bank)
    collect(pipe, rows, what_to_ask(run, bank, rows, pipe), cut)
    assert [json.loads(text) for text in cut.read_text().splitlines()] == [json.loads(text) for text in whole]


def test_answers_of_another_model_are_not_mixed_in(run: SuiteConfig, finished: suite.Results, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", modalities=("CXR",), seed=1)
    with pytest.raises(InputError, match="answers of another model, manifest or suite"):
        suite.evaluate(run.model_copy(update={"model": str(other)}))


def test_an_image_that_cannot_be_read_is_counted_not_dropped(run: SuiteConfig, tmp_path: Path) -> None:
    manifest = write_rows(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    changed = run.model_copy(update={"manifest": manifest, "out": tmp_path / "out", "protocols": ("radglint",)})
    results = suite.evaluate(changed)
    assert results.left_out[0].count == 1
    assert "2.png" in results.left_out[0].why


def test_the_command_prints_the_table(run: SuiteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "suite.toml"
    lines = {"name": "by file", "manifest": run.manifest, "out": tmp_path / "out", "bank": run.bank, "model": run.model}
    text = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
    config.write_text(text + 'protocols = ["radglint", "pointing"]\ndraws = 5\n')
    assert main(["evaluate", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "Pointing game" in shown
    assert str(tmp_path / "out" / "index.html") in shown
    same = str(tmp_path / "out" / "results.json")
    assert main(["compare", same, same]) == 0
    assert "0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give CONFIG.toml, or --suite NAME"),
        (["--suite", "simfind-cxr"], "--suite needs --manifest"),
        (["--suite", "chexprt"], "choose from simfind-cxr"),
        (["a.toml", "--split", "val"], "holds the whole evaluation"),
        (["missing.toml"], "missing.toml: cannot be read"),
    ],
)
def test_wrong_commands_say_what_to_do(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_every_suite_has_a_bank_and_known_protocols(tmp_path: Path) -> None:
    for name, one in SUITES.items():
        config = named_suite(name, tmp_path / "m.jsonl", tmp_path)
        assert config.bank in list_banks()
        assert set(one.protocols) <= set(ALL)


def test_unknown_protocols_and_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no protocol 'poinitng'"):
        named_suite("rsna", tmp_path / "m.jsonl", tmp_path, protocols=("poinitng",))
    with pytest.raises(ConfigError, match="draws"):
        named_suite("rsna", tmp_path / "m.jsonl", tmp_path, draws=0)


def test_the_truth_of_a_simulated_case_comes_from_its_facts() -> None:
    facts = [{"concept": "nodule", "side": "left", "zone": "upper", "size": "small", "mask": 0}]
    row = with_simulated_truth(ManifestRow("a", "a.png", "CXR", extra={"facts": facts, "masks": "a.npz"}))
    assert row.labels["nodule"] == "present"
    assert row.labels["pneumothorax"] == "absent"
    assert row.phrases == (Phrase("nodule", label="nodule", masks=("a.npz#0",)),)
    assert side_of(row, "nodule") == "left"


def test_boxes_and_masks_are_one_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", masks=np.pad(np.ones((1, 2, 2), bool), ((0, 0), (0, 2), (0, 3))))
    row = ManifestRow("a", "a.png", "CXR", phrases=(Phrase("x", "x", boxes=((2, 1, 4, 3),), masks=("m.npz#0",)),))
    place = place_of_class(row, "x", tmp_path, (4, 5))
    assert place is not None
    assert place.mask.sum() == 8
    assert place.mask[3, 2]
    assert place.mask[0, 0]
    with pytest.raises(InputError, match="has shape"):
        place_of_class(row, "x", tmp_path, (3, 3))
    with pytest.raises(InputError, match="does not lie inside"):
        place_of_class(replace(row, phrases=(Phrase("x", "x", boxes=((2, 1, 4, 9),)),)), "x", tmp_path, (4, 5))


def test_prompt_styles_that_agree_have_no_spread(run: SuiteConfig, finished: suite.Results) -> None:
    bank = load_bank(run.bank)
    lines = [line for line in kept_lines(run.out / suite.ANSWERS) if line["split"] == "test"]
    found = prompt_sensitivity(bank, lines, ["plain", "plain"], unit="image", draws=5, seed=0)
    assert found.means["honest"]["auroc_spread"].value == 0


def test_a_protocol_without_any_case_is_left_out_by_name(run: SuiteConfig, finished: suite.Results) -> None:
    kept, left_out = suite.said_something([finished.protocols[0], finished.protocols[1].model_copy(update={
        "means": {"published": {}, "honest": {}}, "lead": ""})])  # fmt: skip
    assert kept == [finished.protocols[0]]
    assert [row.what for row in left_out] == [finished.protocols[1].title]


def test_one_image_alone_leaves_every_class_out(run: SuiteConfig, finished: suite.Results) -> None:
    lines = [line for line in kept_lines(run.out / suite.ANSWERS) if line["id"] == "case0"]
    found = classify(
        CLASSIFICATION["radzero"], load_bank(run.bank), lines, [], unit="patient", scale=1.0, draws=5, seed=0
    )
    assert found.means == {"published": {}, "honest": {}}
    assert [row.what for row in found.left_out] == ["Nodule", "Effusion"]


def test_a_case_shows_the_truth_beside_the_answer(run: SuiteConfig, finished: suite.Results) -> None:
    shown = [case for protocol in finished.protocols for case in protocol.cases]
    assert shown
    for case in shown:
        with Image.open(run.out / case.overlay) as picture:
            assert picture.width > picture.height, "the answer and the truth in a row"
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.abs(pixels - TRUTH_RGB).sum(axis=-1) < 30).any()


def test_three_patients_give_no_interval_and_the_page_says_so(run: SuiteConfig, finished: suite.Results) -> None:
    assert finished.notes
    assert "only 3 patients" in finished.notes[0]
    assert "only 3 patients" in (run.out / suite.PAGE).read_text()
    area = finished.protocol("radglint").means["honest"]["auroc"]
    assert area.value is not None
    assert area.low is None
    by_image = suite.evaluate(run.model_copy(update={"unit": "image", "split": "all", "out": run.out.parent / "all"}))
    assert not by_image.notes
    assert by_image.protocol("radglint").means["honest"]["auroc"].low is not None


@pytest.mark.parametrize(("split", "choosing"), [("test", "val"), ("val", None), ("all", None)])
def test_no_split_chooses_the_thresholds_that_it_is_judged_by(
    run: SuiteConfig, split: str, choosing: str | None
) -> None:
    config = run.model_copy(update={"split": split, "probe_split": "train"})
    assert config.choosing_split == choosing
    assert config.fitting_split == (None if split == "all" else "train")
