"""Step 2 of `nano`: fit the place field of a branch, which then stays as it is while the rest is trained.

Command: python recipes/nano_place.py recipes/cxr_nano.toml runs/trunk
         python recipes/nano_place.py recipes/ct_nano.toml  runs/trunk
Time:    about 20 s each.
Needs:   the features of step 1 with their lungs.safetensors.
Writes:  the file that the configuration names as `init`: an untrained branch that knows the lungs and their sides.
         With --branch FILE the trained branch in FILE gets a place field instead.
Expected: lung or not, right in .995 (CXR) and .999 (CT) of the patches clearly in or out; left or right, 1.000.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from radglint.encoders.backbones import load_backbone
from radglint.model import GlintBranch
from radglint.place import LUNG_MARGIN, PlaceField
from radglint.train_config import CachedData, load_config

PLACE_ROWS = 60_000  # patches that it is fitted on
TEXT_DIM = 384


@torch.no_grad()
def fit_place_field(field: PlaceField, cases: dict[str, torch.Tensor], grid: tuple[int, int]) -> None:
    """Logistic regression on patches that lie clearly in or out.

    The lungs were found by clusters of features on radiographs, by thresholds on CT, or projected from CT: no finding's
    outline is used.

    Args:
        field: set in place.
        cases: `tokens` of painted images, and `lungs`, the share of each token in the right and in the left lung.
        grid: `(height, width)` of one slice of tokens.
    """
    rng = np.random.default_rng(0)
    rows = torch.cat([field.features(part, grid).flatten(0, 2) for part in cases["tokens"].split(16)]).numpy()
    right, left = cases["lungs"].float().transpose(0, 1).flatten(1).numpy()
    lung = right + left
    answers = {"lung": (np.abs(lung - 0.5) > 0.3, lung > 0.5), "side": (lung > 0.5, left > right)}
    for k, (name, (clear, answer)) in enumerate(answers.items()):
        chosen = rng.permutation(np.flatnonzero(clear))[:PLACE_ROWS]
        fit = LogisticRegression(C=0.1, max_iter=200).fit(rows[chosen], answer[chosen])
        print(f"{name}: right in {fit.score(rows[chosen], answer[chosen]):.3f}", flush=True)
        field.head.weight[k] = torch.from_numpy(fit.coef_[0]).float()
        field.head.bias[k] = float(fit.intercept_[0]) + (LUNG_MARGIN if name == "lung" else 0.0)


def main() -> None:
    """Build, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("trunk", type=Path)
    parser.add_argument("--branch", type=Path, help="a trained branch without a place field, to get one")
    parser.add_argument("--out", type=Path, help="where to write; what the configuration calls init by default")
    args = parser.parse_args()
    config = load_config(args.config)
    assert isinstance(config.data, CachedData)
    torch.manual_seed(config.fit.seed)
    branch = GlintBranch(load_backbone(args.trunk).config.hidden_size, TEXT_DIM, config.branch)
    assert branch.place is not None
    fit_place_field(branch.place, load_file(config.data.folder / "lungs.safetensors"), config.data.grid_tokens)
    if args.branch:
        known = load_file(args.branch)
        missing, unknown = branch.load_state_dict(known, strict=False)
        assert not unknown
        assert all(name.startswith("place.") for name in missing)
    out = args.out or config.init
    assert out is not None
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in branch.state_dict().items()}, out)


if __name__ == "__main__":
    main()
