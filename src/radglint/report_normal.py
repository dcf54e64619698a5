"""Normal statements: "the lungs are clear" says that nodules, masses and consolidation are absent without naming one.

What each statement excludes is a convention, written down in `LUNGS`, `ACUTE` and `CHEST`. Findings that a radiologist
may call normal all the same (a device, a granuloma, a hernia) are not excluded by any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LUNGS = ("nodule", "mass", "consolidation", "ground-glass opacity", "atelectasis", "interstitial pattern")
"""Excluded by "the lungs are clear"."""
ACUTE = ("consolidation", "pleural effusion", "pneumothorax")
"""Excluded by "no acute cardiopulmonary abnormality"."""
CHEST = (*LUNGS, "pleural effusion", "pneumothorax", "cardiomegaly", "emphysema")
"""Excluded by "normal chest"."""

_FLAGS = re.IGNORECASE
_FINE = (
    r"(?<!not )(?<!no longer )(?<!not entirely )(?:normal|unremarkable|within\s+(?:\w+\s+)?(?:normal\s+)?limits|wnl"
    r"|(?:not|non)[\s-]*enlarged)"
)
_HEART = r"(?:heart|cardiac|cardio\s?-?\s?mediastinal|cardio\s?-?\s?pericardial)"
_NOT_FINE = (
    r"(?:enlarg|abnormal|promin|stable(?!\s+and)|unchang|cardiomeg"
    r"|border|upper(?!\s+mediast)|clear\b|lungs?\b|not\b|tortu|calcif)"
)
_BONE = (
    r"(?:(?:bony|osseous|skeletal)\s+(?:thora\w+|structures?|elements?|skeleton|abnormalit\w+)|osseous|bones?|ribs?"
    r"|rib\s+cage|skeletal|skeleton|bony)"
)
_HARM = (
    r"(?:abnormalit(?:y|ies)|disease|process(?:es)?|findings?|patholog(?:y|ies)|illness|problems?|disorder|lesions?)"
)
_NONE = r"(?:no|without|negative\s+for|free\s+of|absence\s+of|reveals?\s+no|shows?\s+no|nor|not\s+\w+\s+any)"
_NEXT = r"(?:[\s,/-]+(?!(?:but|is|are|and\s+no)\b)[\w-]+)"
_EXAM = r"(?:stud(?:y|ies)|exam(?:ination)?s?|radiograph\w*|x-?\s?-?(?:rays?|xxxx)|films?|views?|cxr|series|evaluation)"

_HEART_FINE = re.compile(
    rf"\b{_HEART}\b(?:(?!{_NOT_FINE})[^.;])*?\b{_FINE}"
    rf"|\b(?:normal|unremarkable)(?:[\s,]+(?!(?:heart|lungs?|limits?)\b)[\w/-]+){{0,5}}?\s+{_HEART}\b(?!\s+(?:xxxx\s+)?(?:failure|valve))",
    _FLAGS,
)
_HEART_DOUBT = re.compile(
    rf"\b{_HEART}\b(?:(?!\b(?:lungs?|but)\b)[^.;])*?\b(?:borderline|upper\s+(?:limits?\s+of\s+)?normal|top\s+normal"
    rf"|(?:upper|high|top)\s+(?:limits?|normal|range))|\bborderline(?:\s+\w+){{0,2}}\s+(?:{_HEART}|cardiomegaly)\b"
    rf"|\bupper\s+limits?\s+(?:of\s+)?normal(?:\s+\w+){{0,2}}\s+{_HEART}",
    _FLAGS,
)
_LUNGS_FINE = re.compile(
    r"\b(?:(?:left|right)\s+)?(?:lungs?|lung\s+(?:fields?|xxxx|parenchyma|zones|apices)|pulmonary\s+parenchyma)\b"
    r"(?:\s*:|(?:[\s,]+(?:is|are|remain|remains|appears?|and|pleural|spaces?|both|also|grossly|well|expanded"
    r"|aerated|inflated|bilaterally|symmetric\w*|fully|essentially|relatively|well-\w+|hyper\w+|hypo\w+|normally"
    r"|mildly|xxxx|now|completely|the|to|be|clinically|mediastinum|volumes?|low|a|are|but|demonstrate)){0,9}?)\s+"
    r"(?:clear|normal|unremarkable|within\s+normal\s+limits)\b(?!\s+(?:of|in\s+volume|volumes?|inflat|expan))"
    r"|\b(?:clear|normal|unremarkable|clear\s+and\s+expanded)\s+(?:bilateral\s+|appearing\s+|left\s+|right\s+)?lungs?\b"
    r"(?!\s+(?:volume|inflat|expan|aerat|mark|bases))",
    _FLAGS,
)
_PLEURA_FINE = re.compile(
    r"\bpleura(?:l)?\s*(?:spaces?|surfaces?|cavit\w+|effusions?)?\s*(?::|is|are|appears?|remain)?\s+(?:\w+\s+)?"
    r"(?:clear|normal|unremarkable|within\s+normal)|\bno\s+(?:\w+\s+)?pleural\s+(?:abnormalit\w+|disease|process)",
    _FLAGS,
)
_ANGLES_FINE = re.compile(
    r"\bcostophrenic\s+(?:angles?|sulc\w+|recess\w*|xxxx)\s+(?:\w+\s+){0,3}?(?:clear|sharp|normal|intact|preserved"
    r"|unremarkable)|\b(?:clear|sharp|normal)\s+(?:\w+\s+)?costophrenic",
    _FLAGS,
)
_BONES_FINE = re.compile(
    rf"\b{_BONE}\b(?:[\s,]+(?!(?:but|heart|lungs?|with)\b)[\w-]+){{0,6}}?\s+(?:intact|normal|unremarkable|within\s+normal"
    rf"|{_NONE}(?:\s+\w+){{0,4}}?\s+(?:{_HARM}|fractures?))"
    rf"|\b{_NONE}(?:{_NEXT}){{0,6}}?[\s,]+{_BONE}(?:{_NEXT}){{0,2}}?\s+(?:{_HARM}|injur\w+|fractures?|deformit\w+)"
    rf"|\b{_NONE}(?:{_NEXT}){{0,6}}?[\s,]+fractures?\b|\bintact\s+{_BONE}\b",
    _FLAGS,
)
_NO_HARM = re.compile(
    rf"\b{_NONE}\b(?P<middle>(?:{_NEXT}){{0,8}}?)[\s,]+{_HARM}\b(?!\s+(?:of|progress\w+|change\w*)\b)(?P<after>[^.;,]*)",
    _FLAGS,
)
_ELSEWHERE = re.compile(
    r"\b(?:bony|osseous|skeletal|bones?|traum\w+|abdom\w+|spin\w+|vascular|mediastin\w+|soft|vertebra\w*|ribs?|sternal"
    r"|interval|preoperative|airspace|air|space|lytic|focal|aort\w+|degenerative|lymph\w*|hilar|tubercul\w+|tb|granulom\w+"
    r"|metasta\w+|interstitial|other|additional|pleural|suspicious|residual|emphysem\w+|pericard\w+|further|lung\s+lesion)",
    _FLAGS,
)
_WHOLE_CHEST = re.compile(
    r"cardio\s?-?\s?pulmonary|cardiac|intra-?\s?thoracic|thorac|chest|heart|cardiothoracic", _FLAGS
)
_CHEST_FINE = re.compile(
    rf"\b(?:normal|negative|unremarkable)(?:\s+(?:two|2|view|pa|ap|portable|frontal|lateral|and|of|the)\b)*\s+"
    rf"(?:chest(?!\s+(?:wall|tube|drain))(?:\s+{_EXAM})?|{_EXAM})\b(?!\s+for\b)"
    rf"|\bchest(?:\s+{_EXAM})?\s+(?:is|appears?|are|:)?\s*(?:(?:essentially|grossly)\s+)?(?:normal|negative"
    r"|unremarkable)\b(?!\s+for)"
    rf"|^\W*(?:normal|negative|unremarkable)\W*$",
    _FLAGS,
)
_EXCEPTION = re.compile(
    r"\b(?:except\w*|other\s+than|aside\s+from|apart\s+from|otherwise|remainder|rest\s+of|remaining|besides|elsewhere)\b",
    _FLAGS,
)


@dataclass(frozen=True)
class Exclusion:
    """What a normal statement says.

    Attributes:
        concepts: the findings that it is about.
        assertion: "absent", or "uncertain" for a borderline heart.
        words: the words it was read from.
    """

    concepts: tuple[str, ...]
    assertion: Literal["absent", "uncertain"]
    words: str = ""


def find_exclusions(sentence: str) -> list[Exclusion]:
    """Find the normal statements of a sentence.

    Args:
        sentence: one sentence.

    Returns:
        What they exclude; nothing where the sentence makes an exception ("otherwise clear"), since the exception may
        be any finding.
    """
    doubt = _HEART_DOUBT.search(sentence)
    found = [Exclusion(("cardiomegaly",), "uncertain", doubt[0])] if doubt else []
    if _EXCEPTION.search(sentence):
        return found
    rules = (
        (_CHEST_FINE, CHEST), (_PLEURA_FINE, ("pleural effusion", "pneumothorax")),
        (_ANGLES_FINE, ("pleural effusion",)), (_BONES_FINE, ("rib fracture",)), (_LUNGS_FINE, LUNGS),
        *(() if doubt else ((_HEART_FINE, ("cardiomegaly",)),)),
    )  # fmt: skip
    found += [Exclusion(concepts, "absent", m[0]) for rule, concepts in rules for m in rule.finditer(sentence)]
    return [*found, *(Exclusion(c, "absent") for c in map(_harm, _NO_HARM.finditer(sentence)) if c)]


def _harm(match: re.Match[str]) -> tuple[str, ...]:
    """What "no acute ... abnormality" excludes, by the words between."""
    words = match["middle"]
    subject = re.split(r"[,;:]", match.string[: match.start()])[-1]
    if (
        _ELSEWHERE.search(words)
        or _ELSEWHERE.search(subject)
        or re.search(r"\bin\s+the\s+(?:abd|spine|pelvi)", match["after"])
    ):
        return ()
    if _WHOLE_CHEST.search(words):
        return () if re.fullmatch(r"(?:.*\b)?cardiac\W*", words, _FLAGS) else ACUTE
    if re.search(r"pulmonary|lung", words, _FLAGS):
        return ("consolidation",)
    return ACUTE if re.search(r"\b(?:acute|active|significant)\b", words, _FLAGS) or not words.strip(" ,") else ()
