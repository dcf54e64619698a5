"""Where does a sentence name a finding? Every wording of `NAMES` and `HELD_OUT`, their plurals, and what reports add.

The longest wording wins, so "calcified nodule" is not also a nodule; wordings of other organs ("pericardial effusion",
"thyroid nodule") are known too, and win over the finding inside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from radglint.scope import OUTSIDE
from radglint.simulation.facts import HELD_OUT, NAMES

_SHADE = r"(?:opacit(?:y|ies)|opacifications?|densit(?:y|ies)|shadow(?:s|ing)?|infiltrat(?:es?|ions?)|attenuation)"
_HEART = r"(?:heart|cardiac|cardio\s?-?mediastinal)(?:\s+(?:silhouettes?|size|shadows?|contours?|and\s+mediastin\w+))*"
_COUPLE = (
    r"(?:is|are|was|has|been|remains?|appears?|seems?|be|to|not|no|longer|again|stable|stably|also|somewhat|mildly"
    r"|slightly|moderately|severely|markedly|minimally|grossly|significantly|diffusely|borderline|mild|top|:)"
)
_ORGANS = (
    r"(?:aort\w*|arter\w+|coronary|vascular|vessels?|atheroscl\w+|arterioscl\w+|lymph\w*|nod(?:es?|al)|hil(?:ar|um|a)"
    r"|mediastin\w+|valv\w*|annul\w+|trache\w*|cartilag\w*|costochondral|ligament\w*|disc|spine|spinal|pleural?|plaques?"
    r"|diaphragm\w*|breasts?|thyroid|spleen|splenic|liver|hepatic|renal|tend\w+|carotid|arch|knob|shoulder|soft|abdom\w*|quadrant|kidneys?)"
)
_OTHER_BODY = (
    r"(?:mediastinal|paratracheal|breast|soft[\s-]tissue|abdominal|adrenal|thyroid|neck|renal|kidney|liver|hepatic"
    r"|chest[\s-]wall|paraspinal|paravertebral|axillary|osseous|bony|bone|lytic|blastic|sclerotic|pancreatic|splenic"
    r"|metallic|surgical|vertebral|ovarian|cutaneous|skin|radio-?opaque|humeral|cardiac|muscle|nipple|body)"
)

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "nodule": (
        r"(?:micro)?nodules?", "nodularity", r"coin\s+lesions?", r"round(?:ed)?\s+(?:lesions?|foc(?:us|i))",
    ),
    "mass": (
        r"mass(?:es)?", r"tumou?rs?", "neoplas(?:ms?|tic\\s+\\w+)", "malignanc(?:y|ies)",
        r"(?:pulmonary|lung|bronchogenic)\s+(?:cancers?|carcinomas?|malignanc\w+)", "carcinomas?",
    ),
    "consolidation": (
        r"consolidat(?:ions?|ed|ive(?:\s+(?:changes?|process|opacit\w+))?)", r"(?:broncho)?pneumonias?",
        r"(?:aspiration\s+)?pneumonitis", r"air\s?-?space\s+(?:disease|process|abnormalit\w+|consolidations?|changes?)",
        r"(?:pulmonary\s+|lung\s+)?infections?(?:\s+process)?",
        r"infectious\s+(?:process|etiology|infiltrates?|disease)",
        r"parenchymal\s+(?:disease|process)",
    ),
    "ground-glass opacity": (r"ground[\s-]*glass(?:\s+(?:changes?|appearance))?", "haziness"),
    "pleural effusion": (
        r"(?:pleural\s+)?effusions?", r"pleural\s+fluid(?:\s+collections?)?", "empyemas?", "h(?:a?e)mothora(?:x|ces)",
        r"blunt(?:ing|ed)\b(?:\s+[\w-]+){0,6}?\s+(?:costophrenic|cp|sulc(?:us|i)|pleural)"
        r"(?:\s+(?:angles?|sulc(?:us|i)|spaces?|recess(?:es)?|xxxx))?",
        r"(?:costophrenic|cp)\s+(?:angles?|sulc(?:us|i)|recess(?:es)?|xxxx)(?:\s+[\w-]+){0,4}?\s+blunt(?:ed|ing)",
    ),
    "pneumothorax": (r"(?:hydro)?pneumothora(?:x|ces|xes)", "ptx", r"pleural\s+air(?:\s+collections?)?"),
    "atelectasis": (
        r"atelecta\w+(?:\s+changes?)?", r"volume\s+loss", r"loss\s+of\s+(?:lung\s+)?volume",
        "collapsed?\\s+(?:lung|lobe)",
    ),
    "cardiomegaly": (
        "cardiomegaly", rf"{_HEART}(?:\s*{_COUPLE})*\s+(?:enlarged|enlargement|big|large|dilated)\b",
        rf"enlarge(?:d|ment)(?:\s+of)?(?:\s+the)?\s+{_HEART}",
        r"increased\s+(?:heart|cardiac(?:\s+silhouette)?)\s+size",
    ),
    "interstitial pattern": (
        r"interstitial\s+(?:(?:lung|pulmonary|fibrotic|and|or|alveolar|nodular|reticular)\s+){0,2}(?:diseases?|changes?"
        r"|prominence|o?edema|process|thickening|markings?|patterns?|abnormalit\w+|pneumonitis|pneumonia|fibrosis"
        r"|infiltrat\w+|disorders?|findings?|coarsening|scarring|accentuation)",
        r"(?:prominen\w+|increased|coarse\w*|accentuat\w+|thicken\w+)\s+(?:of\s+)?(?:the\s+)?(?:\w+\s+)?interstiti(?:um|al"
        r")(?:\s+markings)?",
        r"interstiti(?:um|al\s+markings)\s+(?:is|are|appears?)\s+(?:\w+\s+)?(?:prominent|increased)",
        r"fibro(?:sis|tic\s+(?:changes?|disease|patterns?|process))", r"reticul(?:ation|o-?nodular\s+\w+|ar\s+\w+)",
        r"kerley(?:\s+b)?(?:\s+lines)?", "honeycombing", r"septal\s+(?:lines|thickening)",
    ),
    "emphysema": (
        r"emphysem\w*(?:\s+(?:changes?|lung\s+disease|disease|lungs?))?",
        r"bull(?:ae?|ous)(?:\s+(?:emphysem\w+|disease|changes?|lesions?|lung\s+disease))*",
    ),
    "pacemaker": (
        "pace-?makers?", "pacers?", "a?icds?", r"(?:implanted\s+)?defibrillators?", r"pulse\s+generators?",
        r"(?:cardiac|pacing|pacer|pacemaker|defibrillator|a?icd)\s+(?:xxxx\s+)?(?:generators?|devices?|leads?|wires?)",
    ),
    "central line": (
        r"picc(?:\s+(?:lines?|catheters?))?", r"port-?\s?a-?\s?caths?(?:eters?)?", "medi-?ports?", r"cvcs?",
        r"(?:(?:chest|infusion|subclavian|jugular|ij|power)\s+)?(?:ports?|portacath)(?:\s+catheters?)?",
        r"(?:central|venous|jugular|subclavian|ij|svc|dialysis|tunnel+ed|hickman|perm-?a-?cath|vas-?cath|swan-?\s?ganz)"
        r"(?:\s+(?!and\b|or\b)\w+){0,3}?\s+(?:lines?|catheters?|caths?)", r"swan-?\s?ganz",
        r"catheters?(?:\s+\w+){0,6}?\s+(?:svc|superior\s+vena\s+cava|cavo-?\s?atrial|caval?\s+atrial|atriocaval)",
    ),
    "endotracheal tube": (r"endo-?tracheal(?:\s+tubes?)?", r"et\s+tubes?", "etts?", r"intubat(?:ed|ion)"),
    "chest tube": (
        r"chest\s+(?:tubes?|drains?)", r"thoracostomy(?:\s+tubes?)?",
        r"pleural\s+(?:drains?|catheters?|tubes?|pigtail)",
        r"pigtail(?:\s+(?:catheters?|drains?))?", "pleurx(?:\\s+catheter)?",
    ),
    "rib fracture": (
        r"ribs?(?:\s+(?!no\b|without\b|and\b|are\b|is\b)[\w-]+){0,5}?\s+fractures?",
        r"fractures?(?:[\s,]+[\w()-]+){0,12}?[\s,]+ribs?",
        r"(?:fractured|broken)\s+(?:\w+\s+){0,3}?ribs?",
    ),
    "calcified nodule": (
        r"(?:calcified\s+)?granulom(?:as?|ata)", r"granulomat(?:ous|osis)(?:\s+(?:infectio\w+|inflammatory|type|lung"
        r"|and|pulmonary))*(?:\s+(?:diseases?|process|changes?|residua|calcifications?|exposure|sequela\w*|infection"
        r"|nodules?|findings?|scar\w*))?",
        r"(?<!non-)(?<!non\s)calcifi(?:ed|c)(?:\s+(?!and\b|or\b)[\w.-]+){0,4}?\s+(?:nodul(?:es?|ar\s+\w+)|granulom\w+"
        r"|densit(?:y|ies)|opacit(?:y|ies)|lesions?|foc(?:us|i))",
        r"nodules?\s+(?:is|are|appears?)\s+(?:\w+\s+)?calcified",
    ),
    "hiatal hernia": (r"hiat(?:al|us)\s+hernias?", r"(?:paraesophageal\s+)?hernias?"),
    OUTSIDE: (
        r"(?:pericardial|joint|knee)\s+(?:and\s+pleural\s+)?effusions?", r"cystic\s+fibrosis", r"mass\s+effect",
        rf"{_OTHER_BODY}\s+(?:and\s+\w+\s+)?(?:\w+\s+)?(?:mass(?:es)?|nodules?|lesions?|tumou?rs?|{_SHADE}|calcifications?"
        r"|granulomas?|shadows?)",
        r"(?:subcutaneous|soft\s+tissue|mediastinal|surgical)\s+(?:air|emphysema|gas)",
        r"(?:inguinal|ventral|umbilical|incisional|dis[ck]|abdominal\s+wall)\s+herniat?\w*",
        r"(?:prior|old|previous|remote|tb|tubercul\w+|granulomatous|fungal|urinary|osseous|bony?|soft\s+tissue)\s+(?:\w+\s+)?infections?",
        r"(?:cardiac\s+)?(?:ekg|ecg|telemetry|monitor\w*)\s+(?:\w+\s+)?(?:leads?|wires?|devices?)",
        r"(?:vertebra\w*|body|compression)(?:\s+\w+)?\s+collapse\w*", r"(?:bone|mineral)\s+(?:mineral\s+)?density",
        rf"calcifi\w+(?:\s+(?!nodul|granul)[\w-]+){{0,4}}?\s+{_ORGANS}\b(?!\s+(?:nodul|granulom))",
        rf"{_ORGANS}\s+(?:\w+\s+){{0,2}}?calcifi\w+",
        r"crowd\w+\s+(?:\w+\s+){0,3}?interstitial\s+markings", r"double\s+density", r"lung\s+density",
    ),
}  # fmt: skip

# What a shade in the lung is called by the first of these words that stands before it.
_SHADE_TYPES: tuple[tuple[str, str], ...] = (
    (rf"\b{_OTHER_BODY}\b|artifact|\bheart\b|silhouette", OUTSIDE),
    (r"reticulo-?nodular|interstiti|reticular|septal", "interstitial pattern"),
    (r"(?<!non-)(?<!non)calcif", "calcified nodule"),
    (r"mass-?\s?like|\blarge\s+round", "mass"),
    (r"(?<!fibro)nodular|\bround|\bcoin\b|\bovoid", "nodule"),
    (r"ground[\s-]*glass|\bhazy|veil", "ground-glass opacity"),
    (r"linear|band-?\s?like|plate-?\s?like|streaky|strand|discoid|subsegmental|atelectatic|\bband\b", "atelectasis"),
    (r"air\s?-?space|alveolar|patchy|focal|consolidat|confluent|lobar|infect|pneumon|parenchym|pulmonary|lung|basilar"
     r"|retrocardiac|\blobes?\b", "consolidation"),
)  # fmt: skip
_SHADE_PHRASE = re.compile(
    rf"(?P<before>(?:(?!(?:is|are|was|of|in|with|without|no|not|or|the|a|an|which|may|there|has|have|versus|vs|atelectasis|effusions?|consolidations?|pneumonia|nodules|mass(?:es)?(?!-)|edema|scarring)\b)[\w/.-]+"
    rf"(?:,\s*|\s+)){{0,6}})(?P<head>{_SHADE})\b",
    re.IGNORECASE,
)
_PLAIN_SHADE = re.compile(r"opacit|opacif|infiltrat", re.IGNORECASE)
_SIGN = re.compile(
    r"(?<!interstitial )(?<!reticular )(?:opacit(?:y|ies)|opacifications?|densit(?:y|ies)|shadow(?:s|ing)?|attenuation"
    r"|blunt(?:ing|ed)(?:\s+[\w-]+)*"
    r"|(?:costophrenic|cp).*blunt\w+)$",
    re.IGNORECASE,
)
# A calcification counts only where no other organ is named: most are of the aorta or of lymph nodes.
_BARE_CALCIUM = re.compile(r"calcifications?$", re.IGNORECASE)
_ORGAN = re.compile(rf"\b{_ORGANS}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """A finding named in a text.

    Attributes:
        concept: a key of `NAMES`.
        start: first character.
        end: one past the last.
        is_sign: words for what is seen ("opacity", "blunting"), which the same sentence may go on to explain.
    """

    concept: str
    start: int
    end: int
    is_sign: bool = False


def find_mentions(text: str) -> list[Mention]:
    """Find the findings that a sentence names, whatever it says of them.

    Args:
        text: one sentence.

    Returns:
        Mentions in order, without overlap.
    """
    taken: list[Mention] = []
    for mention in sorted(_candidates(text), key=lambda m: m.start - m.end):
        if all(mention.end <= other.start or mention.start >= other.end for other in taken):
            taken.append(mention)
    kept = sorted((m for m in taken if m.concept != OUTSIDE), key=lambda m: m.start)
    return [m for m in kept if not (_BARE_CALCIUM.search(text[m.start : m.end]) and _ORGAN.search(text))]


def _candidates(text: str) -> Iterator[Mention]:
    """All that may be meant, overlapping; at equal length the first one wins."""
    for concept, pattern in _patterns():
        for match in pattern.finditer(text):
            yield _mention(concept, match.start(), match.end(), match[0])
    for match in _SHADE_PHRASE.finditer(text):
        concept, start = _shade(match)
        if concept is not None:
            yield _mention(concept, start, match.end(), text[start : match.end()])


def _mention(concept: str, start: int, end: int, words: str) -> Mention:
    return Mention(concept, start, end, _SIGN.search(words) is not None)


def _shade(match: re.Match[str]) -> tuple[str | None, int]:
    """The finding that a phrase such as "patchy left basilar opacities" means, and where it begins."""
    for pattern, concept in _SHADE_TYPES:
        typed = re.search(pattern, match["before"], re.IGNORECASE)
        if typed:
            return concept, match.start() + typed.start()
    return ("consolidation" if _PLAIN_SHADE.match(match["head"]) else None), match.start("head")


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """One pattern per concept: other organs first, so that they win where lengths are equal."""
    table = {OUTSIDE: _SYNONYMS[OUTSIDE]}
    for concept in NAMES:
        names = sorted((*NAMES[concept], *HELD_OUT[concept], concept), key=len, reverse=True)
        table[concept] = (*_SYNONYMS[concept], *(_wording(name.removeprefix("~")) for name in names))
    return tuple((c, re.compile(rf"\b(?:{'|'.join(w)})(?!\w)", re.IGNORECASE)) for c, w in table.items())


def _wording(name: str) -> str:
    """A name as a pattern: any spaces or hyphens between words, singular or plural."""
    words = [re.escape(word) for word in re.split(r"[\s-]+", name)]
    last = words[-1]
    words[-1] = last[:-1] + "(?:y|ies)" if last.endswith("y") else last + "(?:s|es)?"
    return r"[\s-]+".join(words)
