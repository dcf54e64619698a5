"""Step 4 of `nano`: put trunk, text tower and both branches together, calibrate on held-out patients, and save.

Command: python recipes/nano_assemble.py runs/trunk CT_FOLDER src/radglint/weights/nano
Time:    about 8 minutes.
Needs:   step 3: what `radglint train` wrote for cxr_nano.toml and ct_nano.toml, and the features of step 1.
Writes:  the checkpoint folder and MODEL_CARD.md is its README.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from transformers import AutoConfig

from nano_features_ct import VAL_BASE, load_base, make_body
from nano_features_cxr import fold
from radglint.case_metrics import auroc
from radglint.cases import Case, crop_slices, load_cases
from radglint.checkpoint import Calibration, LogisticMap, ModalityCalibration, save_checkpoint
from radglint.density import DensityRange
from radglint.encoders.backbones import load_backbone
from radglint.encoders.text import TextEncoder
from radglint.model import BranchConfig, GlintBranch, GlintConfig, GlintModel
from radglint.place import Place, heart_logits, place_prior
from radglint.quantize import quantize_in_place
from radglint.scope import OUTSIDE
from radglint.simulation.ct import SimulatedVolume
from radglint.simulation.sentences import BANK, HELD_OUT, Fact
from radglint.train import verdict
from radglint.train_config import CachedData, TrainConfig, load_config

RECIPES = {m: Path(__file__).parent / f"{m.lower()}_nano.toml" for m in ("CXR", "CT")}
# How much the shipped map asks how well a patch fits; while training it is 8, so that the fit is learnt.
MAP_CONTENT_WEIGHT = {"CXR": 2.0, "CT": 8.0}
DENSITY = {
    "nodule": DensityRange(low_hu=-500), "mass": DensityRange(low_hu=-400),
    "calcified nodule": DensityRange(low_hu=100),
    "consolidation": DensityRange(low_hu=-400), "atelectasis": DensityRange(low_hu=-400),
    "ground-glass opacity": DensityRange(low_hu=-800), "pleural effusion": DensityRange(low_hu=-150, high_hu=150),
    "pneumothorax": DensityRange(high_hu=-900), "emphysema": DensityRange(high_hu=-900),
}  # fmt: skip
AT_HEART = {"CXR": ("cardiomegaly",), "CT": ()}  # of the heart as a whole: the map is the heart
PRIOR = 0.25  # of a finding that is asked for; on the validation cases of SimFind-CXR 3 % of what is absent is marked
# A CT is scored as its best slice. Held-out cases are single slices, so a volume is that many of them, drawn at random.
VOLUME_SLICES = {"CXR": 1, "CT": 80}
# Slices without a finding for each that shows it, where masks are thresholded: most others are closed by their score.
SLICES_WITHOUT = {"CXR": 0.0, "CT": 1.0}
CALIBRATION_FOLDS = (0, 1)  # of the held-out patients with real labels; the rest judge the decisions
MIN_SLOPE, MIN_AUROC = 1.0, 0.65  # a concept that held-out images do not tell apart is not offered
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


def middle_slice(case: Case) -> list[Case]:
    """The middle slice of a CT slab with its neighbours as context; nothing where a finding hardly touches it."""
    return crop_slices(case, [1], 1, context_slices=1)


def text_tower(folder: Path) -> TextEncoder:
    """The frozen sentence encoder as it will ship: int8-rounded."""
    backbone = quantize_in_place(load_backbone(folder)).eval()
    return TextEncoder(backbone, Tokenizer.from_file(str(folder / "tokenizer.json"))).eval()


def shipped_branch(config: TrainConfig) -> BranchConfig:
    """The configuration of a trained branch as it ships."""
    weight = MAP_CONTENT_WEIGHT[config.branch.preprocess.kind]
    return config.branch.model_copy(
        update={"gate": config.branch.gate.model_copy(update={"map_content_weight": weight})}
    )


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


def place_map(
    logits: list[np.ndarray], truth: list[np.ndarray], empty: list[np.ndarray], per_slice: float
) -> LogisticMap:
    """Shift the map logit so that one half is the threshold with the best mean Dice over held-out findings.

    Args:
        logits: of each finding's image or slice, any shape.
        truth: the share of each pixel inside, per finding.
        empty: images or slices where the finding is not.
        per_slice: how many such slices stand beside each that shows it.
    """
    cuts = np.quantile(np.concatenate([part.ravel() for part in logits]), np.linspace(0.3, 0.999, 100))
    beside = np.array([np.mean([(part >= cut).sum() for part in empty]) if per_slice else 0.0 for cut in cuts])
    dice = np.zeros(len(cuts))
    for part, inside in zip(logits, truth, strict=True):
        marked = part.ravel()[None] >= cuts[:, None]
        dice += 2 * (marked @ inside.ravel()) / (marked.sum(axis=1) + inside.sum() + per_slice * beside)
    best = int(dice.argmax())
    print(f"    place: mean Dice {dice[best] / len(logits):.3f} at {cuts[best]:.2f}", flush=True)
    return LogisticMap(slope=1.0, bias=-float(cuts[best]))


class Held:
    """Held-out cases of one modality, with what a place threshold is measured on.

    Args:
        config: the training run of the branch.
        ct: folder of the CT scans; slices are drawn again, because voxels were not cached.
    """

    def __init__(self, config: TrainConfig, ct: Path) -> None:
        assert isinstance(config.data, CachedData)
        self.config, self.modality, self.grid = config, config.branch.preprocess.kind, config.data.grid_tokens
        whole = load_cases(config.data.folder, "val")
        self.cases = whole if self.modality == "CXR" else [bag for case in whole for bag in middle_slice(case)]
        self.slabs = held_out_slabs(whole, ct) if self.modality == "CT" else []

    def pixels(self, concept: str, logits: np.ndarray, k: int) -> np.ndarray:
        """A case's map as it is thresholded: tokens of a radiograph, half the voxels of a CT and their density."""
        if not self.slabs:
            return logits
        tokens = torch.from_numpy(logits.reshape(1, 1, *self.grid))
        hu = self.slabs[k].volume_hu[1, ::2, ::2]
        fine = torch.nn.functional.interpolate(tokens, size=hu.shape, mode="bilinear")[0, 0].numpy()
        return fine + DENSITY[concept].log_share(hu) if concept in DENSITY else fine

    def truth(self, concept: str, k: int) -> np.ndarray:
        """Where the finding is, on the grid of `pixels`."""
        if not self.slabs:
            return coverage_of(self.cases[k], concept)
        slab = self.slabs[k]
        masks = [m[1, ::2, ::2] for m, fact in zip(slab.masks, slab.facts, strict=True) if fact.concept == concept]
        return np.logical_or.reduce(masks).astype(np.float32)


def held_out_slabs(cases: list[Case], ct: Path) -> list[SimulatedVolume]:
    """The slabs behind cached held-out cases whose middle slice is used; groups name their bodies, twins follow."""
    base, seen, slabs = load_base(ct, VAL_BASE), Counter[str](), []
    for case in cases:
        body = int(case.group.split("/")[1])
        _, slab = make_body([base], np.ones(1), body, seen[case.group], ())
        assert slab.facts == case.facts
        seen[case.group] += 1
        slabs += [slab] if middle_slice(case) else []
    return slabs


def calibrate(branch: GlintBranch, held: Held, real: list[Case], text: TextEncoder) -> ModalityCalibration:
    """Presence per concept over all its prompts; the place threshold per concept over its held-out findings."""
    presence, pixels, pooled = {}, {}, []
    in_lungs, encoded = held.config.fit.in_lungs, Encoded.of(branch, held.cases, held.grid)
    encoded_real = Encoded.of(branch, real, held.grid) if real else encoded
    for concept in BANK:
        verdicts = np.array([verdict(Fact(concept), case) for case in held.cases])
        if (verdicts == "holds").sum() < MIN_POSITIVES:
            continue
        scores, logits = asked(branch, encoded, concept, in_lungs, text)
        known = verdicts != "unknown"
        labels = (verdicts == "holds")[known]
        domains = [volume_scores(scores[:, known].numpy(), labels, VOLUME_SLICES[held.modality])]
        domains += real_scores(branch, real, encoded_real, concept, in_lungs, text)
        to_logit = logistic(*domains)
        area = auroc(scores[:, known].mean(dim=0).numpy(), labels)
        print(f"{held.modality} {concept}: slope {to_logit.slope:.1f}, AUROC {area:.3f}", flush=True)
        if to_logit.slope < MIN_SLOPE or area < MIN_AUROC:
            continue
        presence[concept] = to_logit
        pooled += domains
        rows = heart_logits(encoded.field) if concept in AT_HEART[held.modality] else logits.float().mean(dim=0)
        maps = [held.pixels(concept, row, k) for k, row in enumerate(rows.numpy())]
        shown, absent = (np.flatnonzero(verdicts == v) for v in ("holds", "fails"))
        truth = [held.truth(concept, k) for k in shown]
        beside = SLICES_WITHOUT[held.modality]
        pixels[concept] = place_map([maps[k] for k in shown], truth, [maps[k] for k in absent], beside)
    mean = LogisticMap(slope=1.0, bias=float(np.mean([p.bias for p in pixels.values()])))
    return ModalityCalibration(
        presence=presence, presence_default=logistic(*pooled), pixel=mean, pixel_by_concept=pixels,
        in_lungs=held.config.fit.in_lungs if branch.place is not None else (),
        at_heart=AT_HEART[held.modality], density=DENSITY if held.modality == "CT" else {},
    )  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Cases as the gate reads them: mixed tokens, and the place field."""

    mixed: torch.Tensor
    field: torch.Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, branch: GlintBranch, cases: list[Case], grid: tuple[int, int]) -> Encoded:
        """Encode once; every concept is asked of the same tokens."""
        assert branch.place is not None
        reach, mixed, fields = branch.mixer.reach, [], []
        for k in range(0, len(cases), 16):
            tokens = torch.stack([case.tokens for case in cases[k : k + 16]]).float()
            mixed.append(branch.mixer(tokens, grid, True))
            fields.append(branch.place(tokens[:, reach : tokens.shape[1] - reach], grid))
        return cls(torch.cat(mixed), torch.cat(fields))


@torch.inference_mode()
def asked(
    branch: GlintBranch, encoded: Encoded, concept: str, in_lungs: Sequence[str], text: TextEncoder
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `prompts cases` and map logits `prompts cases tokens` of a concept, looked for where it may be."""
    texts = branch.text_adapter(text.embed(list(BANK[concept])))
    places, scores, logits = [Place(concept in in_lungs)] * len(texts), [], []
    for mixed, field in zip(encoded.mixed.split(16), encoded.field.split(16), strict=True):
        gated = branch.gate(mixed, texts, place_prior(field, places))
        scores.append(gated.scores)
        logits.append(gated.map_logits.half())
    return torch.cat(scores, dim=1), torch.cat(logits, dim=1)


def real_scores(
    branch: GlintBranch, cases: list[Case], encoded: Encoded, concept: str, in_lungs: Sequence[str], text: TextEncoder
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and labels on real images, if their labels know the concept and show it often enough."""
    verdicts = np.array([verdict(Fact(concept), case) for case in cases])
    known = verdicts != "unknown"
    if (verdicts == "holds").sum() < MIN_POSITIVES:
        return []
    scores, _ = asked(branch, encoded, concept, in_lungs, text)
    return [(scores[:, known].numpy().ravel(), np.tile((verdicts == "holds")[known], len(scores)))]


def coverage_of(case: Case, concept: str) -> np.ndarray:
    """Share of each token inside any finding of a concept."""
    assert case.coverage is not None
    rows = [k for k, fact in enumerate(case.facts) if fact.concept == concept]
    return case.coverage[rows].float().amax(dim=0).numpy()


def build(trunk: Path, configs: dict[str, TrainConfig]) -> GlintModel:
    """The whole model with its trained and frozen weights."""
    text = Path(configs["CXR"].text.source)
    config = GlintConfig(
        name="nano",
        image_backbone=AutoConfig.from_pretrained(trunk).to_diff_dict(),
        text_backbone=AutoConfig.from_pretrained(text).to_diff_dict(),
        max_text_tokens=64,
        train_text=False,
        branches={modality: shipped_branch(run) for modality, run in configs.items()},
    )
    model = GlintModel(config, Tokenizer.from_file(str(text / "tokenizer.json"))).eval()
    model.trunk.backbone.load_state_dict(quantize_in_place(load_backbone(trunk)).state_dict(), strict=True)
    model.text.backbone.load_state_dict(quantize_in_place(load_backbone(text)).state_dict(), strict=True)
    for modality, run in configs.items():
        model.branches[modality].load_state_dict(load_file(run.out / "branch.safetensors"), strict=True)
        model.branches[modality].bfloat16().float()
    return model


def main() -> None:
    """Assemble, calibrate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trunk", "ct", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    configs = {modality: load_config(path) for modality, path in RECIPES.items()}
    model, text = build(args.trunk, configs), text_tower(Path(configs["CXR"].text.source))
    held = {modality: Held(config, args.ct) for modality, config in configs.items()}
    assert isinstance(configs["CXR"].data, CachedData)
    labelled = load_cases(configs["CXR"].data.folder, "real_test")
    real = [c for c in labelled if fold(c.group.split("|")[0]) in CALIBRATION_FOLDS]
    maps = {m: calibrate(model.branch(m), held[m], real if m == "CXR" else [], text) for m in configs}
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
