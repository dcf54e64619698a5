"""Zips that are fine, and every kind of zip that must not be trusted."""

from __future__ import annotations

import errno
import io
import stat
import zipfile
from pathlib import Path

import pytest

from radglint import archive
from radglint.archive import extract_zip
from radglint.errors import ImageError


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_files_come_out_flat_in_order_with_their_bytes(tmp_path, into):
    path = make_zip(tmp_path / "a.zip", {"s/2.dcm": b"two", "s/deep/1.dcm": b"one", "s/": b"", "t/2.dcm": b"other"})
    files = extract_zip(path, into)
    assert [file.name for file in files] == ["00000_2.dcm", "00001_1.dcm", "00002_2.dcm"]
    assert [file.read_bytes() for file in files] == [b"two", b"one", b"other"]
    assert sorted(into.iterdir()) == sorted(files)


def test_hidden_and_macos_files_are_left_out(tmp_path, into):
    members = {"__MACOSX/._a.dcm": b"x", ".DS_Store": b"x", "a.dcm": b"data"}
    assert [f.name for f in extract_zip(make_zip(tmp_path / "a.zip", members), into)] == ["00000_a.dcm"]


@pytest.mark.parametrize("name", ["weird name ä:*?.dcm", "CON", "x" * 220 + ".dcm", "a\\b\\c.dcm"])
def test_odd_names_are_made_safe(tmp_path, into, name):
    (file,) = extract_zip(make_zip(tmp_path / "a.zip", {name: b"data"}), into)
    assert file.parent == into
    assert len(file.name) <= 90
    assert file.name.isascii()


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil", "C:\\evil.dcm", "..\\evil.dcm", "a/..", "\\\\host\\x"]
)
def test_paths_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, into, name):
    path = make_zip(tmp_path / "a.zip", {"fine.dcm": b"fine", name: b"evil"})
    with pytest.raises(ImageError, match="points outside the archive") as caught:
        extract_zip(path, into)
    assert repr(name) in str(caught.value)
    assert list(into.iterdir()) == []


def test_symbolic_link_is_refused(tmp_path, into):
    info = zipfile.ZipInfo("link.dcm")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ImageError, match=r"'link.dcm' is a symbolic link"):
        extract_zip(tmp_path / "a.zip", into)


def test_encrypted_member_is_refused(tmp_path, into):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": b"data"})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(ImageError, match=r"'a.dcm' is encrypted"):
        extract_zip(path, into)


def test_bomb_is_refused_by_its_ratio(tmp_path, into, monkeypatch):
    monkeypatch.setattr(archive, "RATIO_FROM_BYTES", 10_000)
    with pytest.raises(ImageError, match=r"'zeros.dcm' unpacks to 5000000 bytes, a zip bomb"):
        extract_zip(make_zip(tmp_path / "a.zip", {"zeros.dcm": bytes(5_000_000)}), into)
    assert list(into.iterdir()) == []


def test_bomb_of_many_small_members_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(archive, "RATIO_FROM_BYTES", 60_000)
    monkeypatch.setattr(archive, "MAX_RATIO", 20)
    with pytest.raises(ImageError, match="a zip bomb"):
        extract_zip(make_zip(tmp_path / "a.zip", {f"{i}.dcm": bytes(50_000) for i in range(9)}), into)


def test_total_size_and_count_are_limited(tmp_path, into, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {f"{i}.dcm": b"12345" for i in range(5)}, zipfile.ZIP_STORED)
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 24)
    with pytest.raises(ImageError, match="unpacks to 25 bytes, at most 24"):
        extract_zip(path, into)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 4)
    with pytest.raises(ImageError, match="5 members, at most 4"):
        extract_zip(path, into)


def test_real_bytes_are_counted_and_not_only_the_announced_ones(tmp_path, into, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": bytes(1000)})
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: io.BytesIO(bytes(5000)))
    with pytest.raises(ImageError, match=r"'a.dcm' is larger than announced"):
        extract_zip(path, into)


def test_member_with_a_wrong_checksum(tmp_path, into):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": b"some data here"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"some data", b"s0me data"))
    with pytest.raises(ImageError, match=r"'a.dcm' cannot be unpacked \(Bad CRC-32"):
        extract_zip(path, into)
    assert list(into.iterdir()) == []


def test_full_disk(tmp_path, into, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": b"data"})

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ImageError, match="no space left"):
        extract_zip(path, into)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04 broken", "not a zip, or truncated"),
        (b"", "not a zip"),
        (b"PK\x05\x06" + bytes(18), "holds no file"),
    ],
)
def test_not_a_usable_zip(tmp_path, into, data, words):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ImageError, match=words):
        extract_zip(tmp_path / "a.zip", into)


def test_truncated_zip(tmp_path, into):
    path = make_zip(tmp_path / "a.zip", {"a.dcm": bytes(range(256)) * 40}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ImageError, match="truncated"):
        extract_zip(path, into)


def test_zip_of_zips_is_refused_but_a_side_archive_is_not(tmp_path, into):
    with pytest.raises(ImageError, match=r"only the archive 'inner.zip'; unpack it"):
        extract_zip(make_zip(tmp_path / "a.zip", {"inner.zip": b"PK"}), into)
    assert len(extract_zip(make_zip(tmp_path / "b.zip", {"inner.zip": b"PK", "a.dcm": b"x"}), into)) == 2
