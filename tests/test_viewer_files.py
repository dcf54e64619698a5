"""The viewer's files: they ask nobody but this server, everything they name exists, and NiiVue is the pinned one."""

from __future__ import annotations

import importlib.util
import io
import re
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import radglint

VIEWER = Path(radglint.__file__).parent / "viewer"
SCRIPT = Path(__file__).parents[1] / "scripts" / "vendor_niivue.py"
MODULES = sorted(path.name for path in VIEWER.glob("*.js"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vendor_niivue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page() -> str:
    return (VIEWER / "index.html").read_text(encoding="utf-8")


def test_the_page_names_only_files_that_are_there() -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', page())
    assert len(named) == 4
    for address in named:
        assert address.startswith("/static/")
        assert (VIEWER / address.removeprefix("/static/")).is_file(), address


def test_nothing_is_inline_and_nothing_is_elsewhere() -> None:
    html = page()
    assert not re.search(r"<script[^>]*>[^<]|<style|\sstyle=|\son\w+=", html)
    for path in (VIEWER / "index.html", VIEWER / "style.css", *(VIEWER / name for name in MODULES)):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|//[a-z]+\.[a-z]|@import|url\(|\beval\(|new Function|innerHTML|localStorage", text
        ), path.name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_its_neighbours_export(name: str) -> None:
    text = (VIEWER / name).read_text(encoding="utf-8")
    for names, source in re.findall(r'import (.+?) from "([^"]+)";', text):
        assert source.startswith("./")
        assert (VIEWER / source).is_file(), source
        exported = (VIEWER / source).read_text(encoding="utf-8")
        for one in re.findall(r"\w+", names) if names.startswith("{") else []:
            assert re.search(rf"export (?:async )?(?:function|class|const) {one}\b", exported), f"{one} of {source}"


def test_every_element_that_a_module_looks_up_is_in_the_page() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', page()))
    for name in MODULES:
        looked_up = set(re.findall(r'byId\("([^"]+)"\)', (VIEWER / name).read_text(encoding="utf-8")))
        assert looked_up <= ids, f"{name}: {looked_up - ids}"


def test_niivue_is_the_pinned_one_and_a_second_run_does_nothing(script: ModuleType) -> None:
    """`make setup` puts it there; without it this fails, and `python scripts/vendor_niivue.py` says why."""
    assert script.TARGET == VIEWER / "vendor" / "niivue.umd.js"
    assert script.sha256(script.TARGET.read_bytes()) == script.SHA256
    assert script.vendor(archive=Path("not looked at")) is False
    assert "NiiVue" in (VIEWER / "THIRD_PARTY.txt").read_text(encoding="utf-8")


def test_another_archive_is_refused(script: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "vendor" / "niivue.umd.js"
    other = tmp_path / "niivue.tgz"
    with tarfile.open(other, "w:gz") as tar:
        member = tarfile.TarInfo(script.MEMBER)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    with pytest.raises(script.VendorError, match=r"integrity sha512-.*expected sha512-"):
        script.vendor(target, archive=other)
    with pytest.raises(script.VendorError, match="cannot be read"):
        script.vendor(target, archive=tmp_path / "missing.tgz")
    assert not target.exists()


def test_without_npm_the_way_out_is_named(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(script.VendorError, match=r"npm is not installed.*apt install npm.*--archive"):
        script.vendor(tmp_path / "niivue.umd.js")


def test_a_failing_npm_is_quoted(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(script.VendorError, match="failed: npm error code ENOTFOUND"):
        script.vendor(tmp_path / "niivue.umd.js")
