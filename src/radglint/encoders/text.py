"""Text tower: any sentence encoder of `transformers` with mean pooling (default all-MiniLM-L6-v2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn


class TextEncoder(nn.Module):
    """Sentences to unit-length embeddings.

    Args:
        backbone: a `transformers` encoder with `last_hidden_state` of `batch tokens embed`.
        tokenizer: the fast tokenizer that belongs to it.
        max_tokens: longer sentences are cut here.
    """

    def __init__(self, backbone: nn.Module, tokenizer: Tokenizer, max_tokens: int = 128) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.embed_dim = int(self.backbone.config.hidden_size)
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.enable_padding()

    def tokenize(self, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both `sentences tokens`, int64."""
        encodings = self.tokenizer.encode_batch(list(sentences))
        ids = torch.tensor([e.ids for e in encodings], dtype=torch.long)
        return ids, torch.tensor([e.attention_mask for e in encodings], dtype=torch.long)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean of the token embeddings that are not padding, L2-normalised, `sentences embed`, float32."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        weight = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)

    def embed(self, sentences: Sequence[str], chunk: int = 64) -> torch.Tensor:
        """Tokenise and encode; `sentences embed`. Sorted by length inside, so that padding costs little."""
        device = next(self.parameters()).device
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        rows: list[torch.Tensor] = []
        for start in range(0, len(order), chunk):
            ids, mask = self.tokenize([sentences[i] for i in order[start : start + chunk]])
            rows.append(self(ids.to(device), mask.to(device)))
        inverse = torch.tensor(order).argsort().to(device)
        return torch.cat(rows)[inverse]
