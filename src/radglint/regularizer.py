"""Dense Feature Regularization: keep the trained encoder's patch features near those of a frozen teacher.

Reference: GLINT, arXiv 2606.03180 (abstract); the direct form is our reconstruction, the Gram form follows the idea
of DINOv3's Gram anchoring (Simeoni et al. 2025, arXiv 2508.10104).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Anchor = Literal["none", "cosine", "gram"]


def cosine_anchor(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine between layer-normalised patch tokens.

    Args:
        student: `batch tokens embed`, raw tokens of one layer.
        teacher: the same of the teacher.

    Returns:
        Scalar in [0, 2]; 0 when both are equal.

    Naive form: mean over b, p of 1 - dot(LN(s[b,p]), LN(t[b,p])) / (|LN(s[b,p])| |LN(t[b,p])|).
    """
    width = (student.shape[-1],)
    normal_student = functional.layer_norm(student.float(), width)
    normal_teacher = functional.layer_norm(teacher.float(), width)
    # Half the squared distance of unit vectors is 1 - cosine, but exactly 0 where they are equal.
    difference = functional.normalize(normal_student, dim=-1) - functional.normalize(normal_teacher, dim=-1)
    return difference.square().sum(dim=-1).mean() / 2


def gram_anchor(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the patch-to-patch cosine matrices of each image.

    Free of rotations: channels may move, locality is kept.

    Args:
        student: `batch tokens embed`.
        teacher: the same of the teacher (its width may differ).

    Returns:
        Scalar; 0 when both have the same similarities.

    Naive form: mean over b, p, q of (cos(s[b,p], s[b,q]) - cos(t[b,p], t[b,q])) ** 2.
    """
    unit_student = functional.normalize(student.float(), dim=-1)
    unit_teacher = functional.normalize(teacher.float(), dim=-1)
    difference = unit_student @ unit_student.mT - unit_teacher @ unit_teacher.mT
    return difference.square().mean()


class DenseFeatureRegularizer(nn.Module):
    """The DFR term over chosen layers.

    Args:
        anchor: none, cosine or gram.
        max_tokens: for the Gram form, at most this many tokens (the same random ones of both) enter the matrix.
    """

    def __init__(self, anchor: Anchor = "cosine", max_tokens: int = 2048) -> None:
        super().__init__()
        self.anchor = anchor
        self.max_tokens = max_tokens

    def forward(self, student: dict[int, torch.Tensor], teacher: dict[int, torch.Tensor]) -> torch.Tensor:
        """Mean over layers of the anchor loss.

        Args:
            student: layer number to `batch tokens embed`, with gradient.
            teacher: the same layers of the frozen teacher.

        Returns:
            Scalar; exactly 0 while the student still equals the teacher.

        Raises:
            ValueError: the layers differ or are none.
        """
        if not student or student.keys() != teacher.keys():
            raise ValueError(f"student layers {sorted(student)} and teacher layers {sorted(teacher)} must be the same")
        if self.anchor == "none":
            return next(iter(student.values())).new_zeros(())
        losses = [self._layer(student[layer], teacher[layer].detach()) for layer in sorted(student)]
        return torch.stack(losses).mean()

    def _layer(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        if self.anchor == "cosine":
            return cosine_anchor(student, teacher)
        if student.shape[1] > self.max_tokens:
            chosen = torch.randperm(student.shape[1], device=student.device)[: self.max_tokens]
            student, teacher = student[:, chosen], teacher[:, chosen]
        return gram_anchor(student, teacher)
