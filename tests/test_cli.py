"""The command line: exit codes, one line on stderr, clean stdout, and nothing left behind.

The model is a stub here (`Stub`); the real one is asked in the tests of the pipeline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import radglint
from radglint import cli, registry
from radglint.errors import CheckpointError, ImageError, OutputError


class Findings:
    """Answers that write one mask per query."""

    def __init__(self, queries: list[str]) -> None:
        self.queries = queries
        self.masks: list[str | None] = [None] * len(queries)

    def to_table(self) -> str:
        return "\n".join(f"{query}  0.75  present" for query in self.queries)

    def to_json(self) -> str:
        items = [{"query": q, "mask": m} for q, m in zip(self.queries, self.masks, strict=True)]
        return json.dumps({"findings": items})

    def save(self, folder: str, *, dicom: bool = False) -> list[Path]:
        paths = [Path(folder) / f"{number}.png" for number in range(len(self.queries))]
        for path in paths:
            path.write_bytes(b"mask")
        self.masks = [str(path) for path in paths]
        page = Path(folder) / "index.html"
        page.write_text("page")
        return [*paths, page]


class Stub:
    """Stands for `radglint.load` and `radglint.read_image`, and keeps what they were given."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.failure: BaseException | None = None

    def read_image(self, path: str, *, series: str | None = None) -> str:
        self.calls.append(("read", path, series))
        return f"image of {path}"

    def load(self, model: str, device: str = "auto") -> Stub:
        self.calls.append(("load", model, device))
        return self

    def ask(self, image: object, queries: list[str], threshold: float | None = None) -> Findings:
        self.calls.append(("ask", image, tuple(queries), threshold))
        if self.failure is not None:
            raise self.failure
        return Findings(queries)


@pytest.fixture
def stub(monkeypatch) -> Stub:
    made = Stub()
    monkeypatch.setitem(radglint.__dict__, "load", made.load)
    monkeypatch.setitem(radglint.__dict__, "read_image", made.read_image)
    return made


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with an image, a model called nano, a file in the way, and no terminal."""
    shelf = tmp_path / "package"
    (shelf / "nano").mkdir(parents=True)
    (shelf / "nano" / "config.json").write_text('{"modalities": ["CXR"], "fingerprint": "0123456789abcdef"}')
    (shelf / "nano" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(registry, "shipped_folder", lambda: shelf)
    monkeypatch.setenv("RADGLINT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RADGLINT_DEBUG", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    (work / "chest.png").write_bytes(b"pixels")
    (work / "file").write_text("mine")
    (work / "empty").mkdir()
    (work / "dangling.png").symlink_to("nowhere")
    monkeypatch.chdir(work)
    return work


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def only_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text.rstrip("\n")


BAD_INPUT = [
    ([], "COMMAND"),
    (["diagnose", "chest.png"], "invalid choice: 'diagnose'"),
    (["--nonsense"], "--help"),
    (["ask"], "IMAGE"),
    (["ask", "chest.png"], "QUERY"),
    (["ask", "chest.png", ""], "QUERY 1: the query is empty"),
    (["ask", "chest.png", " \t\n"], "QUERY 1: the query is empty"),
    (["ask", "chest.png", "effusion", ""], "QUERY 2: the query is empty"),
    (["ask", "chest.png", "?!"], "QUERY 1"),
    (["ask", "chest.png", "12345"], "QUERY 1"),
    (["ask", "chest.png", "x" * 2001], "2001 characters"),
    (["ask", "missing.png", "effusion"], "missing.png: no such file or folder"),
    (["ask", "missing\nname.png", "effusion"], "missing name.png: no such file"),
    (["ask", "nul\0byte.png", "effusion"], "no such file"),
    (["ask", "n" * 5000, "effusion"], "no such file"),
    (["ask", "", "effusion"], "IMAGE: it is empty"),
    (["ask", "dangling.png", "effusion"], "dangling.png: cannot be read"),
    (["ask", "chest.png", "effusion", "--threshold", "0"], "between 0 and 1"),
    (["ask", "chest.png", "effusion", "--threshold", "1"], "between 0 and 1"),
    (["ask", "chest.png", "effusion", "--threshold", "-0.5"], "between 0 and 1"),
    (["ask", "chest.png", "effusion", "--threshold", "nan"], "got 'nan'"),
    (["ask", "chest.png", "effusion", "--threshold", "half"], "got 'half'"),
    (["ask", "chest.png", "effusion", "--threshold"], "expected one argument"),
    (["ask", "chest.png", "effusion", "--thresh", "0.5"], "unrecognized arguments"),
    (["ask", "chest.png", "effusion", "--device", "tpu"], "invalid choice: 'tpu'"),
    (["ask", "chest.png", "effusion", "--model", "mega"], "model 'mega': unknown name"),
    (["ask", "chest.png", "effusion", "--model", ""], "model '': unknown name"),
    (["ask", "chest.png", "effusion", "--model", "./empty"], "lacks config.json and model.safetensors"),
    (["ask", "chest.png", "effusion", "--out", "file"], "file: --out needs a folder, but this is a file"),
    (["ask", "chest.png", "effusion", "--out", "file/below"], "file/below: --out"),
    (["ask", "chest.png", "effusion", "--out", "chest.png"], "chest.png: --out needs a folder"),
    (["ask", "chest.png", "effusion", "--out", ""], "--out: it is empty"),
    (["inspect"], "IMAGE"),
    (["inspect", "missing.dcm"], "missing.dcm: no such file or folder"),
    (["inspect", "chest.png", "extra.png"], "unrecognized arguments: extra.png"),
    (["models"], "ACTION"),
    (["models", "delete", "nano"], "invalid choice: 'delete'"),
    (["models", "export", "nano"], "DIR"),
    (["models", "export", "mega", "copy"], "model 'mega': unknown name"),
    (["models", "export", "nano", "file"], "file: is in the way"),
    (["models", "import", "missing"], "missing: no such folder"),
    (["models", "import", "empty"], "empty: not a checkpoint folder"),
    (["demo", "missing.png"], "missing.png: no such file or folder"),
    (["demo", "--out", "file"], "file: --out needs a folder"),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
@pytest.mark.parametrize(("argv", "message"), BAD_INPUT)
def test_bad_input(stub, place, capsys, argv, message, as_json):
    if as_json and argv[:1] == ["ask"]:
        argv = [argv[0], "--json", *argv[1:]]
    if argv[:1] == ["ask"] and "--out" not in argv:
        argv = [argv[0], "--out=new/deep", *argv[1:]]
    before = tree(place.parent)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert only_line(err).startswith("radglint: error: ")
    assert message in err
    assert tree(place.parent) == before
    assert stub.calls == []  # all of it is found before anything is read or loaded


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b", b"\0" * 128 + b"DICM"],
    ids=["empty folder", "empty file", "text", "png signature", "zip signature", "gzip signature", "dicom preamble"],
)
@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_unreadable_image_with_the_real_reader(place, capsys, command, content):
    path = place / "IMAGE"
    path.mkdir() if content is None else path.write_bytes(content)
    before = tree(place)
    argv = ["ask", "IMAGE", "effusion", "--out", "new"] if command == "ask" else ["inspect", "IMAGE"]
    assert cli.main([*argv, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" if command == "ask" else json.loads(out)["verdict"] == "not usable"
    assert only_line(err).startswith("radglint: error: ")
    assert "IMAGE" in err
    assert tree(place) == before


def test_table(stub, capsys):
    assert cli.main(["ask", "chest.png", "effusion", "pulmonary nodule"]) == 0
    assert capsys.readouterr() == ("effusion  0.75  present\npulmonary nodule  0.75  present\n", "")


def test_json_is_one_document_with_mask_paths(stub, place, capsys):
    assert cli.main(["ask", "chest.png", "effusion", "--json", "--out", "a/b"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"findings": [{"query": "effusion", "mask": str(Path("a/b/0.png"))}]}
    assert err == ""
    assert sorted(os.listdir(place / "a" / "b")) == ["0.png", "index.html"]


def test_table_names_the_page(stub, capsys):
    assert cli.main(["ask", "chest.png", "effusion", "--out", "answers"]) == 0
    assert capsys.readouterr().out.endswith(f"2 files in answers; open {Path('answers/index.html')}\n")


def test_arguments_reach_the_pipeline(stub):
    options = ["--threshold", "0.3", "--series", "2", "--device", "cpu"]
    assert cli.main(["ask", "chest.png", "--out", "o", "no effusion", "mass", *options]) == 0
    assert stub.calls == [
        ("read", "chest.png", "2"),
        ("load", "nano", "cpu"),
        ("ask", "image of chest.png", ("no effusion", "mass"), 0.3),
    ]


def test_a_hub_id_is_left_to_the_pipeline(stub):
    assert cli.main(["ask", "chest.png", "effusion", "--model", "owner/name"]) == 0
    assert ("load", "owner/name", "auto") in stub.calls


def test_without_threshold_the_models_own_is_used(stub):
    assert cli.main(["ask", "chest.png", "effusion"]) == 0
    assert stub.calls[-1][-1] is None


def test_a_query_asked_twice_is_answered_twice(stub, capsys):
    assert cli.main(["ask", "chest.png", "mass", "mass"]) == 0
    assert capsys.readouterr().out.count("mass") == 2


FAILURES = [
    (ImageError("chest.png: no pixels"), 2, "radglint: error: chest.png: no pixels"),
    (CheckpointError("nano:\nfingerprint  differs"), 2, "radglint: error: nano: fingerprint differs"),
    (PermissionError(13, "Permission denied", "x.dcm"), 2, "radglint: error: x.dcm: Permission denied; check path"),
    (OSError(28, "No space left on device"), 2, "radglint: error: No space left on device; check path"),
    (MemoryError(), 2, "radglint: error: not enough memory"),
    (ZeroDivisionError("division by zero"), 1, "radglint: internal error: ZeroDivisionError: division by zero; please"),
    (RuntimeError("two\nlines"), 1, "radglint: internal error: RuntimeError: two lines; please report"),
    (AssertionError(), 1, "radglint: internal error: AssertionError: ; please report"),
    (KeyboardInterrupt(), 130, "radglint: interrupted"),
]


@pytest.mark.parametrize(("failure", "code", "message"), FAILURES, ids=[type(f[0]).__name__ for f in FAILURES])
def test_failure_while_answering(stub, place, capsys, failure, code, message):
    stub.failure = failure
    before = tree(place)
    assert cli.main(["ask", "chest.png", "effusion", "--json", "--out", "new/deep"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert only_line(err).startswith(message)
    assert tree(place) == before


def test_failure_keeps_a_folder_that_was_there(stub, place):
    (place / "empty" / "notes.txt").write_text("mine")
    stub.failure = ImageError("chest.png: no pixels")
    before = tree(place)
    assert cli.main(["ask", "chest.png", "effusion", "--out", "empty"]) == 2
    assert tree(place) == before


def test_failure_while_saving_removes_the_new_folder(stub, place, capsys, monkeypatch):
    def full_disk(self: Findings, folder: str, **_: bool) -> list[Path]:
        (Path(folder) / "0.png").write_bytes(b"half")
        raise OutputError(f"{folder}: No space left on device; free some")

    monkeypatch.setattr(Findings, "save", full_disk)
    before = tree(place)
    assert cli.main(["ask", "chest.png", "effusion", "--out", "new"]) == 2
    assert capsys.readouterr().out == ""
    assert tree(place) == before


def test_out_is_tried_before_the_work(stub, place, capsys, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", read_only)
    before = tree(place)
    assert cli.main(["ask", "chest.png", "effusion", "--out", "new/deep"]) == 2
    assert "new/deep: --out cannot be written (Read-only file system)" in only_line(capsys.readouterr().err)
    assert tree(place) == before
    assert stub.calls == []


def test_debug_shows_the_traceback_before_the_line(stub, capsys, monkeypatch):
    monkeypatch.setenv("RADGLINT_DEBUG", "1")
    stub.failure = ZeroDivisionError("division by zero")
    assert cli.main(["ask", "chest.png", "effusion"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("radglint: internal error: ZeroDivisionError")


@pytest.mark.parametrize("debug", [False, True])
def test_library_noise_is_kept_off_stderr_unless_asked_for(stub, capsys, monkeypatch, debug):
    import logging
    import warnings

    def noisy(self: Stub, *_: object, **__: object) -> Findings:
        logging.getLogger("some.library").error("a log line")
        warnings.warn("a warning", stacklevel=1)
        return Findings(["effusion"])

    monkeypatch.setattr(Stub, "ask", noisy)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr))
    if debug:
        monkeypatch.setenv("RADGLINT_DEBUG", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["ask", "chest.png", "effusion"]) == 0
    assert ("a warning" in capsys.readouterr().err) is debug
    assert logging.root.manager.disable == 0


def test_progress_is_shown_on_a_terminal_and_wiped(stub, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stub.failure = ImageError("chest.png: no pixels")
    assert cli.main(["ask", "chest.png", "effusion"]) == 2
    err = capsys.readouterr().err
    assert "reading chest.png" in err
    assert "asking 1 queries" in err
    assert err.split("\r\x1b[K")[-1] == "radglint: error: chest.png: no pixels\n"


@pytest.mark.parametrize("argv", [["--help"], ["ask", "--help"], ["models", "import", "--help"], ["demo", "-h"]])
def test_help(capsys, argv):
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: radglint")
    assert err == ""


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"radglint {radglint.__version__}\n", "")


@pytest.fixture
def module(monkeypatch):
    """Puts a stand-in in place of a module that a command imports."""

    def place_module(name: str, **members: object) -> None:
        stand_in = ModuleType(f"radglint.{name}")
        stand_in.__dict__.update(members)
        monkeypatch.setitem(sys.modules, f"radglint.{name}", stand_in)
        monkeypatch.setitem(radglint.__dict__, name, stand_in)

    return place_module


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect(capsys, module, as_json):
    def inspect_image(path: str, *, series: str | None) -> SimpleNamespace:
        document = {"path": path, "series": series}
        return SimpleNamespace(verdict="ok", to_text=lambda: f"{path} {series}", to_dict=lambda: document)

    module("inspection", inspect_image=inspect_image)
    assert cli.main(["inspect", "chest.png", "--series", "3", *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out) == {"path": "chest.png", "series": "3"}) if as_json else (out == "chest.png 3\n")
    assert err == ""


@pytest.mark.parametrize(("reason", "line"), [("no lung", "chest.png: not usable: no lung"), ("chest.png: cut", None)])
def test_inspect_of_an_unusable_image_reports_and_fails(capsys, module, reason, line):
    inspection = SimpleNamespace(verdict="not usable", reasons=(reason,), to_text=lambda: "the report")
    module("inspection", inspect_image=lambda path, *, series: inspection)
    assert cli.main(["inspect", "chest.png"]) == 2
    assert capsys.readouterr() == ("the report\n", f"radglint: error: {line or reason}\n")


@pytest.mark.parametrize("image", [None, "chest.png"])
def test_demo(place, capsys, module, image):
    calls = []

    def run(image: str | None, out: str) -> Path:
        calls.append((image, out))
        return Path(out) / "index.html"

    module("demo", run=run)
    assert cli.main(["demo", *([image] if image else []), "--out", "shown"]) == 0
    assert calls == [(image, "shown")]
    assert capsys.readouterr().out == f"page: {Path('shown/index.html')}\n"


def test_demo_that_fails_leaves_no_folder(place, module):
    def run(image: str | None, out: str) -> Path:
        (Path(out) / "half").write_text("x")
        raise ImageError("the CT cannot be had; check the connection")

    module("demo", run=run)
    before = tree(place)
    assert cli.main(["demo"]) == 2
    assert tree(place) == before


def test_models_list(capsys):
    assert cli.main(["models", "list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["name", "origin", "asks", "size"]
    assert row.split()[:6] == ["nano", "shipped", "CXR", "0.0", "MB", "0123456789ab"]


def test_models_list_as_json(capsys):
    assert cli.main(["models", "list", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["name"], model["modalities"], model["fingerprint"]) == ("nano", ["CXR"], "0123456789abcdef")


def test_export_then_import(place, capsys, module):
    module("checkpoint", load_checkpoint=lambda folder: folder)
    assert cli.main(["models", "export", "nano", "copies/nano"]) == 0
    assert cli.main(["models", "import", "copies/nano", "--name", "second"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert tree(registry.locate("second")) == tree(registry.locate("nano"))


def test_import_checks_the_checkpoint(place, capsys, module):
    def load_checkpoint(folder: Path) -> None:
        raise CheckpointError(f"{folder}: fingerprint differs; copy it again")

    module("checkpoint", load_checkpoint=load_checkpoint)
    assert cli.main(["models", "export", "nano", "copy"]) == 0
    capsys.readouterr()
    assert cli.main(["models", "import", "copy"]) == 2
    assert only_line(capsys.readouterr().err) == "radglint: error: copy: fingerprint differs; copy it again"
    assert not (place.parent / "home").exists()


def command(*argv: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.argv[1:] = {argv!a}; from radglint.cli import entry; entry()"]


def test_entry_is_the_process(place):
    done = subprocess.run(command("ask", "mis\udcffing.png", "x"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr).startswith("radglint: error: mis\\udcffing.png: no such file")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["models", "list"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_leaves_early_is_no_error(argv, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command(*argv), stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
