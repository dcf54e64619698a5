"""Evaluation: measures, protocols, results.

One rule for inputs without an answer, in every module:

- an input that is broken (NaN or infinite scores, other lengths, a probability above 1, an empty array, a mask that is
  not bool) raises `InputError`, which names the argument, the first bad place, what came, and what to do;
- an input that is sound but leaves a measure undefined (only positives, only negatives, an empty mask under the rule
  "skip") gives NaN, never a made-up 0 or 1. `classification.why_undefined` says the reason in words, and the helpers
  over classes list what they left out, with that reason. Means over cases and draws leave NaN out and say how many;
- equal scores are ties and count half (AUROC); a constant score has AUROC 0.5.

NaN inside a map means "the model saw nothing there": such voxels are never marked and never the peak, the truth under
them is missed, and CNR and min-max leave them out.
"""
