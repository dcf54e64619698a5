"""Which sentence holds for which report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from radglint.report_labels import draw_sentences, join_duplicates, presence_verdicts, said, statements_of

LEFT = "FINDINGS: There is a small left pleural effusion. No pneumothorax. Heart size is normal."
ALSO_LEFT = "FINDINGS: Left-sided pleural effusion. Possible consolidation in the right lower lobe."
NORMAL = "IMPRESSION: No acute disease. No pleural effusion or pneumothorax."
RIGHT = "FINDINGS: Right pleural effusion. Degenerative changes of the spine."
REPORTS = (LEFT, ALSO_LEFT, NORMAL, RIGHT)
ALL = ("present", "uncertain", "absent", "other")


def label(text: str, kinds: Sequence[str] = ALL, reports: Sequence[str] = REPORTS) -> str:
    """One letter per report: + holds, - does not, ? undecided."""
    drawn = draw_sentences(reports, kinds, 99, np.random.default_rng(0))
    row = drawn.texts.index(text)
    signs = zip(drawn.positives[row].tolist(), drawn.negatives[row].tolist(), strict=True)
    return "".join({(True, False): "+", (False, True): "-", (False, False): "?"}[pair] for pair in signs)


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("Left-sided pleural effusion.", "++--"),  # the same in other words, and with a size
        ("There is a small left pleural effusion.", "+?--"),  # how large the second one is, nobody says
        ("Right pleural effusion.", "---+"),
        ("Possible consolidation in the right lower lobe.", "-+--"),
        ("No pneumothorax.", "+?+?"),  # not mentioned is not denied
        ("No pleural effusion or pneumothorax.", "--+-"),
        ("Degenerative changes of the spine.", "---+"),
    ],
)
def test_a_sentence_holds_for_every_report_that_says_so(text: str, signs: str) -> None:
    assert label(text) == signs


def test_only_the_kinds_asked_for_are_drawn() -> None:
    def texts(*kinds: str) -> list[str]:
        return draw_sentences(REPORTS, kinds, 99, np.random.default_rng(0)).texts

    assert texts("present") == [
        "There is a small left pleural effusion.", "Left-sided pleural effusion.", "Right pleural effusion.",
    ]  # fmt: skip
    assert texts("uncertain") == ["Possible consolidation in the right lower lobe."]
    assert texts("other") == ["Degenerative changes of the spine."]
    assert "No pneumothorax." in texts("absent")
    assert len(texts(*ALL)) == sum(len(statements_of(report)) for report in REPORTS)


def test_a_sentence_that_only_denies_has_no_place() -> None:
    drawn = draw_sentences(REPORTS, ALL, 99, np.random.default_rng(0))
    assert [bool(p) for p in drawn.placed] == [said(s) != "absent" for s in drawn.statements]
    assert not drawn.placed[drawn.texts.index("No pneumothorax.")]
    assert drawn.placed[drawn.texts.index("Right pleural effusion.")]


def test_every_drawn_sentence_holds_for_its_own_report_and_the_draw_is_that_of_the_seed() -> None:
    drawn = draw_sentences(REPORTS, ALL, 1, np.random.default_rng(3))
    assert 1 <= len(drawn.texts) <= 4
    for text, row in zip(drawn.texts, drawn.positives, strict=True):
        assert all(bool(row[k]) for k, report in enumerate(REPORTS) if text in report)
    assert not (drawn.positives & drawn.negatives).any()
    assert draw_sentences(REPORTS, ALL, 1, np.random.default_rng(3)).texts == drawn.texts
    others = {tuple(draw_sentences(REPORTS, ALL, 1, np.random.default_rng(k)).texts) for k in range(8)}
    assert len(others) > 1


def test_an_uncertain_finding_is_neither_positive_nor_negative_of_a_sure_one() -> None:
    reports = ("Consolidation in the right lung.", "Possible consolidation in the right lung.", "Clear lungs.")
    assert label("Consolidation in the right lung.", ("present",), reports) == "+?-"


def test_sentences_without_findings_join_by_meaning_when_a_tower_says_so() -> None:
    reports = ("Degenerative changes of the spine.", "Spinal degenerative change.", "The stomach is full of gas.")
    drawn = draw_sentences(reports, ("other",), 9, np.random.default_rng(0))
    row = drawn.texts.index(reports[0])
    assert drawn.negatives[row].tolist() == [False, True, True]

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if "egenerative" in text else [0.0, 1.0] for text in texts])

    joined = join_duplicates(drawn, embed, 0.9)
    assert joined.positives[row].tolist() == [True, True, False]
    assert joined.negatives[row].tolist() == [False, False, True]


def test_reports_as_labels_of_a_finding() -> None:
    assert presence_verdicts("pleural effusion", REPORTS) == ["holds", "holds", "fails", "holds"]
    assert presence_verdicts("pneumothorax", REPORTS) == ["fails"] * 4
    assert presence_verdicts("consolidation", REPORTS)[1] == "unknown"


def test_reports_without_a_sentence_of_the_kind_give_none() -> None:
    drawn = draw_sentences(("Clear lungs.", ""), ("present",), 4, np.random.default_rng(0))
    assert drawn.texts == []
    assert drawn.positives.shape == drawn.negatives.shape == (0, 2)
