"""Codes for findings: a phrase to a concept of SNOMED CT, DICOM or RadLex, or to "clinical finding" where none fits.

The first rule that matches wins, so the narrow ones ("pericardial effusion") stand before the wide ones ("effusion").
A phrase without a rule is never given a code that is nearly right: the words travel beside the code in any case.

Where each code and its meaning come from stands in `tests/test_coded_concepts.py`: the context groups of DICOM PS3.16,
as pydicom has them, and a published source for each of the twelve that no context group lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.sr.coding import Code

ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
PHYSICAL_OBJECT = Code("260787004", "SCT", "Physical object")
CLINICAL_FINDING = Code("404684003", "SCT", "Clinical finding")

PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
SUSPECTED = Code("415684004", "SCT", "Suspected")
UNKNOWN = Code("261665006", "SCT", "Unknown")
EQUIVOCAL = Code("42425007", "SCT", "Equivocal")
FINDING_CONTEXT = Code("408729009", "SCT", "Finding context")

LOCAL_SCHEME = "99RADGLINT"
ASKED_AS = Code("ASKED_AS", LOCAL_SCHEME, "Asked as")
"""How the query states the finding; no standard scheme has a concept for it."""

CT_OF_CHEST = Code("169069000", "SCT", "CT of chest")
PLAIN_CHEST_RADIOGRAPH = Code("399208008", "SCT", "Plain chest X-ray")

ASSERTIONS = {"present": PRESENT, "absent": ABSENT, "uncertain": SUSPECTED}
DECISIONS = {"present": PRESENT, "absent": ABSENT, "uncertain": EQUIVOCAL, "out of scope": UNKNOWN}


@dataclass(frozen=True)
class FindingCode:
    """What a phrase is, in codes.

    Attributes:
        type: the concept.
        category: what kind of thing it is (CID 7150), abnormal structure or physical object.
    """

    type: Code
    category: Code = ABNORMAL_STRUCTURE

    @property
    def is_specific(self) -> bool:
        """Whether the phrase has a concept of its own."""
        return self.type != CLINICAL_FINDING


_RULES: tuple[tuple[str, FindingCode], ...] = tuple(
    (pattern, FindingCode(Code(*code), category))
    for pattern, code, category in (
        (r"pericardial effusions?", ("373945007", "SCT", "Pericardial effusion"), ABNORMAL_STRUCTURE),
        (r"pleural (?:effusions?|fluid)|hydrothorax", ("60046008", "SCT", "Pleural effusion"), ABNORMAL_STRUCTURE),
        (r"(?:hydro)?pneumothora(?:x|ces)", ("36118008", "SCT", "Pneumothorax"), ABNORMAL_STRUCTURE),
        (r"ground[ -]?glass(?: opacit(?:y|ies))?|ggos?", ("112120", "DCM", "Ground glass opacity"), ABNORMAL_STRUCTURE),
        (r"consolidations?|airspace opacit(?:y|ies)", ("95436008", "SCT", "Lung consolidation"), ABNORMAL_STRUCTURE),
        (
            r"(?:plate-?like|discoid|linear) atelecta(?:sis|ses)",
            ("40779009", "SCT", "Plate-like atelectasis"),
            ABNORMAL_STRUCTURE,
        ),
        (r"atelecta(?:sis|ses|tic)", ("46621007", "SCT", "Atelectasis"), ABNORMAL_STRUCTURE),
        (r"cardiomegaly|enlarged (?:heart|cardiac)", ("8186001", "SCT", "Cardiomegaly"), ABNORMAL_STRUCTURE),
        (
            r"interstitial (?:patterns?|markings?|opacit(?:y|ies)|thickening|changes?)",
            ("112004", "DCM", "Abnormal interstitial pattern"),
            ABNORMAL_STRUCTURE,
        ),
        (r"honeycomb(?:ing| patterns?| lungs?)?", ("112106", "DCM", "Honeycomb pattern"), ABNORMAL_STRUCTURE),
        (
            r"reticulo-?nodular (?:patterns?|opacit(?:y|ies))",
            ("112065", "DCM", "Reticulonodular pattern"),
            ABNORMAL_STRUCTURE,
        ),
        (
            r"reticular (?:patterns?|opacit(?:y|ies)|markings?)|reticulations?",
            ("112113", "DCM", "Reticular pattern"),
            ABNORMAL_STRUCTURE,
        ),
        (r"crazy[ -]paving", ("RID43256", "RADLEX", "crazy-paving pattern"), ABNORMAL_STRUCTURE),
        (r"tree[ -]in[ -]bud", ("112127", "DCM", "Tree-in-bud sign"), ABNORMAL_STRUCTURE),
        (r"mosaic (?:patterns?|attenuation|perfusion)", ("112130", "DCM", "Mosaic pattern"), ABNORMAL_STRUCTURE),
        (r"miliary (?:patterns?|nodules?|opacit(?:y|ies))", ("112129", "DCM", "Miliary pattern"), ABNORMAL_STRUCTURE),
        (r"air bronchograms?", ("112071", "DCM", "Air bronchogram"), ABNORMAL_STRUCTURE),
        (r"kerley b lines?", ("112110", "DCM", "Kerley B line"), ABNORMAL_STRUCTURE),
        (r"septal lines?", ("112114", "DCM", "Septal line(s)"), ABNORMAL_STRUCTURE),
        (r"air[ -]trapping", ("76171001", "SCT", "Air-trapping"), ABNORMAL_STRUCTURE),
        (r"bronchiectas[ie]s", ("12295008", "SCT", "Bronchiectasis"), ABNORMAL_STRUCTURE),
        (r"pulmonary embol(?:isms?|us|i)", ("59282003", "SCT", "Pulmonary embolism"), ABNORMAL_STRUCTURE),
        (r"(?:lymph)?adenopathy", ("30746006", "SCT", "Lymphadenopathy"), ABNORMAL_STRUCTURE),
        (r"pulmonary (?:o?edema)", ("19242006", "SCT", "Pulmonary edema"), ABNORMAL_STRUCTURE),
        (
            r"pneumomediastinum|mediastinal emphysema",
            ("16838000", "SCT", "Mediastinal emphysema"),
            ABNORMAL_STRUCTURE,
        ),
        (r"(?:thyroid|skin|breast|adrenal|vocal) nodules?", CLINICAL_FINDING[:3], ABNORMAL_STRUCTURE),
        (
            r"(?:subcutaneous|surgical|soft tissue|orbital|gastric) emphysema",
            CLINICAL_FINDING[:3],
            ABNORMAL_STRUCTURE,
        ),
        (r"emphysema(?:tous)?", ("87433001", "SCT", "Pulmonary emphysema"), ABNORMAL_STRUCTURE),
        (r"(?:pulmonary|lung) nodules?", ("786838002", "SCT", "Nodule of lung"), ABNORMAL_STRUCTURE),
        (r"nodules?", ("27925004", "SCT", "Nodule"), ABNORMAL_STRUCTURE),
        (r"mass(?:es)?", ("4147007", "SCT", "Mass"), ABNORMAL_STRUCTURE),
        (r"rib fractures?|fractured ribs?", ("33737001", "SCT", "Fracture of rib"), ABNORMAL_STRUCTURE),
        (r"hiat(?:al|us) hernias?", ("84089009", "SCT", "Hiatal hernia"), ABNORMAL_STRUCTURE),
        (
            r"pacemaker (?:leads?|wires?|electrodes?)",
            ("360129009", "SCT", "Cardiac pacemaker lead"),
            PHYSICAL_OBJECT,
        ),
        (r"pacemakers?", ("14106009", "SCT", "Cardiac pacemaker"), PHYSICAL_OBJECT),
        (
            r"central (?:venous )?(?:lines?|catheters?)",
            ("52124006", "SCT", "Central venous catheter"),
            PHYSICAL_OBJECT,
        ),
        (r"endotracheal tubes?|et tubes?", ("26412008", "SCT", "Endotracheal tube"), PHYSICAL_OBJECT),
        (r"chest (?:tubes?|drains?)", ("112173", "DCM", "Chest tube"), PHYSICAL_OBJECT),
        (r"feeding tubes?", ("25062003", "SCT", "Feeding tube"), PHYSICAL_OBJECT),
        (r"port-?a-?caths?", ("112172", "DCM", "Portacath"), PHYSICAL_OBJECT),
        (r"(?:ivc|vena cava|caval) filters?", ("257409000", "SCT", "Vena cava filter"), PHYSICAL_OBJECT),
        (
            r"(?:prosthetic|artificial|mechanical) (?:heart |aortic |mitral )?valves?|valve prosthes[ie]s",
            ("25510005", "SCT", "Heart valve prosthesis"),
            PHYSICAL_OBJECT,
        ),
    )
)
_UNCODED = FindingCode(CLINICAL_FINDING)


def code_finding(phrase: str) -> FindingCode:
    """The code of a finding in words.

    Args:
        phrase: positive words, such as `Finding.phrase`; case does not matter.

    Returns:
        The concept, or "clinical finding" where the phrase has none.
    """
    plain = " ".join(phrase.lower().replace("\N{HYPHEN}", "-").split())
    return next((code for pattern, code in _RULES if re.search(rf"\b(?:{pattern})\b", plain)), _UNCODED)
