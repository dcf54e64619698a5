"""The banks speak of the labels that the adapters write."""

from __future__ import annotations

import pytest
from radglint.datasets import (
    chestx_det,
    chexlocalize,
    chexpert_labels,
    covid_cxr,
    ct_rate,
    lidc,
    ms_cxr,
    nih_cxr14,
    openi,
    padchest_labels,
    rad_chestct,
    rexgroundingct,
    rsna_pneumonia,
    siim_pneumothorax,
    vindr_cxr,
)

from radglint.prompt_banks import load_bank

SAME_NAMES = {
    "chestxray14": nih_cxr14.LABELS, "chexpert5": chexpert_labels.LABELS, "chexpert14": chexpert_labels.LABELS,
    "padchest": padchest_labels.LABELS, "padchest20": padchest_labels.LABELS, "vindr22": vindr_cxr.LABELS,
    "rsna": rsna_pneumonia.LABELS, "siim": siim_pneumothorax.LABELS, "mscxr8": ms_cxr.LABELS,
    "chestxdet10": chestx_det.LABELS, "chexlocalize10": chexlocalize.LABELS, "covid": covid_cxr.LABELS,
    "ctrate18": ct_rate.LABELS, "hlip16": ct_rate.LABELS, "vlm3d5": ct_rate.VLM3D_TASK3,
    "rexgroundingct": rexgroundingct.LABELS, "lidc": lidc.LABELS,
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_NAMES)
def test_own_name_and_label_are_those_of_the_adapter(name: str) -> None:
    adapter = SAME_NAMES[name]
    shown = {found.own_name: found.label for found in load_bank(name).classes}
    assert shown == {own: adapter.get(own) for own in shown}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("chexpert14", chexpert_labels.LABELS), ("mscxr8", ms_cxr.LABELS), ("chestxdet10", chestx_det.LABELS),
        ("ctrate18", ct_rate.LABELS), ("vlm3d5", ct_rate.VLM3D_TASK3), ("rexgroundingct", rexgroundingct.LABELS),
        ("siim", siim_pneumothorax.LABELS), ("lidc", lidc.LABELS),
    ],
)  # fmt: skip
def test_a_bank_of_all_labels_has_all(name: str, labels: dict[str, str]) -> None:
    assert set(load_bank(name).labels) == set(labels.values())


def test_the_merged_labels_of_rad_chestct_are_those_of_the_adapter() -> None:
    assert set(load_bank("radchestct16").labels) == set(rad_chestct.CT_CLIP_16)


def test_openi_has_no_label_for_the_lesions_that_carzero_counts() -> None:
    unknown = set(load_bank("openi18").labels) - set(openi.LABELS.values())
    assert unknown == {"lung lesion"}
