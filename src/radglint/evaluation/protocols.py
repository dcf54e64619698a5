"""The protocols of the field, by name: what is asked, how a score is made, how a threshold is chosen.

Each has two columns. "Published" is what the source does, its leaks included, so that a number can stand beside the
source's; "honest" fixes what a test set must not decide: thresholds come from the validation split or are fixed
beforehand, patients are resampled, not images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radglint.errors import ConfigError

Scoring = Literal["positive", "pair", "ensemble", "ask"]
Threshold = Literal["val best mcc", "test youden", "test corner", "test best f1", "half"]


@dataclass(frozen=True)
class ClassificationProtocol:
    """How presence is scored and judged.

    Attributes:
        name: on the command line.
        title: in tables.
        source: who published it.
        style: prompt style, see `radglint.prompt_banks`.
        scoring: ask = probability of `ask`; positive = cosine of the positive prompts; pair = softmax of positive
            against negative; ensemble = mean cosine of the positive prompts less that of the negative ones.
        temperature: of the softmax; None = that of the trained model, 1 = none.
        threshold: of the published column; the honest column chooses the same criterion on the validation split.
        how: what the published column does, in a sentence.
        honest: what the honest column does instead.
    """

    name: str
    title: str
    source: str
    style: str
    scoring: Scoring
    temperature: float | None
    threshold: Threshold
    how: str
    honest: str = "the same scores; the threshold is chosen on the validation split, and patients are resampled"


CLASSIFICATION: dict[str, ClassificationProtocol] = {
    p.name: p
    for p in (
        ClassificationProtocol(
            "chexzero", "CheXzero pairs", "Tiu et al. 2022; code of rajpurkarlab/CheXzero", "chexzero", "pair", 1.0,
            "val best mcc", "softmax of 'X' against 'no X', no temperature; threshold of the best MCC on validation",
        ),
        ClassificationProtocol(
            "radzero", "CARZero / RadZero", "Lai et al. 2024; Park et al. 2025", "radzero", "positive", None,
            "test youden", "cosine of 'There is X'; macro AUROC; threshold at Youden's J on the test split",
        ),
        ClassificationProtocol(
            "ct-clip", "CT-CLIP", "Hamamci et al. 2024; scripts/zero_shot.py", "ctclip", "pair", 1.0, "test youden",
            "softmax of 'X is present.' against 'X is not present.'; threshold at Youden's J on the test split",
        ),
        ClassificationProtocol(
            "hlip", "HLIP / fVLM", "zeroshot_ct_rate.py of HLIP", "hlip", "pair", None, "test corner",
            "softmax of 'The volume shows: X.' against 'Not X' with the trained scale; threshold nearest to the corner "
            "of the test ROC, so accuracy, F1, precision and recall are oracle numbers",
        ),
        ClassificationProtocol(
            "merlin", "Merlin ensembles", "Blankemeier et al. 2024; issues 7 and 34 of StanfordMIMI/Merlin", "merlin",
            "ensemble", None, "test best f1",
            "mean cosine of several positive prompts against that of several negative ones; F1 at its best threshold",
        ),
        ClassificationProtocol(
            "medklip", "MedKLIP / MAVL", "Wu et al. 2023; Phan et al. 2024", "plain", "positive", None, "test best f1",
            "score of the bare class name; F1 and accuracy at the threshold of the best F1 on the test split",
        ),
        ClassificationProtocol(
            "radglint", "radglint", "this package", "radglint", "ask", None, "half",
            "probability of `radglint ask` for the class's name; present from one half on, in scope only",
            "the same; nothing is chosen on this split",
        ),
    )
}  # fmt: skip
GROUNDING = ("pointing", "cnr", "sweep", "zero-shot-segmentation", "presence", "rexgroundingct", "vlm3d")
OTHERS = ("retrieval", "calibration", "prompt-sensitivity", "trust", "probe")
ALL = (*CLASSIFICATION, *GROUNDING, *OTHERS)
SENSITIVITY_STYLES = ("plain", "chexzero", "radzero", "ctclip", "biovil", "gloria", "xplainer", "radglint")


def check_protocols(names: tuple[str, ...]) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: it lists those that there are.
    """
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise ConfigError(f"protocols: no protocol {unknown[0]!r}; choose from {', '.join(ALL)}")


def needed_styles(names: tuple[str, ...]) -> tuple[str, ...]:
    """Prompt styles that some protocols ask."""
    styles = [CLASSIFICATION[name].style for name in names if name in CLASSIFICATION]
    if "prompt-sensitivity" in names:
        styles += SENSITIVITY_STYLES
    return tuple(dict.fromkeys(styles))
