"""Models by name: what is found, what is refused, and that a copy is whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from radglint import registry
from radglint.errors import CheckpointError, ConfigError, OutputError


def make_checkpoint(folder: Path, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"modalities": ["CT", "CXR"], **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "text").mkdir()
    (folder / "text" / "vocab.txt").write_text("lung\n")
    return folder


@pytest.fixture(autouse=True)
def shelves(tmp_path, monkeypatch):
    """An own package folder and an own home, so that no test sees the real ones."""
    monkeypatch.setattr(registry, "shipped_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("RADGLINT_HOME", str(tmp_path / "home"))
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_there_lists_nothing():
    assert registry.list_models() == []


def test_shipped_come_first_and_win_over_imported_ones(shelves):
    shipped = make_checkpoint(shelves / "package" / "nano")
    make_checkpoint(shelves / "home" / "models" / "nano")
    make_checkpoint(shelves / "home" / "models" / "alpha")
    assert [(m.name, m.origin) for m in registry.list_models()] == [("nano", "shipped"), ("alpha", "imported")]
    assert registry.locate("nano") == shipped


def test_default_is_nano(shelves):
    folder = make_checkpoint(shelves / "package" / "nano")
    assert registry.locate() == folder


def test_incomplete_or_hidden_folders_are_no_models(shelves):
    (make_checkpoint(shelves / "package" / "half") / "model.safetensors").unlink()
    make_checkpoint(shelves / "package" / ".nano.x1")
    assert registry.list_models() == []


def test_path_is_taken_as_it_is(shelves):
    folder = make_checkpoint(shelves / "Mine Own")
    assert registry.locate(folder) == folder


def test_a_name_wins_over_a_folder_of_that_name(shelves, monkeypatch):
    shipped = make_checkpoint(shelves / "package" / "nano")
    make_checkpoint(shelves / "here" / "nano")
    monkeypatch.chdir(shelves / "here")
    assert registry.locate("nano") == shipped
    assert registry.locate("./nano") == Path("nano")


@pytest.mark.parametrize("name", ["nan", "", "../nano", "no/such", "NANO"])
def test_unknown_model_lists_the_known(shelves, name):
    make_checkpoint(shelves / "package" / "nano")
    with pytest.raises(CheckpointError, match=r"unknown name and no such folder; known models: nano$"):
        registry.locate(name)


def test_folder_without_weights_says_what_it_lacks(shelves):
    (shelves / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"it lacks config\.json and model\.safetensors"):
        registry.locate(shelves / "empty")


def test_home_defaults_to_the_users(monkeypatch):
    monkeypatch.delenv("RADGLINT_HOME")
    assert registry.imported_folder() == Path.home() / ".radglint" / "models"


def test_description(shelves):
    folder = make_checkpoint(shelves / "package" / "nano")
    (folder / "provenance.json").write_text(
        json.dumps(
            {
                "licences": {"code": "Apache-2.0", "weights": "CC-BY-4.0", "data": ["CC0", "CC-BY-3.0"]},
                "fingerprint": {"hash": "abc123"},
            }
        )
    )
    info = registry.describe(folder, origin="shipped")
    assert (info.code_licence, info.weights_licence, info.data_licence) == ("Apache-2.0", "CC-BY-4.0", "CC0, CC-BY-3.0")
    assert (info.modalities, info.fingerprint) == (("CT", "CXR"), "abc123")
    assert info.size_bytes == sum(len(content) for content in files_of(folder).values())
    assert json.loads(json.dumps(info.to_dict()))["folder"] == str(folder)


def test_what_is_not_stated_is_said_so(shelves):
    info = registry.describe(make_checkpoint(shelves / "m"))
    assert {info.code_licence, info.weights_licence, info.data_licence, info.fingerprint} == {"not stated"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{"])
def test_damaged_config_names_the_file(shelves, content):
    folder = make_checkpoint(shelves / "package" / "nano")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"nano.config\.json: .*copy the checkpoint again"):
        registry.list_models()


def test_export_copies_every_byte(shelves):
    source = make_checkpoint(shelves / "package" / "nano")
    target = registry.export_model("nano", shelves / "new" / "copy")
    assert files_of(target) == files_of(source)
    assert os.listdir(target.parent) == ["copy"]


def test_export_fills_an_empty_folder_but_no_other(shelves):
    make_checkpoint(shelves / "package" / "nano")
    (shelves / "target").mkdir()
    registry.export_model("nano", shelves / "target")
    before = files_of(shelves / "target")
    with pytest.raises(OutputError, match="is in the way"):
        registry.export_model("nano", shelves / "target")
    assert files_of(shelves / "target") == before


def test_export_onto_a_file_is_refused(shelves):
    make_checkpoint(shelves / "package" / "nano")
    (shelves / "file").write_text("mine")
    with pytest.raises(OutputError, match="is in the way"):
        registry.export_model("nano", shelves / "file")
    assert (shelves / "file").read_text() == "mine"


def test_export_that_fails_half_way_leaves_nothing(shelves, monkeypatch):
    make_checkpoint(shelves / "package" / "nano")

    def full_disk(source, target, **_):
        (Path(target) / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.shutil, "copytree", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        registry.export_model("nano", shelves / "new" / "copy")
    assert list((shelves / "new").iterdir()) == []


def test_import_makes_the_name_known(shelves):
    source = make_checkpoint(shelves / "mine")
    seen = []
    info = registry.import_model(source, validate=seen.append)
    assert seen == [source]
    assert (info.name, info.origin) == ("mine", "imported")
    assert files_of(registry.locate("mine")) == files_of(source)


def test_import_under_another_name(shelves):
    registry.import_model(make_checkpoint(shelves / "My Model"), name="my-model")
    assert [m.name for m in registry.list_models()] == ["my-model"]


def test_import_twice_is_refused(shelves):
    source = make_checkpoint(shelves / "mine")
    registry.import_model(source)
    with pytest.raises(OutputError, match="is in the way"):
        registry.import_model(source)


def test_import_of_a_refused_checkpoint_copies_nothing(shelves):
    def refuse(folder: Path) -> None:
        raise CheckpointError("fingerprint differs")

    with pytest.raises(CheckpointError, match="fingerprint differs"):
        registry.import_model(make_checkpoint(shelves / "mine"), validate=refuse)
    assert not (shelves / "home").exists()


@pytest.mark.parametrize("name", ["../evil", "Upper", "a b", "-x", ".hidden", "x" * 65, "a/b", "a\n"])
def test_import_refuses_a_malformed_name(shelves, name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        registry.import_model(make_checkpoint(shelves / "mine"), name=name)


def test_import_cannot_take_the_name_of_a_shipped_model(shelves):
    make_checkpoint(shelves / "package" / "nano")
    with pytest.raises(ConfigError, match="ships with radglint"):
        registry.import_model(make_checkpoint(shelves / "nano"))


@pytest.mark.parametrize("what", ["missing", "file"])
def test_import_needs_a_folder(shelves, what):
    (shelves / "file").write_text("x")
    with pytest.raises(CheckpointError, match="no such folder"):
        registry.import_model(shelves / what)
