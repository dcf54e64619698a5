"""What an image is asked: every class in every style, phrases that a reader marked, and the questions of trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from radglint.evaluation.truth import side_of
from radglint.manifest import LabelState, ManifestRow
from radglint.prompt_banks import ClassPrompts, PromptBank, prompts_for

Kind = Literal["negated", "own side", "other side", "foreign"]
# Nothing of this is what a chest image model is for; each must come back as out of scope, with an empty mask.
FOREIGN = (
    "fracture of the femur", "glioblastoma of the left frontal lobe", "meniscal tear", "renal cyst",
    "early pregnancy", "dental caries", "macular edema", "hip prosthesis",
)  # fmt: skip
_OTHER = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class StyledPrompts:
    """The sentences of one class in one style."""

    class_name: str
    style: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class TrustQuestion:
    """A question with a known right answer that needs no label beyond the manifest's.

    Attributes:
        kind: negated = "no X", its mask must be empty; own side and other side = X is on one side only; foreign = out of
            scope.
        class_name: of the bank, empty for foreign ones.
        query: the words.
        truth: of the class in this image.
    """

    kind: Kind
    class_name: str
    query: str
    truth: LabelState | None


def styled_prompts(bank: PromptBank, styles: Sequence[str]) -> list[StyledPrompts]:
    """All sentences of a bank in some styles."""
    found = []
    for entry in bank.classes:
        for style in styles:
            prompts = prompts_for(bank, entry, style)
            found.append(StyledPrompts(entry.own_name, style, tuple(prompts.positive), tuple(prompts.negative)))
    return found


def trust_questions(row: ManifestRow, bank: PromptBank, number: int) -> list[TrustQuestion]:
    """The questions of trust for one image.

    Args:
        row: of the manifest, with its labels.
        bank: the classes.
        number: of the image; each is asked one foreign phrase, in turns.
    """
    questions = [TrustQuestion("foreign", "", FOREIGN[number % len(FOREIGN)], None)]
    for entry in bank.classes:
        state = row.labels.get(entry.label)
        if state in ("present", "absent"):
            questions.append(TrustQuestion("negated", entry.own_name, f"no {entry.label}", state))
        questions += _sides(row, entry)
    return questions


def _sides(row: ManifestRow, entry: ClassPrompts) -> list[TrustQuestion]:
    side = side_of(row, entry.label) if row.labels.get(entry.label) == "present" else None
    if side is None:
        return []
    return [
        TrustQuestion("own side", entry.own_name, f"{side} {entry.label}", "present"),
        TrustQuestion("other side", entry.own_name, f"{_OTHER[side]} {entry.label}", "absent"),
    ]
