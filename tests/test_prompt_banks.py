"""Prompt banks: the shipped files, the styles as published, and what a user's own bank may look like."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import radglint.prompt_banks as prompt_banks
import radglint.query
from radglint.errors import InputError
from radglint.hub import from_pretrained
from radglint.prompt_banks import ClassPrompts, PromptBank, list_banks, load_bank, parse_bank, prompts_for
from radglint.prompt_styles import FIELDS, expand, list_styles, load_style, lower_name, parse_styles
from radglint.query import Query
from radglint.registry import shipped_folder
from radglint.scope import ConceptIndex
from radglint.simulation.ct import CT_CONCEPTS
from radglint.simulation.facts import CONCEPTS
from radglint.simulation.radiograph import CONCEPTS as CXR_CONCEPTS

# As published: names, number of classes, and the first and last one in the published order.
COUNTS = {
    "chestxray14": (14, "Atelectasis", "Hernia"), "chexpert5": (5, "Atelectasis", "Pleural Effusion"),
    "chexpert14": (14, "No Finding", "Support Devices"), "openi18": (18, "Atelectasis", "Granuloma"),
    "padchest": (128, "normal", "double J stent"), "padchest20": (20, "esophagic dilatation", "double J stent"),
    "vindr22": (22, "Aortic enlargement", "Other lesion"), "rsna": (1, "Pneumonia", "Pneumonia"),
    "siim": (1, "Pneumothorax", "Pneumothorax"), "mscxr8": (8, "Atelectasis", "Pneumothorax"),
    "chestxdet10": (10, "Atelectasis", "Pneumothorax"), "covid": (5, "COVID-19", "No Finding"),
    "chexlocalize10": (10, "Enlarged Cardiomediastinum", "Support Devices"),
    "ctrate18": (18, "Medical material", "Interlobular septal thickening"),
    "hlip16": (16, "Emphysema", "Arterial wall calcification"),
    "radchestct16": (16, "Medical material", "Interlobular septal thickening"),
    "vlm3d5": (5, "pericardial effusion", "nodule"), "rexgroundingct": (14, "1a", "2h"),
    "lidc": (1, "nodule", "nodule"),
    "nodule_types5": (5, "solid nodule", "calcified nodule"), "simfind_cxr": (15, "cardiomegaly", "pacemaker"),
    "simfind_ct": (11, "nodule", "rib fracture"), "nano": (17, "nodule", "hiatal hernia"),
}  # fmt: skip
SIDED = {"right sided aortic arch"}  # the finding itself
QUERY_STYLES = ("plain", "attributes", "synonyms", "gloria", "xplainer", "ctclip")


@cache
def parse_query(text: str) -> Query:
    """Each text once: banks share their wordings."""
    return radglint.query.parse_query(text)


@cache
def shipped_concepts() -> ConceptIndex:
    checkpoint = from_pretrained("nano")
    return ConceptIndex(checkpoint.prompts, torch.inference_mode()(checkpoint.model.text.embed))


def every_class() -> list[tuple[str, ClassPrompts]]:
    return [(name, found) for name in list_banks() for found in load_bank(name).classes]


def bank_of(**change: object) -> dict[str, object]:
    row = {"own_name": "Fluid", "label": "fluid", "positive": ["pleural fluid"], "negative": ["no pleural fluid"]}
    return {"name": "mine", "title": "Mine", "modality": "CXR", "source": "me", "classes": [row | change]}


def test_the_banks_are_those_of_the_published_label_sets() -> None:
    shown = {
        name: (len(bank.classes), bank.classes[0].own_name, bank.classes[-1].own_name)
        for name, bank in ((name, load_bank(name)) for name in list_banks())
    }
    assert shown == COUNTS


@pytest.mark.parametrize("name", list_banks())
def test_a_shipped_bank_is_complete(name: str) -> None:
    bank = load_bank(name)
    assert bank.name == name
    assert bank.title
    assert bank.source
    assert bank.modality == ("CT" if name in CT_BANKS else "any" if name == "nano" else "CXR")
    for found in bank.classes:
        assert len(found.positive) >= 6, found.label
        assert len(found.negative) >= 4, found.label
        assert found.synonyms, found.label
        assert found.look_alikes, found.label
        assert found.attributes.shape, found.label
        assert found.attributes.density, found.label
        assert found.attributes.location, found.label


CT_BANKS = {
    "ctrate18", "hlip16", "radchestct16", "vlm3d5", "rexgroundingct", "lidc", "nodule_types5", "simfind_ct"
}  # fmt: skip


def test_the_simulated_banks_hold_what_the_simulators_draw() -> None:
    assert load_bank("simfind_cxr").labels == CXR_CONCEPTS
    assert load_bank("simfind_ct").labels == CT_CONCEPTS
    assert load_bank("nano").labels == CONCEPTS


def test_sixteen_labels_are_eighteen_without_two() -> None:
    left_out = set(load_bank("ctrate18").labels) - set(load_bank("hlip16").labels)
    assert left_out == {"medical material", "lymphadenopathy"}
    merged = set(load_bank("ctrate18").labels) ^ set(load_bank("radchestct16").labels)
    assert merged == {
        "mosaic attenuation pattern", "arterial wall calcification", "coronary artery wall calcification",
        "calcification",
    }  # fmt: skip


def test_the_rare_labels_of_padchest_are_in_its_bank() -> None:
    assert set(load_bank("padchest20").labels) <= set(load_bank("padchest").labels)


def test_positive_prompts_are_read_as_present_and_whole() -> None:
    for name, found in every_class():
        for text in (*found.positive, *found.synonyms, *found.healthy):
            query = parse_query(text)
            assert (query.assertion, query.note) == ("present", ""), (name, text)


def test_negative_prompts_are_read_as_absent() -> None:
    for name, found in every_class():
        expected = "present" if found.label == prompt_banks.NO_FINDING else "absent"
        for text in found.negative:
            assert parse_query(text).assertion == expected, (name, text)


def test_what_a_negative_prompt_denies_is_the_class() -> None:
    for name, found in every_class():
        said = {parse_query(text).phrase for text in (*found.positive, *found.synonyms)}
        denied = {parse_query(text).phrase for text in found.negative[:5]}
        assert denied <= said or found.label == prompt_banks.NO_FINDING, (name, denied - said)


@pytest.mark.parametrize("style", QUERY_STYLES)
def test_styles_of_the_bank_are_read_as_meant(style: str) -> None:
    for name in list_banks():
        bank = load_bank(name)
        for found in bank.classes:
            if found.label == prompt_banks.NO_FINDING:
                continue
            prompts = prompts_for(bank, found, style)
            some = prompts.positive[:: 7 if style == "gloria" else 1]  # combinations of the same few words
            assert {parse_query(text).assertion for text in some} == {"present"}, (name, found.label)
            assert {parse_query(text).assertion for text in prompts.negative} == {"absent"}, (name, found.label)


def test_no_wording_names_a_side() -> None:
    for name, found in every_class():
        seen = found.attributes
        texts = (*found.positive, *found.negative, *found.synonyms, *found.healthy, *seen.location, *seen.shape)
        if found.label not in SIDED:
            assert not [text for text in texts if re.search(r"\b(?:left|right)", text)], name


def test_no_prompt_of_any_style_is_longer_than_the_text_tower_takes() -> None:
    tokenizer = Tokenizer.from_file(str(shipped_folder() / "nano" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    limit = json.loads((shipped_folder() / "nano" / "config.json").read_text())["model"]["max_text_tokens"]
    texts = {
        text
        for name in list_banks()
        for found in load_bank(name).classes
        for style in list_styles()
        for prompts in (prompts_for(load_bank(name), found, style),)
        for text in (*prompts.positive, *prompts.negative)
    }
    assert limit == 64
    longest = sorted(texts, key=len)[-1000:]
    assert max(len(encoding.ids) for encoding in tokenizer.encode_batch(longest)) <= limit


@pytest.mark.parametrize("name", ["nano", "simfind_cxr", "simfind_ct"])
def test_the_shipped_model_takes_each_prompt_for_its_own_concept(name: str) -> None:
    concepts = shipped_concepts()
    bank = load_bank(name)
    texts = {parse_query(text).phrase: found.label for found in bank.classes for text in found.positive}
    taken = {text: concept for text, (concept, _) in zip(texts, concepts.nearest(list(texts)), strict=True)}
    assert taken == texts


def test_every_shared_wording_is_used() -> None:
    for modality in ("CXR", "CT"):
        used = set()
        for name in list_banks():
            rows = json.loads((Path(str(prompt_banks._folder())) / f"{name}.json").read_text())
            if rows["modality"] == modality:
                used |= {row.get("wording", row["label"]) for row in rows["classes"]}
        assert set(prompt_banks._wordings(modality)) == used


PUBLISHED = {
    ("chexzero", "chestxray14", "Pleural_Thickening"): ("Pleural Thickening", "no Pleural Thickening"),
    ("plain", "chestxray14", "Pleural_Thickening"): ("pleural thickening", "no pleural thickening"),
    ("carzero", "chestxray14", "Mass"): ("There is Pulmonary Mass", "There is no Pulmonary Mass"),
    ("carzero", "openi18", "Lesion"): ("There is Abnormal Lesion", "There is no Abnormal Lesion"),
    ("carzero", "chestxdet10", "Calcification"): ("There is Tissue Calcification", "There is no Tissue Calcification"),
    ("radzero", "chexpert5", "Edema"): ("There is Pulmonary Edema", "There is no Pulmonary Edema"),
    ("radzero", "padchest20", "double J stent"): ("There is Double J Stent", "There is no Double J Stent"),
    ("radzero", "padchest", "NSG tube"): ("There is Nasogastric Tube", "There is no Nasogastric Tube"),
    ("radzero", "siim", "Pneumothorax"): ("There is Pneumothorax", "There is no Pneumothorax"),
    ("ctclip", "ctrate18", "Lung nodule"): ("Lung nodule is present.", "Lung nodule is not present."),
    ("ctclip_not", "ctrate18", "Lung nodule"): ("Lung nodule.", "not Lung nodule."),
    ("hlip", "hlip16", "Emphysema"): ("The volume shows: Emphysema.", "The volume shows: Not emphysema."),
    ("hlip", "hlip16", "Atelectasis"): ("The volume shows: Atelectasis.", "The volume shows: Not atelectatic."),
    ("biovil", "rsna", "Pneumonia"): ("Findings suggesting pneumonia", "No evidence of pneumonia"),
    ("ctclip", "rexgroundingct", "2b"): (
        "Atelectasis or consolidation is present.", "Atelectasis or consolidation is not present."
    ),
}  # fmt: skip


@pytest.mark.parametrize(("style", "bank", "cls"), PUBLISHED)
def test_a_published_style_gives_its_exact_strings(style: str, bank: str, cls: str) -> None:
    positive, negative = PUBLISHED[style, bank, cls]
    prompts = prompts_for(load_bank(bank), cls, style)
    assert (prompts.positive, prompts.negative) == ((positive,), (negative,))
    assert load_style(style).ensemble == "none"


def test_there_are_at_least_eight_styles_and_the_first_is_the_default() -> None:
    assert len(list_styles()) >= 8
    assert list_styles()[0] == "radglint"
    bank = load_bank("chexpert5")
    assert prompts_for(bank, "Edema") == prompts_for(bank, "edema", "radglint")


def test_the_default_style_is_every_prompt_of_the_bank() -> None:
    found = load_bank("ctrate18").find("emphysema")
    prompts = prompts_for(load_bank("ctrate18"), found)
    assert (prompts.positive, prompts.negative) == (found.positive, found.negative)


def test_merlin_adds_normal_statements_to_the_negative_prompts() -> None:
    found = load_bank("chexpert5").find("Pleural Effusion")
    assert prompts_for(load_bank("chexpert5"), found, "merlin").negative == found.negative + found.healthy
    assert "the costophrenic angles are sharp" in found.healthy


def test_biovil_ensemble_has_four_pairs() -> None:
    prompts = prompts_for(load_bank("rsna"), "Pneumonia", "biovil_ensemble")
    assert prompts.positive[3] == "Findings are most compatible with pneumonia"
    assert prompts.negative[2] == "No evidence of acute pneumonia"
    assert (len(prompts.positive), len(prompts.negative)) == (4, 4)


def test_gloria_combines_severity_subtype_and_place() -> None:
    found = load_bank("siim").find("Pneumothorax")
    prompts = prompts_for(load_bank("siim"), found, "gloria")
    assert len(prompts.positive) == 3 * 4 * len(found.attributes.location)
    assert prompts.positive[0] == "pneumothorax at the lung apex"
    assert "small pneumothorax at the lung apex" in prompts.positive


def test_xplainer_pairs_its_descriptors() -> None:
    prompts = prompts_for(load_bank("siim"), "Pneumothorax", "xplainer")
    assert len(prompts.positive) == len(prompts.negative) == 3
    assert prompts.positive[-1] == "There are air density indicating Pneumothorax"
    assert prompts.negative[-1] == "There are no air density indicating Pneumothorax"


def test_attributes_are_said_one_by_one() -> None:
    prompts = prompts_for(load_bank("siim"), "Pneumothorax", "attributes")
    assert "pneumothorax with air density" in prompts.positive
    assert "no pneumothorax at the lung apex" in prompts.negative


def test_expand_gives_each_sentence_once() -> None:
    fields = {"severity": ("", "mild"), "name": ("edema",), "shape": ()}
    assert expand(["{severity} {name}", "{name}", "{name} with {shape}"], fields) == ("edema", "mild edema")


def test_abbreviations_keep_their_capitals() -> None:
    assert lower_name("COPD signs") == "COPD signs"
    assert lower_name("Enlarged PA") == "enlarged PA"
    assert lower_name("Lung Opacity") == "lung opacity"


def test_a_bank_of_ones_own_needs_no_more_than_prompts(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(bank_of()))
    bank = load_bank(path)
    assert isinstance(bank, PromptBank)
    assert prompts_for(bank, "fluid").positive == ("pleural fluid",)
    assert bank == load_bank(str(path))


def test_a_class_takes_a_shipped_wording_and_may_replace_parts_of_it() -> None:
    row = {"own_name": "Air", "label": "air", "wording": "pneumothorax", "synonyms": ["lung edge off the wall"]}
    found = parse_bank(bank_of() | {"classes": [row]}, "mine.json").classes[0]
    assert found.positive == load_bank("siim").classes[0].positive
    assert found.synonyms == ("lung edge off the wall",)


def test_a_style_without_words_for_it_is_refused() -> None:
    bank = parse_bank(bank_of(), "mine.json")
    with pytest.raises(InputError, match=r"class 'Fluid': style 'xplainer' has no positive prompt"):
        prompts_for(bank, "Fluid", "xplainer")


def test_unknown_names_get_the_closest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'chestxray14'"):
        load_bank("chestxray-14")
    with pytest.raises(InputError, match="did you mean 'carzero'"):
        load_style("car-zero")
    with pytest.raises(InputError, match="did you mean 'pneumothorax'"):
        load_bank("chexpert14").find("pneumotorax")


WRONG = {
    "unknown bank key": (bank_of() | {"langauge": "en"}, "bank: key 'langauge' is unknown"),
    "missing bank key": ({k: v for k, v in bank_of().items() if k != "source"}, "bank: key 'source' is missing"),
    "modality": (bank_of() | {"modality": "MR"}, "modality: expected one of CXR, CT, any, got 'MR'"),
    "title": (bank_of() | {"title": 3}, "title: expected text, got 3"),
    "no classes": (bank_of() | {"classes": []}, "classes: expected a list of objects"),
    "no object": ([], "expected an object"),
    "class key": (bank_of(positves=["fluid"]), "class 'Fluid': key 'positves' is unknown: did you mean 'positive'"),
    "class name": (bank_of() | {"classes": [{"label": "fluid"}]}, "class 'fluid': key 'own_name' is missing"),
    "label": (bank_of(label="Fluid"), "class 'Fluid', label: expected lower case"),
    "wording": (
        bank_of() | {"classes": [{"own_name": "A", "label": "a", "wording": "pneumotorax"}]},
        "class 'A', wording: no wording 'pneumotorax' for this modality",
    ),
    "no prompts": (bank_of(positive=[], negative=[]), "class 'Fluid': no positive and no negative prompts"),
    "not a list": (bank_of(synonyms="water"), "class 'Fluid', synonyms: expected a list of texts, got 'water'"),
    "empty text": (bank_of(positive=[" "]), "class 'Fluid', positive: expected text, got ' '"),
    "too long": (bank_of(positive=["fluid " * 60 + "a"]), "a text of 361 characters is too long"),
    "attributes": (bank_of(attributes=["round"]), "class 'Fluid', attributes: expected an object"),
    "attribute": (bank_of(attributes={"colour": ["white"]}), "attributes: key 'colour' is unknown"),
    "double prompt": (bank_of(positive=["water", "Water"]), "positive: 'Water' of class 'Fluid' is already there"),
    "double synonym": (bank_of(synonyms=["pleural fluid"]), "synonyms: 'pleural fluid' of class 'Fluid' is already"),
    "double class": (
        bank_of() | {"classes": [{"own_name": c, "label": "edema"} for c in "AB"]},
        "label: 'edema' of class 'B' is already there, in class 'A'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_bank_is_refused_with_class_and_key(case: str) -> None:
    document, message = WRONG[case]
    with pytest.raises(InputError) as caught:
        parse_bank(document, "mine.json")
    assert str(caught.value).startswith("mine.json: not a prompt bank: ")
    assert message in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InputError, match=r"label: expected lower case.*synonyms: expected a list"):
        parse_bank(bank_of(label="Fluid", synonyms="water"), "mine.json")


def test_more_problems_than_fit_are_counted() -> None:
    with pytest.raises(InputError, match="; and 4 more"):
        parse_bank(bank_of(positive=[""] * 12), "mine.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON: .* in line 1, column 2"),
        (b'{"name": "a", "name": "b"}', "key 'name' is there 2 times"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_bank(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: cannot be read"):
        load_bank(tmp_path / "absent.json")


STYLE = {
    "name": "s", "title": "S", "source": "x", "ensemble": "none", "positive": ["{name}"], "negative": ["no {name}"]
}  # fmt: skip
WRONG_STYLES = {
    "no styles": ({}, "a list of styles"),
    "unknown key": ({"styles": [STYLE | {"case": "own"}]}, "style 1: key 'case' is unknown"),
    "missing key": ({"styles": [{"name": "s"}]}, "style 1: key 'ensemble' is missing"),
    "ensemble": ({"styles": [STYLE | {"ensemble": "mean"}]}, "ensemble: expected one of none, embeddings"),
    "templates": ({"styles": [STYLE | {"negative": "no {name}"}]}, "style 1, negative: expected a list of templates"),
    "two": ({"styles": [STYLE | {"positive": ["{name}", "{name}."]}]}, "ensemble 'none' takes one template, got 2"),
    "field": ({"styles": [STYLE | {"positive": ["{nam}"]}]}, "no field 'nam': did you mean 'name'"),
    "names": ({"styles": [STYLE | {"names": {"siim": "air"}}]}, "style 1, names: expected an object of banks"),
    "twice": ({"styles": [STYLE, STYLE]}, "style 's' is there 2 times"),
}


@pytest.mark.parametrize("case", WRONG_STYLES)
def test_a_wrong_style_is_refused(case: str) -> None:
    document, message = WRONG_STYLES[case]
    with pytest.raises(InputError) as caught:
        parse_styles(document, "styles.json")
    assert message in str(caught.value)


def test_a_style_of_ones_own_can_be_used() -> None:
    style = parse_styles({"styles": [STYLE | {"positive": ["chest film with {name_lower}"]}]}, "mine.json")["s"]
    assert prompts_for(load_bank("siim"), "Pneumothorax", style).positive == ("chest film with pneumothorax",)
    assert "name_lower" in FIELDS
