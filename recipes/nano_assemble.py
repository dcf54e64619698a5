"""Step 3 of `nano`: put trunk, text tower and both branches together, calibrate on held-out patients, and save.

Command: python recipes/nano_assemble.py runs/trunk runs/text runs/fit_cxr runs/cxr runs/fit_ct runs/ct OUT
         with OUT src/radglint/weights/nano
Time:    about 3 minutes.
Writes:  the checkpoint folder and MODEL_CARD.md is its README.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from transformers import AutoConfig

from nano_features_cxr import fold
from nano_fit import BRANCHES, GRIDS, IN_LUNGS, bags, text_tower
from radglint.cases import Case, load_cases
from radglint.checkpoint import Calibration, LogisticMap, ModalityCalibration, save_checkpoint
from radglint.encoders.backbones import load_backbone
from radglint.encoders.text import TextEncoder
from radglint.model import GlintBranch, GlintConfig, GlintModel
from radglint.place import Place
from radglint.quantize import quantize_in_place
from radglint.scope import OUTSIDE
from radglint.simulation.sentences import BANK, HELD_OUT, Fact
from radglint.train import score_cases, verdict

PRIOR = 0.5  # who asks for a finding has a reason to: as likely there as not, so that both errors weigh the same
# A CT is scored as its best slice. Held-out cases are single slices, so a volume is that many of them, drawn at random.
VOLUME_SLICES = {"CXR": 1, "CT": 80}
# Slices without a finding for each that shows it, where masks are thresholded: most others are closed by their score.
SLICES_WITHOUT = {"CXR": 0.0, "CT": 1.0}
CALIBRATION_FOLDS = (0, 1)  # of the held-out patients with real labels; the rest judge the decisions
MIN_SLOPE = 1.0
MIN_POSITIVES = 8  # a concept with fewer held-out cases is not offered
SCOPE_THRESHOLD = 0.5
MORE_PROMPTS = {
    "mass": ("cancer", "adenocarcinoma", "carcinoma", "malignancy", "metastasis"),
    "consolidation": ("opacity", "opacities", "covid-19 pneumonia", "bronchopneumonia", "air bronchogram"),
    "pleural effusion": ("fluid", "pleural fluid at the base", "hemothorax", "water around the lung"),
    "interstitial pattern": ("pulmonary edema", "pulmonary oedema", "thickened septa", "honeycombing"),
    "ground-glass opacity": ("crazy paving",),
    "nodule": ("coin lesion", "small round lesion", "pulmonary nodules"),
}
OUTSIDE_PROMPTS = (
    "pericardial effusion", "joint effusion", "knee effusion", "middle ear effusion", "ascites", "pulmonary embolism",
    "femur fracture", "hip fracture", "wrist fracture", "fracture of the hand", "skull fracture", "humerus fracture",
    "vertebral compression fracture", "clavicle fracture", "ankle fracture", "brain tumor", "brain hemorrhage",
    "stroke", "subdural hematoma", "meningioma", "breast cancer", "breast mass", "liver lesion", "liver mass",
    "hepatic cyst", "kidney stone", "renal mass", "renal cyst", "adrenal nodule", "thyroid nodule", "thyroid cancer",
    "pancreatic mass", "ovarian cyst", "uterine fibroid", "prostate cancer", "pelvic mass", "bladder tumor",
    "colon cancer", "gastric cancer", "appendicitis", "bowel obstruction", "gallstones", "cholecystitis", "spleen",
    "enlarged spleen", "liver", "kidney", "stomach", "heart", "aorta", "ventricle", "left ventricle", "right atrium",
    "lung", "rib", "spine", "trachea", "diaphragm", "aortic aneurysm", "aortic dissection", "coronary calcification",
    "valve calcification", "lymph node", "lymphadenopathy", "mediastinal lymph nodes", "scoliosis",
    "degenerative spine", "osteoporosis", "arthritis", "meniscus tear", "disc herniation", "inguinal hernia",
    "hip replacement", "nasogastric tube", "feeding tube", "urinary catheter", "bladder catheter", "stent",
    "surgical clips", "sternal wires", "pregnancy", "fetus", "tooth", "asthma", "bronchitis", "bronchiectasis",
    "tuberculosis", "cavity", "cyst", "free air under the diaphragm", "normal", "normal chest", "clear lungs",
    "normal heart size", "healthy", "no abnormality", "image quality", "what is the weather today", "hello",
    "how are you", "dog", "cat", "car", "banana", "tree", "house", "person",
)  # fmt: skip


def prompt_bank() -> dict[str, list[str]]:
    """Known phrases per concept, and what looks alike but is outside."""
    plain = {c: [*BANK[c], *(h.removeprefix("~") for h in HELD_OUT.get(c, ())), *MORE_PROMPTS.get(c, ())] for c in BANK}
    return {c: list(dict.fromkeys(p)) for c, p in plain.items()} | {OUTSIDE: list(OUTSIDE_PROMPTS)}


def logistic(*domains: tuple[np.ndarray, np.ndarray]) -> LogisticMap:
    """Platt scaling at the assumed prior; every domain weighs the same.

    Args:
        domains: scores and labels of simulated cases, of real ones.
    """
    weights = []
    for _, labels in domains:
        weights.append(np.where(labels, PRIOR / labels.sum(), (1 - PRIOR) / (~labels).sum()))
    values, labels = (np.concatenate(parts) for parts in zip(*domains, strict=True))
    fit = LogisticRegression(C=1e4).fit(values[:, None], labels, sample_weight=np.concatenate(weights))
    return LogisticMap(slope=float(fit.coef_[0, 0]), bias=float(fit.intercept_[0]))


def volume_scores(scores: np.ndarray, labels: np.ndarray, num_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of whole volumes: each positive slice among random negative ones, and as many without.

    Args:
        scores: `prompts slices`.
        labels: `slices`, bool.
        num_slices: 1 leaves the scores as they are.
    """
    if num_slices == 1:
        return scores.ravel(), np.tile(labels, len(scores))
    rng = np.random.default_rng(0)
    negative, positive = scores[:, ~labels], scores[:, labels]
    draws = [rng.choice(negative.shape[1], num_slices - 1) for _ in range(2 * positive.shape[1])]
    highest = np.stack([negative[:, draw].max(axis=1) for draw in draws], axis=1)
    with_finding = np.maximum(highest[:, : positive.shape[1]], positive)
    both = np.concatenate([with_finding, highest[:, positive.shape[1] :]], axis=1)
    return both.ravel(), np.tile(np.arange(both.shape[1]) < positive.shape[1], len(both))


def best_pixel_map(logits: np.ndarray, truth: Sequence[np.ndarray], empty: np.ndarray, per_slice: float) -> LogisticMap:
    """Shift the map logit so that one half is the threshold with the best Dice over held-out findings.

    Args:
        logits: `findings tokens`.
        truth: the share of each token inside, per finding.
        empty: `slices tokens`, map logits where the finding is not.
        per_slice: how many such slices stand beside each that shows it.
    """
    cuts = np.quantile(logits, np.linspace(0.3, 0.999, 100))
    rows = []
    for cut in cuts:
        beside = per_slice * float((empty >= cut).sum(axis=1).mean()) if per_slice else 0.0
        marked = logits >= cut
        overlap = [float((m * t).sum()) for m, t in zip(marked, truth, strict=True)]
        sizes = [float(m.sum() + t.sum()) + beside for m, t in zip(marked, truth, strict=True)]
        rows.append(np.mean([2 * o / s for o, s in zip(overlap, sizes, strict=True)]))
    return LogisticMap(slope=1.0, bias=-float(cuts[int(np.argmax(rows))]))


def calibrate(
    branch: GlintBranch, cases: list[Case], real: list[Case], modality: str, text: TextEncoder
) -> ModalityCalibration:
    """Presence per concept over all its prompts; the place threshold per concept over its held-out findings."""
    presence, pixels, pooled = {}, {}, []
    for concept in BANK:
        verdicts = np.array([verdict(Fact(concept), case) for case in cases])
        shown = np.flatnonzero(verdicts == "holds")
        if len(shown) < MIN_POSITIVES:
            continue
        with torch.inference_mode():
            texts = text.embed(list(BANK[concept]))
        places = [Place(concept in IN_LUNGS)] * len(texts)
        scores, logits = score_cases(branch, cases, GRIDS[modality], texts, valid_depth=True, places=places)
        known = verdicts != "unknown"
        labels = (verdicts == "holds")[known]
        domains = [volume_scores(scores[:, known].numpy(), labels, VOLUME_SLICES[modality])]
        domains += real_scores(branch, real, concept, modality, texts)
        to_logit = logistic(*domains)
        if to_logit.slope < MIN_SLOPE:  # held-out images with and without it score alike
            continue
        presence[concept] = to_logit
        pooled += domains
        mean_map = logits.float().mean(dim=0).numpy()
        truth = [coverage_of(cases[k], concept) for k in shown]
        empty = mean_map[verdicts == "fails"]
        pixels[concept] = best_pixel_map(mean_map[shown], truth, empty, SLICES_WITHOUT[modality])
    mean = LogisticMap(slope=1.0, bias=float(np.mean([p.bias for p in pixels.values()])))
    return ModalityCalibration(
        presence=presence, presence_default=logistic(*pooled), pixel=mean, pixel_by_concept=pixels,
        in_lungs=tuple(sorted(IN_LUNGS)) if branch.place is not None else (),
    )  # fmt: skip


def real_scores(
    branch: GlintBranch, cases: list[Case], concept: str, modality: str, texts: torch.Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and labels on real images, if their labels know the concept and show it often enough."""
    verdicts = np.array([verdict(Fact(concept), case) for case in cases])
    known = verdicts != "unknown"
    if (verdicts == "holds").sum() < MIN_POSITIVES:
        return []
    places = [Place(concept in IN_LUNGS)] * len(texts)
    scores, _ = score_cases(branch, cases, GRIDS[modality], texts, valid_depth=True, places=places)
    return [(scores[:, known].numpy().ravel(), np.tile((verdicts == "holds")[known], len(texts)))]


def coverage_of(case: Case, concept: str) -> np.ndarray:
    """Share of each token inside any finding of a concept."""
    rows = [k for k, fact in enumerate(case.facts) if fact.concept == concept]
    return case.coverage[rows].float().amax(dim=0).numpy()


def build(trunk: Path, text: Path, fits: dict[str, Path]) -> GlintModel:
    """The whole model with its trained and frozen weights."""
    config = GlintConfig(
        name="nano",
        image_backbone=AutoConfig.from_pretrained(trunk).to_diff_dict(),
        text_backbone=AutoConfig.from_pretrained(text).to_diff_dict(),
        max_text_tokens=64,
        train_text=False,
        branches=BRANCHES,
    )
    model = GlintModel(config, Tokenizer.from_file(str(text / "tokenizer.json"))).eval()
    model.trunk.backbone.load_state_dict(quantize_in_place(load_backbone(trunk)).state_dict(), strict=True)
    model.text.backbone.load_state_dict(quantize_in_place(load_backbone(text)).state_dict(), strict=True)
    for modality, folder in fits.items():
        model.branches[modality].load_state_dict(load_file(folder / "branch.safetensors"), strict=True)
        model.branches[modality].bfloat16().float()
    return model


def main() -> None:
    """Assemble, calibrate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trunk", "text", "fit_cxr", "cxr", "fit_ct", "ct", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    model = build(args.trunk, args.text, {"CXR": args.fit_cxr, "CT": args.fit_ct})
    text = text_tower(args.text)
    folders = {"CXR": args.cxr, "CT": args.ct}
    held_out = {m: bags(load_cases(f, "val"), m) for m, f in folders.items()}
    real = [c for c in load_cases(args.cxr, "real_test") if fold(c.group.split("|")[0]) in CALIBRATION_FOLDS]
    labelled = {"CXR": real, "CT": []}
    maps = {m: calibrate(model.branches[m], cases, labelled[m], m, text) for m, cases in held_out.items()}
    calibration = Calibration(
        modalities=maps,
        scope_threshold=SCOPE_THRESHOLD,
        origin=f"simulated findings in held-out patients (NIH ChestX-ray14, LIDC-IDRI-0314) and {len(real)} labelled "
        f"radiographs of others of them, assumed prior {PRIOR:.0%}",
    )
    provenance = json.loads((Path(__file__).parent / "nano_provenance.json").read_text())
    card = Path(__file__).parents[1] / "MODEL_CARD.md"
    save_checkpoint(
        args.out, model, prompts=prompt_bank(), calibration=calibration, provenance=provenance,
        quantize="int8_trunk", card=card.read_text() if card.exists() else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
