"""Which known finding is a phrase about, if any? Decides what a model may be asked, and which calibration fits.

A phrase is stripped of side, place and size, embedded, and given the concept of the most similar prompt of the
checkpoint's bank. The bank also holds prompts of the concept `OUTSIDE`: things that look alike in words ("pericardial
effusion", "fractured femur") but were never trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

OUTSIDE = "outside"

_PLACE = re.compile(
    r"\b(?:(?:in|at|on|of|within|involving|near|over|along)\s+(?:the\s+|both\s+|either\s+)?)?"
    r"(?:(?:left|right|bilateral(?:ly)?|both|sides?|sided|upper|mid|middle|lower|apical|basal|basilar|lobes?|zones?"
    r"|lungs?|fields?|apex|apices|bases?|hemithorax|chest|thorax)\b[\s-]*)+",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"\b(?:\d+(?:[.,]\d+)?\s*(?:x\s*\d+(?:[.,]\d+)?\s*)*(?:mm|cm|centimet\w+|millimet\w+)"
    r"|small|tiny|minimal|subtle|minor|mild|slight|faint|moderate(?:ly)?|medium|sized|large|big|huge|extensive|severe"
    r"|marked|new|old|acute|chronic|stable|unchanged|increased|increasing)\b"
    r"(?!\s+(?:heart|cardiac))[\s-]*",  # a big heart is a finding
    re.IGNORECASE,
)


def core_phrase(phrase: str) -> str:
    """The finding alone: side, place, size and measurements taken out; the phrase itself if nothing would remain."""
    bare = _SIZE.sub(" ", _PLACE.sub(" ", phrase))
    bare = re.sub(r"\s+(?:in|at|on|of|within|the|and)\s*$", "", " ".join(bare.split())).strip(" ,;.-")
    return bare if re.search(r"[^\W\d_]{3}", bare) else phrase


class ConceptIndex:
    """The prompt bank of a checkpoint, embedded on first use.

    Args:
        prompts: concept to prompts; `OUTSIDE` holds what is out of scope.
        embed: sentences to unit-length rows `sentences embed`.
    """

    def __init__(self, prompts: Mapping[str, Sequence[str]], embed: Callable[[Sequence[str]], torch.Tensor]) -> None:
        owners = {core_phrase(text): concept for concept, texts in prompts.items() for text in texts}
        self._texts, self._concepts = list(owners), list(owners.values())
        self._embed = embed
        self._bank: torch.Tensor | None = None

    def nearest(self, phrases: Sequence[str]) -> list[tuple[str, float]]:
        """The concept of each phrase and the cosine similarity to its nearest prompt."""
        if self._bank is None:
            self._bank = self._embed(self._texts)
        similarity, index = (self._embed([core_phrase(p) for p in phrases]) @ self._bank.T).max(dim=-1)
        return [(self._concepts[int(k)], float(s)) for k, s in zip(index, similarity, strict=True)]
