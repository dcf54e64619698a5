"""Tiny models in the real formats, for tests: built in milliseconds, untrained, the same on every call."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PretrainedConfig,
    ViTConfig,
    VJEPA2Config,
)

from radglint.checkpoint import Calibration, LogisticMap, ModalityCalibration, save_checkpoint
from radglint.encoders.mixer import MixerConfig
from radglint.gate import GateConfig
from radglint.model import BranchConfig, GlintConfig, GlintModel
from radglint.packing import Packing
from radglint.preprocess import CtPreprocess, CxrPreprocess

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TEXT = """there is no a an the in of left right lung lobe upper lower large small pleural effusion nodule mass
pneumothorax consolidation opacity heart pulmonary . ,"""
WORDS = [word for word in _TEXT.split() if word not in LETTERS]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PROVENANCE = {"licences": {"code": "Apache-2.0", "weights": "Apache-2.0", "data": "none, untrained"}, "sources": []}
PROMPTS = {"nodule": ["a nodule in the lung"], "effusion": ["a pleural effusion", "large pleural effusion"]}


def tiny_tokenizer() -> Tokenizer:
    """A lower-case WordPiece tokenizer with BERT's special tokens; unknown words fall into letters."""
    tokenizer = Tokenizer(WordPiece({word: k for k, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def tiny_image_configs() -> dict[str, PretrainedConfig]:
    """Every supported image backbone, 2 blocks of width 32 (V-JEPA 2: 24), with patches of 14, 16 or 4 px."""
    return {
        "dinov2": Dinov2Config(**_SMALL, image_size=56, patch_size=14, mlp_ratio=2),
        "dinov2_with_registers": Dinov2WithRegistersConfig(
            **_SMALL, image_size=56, patch_size=14, mlp_ratio=2, num_register_tokens=4
        ),
        "dinov3_vit": DINOv3ViTConfig(
            **_SMALL, image_size=64, patch_size=16, intermediate_size=64, num_register_tokens=4
        ),
        "vit": ViTConfig(**_SMALL, image_size=64, patch_size=16, intermediate_size=64),
        "vjepa2": VJEPA2Config(
            patch_size=4, crop_size=16, frames_per_clip=8, tubelet_size=2, hidden_size=24, num_attention_heads=2,
            num_hidden_layers=2, mlp_ratio=2, pred_hidden_size=12, pred_num_attention_heads=2,
            pred_num_hidden_layers=3, num_pooler_layers=1,
        ),
    }  # fmt: skip


def tiny_text_config() -> BertConfig:
    """BERT of 2 layers, 32 wide, over `VOCABULARY`."""
    return BertConfig(**_SMALL, intermediate_size=64, vocab_size=len(VOCABULARY), max_position_embeddings=64)


def tiny_config(
    image: str = "dinov2",
    modalities: tuple[str, ...] = ("CXR", "CT"),
    name: str = "tiny",
    num_trainable_blocks: int = 0,
) -> GlintConfig:
    """Configuration of a tiny model; CXR 56 px, CT slices of 56 x 56 px every 10 mm with mixing along depth."""
    image_config = tiny_image_configs()[image]
    patch = int(image_config.patch_size)
    side = 56 if patch == 14 else 64
    mixer = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2.0, "dropout": 0.0}
    gate = GateConfig(joint_dim=16, gate_dim=8)
    cxr = BranchConfig(
        preprocess=CxrPreprocess(long_side_px=side, patch_px=patch), mixer=MixerConfig(**mixer), gate=gate,
        text_hidden=16,
    )  # fmt: skip
    ct = BranchConfig(
        preprocess=CtPreprocess(height_px=side, width_px=side, mm_per_px=6.0, slice_step_mm=10.0, patch_px=patch),
        mixer=MixerConfig(**mixer, depth_kernel=3), gate=gate, text_hidden=16,
    )  # fmt: skip
    both = {"CXR": cxr, "CT": ct}
    return GlintConfig(
        name=name, image_backbone=image_config.to_dict(), text_backbone=tiny_text_config().to_dict(),
        max_text_tokens=48, num_trainable_blocks=num_trainable_blocks, branches={m: both[m] for m in modalities},
    )  # fmt: skip


def tiny_model(
    image: str = "dinov2", modalities: tuple[str, ...] = ("CXR", "CT"), seed: int = 0, num_trainable_blocks: int = 0
) -> GlintModel:
    """An untrained GlintModel in eval mode, the same for the same seed.

    The default transformers initialisation is so small that outputs hardly depend on the input, so every weight is
    drawn anew at a useful size.
    """
    config = tiny_config(image, modalities, num_trainable_blocks=num_trainable_blocks)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = GlintModel(config, tiny_tokenizer())
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def tiny_calibration(modalities: tuple[str, ...] = ("CXR", "CT")) -> Calibration:
    """Slopes and biases that differ per modality, so that mixing them up shows."""
    entries = {
        modality: ModalityCalibration(
            presence={"nodule": LogisticMap(slope=5.0 + k, bias=-0.5)},
            presence_default=LogisticMap(slope=4.0 + k, bias=-1.0),
            pixel=LogisticMap(slope=1.0 + k, bias=0.25),
        )
        for k, modality in enumerate(modalities)
    }
    return Calibration(modalities=entries, scope_threshold=0.3, origin="made up for tests")


def write_tiny_checkpoint(
    folder: Path,
    image: str = "dinov2",
    modalities: tuple[str, ...] = ("CXR", "CT"),
    quantize: Packing = "none",
    seed: int = 0,
) -> Path:
    """A complete checkpoint folder of a tiny model; returns the folder."""
    save_checkpoint(
        folder, tiny_model(image, modalities, seed), prompts=PROMPTS, calibration=tiny_calibration(modalities),
        provenance=PROVENANCE, quantize=quantize,
    )  # fmt: skip
    return folder
