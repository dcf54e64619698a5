"""Cached tokens of a frozen trunk: the run is the same, no image is encoded twice, and no token is ever stale."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

import radglint
from radglint import feature_cache
from radglint.encoders.features import PatchFeatures
from radglint.encoders.vit import VitEncoder
from radglint.errors import ConfigError, ImageError, TrainingError
from radglint.feature_cache import FeatureCache
from radglint.model import GlintModel
from radglint.report_pairs import Pair, TarMember, load_manifest
from radglint.train_config import TrainConfig
from radglint.train_engine import Trainer, train
from radglint.train_log import read_log
from radglint.train_optimizer import average_gradients
from radglint.train_pairs import PairTask
from radglint.train_smoke import smoke_config
from radglint.train_state import whole
from radglint.train_towers import Ranks
from train_runs import flat, tiny_run

FROZEN: dict[str, Any] = {
    "trunk__trained_blocks": 0, "trunk__lora": None, "trunk__anchor": {"form": "none"}, "text__trained": False,
    "fit__steps": 2, "fit__batch": 6, "fit__learning_rate": 0.01, "microbatch_images": None, "ema_decay": None,
    "log_every_steps": 1, "branch__mixer__width": 64, "branch__gate__joint_dim": 64, "branch__gate__gate_dim": 16,
    "branch__text_hidden": 64,
}  # fmt: skip
IMAGES = 21  # of a tiny run: 12 to train on, 9 held out


def frozen_run(folder: Path, recipe: str = "cxr_base", *, cached: bool = True, **changes: Any) -> TrainConfig:
    """A tiny run with a frozen trunk; all runs of a test share data and cache, and have an `out` each."""
    config = tiny_run(folder, recipe, **FROZEN | {"data__cache": str(folder / "cache") if cached else None} | changes)
    return config


def other(config: TrainConfig, name: str, **data: Any) -> TrainConfig:
    """The same run in another folder, with keys of its data changed."""
    return config.model_copy(update={"out": config.out.with_name(name), "data": config.data.model_copy(update=data)})


def trained(config: TrainConfig) -> dict[str, torch.Tensor]:
    train(config)
    return load_file(config.out / "branch.safetensors")


def assert_equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def files(config: TrainConfig) -> dict[str, Path]:
    """The files of tokens, by name."""
    return {path.name: path for path in config.data.model_dump()["cache"].glob("??/*.safetensors")}


def fill(config: TrainConfig) -> PairTask:
    return PairTask(config, Ranks())


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many radiographs each call of the trunk has encoded."""
    calls, forward = [], VitEncoder.forward

    def counted(self: VitEncoder, pixels: torch.Tensor, *rest: Any) -> PatchFeatures:
        calls.append(len(pixels))
        return forward(self, pixels, *rest)

    monkeypatch.setattr(VitEncoder, "forward", counted)
    return calls


def mixed_sizes(folder: Path) -> None:
    """Wide, high and square radiographs; the first two have as many patches, on another grid."""
    rng = np.random.default_rng(5)
    for k in range(IMAGES):
        size = ((48, 64), (64, 48), (64, 64))[k % 3]
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{k}.png")


def rounded_and_alone(features: Callable[..., PatchFeatures]) -> Callable[..., PatchFeatures]:
    """`branch_features` as the cache has them: of each image alone, so that no batch can matter, and rounded."""

    def function(self: GlintModel, pixels: torch.Tensor, *rest: Any) -> PatchFeatures:
        each = [features(self, image[None], *rest) for image in pixels]
        return PatchFeatures(torch.cat([one.tokens for one in each]).bfloat16().float(), each[0].grid)

    return function


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cxr_base", {"branch__trunk_layers": [1]}),
        ("cxr_base", {"microbatch_images": 2, "fit__local": "gloria", "branch__mixer__dropout": 0.2}),
        ("ct_base", {"data__max_slices": 4}),
    ],
    ids=["radiographs", "sizes in pieces", "ct"],
)
def test_a_run_on_cached_tokens_has_the_weights_of_one_on_rounded_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, changes: dict[str, Any]
) -> None:
    """Bit by bit, measures too; without rounding it would not be the same, or there would be nothing to compare."""
    config = frozen_run(tmp_path, recipe, **changes)
    if "microbatch_images" in changes:
        mixed_sizes(tmp_path)
    fill(config.model_copy(update={"microbatch_images": 1}))
    got = trained(config)
    unrounded = trained(other(config, "unrounded", cache=None))
    monkeypatch.setattr(GlintModel, "branch_features", rounded_and_alone(GlintModel.branch_features))
    plain = other(config, "plain", cache=None)
    wanted = trained(plain)
    assert_equal(got, wanted)
    assert (config.out / "metrics.json").read_text() == (plain.out / "metrics.json").read_text() != "{}\n"
    assert not torch.equal(flat(got), flat(unrounded))
    first, first_unrounded = (read_log(run.out)[0]["loss"] for run in (config, other(config, "unrounded")))
    assert first == pytest.approx(first_unrounded, rel=0.02)


def test_with_bfloat16_products_the_cache_changes_nothing(tmp_path: Path) -> None:
    config = frozen_run(tmp_path, precision="bfloat16", branch__trunk_layers=[1], data__val_manifest=None,
                        data__val_split=None)  # fmt: skip
    assert_equal(trained(config), trained(other(config, "plain", cache=None)))


@pytest.mark.slow
def test_each_image_is_encoded_once_and_never_by_a_second_run(tmp_path: Path, encoded: list[int]) -> None:
    """Not for the steps, the pictures or the measures; what is written can be used without the cache."""
    config = frozen_run(tmp_path, picture_every_steps=1)
    first = trained(config)
    assert sum(encoded) == IMAGES == len(files(config))
    assert max(encoded) > 1, "images of one size are encoded together"
    encoded.clear()
    assert_equal(trained(other(config, "again", workers=1)), first)
    assert encoded == []
    rows = [[row[key] for key in ("loss", "gradient_norm")] for row in read_log(config.out)]
    assert rows == [[row[key] for key in ("loss", "gradient_norm")] for row in read_log(config.out.with_name("again"))]
    assert len(rows) == 2
    trained(other(config, "without", cache=None))
    assert sum(encoded) > 2 * 6 + 9, "the count counts: steps, pictures and measures run the trunk without a cache"


def test_an_image_with_two_reports_is_encoded_once(tmp_path: Path, encoded: list[int]) -> None:
    config = frozen_run(tmp_path)
    manifest = config.data.model_dump()["manifests"][0]
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[0].replace('"id": "0"', '"id": "0 again"')]) + "\n")
    task = fill(config)
    assert len(task.pairs) == 13
    assert sum(encoded) == IMAGES


class StoppedError(Exception):
    """Stands for a kill."""


def stopped_fill(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A fill that ends in the middle of a write."""
    write, done = feature_cache.write_bytes, iter(range(after))

    def write_or_stop(path: Path, content: bytes) -> Path:
        if next(done, None) is None:
            path.with_name(".radglint-half").write_bytes(content[:100])
            raise StoppedError
        return write(path, content)

    monkeypatch.setattr(feature_cache, "write_bytes", write_or_stop)
    with pytest.raises(StoppedError):
        fill(config)
    monkeypatch.setattr(feature_cache, "write_bytes", write)


def test_a_stopped_fill_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:  # fmt: skip
    config = frozen_run(tmp_path, microbatch_images=1)
    stopped_fill(config, monkeypatch, after=8)
    before = {name: path.stat().st_mtime_ns for name, path in files(config).items()}
    assert len(before) == 8
    emptied = next(iter(files(config).values()))
    emptied.write_bytes(b"")  # as a power cut may leave it
    (half,) = config.data.model_dump()["cache"].glob("??/.radglint-half")
    encoded.clear()
    fill(config)
    assert half.exists(), "it may be another process's work"
    os.utime(half, (0, 0))
    assert sum(encoded) == IMAGES - 8 + 1
    now = files(config)
    assert len(now) == IMAGES
    assert all(now[n].stat().st_mtime_ns == t for n, t in before.items() if n != emptied.name)
    straight = config.model_copy(update={"data": config.data.model_copy(update={"cache": tmp_path / "straight"})})
    fill(straight)
    assert {n: p.read_bytes() for n, p in files(straight).items()} == {n: p.read_bytes() for n, p in now.items()}
    fill(config)
    assert not half.exists()


def changed_weights(config: TrainConfig) -> TrainConfig:
    """Another trunk of the same form."""
    assert config.trunk is not None
    path = Path(config.trunk.source) / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name].view(-1)[0] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    return config


def with_branch(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda c: c.model_copy(update={"branch": c.branch.model_copy(update=changes)})


CHANGES: dict[str, tuple[Callable[[TrainConfig], TrainConfig], str]] = {
    "weights": (changed_weights, r"trunk: '[0-9a-f]{32}' there, '[0-9a-f]{32}' now"),
    "blocks": (with_branch(trunk_layers=(1,)), r"trunk_layers: \[\] there, \[1\] now"),
    "slices": (lambda c: other(c, "run", max_slices=7), "max_slices: None there, 7 now"),
    "pixels": (
        lambda c: with_branch(preprocess=c.branch.preprocess.model_copy(update={"long_side_px": 32}))(c),
        r"preprocess: \{.*\} there, \{.*\} now",
    ),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_tokens_of_something_else_are_refused(tmp_path: Path, what: str, encoded: list[int]) -> None:
    config = frozen_run(tmp_path)
    fill(config)
    encoded.clear()
    change, message = CHANGES[what]
    with pytest.raises(ConfigError, match=rf"data.cache: .*cache holds .*\({message}\); name another folder"):
        fill(change(config))
    assert encoded == []
    fill(other(change(config), "run", cache=tmp_path / "another"))
    assert sum(encoded) == IMAGES
    there, here = (files(other(config, "run", cache=tmp_path / name)).keys() for name in ("cache", "another"))
    assert not there & here, "even in one folder they would not be mistaken for each other"


def test_tokens_of_another_version_of_radglint_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read or preprocess otherwise."""
    config = frozen_run(tmp_path)
    fill(config)
    monkeypatch.setattr(radglint, "__version__", "99.0", raising=False)
    with pytest.raises(ConfigError, match=r"radglint: '.*' there, '99.0' now\)"):
        fill(config)


def test_the_place_of_a_trunk_is_no_part_of_it(tmp_path: Path, encoded: list[int]) -> None:
    config = frozen_run(tmp_path)
    fill(config)
    encoded.clear()
    assert config.trunk is not None
    moved = Path(config.trunk.source).rename(tmp_path / "moved")
    fill(config.model_copy(update={"trunk": config.trunk.model_copy(update={"source": str(moved)})}))
    assert encoded == []


def test_a_folder_of_other_things_and_a_broken_record_are_refused(tmp_path: Path) -> None:
    config = frozen_run(tmp_path)
    with pytest.raises(ConfigError, match=r"holds other things \(\['0.png', .*\) and no cache.json; name a new folder"):
        fill(other(config, "run", cache=tmp_path))
    fill(config)
    for content in ("{", "[]"):
        (tmp_path / "cache" / "cache.json").write_text(content)
        with pytest.raises(ConfigError, match=r"cache.json: cannot be read \(.*\); name a new folder in data.cache"):
            fill(config)


def test_a_replaced_image_is_encoded_again(tmp_path: Path, encoded: list[int]) -> None:
    """One of another look and the same size in bytes; its old tokens stay, and are not found."""
    config = frozen_run(tmp_path)
    task = fill(config)
    assert task.cache is not None
    pair = task.pairs[3]
    assert isinstance(pair.image, Path)
    before, content = task.cache.read(pair), pair.image.read_bytes()
    pair.image.unlink()
    Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))).save(pair.image)
    assert len(pair.image.read_bytes()) <= len(content)
    with pair.image.open("ab") as file:
        file.write(bytes(len(content) - pair.image.stat().st_size))
    encoded.clear()
    again = fill(config)
    assert encoded == [1]
    assert again.cache is not None
    assert not torch.equal(again.cache.read(pair).tokens, before.tokens)
    assert len(files(config)) == IMAGES + 1


def test_what_tells_an_image_from_another(tmp_path: Path) -> None:
    """Of a DICOM folder any of its files; of a tar the member."""
    folder = tmp_path / "series"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(b"12")
    stamps = [feature_cache._stamp(folder)]
    os.utime(folder / "a.dcm", ns=(1, 1))
    stamps.append(feature_cache._stamp(folder))
    (folder / "c.dcm").write_bytes(b"")
    stamps.append(feature_cache._stamp(folder))
    tar = folder / "a.dcm"
    stamps += [feature_cache._stamp(TarMember(tar, name, 0, 1)) for name in ("x", "y")]
    stamps.append(feature_cache._stamp(TarMember(tar, "x", 1, 1)))
    assert len({str(stamp) for stamp in stamps}) == 6
    assert feature_cache._stamp(folder) == feature_cache._stamp(Path(os.path.relpath(folder)))
    with pytest.raises(ImageError, match=r"none.png: cannot be read \(No such file.*check the manifest"):
        feature_cache._stamp(tmp_path / "none.png")


def test_shards_are_cached_too(tmp_path: Path, encoded: list[int]) -> None:
    config = frozen_run(tmp_path, "ct_base", branch__trunk_layers=[1], data__shards=[str(tmp_path / "*.tar")])
    assert any(isinstance(pair.image, TarMember) for pair in fill(config).pairs)
    assert encoded == [], "a video trunk"
    assert len(files(config)) == len({pair.image for pair in [*fill(config).pairs, *fill(config).held_out]})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-10],
    "a flipped bit": lambda content: content[:-10] + bytes([content[-10] ^ 1]) + content[-9:],
    "no safetensors": lambda content: b"{}" * 40,
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_named_and_made_anew_when_deleted(tmp_path: Path, damage: str, encoded: list[int]) -> None:
    config = frozen_run(tmp_path)
    task = fill(config)
    assert task.cache is not None
    pair = task.pairs[0]
    path, known = task.cache.path(pair), task.cache.read(pair)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    message = rf"{path.name}: the cached tokens of .*0\.png cannot be read .*delete this file and start again"
    with pytest.raises(TrainingError, match=message):
        train(config)
    path.unlink()
    encoded.clear()
    torch.testing.assert_close(fill(config).cache.read(pair).tokens, known.tokens, atol=0.02, rtol=0.02)  # type: ignore[union-attr]
    assert encoded == [1]


def test_a_file_deleted_while_the_run_goes_on_is_named(tmp_path: Path) -> None:
    task = fill(frozen_run(tmp_path))
    assert task.cache is not None
    task.cache.path(task.pairs[0]).unlink()
    with pytest.raises(TrainingError, match=r"cached tokens of .*0.png cannot be read .*No such file"):
        task.cache.read(task.pairs[0])


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    config = frozen_run(tmp_path, data__workers=1)
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^.*5\.png: [^\n]*$"):
        fill(config)


def test_tokens_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {Path("a.png"): "ab/x.safetensors"})
    with pytest.raises(TrainingError, match=r"a.png: the trunk gives values that are not finite"):
        cache.write(Pair("a", Path("a.png"), "Clear."), torch.full((1, 4, 8), float("inf")), (2, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_cache_in_another_place_but_not_without(tmp_path: Path) -> None:
    config = frozen_run(tmp_path)
    train(config)
    moved = (tmp_path / "cache").rename(tmp_path / "elsewhere")
    train(other(config, "run", cache=moved), resume=True)
    with pytest.raises(TrainingError, match="another configuration"):
        train(other(config, "run", cache=None), resume=True)


def test_pieces_of_images_on_different_grids_of_as_many_patches(tmp_path: Path) -> None:
    """Without a cache too: each keeps the positions of its own grid."""
    one = frozen_run(tmp_path, fit__batch=12, data__val_manifest=None, data__val_split=None)
    mixed_sizes(tmp_path)
    losses = []
    for config in (one, other(one, "plain", cache=None)):
        for size in (None, 2):  # all 12 images: four on each of three grids, so two pieces of each
            task = fill(config.model_copy(update={"microbatch_images": size}))
            batch, grids = next(task.batches(0, 1)), Counter[Any]()
            count = task.branch.mixer.register_forward_pre_hook(
                lambda _, x, seen=grids: seen.update([x[1]] * len(x[0]))
            )
            out = task.loss(batch, 0)
            count.remove()
            assert out is not None
            losses.append(float(out[0].detach()))
            assert grids == {(3, 4): 4, (4, 3): 4, (4, 4): 4}
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[2] == pytest.approx(losses[3], rel=1e-5)


def test_the_smoke_test_of_a_configuration_with_a_cache(tmp_path: Path) -> None:
    config = frozen_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    smoke = smoke_config(config, tmp_path / "b")
    assert smoke.data.model_dump()["cache"] == tmp_path / "b" / "cache"
    train(smoke)
    assert len(files(smoke)) == IMAGES


TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "data parallel": {"parallel": "data"},
    "fsdp2 in pieces": {"parallel": "fsdp2", "microbatch_images": 2},
    "fsdp2, text tower trained": {"parallel": "fsdp2", "text__trained": True},
}


def first_gradients(config: TrainConfig, ranks: Ranks) -> dict[str, torch.Tensor]:
    task = PairTask(config, ranks)
    trainer = Trainer(config, task, ranks)
    out = task.loss(next(task.batches(0, 1)), 0)
    assert out is not None
    out[0].backward()
    average_gradients(list(trainer.named.values()), ranks.count)
    found = {name: whole(p.grad) for name, p in trainer.named.items() if p.grad is not None}
    return {"loss": out[0].detach(), **found}


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    calls, forward = [], VitEncoder.forward

    def counted(self: VitEncoder, pixels: torch.Tensor, *rest: Any) -> PatchFeatures:
        calls.append(len(pixels))
        return forward(self, pixels, *rest)

    VitEncoder.forward = counted  # type: ignore[method-assign]
    for name in TWO_PROCESSES:
        config = TrainConfig.model_validate_json((Path(folder) / f"{name}.json").read_text())
        found = first_gradients(config, Ranks(rank, 2))
        save_file(found | {"encoded": torch.tensor(sum(calls))}, Path(folder) / f"{name} {rank}.safetensors")
        calls.clear()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of each configuration by two processes that start once; images of three sizes."""
    folder = tmp_path_factory.mktemp("two")
    for name, changes in TWO_PROCESSES.items():
        config = frozen_run(folder / name, **changes)
        mixed_sizes(folder / name)
        (folder / f"{name}.json").write_text(config.model_dump_json())
    multiprocessing.start_processes(_rank, args=(str(folder),), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TWO_PROCESSES))
def test_two_processes_fill_one_cache_and_have_the_gradients_of_one(two_processes: Path, name: str) -> None:
    config = TrainConfig.model_validate_json((two_processes / f"{name}.json").read_text())
    found = [load_file(two_processes / f"{name} {rank}.safetensors") for rank in range(2)]
    counts = [int(one.pop("encoded")) for one in found]
    assert sum(counts) == IMAGES
    assert min(counts) >= IMAGES // 2 - 1, "the work is shared out"
    alone = config.model_copy(update={"parallel": "data", "microbatch_images": None})
    straight = other(alone, "alone", cache=two_processes / name / "straight")
    wanted = first_gradients(straight, Ranks())
    together, by_one = files(config), files(straight)
    assert together.keys() == by_one.keys()
    for path in together:
        got, known = load_file(together[path])["tokens"], load_file(by_one[path])["tokens"]
        torch.testing.assert_close(got.float(), known.float(), atol=0.02, rtol=0.02)  # of other batches
    for one in found:
        assert one.keys() == wanted.keys()
        assert float((flat(one) - flat(wanted)).norm() / flat(wanted).norm()) < 1e-3
        assert float(one["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-4)


def test_every_pair_of_the_manifest_is_in_the_cache(tmp_path: Path) -> None:
    """The grid is that of the image, and the tokens are what the branch reads of it."""
    config = frozen_run(tmp_path, branch__trunk_layers=[1])
    mixed_sizes(tmp_path)
    task = fill(config)
    assert task.cache is not None
    for pair in load_manifest(config.data.model_dump()["manifests"][0], "CXR", "train"):
        with torch.no_grad():
            wanted = task.model.branch_features(task._pixels(pair)[None], "CXR")
        known = task.cache.read(pair)
        assert known.grid == wanted.grid
        assert known.tokens.dtype == torch.bfloat16
        torch.testing.assert_close(known.tokens[None].float(), wanted.tokens, atol=1e-2, rtol=1e-2)
