"""The codes of findings, against the dictionaries of the DICOM standard and the check digits of SNOMED CT."""

from __future__ import annotations

import re

import pytest
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code

from radglint import coded_concepts
from radglint.coded_concepts import _RULES, ABNORMAL_STRUCTURE, LOCAL_SCHEME, PHYSICAL_OBJECT, code_finding

CODES = {
    (code.scheme_designator, code.value): code
    for code in (
        *(value for value in vars(coded_concepts).values() if isinstance(value, Code)),
        *(found.type for _, found in _RULES),
    )
}
_US_CORE = "HL7 US Core 5.0, example Media chest-xray"
_FHIR_CONDITION = "HL7 FHIR, example Condition f002 (lung): evidence; also test data of the German MII"
_LT_LUNG = "value sets of Lithuania's FHIR guide for lung cancer screening (IncidentalFindingVS, nodule observation)"
_STANFORD = "codes of the OHDSI labels of Stanford's tte-pretraining, README, section Labeling"
_LINKING = "SNOMED CT Entity Linking Challenge, annotation guidelines, rule 10"
_VISUALDX = "VisualDx, page Hiatal hernia, Codes: SNOMEDCT"
_CONTEXT = "SNOMED CT, concept model of situations with explicit context; University of Luebeck's pce-to-fhir"
_BIOPORTAL = "RadLex in NCBO BioPortal, as a German chest radiograph template lists it with its check of July 2026"

NOT_IN_DICOM = {
    ("SCT", "408729009"): ("Finding context", _CONTEXT),
    ("SCT", "169069000"): ("CT of chest", _FHIR_CONDITION),
    ("SCT", "399208008"): ("Plain chest X-ray", _US_CORE),
    ("SCT", "95436008"): ("Lung consolidation", _LT_LUNG),
    ("SCT", "87433001"): ("Pulmonary emphysema", _LT_LUNG),
    ("SCT", "12295008"): ("Bronchiectasis", _LT_LUNG),
    ("SCT", "786838002"): ("Nodule of lung", f"{_LT_LUNG}; SNOMED CT browser of tx.fhir.org"),
    ("SCT", "46621007"): ("Atelectasis", _STANFORD),
    ("SCT", "8186001"): ("Cardiomegaly", _STANFORD),
    ("SCT", "33737001"): ("Fracture of rib", _LINKING),
    ("SCT", "84089009"): ("Hiatal hernia", _VISUALDX),
    ("RADLEX", "RID43256"): ("crazy-paving pattern", _BIOPORTAL),
}
"""Concepts that no context group of the standard lists: their meaning, and where that was read (November 2026)."""


def known_meanings(code: Code) -> set[str]:
    """What the DICOM standard calls a code, in lower case."""
    entries = concepts.get(code.scheme_designator, {}).values()
    names = {entry[code.value][0].lower() for entry in entries if code.value in entry}
    return {re.sub(r" \((?:finding|disorder|physical object|qualifier value)\)$", "", name) for name in names}


@pytest.mark.parametrize("key", CODES, ids=str)
def test_meaning_is_that_of_the_standard(key: tuple[str, str]) -> None:
    code, known = CODES[key], known_meanings(CODES[key])
    if code.scheme_designator == LOCAL_SCHEME:
        assert known == set()
    else:
        assert bool(known) != (key in NOT_IN_DICOM)
        assert code.meaning.lower() in (known or {NOT_IN_DICOM[key][0].lower()})


def test_no_source_is_left_over() -> None:
    assert NOT_IN_DICOM.keys() <= CODES.keys()


def verhoeff(digits: str) -> int:
    """0 for a number whose last digit is its check digit; multiplication in the dihedral group of order ten."""
    check = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        for _ in range(place % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        turned = (check + digit) % 5 if check < 5 else (check - digit) % 5
        check = turned + 5 * ((check < 5) == (digit >= 5))
    return check


@pytest.mark.parametrize("value", [value for scheme, value in CODES if scheme == "SCT"])
def test_snomed_codes_are_concepts_with_a_right_check_digit(value: str) -> None:
    assert value[-3:-1] == "00"  # the partition of concepts of the international edition
    assert verhoeff(value) == 0


def test_the_check_digit_finds_a_slip() -> None:
    assert verhoeff("60046008") == 0
    assert verhoeff("60046009") != 0
    assert verhoeff("60064008") != 0


@pytest.mark.parametrize(
    ("phrase", "scheme", "value"),
    [
        ("crazy-paving in both lungs", "RADLEX", "RID43256"),
        ("honeycombing", "DCM", "112106"),
        ("reticulonodular opacities", "DCM", "112065"),
        ("Reticular opacities", "DCM", "112113"),
        ("tree-in-bud opacities", "DCM", "112127"),
        ("miliary nodules", "DCM", "112129"),
        ("air trapping", "SCT", "76171001"),
        ("linear atelectasis", "SCT", "40779009"),
        ("subsegmental atelectasis", "SCT", "46621007"),
        ("mediastinal lymphadenopathy", "SCT", "30746006"),
        ("acute pulmonary embolus", "SCT", "59282003"),
        ("pacemaker lead", "SCT", "360129009"),
        ("pacemaker", "SCT", "14106009"),
        ("IVC filter", "SCT", "257409000"),
        ("mechanical aortic valve", "SCT", "25510005"),
    ],
)
def test_wordings(phrase: str, scheme: str, value: str) -> None:
    assert (code_finding(phrase).type.scheme_designator, code_finding(phrase).type.value) == (scheme, value)


def test_devices_are_physical_objects() -> None:
    assert code_finding("feeding tube").category == PHYSICAL_OBJECT
    assert code_finding("air bronchogram").category == ABNORMAL_STRUCTURE
