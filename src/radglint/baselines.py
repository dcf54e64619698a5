"""`radglint ablate CONFIG --baselines`: the methods that came before, by name, trained by one recipe on the same data.

Each is the pooling and the loss that the method stands for, in this package's branch: frozen sentence encoder, the
configuration's trunk, mixer, sentences, steps, batch and seeds. It is not the authors' model, so a row says what the
idea is worth here and nothing about a published number. GLINT's own terms (evidence loss, patch dropout, places,
sparsity, anchor) are left out of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radglint.ablation import (
    BARE,
    FLAIR,
    MEAN,
    NO_ANCHOR,
    RADZERO,
    Changes,
    Plan,
    Results,
    compare,
    difference_table,
    table,
)
from radglint.errors import ConfigError
from radglint.train_config import CachedData, TrainConfig

FOLDER = "baselines"
AS_GIVEN = "GLINT (as given)"

_PLAIN = BARE | {
    "fit.sparsity": "none", "fit.local": "none", "fit.loss": "info_nce", "branch.initial_logit_bias": None,
    "branch.initial_logit_scale": 1 / 0.07,
}  # fmt: skip
_SIGMOID = {
    "fit.loss": "sigmoid",
    "branch.initial_logit_scale": 10.0,
    "branch.initial_logit_bias": -10.0,
}  # as published


@dataclass(frozen=True)
class Baseline:
    """A method as this package can train it.

    Attributes:
        changes: of the configuration.
        source: the paper.
        differs: from the paper, beside the frozen sentence encoder and the trunk that all share.
    """

    changes: Changes
    source: str
    differs: str


BASELINES: dict[str, Baseline] = {
    "ConVIRT": Baseline(
        _PLAIN | MEAN,
        "Zhang et al. 2020, arXiv 2010.00747",
        "mean of the patches and single sentences; multi-positive InfoNCE with a learnt temperature, both ways alike",
    ),
    "GLoRIA-like": Baseline(
        _PLAIN | MEAN | {"fit.local": "gloria", "fit.local_weight": 1.0},
        "Huang et al., ICCV 2021",
        "sentences for words; attention by cosine, with no softmax over words; one projection for global and local; "
        "scored by the global similarity alone",
    ),
    "FLAIR": Baseline(
        _PLAIN | FLAIR | _SIGMOID,
        "Xiao et al., CVPR 2025, arXiv 2412.03561",
        "one head instead of eight; every sentence meets every image; no global multi-positive loss; the zero slot "
        "only shortens the pooled embedding, which a cosine does not see; scale and bias as for SigLIP",
    ),
    "RadZero": Baseline(
        _PLAIN | RADZERO,
        "Park et al., NeurIPS 2025",
        "attention and loss learn a temperature each; patches are pooled at their own length; no class token",
    ),
    "SigLIP": Baseline(
        _PLAIN | MEAN | _SIGMOID,
        "Zhai et al., ICCV 2023, arXiv 2303.15343",
        "mean of the patches instead of an attention pool; scale and bias start at 10 and -10 as published, which a "
        "short run hardly moves",
    ),
    "MGCA (local loss)": Baseline(
        _PLAIN | MEAN | {"fit.local": "mgca", "fit.local_weight": 0.7},
        "Wang et al., NeurIPS 2022",
        "sentences for words, those about one finding not told apart; all tokens weigh the same; no prototypes",
    ),
    "GLINT (gate alone)": Baseline(
        BARE,
        "Park et al., arXiv 2606.03180; the gate is this package's reconstruction",
        "the gate with the configuration's sparsity and without the other terms: what the baselines compare with",
    ),
    AS_GIVEN: Baseline({}, "the configuration", "nothing; it may have terms that no baseline has"),
}


def baselines_for(config: TrainConfig) -> dict[str, Changes]:
    """What each method changes in a configuration; a trained trunk is anchored as given only.

    Raises:
        ConfigError: the configuration starts from another run, which only its own form of branch can.
    """
    if config.init is not None:
        raise ConfigError(f"init {config.init}: baselines have branches of other forms and start anew; leave it out")
    more = {} if isinstance(config.data, CachedData) else NO_ANCHOR
    return {name: b.changes if name == AS_GIVEN else {**b.changes, **more} for name, b in BASELINES.items()}


def compare_baselines(
    config: TrainConfig, steps: int | None = None, num_seeds: int = 3, num_threads: int | None = None,
    only: Sequence[str] | None = None,
) -> Results:  # fmt: skip
    """Train every baseline with every seed, as `ablate` its variants, into `baselines/table.md`; arguments as there."""
    return compare(config, Plan(FOLDER, baselines_for(config), page), steps, num_seeds, num_threads, only)


def page(results: Results) -> str:
    """The table, the differences from GLINT as given where it was run, and what each row is."""
    parts = [table(results)]
    if results.get(AS_GIVEN) and len(results) > 1:
        parts.append(difference_table(results, AS_GIVEN))
    rows = [f"| {name} | {BASELINES[name].source} | {BASELINES[name].differs} |" for name in results]
    return "\n\n".join([*parts, "\n".join(["| method | source | differs |", "|---|---|---|", *rows])]) + "\n"
