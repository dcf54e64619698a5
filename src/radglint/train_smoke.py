"""`radglint train CONFIG --smoke`: one step of a configuration on tiny data and towers that are made here, offline.

Form and switches stay those of the configuration (data, gate, losses, updates, precision); sizes and sources are
replaced. It proves that a configuration can be run, not what it learns.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, DINOv3ViTConfig, PretrainedConfig, VJEPA2Config

from radglint.cases import Case, save_cases
from radglint.simulation.facts import Fact
from radglint.train_config import CachedData, PairData, TrainConfig

BATCH, CASES, HELD_OUT = 4, 12, 9  # three reports of each finding are held out: fewer have no AUROC
GRID, EMBED = (4, 5), 16
PATCH_PX, SIDE_PX = 16, 64
FACTS = (Fact("nodule", "left", "upper", "small"), Fact("pleural effusion", "right"), Fact("consolidation", "left"))
REPORTS = (
    "FINDINGS: There is a small nodule in the left upper lobe. No effusion. IMPRESSION: Nodule.",
    "FINDINGS: Right pleural effusion. The heart is normal.",
    "FINDINGS: Consolidation in the left lung. IMPRESSION: Pneumonia is possible.",
)


def smoke_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """Write tiny data and towers, and a configuration that uses them for one step.

    Args:
        config: what is to be tried.
        folder: an empty one; data, towers and the run go there.
    """
    values = config.model_dump(mode="json")
    values |= {"out": str(folder / "run"), "init": None, "checkpoint_every_steps": 1, "log_every_steps": 1}
    values |= {"picture_every_steps": 1, "picture_cases": 2}
    values["microbatch_images"] = 2 if config.microbatch_images is not None else None
    values["fit"] |= {"steps": 1, "batch": BATCH, "warmup_steps": 1}
    values["text"] |= {"source": str(write_text_tower(folder / "text")), "allow_download": False}
    if isinstance(config.data, CachedData):
        values["data"] |= _cached_values(config.data, folder)
    else:
        _use_pairs(values, config, config.data, folder)
    return TrainConfig.model_validate(values)


def _use_pairs(values: dict[str, Any], config: TrainConfig, data: PairData, folder: Path) -> None:
    kind = config.branch.preprocess.kind
    manifest, held_out = _write_manifests(folder, kind, data)
    values["data"] |= {"manifests": [str(manifest)] if data.manifests else [], "workers": 0}
    values["data"] |= {"shards": [str(_write_shard(folder, manifest))] if data.shards else []}
    values["data"] |= {"val_manifest": str(held_out) if data.val_manifest is not None else None}
    values["data"] |= {"cache": str(folder / "cache") if data.cache is not None else None}
    values["branch"]["preprocess"] |= {"patch_px": PATCH_PX} | (
        {"long_side_px": SIDE_PX} if kind == "CXR"
        else {"height_px": SIDE_PX, "width_px": SIDE_PX, "mm_per_px": 6.0, "slice_step_mm": 20.0}
    )  # fmt: skip
    trunk = values["trunk"]
    trunk |= {"source": str(_write_tower(folder / "trunk", _trunk_config(kind))), "allow_download": False}
    trunk["trained_blocks"] = min(trunk["trained_blocks"], 1)
    trunk["anchor"]["blocks"] = [1] if trunk["anchor"]["blocks"] else []
    if trunk["anchor"]["source"] is not None:
        trunk["anchor"]["source"] = str(_write_tower(folder / "teacher", _trunk_config(kind)))


def _cached_values(data: CachedData, folder: Path) -> dict[str, Any]:
    """Shards for every prefix; slabs are two bags long."""
    depth = 1 if data.bag_slices is None else 2 * data.bag_slices + 2 * data.context_slices
    rng = np.random.default_rng(0)
    for prefix in {*data.train_prefixes, *([] if data.val_prefix is None else [data.val_prefix])}:
        save_cases(folder / "cases" / f"{prefix}_000", [_case(k, depth, rng) for k in range(CASES)])
    return {"folder": str(folder / "cases"), "grid_tokens": GRID}


def _case(k: int, depth: int, rng: np.random.Generator) -> Case:
    facts = (FACTS[k % len(FACTS)],) if k % 4 else ()
    tokens = torch.from_numpy(rng.normal(size=(depth, GRID[0] * GRID[1], EMBED))).bfloat16()
    coverage = torch.ones(len(facts), depth * GRID[0] * GRID[1]).half() if facts else None
    return Case(tokens, facts, coverage, f"patient-{k // 2}")


def _write_manifests(folder: Path, kind: str, data: PairData) -> tuple[Path, Path]:
    """Training and validation pairs, in one manifest if that is how the configuration has them."""
    manifest, held_out = folder / "manifest.jsonl", folder / "val.jsonl"
    rows = _write_pairs(folder, kind, range(CASES), data.train_split)
    more = _write_pairs(folder, kind, range(CASES, CASES + HELD_OUT), data.val_split)
    if data.val_manifest in data.manifests:
        rows, held_out = rows + more, manifest
    for path, written in ((held_out, more), (manifest, rows)):
        path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return manifest, held_out


def _write_pairs(folder: Path, kind: str, numbers: range, split: str | None) -> list[dict[str, Any]]:
    """An image each; the lines of the manifest."""
    rng, rows = np.random.default_rng(numbers.start), []
    for k in numbers:
        name = f"{k}.png" if kind == "CXR" else f"{k}.nii.gz"
        (_write_radiograph if kind == "CXR" else _write_ct)(folder / name, rng)
        row = {"id": str(k), "image": name, "report": REPORTS[k % len(REPORTS)], "group": f"patient-{k}"}
        rows.append(row | ({"split": split} if split else {}))
    return rows


def _write_shard(folder: Path, manifest: Path) -> Path:
    """The same pairs as a tar in the WebDataset layout."""
    path = folder / "shard-000.tar"
    with tarfile.open(path, "w") as archive:
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = row.pop("image")
            text = folder / "sample.json"
            text.write_text(json.dumps(row), encoding="utf-8")
            archive.add(folder / name, name)
            archive.add(text, f"{name.partition('.')[0]}.json")
    return path


def _write_radiograph(path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 255, (SIDE_PX, SIDE_PX), dtype=np.uint8)).save(path)


def _write_ct(path: Path, rng: np.random.Generator) -> None:
    """A block of tissue with two hollows, in HU; 6 mm pixels, 20 mm slices."""
    volume = np.full((SIDE_PX, SIDE_PX, 6), -1000, dtype=np.int16)
    volume[8:-8, 12:-12] = 40
    volume[14:28, 20:-20] = volume[-28:-14, 20:-20] = -850
    volume += rng.integers(-20, 20, volume.shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([6.0, 6.0, 20.0, 1.0])), path)


def write_text_tower(folder: Path, width: int = 32) -> Path:
    """A tiny text tower with random weights and a tokenizer that spells; returns its folder."""
    _write_tower(folder, _text_config(width))
    _write_tokenizer(folder)
    return folder


def _write_tower(folder: Path, config: PretrainedConfig) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def _trunk_config(kind: str) -> PretrainedConfig:
    """Two blocks: a ViT for radiographs, a V-JEPA 2 for CT."""
    if kind == "CXR":
        return DINOv3ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                               image_size=SIDE_PX, patch_size=PATCH_PX, num_register_tokens=4)  # fmt: skip
    return VJEPA2Config(
        patch_size=PATCH_PX, crop_size=SIDE_PX, frames_per_clip=8, tubelet_size=2, hidden_size=24,
        num_attention_heads=2, num_hidden_layers=2, mlp_ratio=2, pred_hidden_size=12, pred_num_attention_heads=2,
        pred_num_hidden_layers=2, num_pooler_layers=1,
    )  # fmt: skip


def _vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "-", *letters, *(f"##{letter}" for letter in letters)]


def _text_config(width: int) -> PretrainedConfig:
    return BertConfig(hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                      vocab_size=len(_vocabulary()), max_position_embeddings=256,
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip


def _write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer that spells."""
    tokenizer = Tokenizer(WordPiece({word: k for k, word in enumerate(_vocabulary())}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
