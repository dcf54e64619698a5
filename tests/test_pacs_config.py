"""UIDs, the configuration of `radglint watch` and its rules, the command line: what needs no server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from orthanc import Orthanc
from pacs_inputs import write_toml
from radglint import cli
from radglint.errors import ConfigError
from radglint.pacs.config import Rule, WatchConfig, load_config
from radglint.pacs.ledger import Ledger, Sighting
from radglint.pacs.uids import check_uid, hide_uids, is_uid, short_name

DOCUMENT: dict[str, Any] = {
    "folder": "watch",
    "source": {"kind": "dicomweb", "url": "https://pacs.example/dicom-web"},
    "target": {"kind": "dimse", "to": "PACS@127.0.0.1:104"},
    "rules": [{"name": "chest", "modality": ["CT"], "queries": "queries.txt"}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with one key changed, such as "source.url" or "rules.0.name"; None removes it."""
    document = json.loads(json.dumps(DOCUMENT))
    *parents, last = path.split(".")
    place: Any = document
    for part in parents:
        place = place[int(part)] if part.isdecimal() else place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def header(**tags: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in {"Modality": "CT", "SeriesDescription": "Thorax 1.0", **tags}.items():
        setattr(ds, keyword, value)
    return ds


@given(st.text(alphabet="0123456789./\\ \n\0a", max_size=70))
def test_what_passes_as_a_uid_cannot_leave_a_folder(text: str) -> None:
    if is_uid(text):
        assert check_uid(text, "it") == text
        assert 0 < len(text) <= 64
        assert set(text) <= set("0123456789.")
        assert (Path("/a/b") / text).resolve().parent == Path("/a/b")


@given(st.integers(1, 2**100).map(lambda number: f"2.25.{number}") | st.just(generate_uid()))
def test_real_uids_pass(uid: str) -> None:
    assert is_uid(uid)


def test_a_log_line_has_no_uid_but_keeps_the_rest() -> None:
    uid = generate_uid()
    line = hide_uids(f"/in/{uid}/{uid}.1.dcm at http://127.0.0.1:8042 with radglint 0.1.0 after 2.5 s")
    assert uid not in line
    assert short_name(uid) in line
    assert line.endswith("at http://127.0.0.1:8042 with radglint 0.1.0 after 2.5 s")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("source.url", "pacs.example", "source.url: expected an http or https address"),
        ("source.url", "https://user:word@pacs", "source.url: holds a user or a password"),
        ("source.kind", "ftp", "source: Input tag 'ftp'"),
        ("source.poll_s", 0, "source.poll_s: .* greater than 0, got 0"),
        ("source.password", "x", "source.password: unknown key"),
        ("target.to", "PACS", "target.to: .*expected AE@host:port"),
        ("rules", [], "rules: .* at least 1"),
        ("rules.0.modality", ["MR"], "rules.0.modality.0: .*'CT', 'CR', 'DX' or 'RG'"),
        ("rules.0.modality", ["SEG"], "rules.0.modality.0"),
        ("rules.0.description", "(", "rules.0.description: not a regular expression"),
        ("rules.0.queries", None, "rules.0.queries: is missing"),
        ("rules.0.treshold", 0.5, "rules.0.treshold: unknown key"),
        ("rules", [DOCUMENT["rules"][0]] * 2, "two have one name"),
        ("folder", None, "folder: is missing"),
        ("max_attempts", 0, "max_attempts: .*greater than 0, got 0"),
    ],
)
def test_a_wrong_key_is_named(path: str, value: Any, message: str, tmp_path: Path) -> None:
    file = write_toml(changed(path, value), tmp_path / "watch.toml")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "user:word" not in str(caught.value)


def test_what_is_no_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("folder = ")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("rule", "tags", "instances", "reason"),
    [
        ({}, {}, 1, ""),
        ({}, {"Modality": "MR"}, 1, "modality MR"),
        ({"body_part": ["chest", "THORAX"]}, {"BodyPartExamined": "THORAX"}, 1, ""),
        ({"body_part": ["chest"]}, {"BodyPartExamined": "HEAD"}, 1, "body part HEAD"),
        ({"body_part": ["chest"]}, {}, 1, "body part not given"),
        ({"description": "^thorax"}, {}, 1, ""),
        ({"description": "^lung"}, {}, 1, "description does not match"),
        ({"exclude_description": "scout|thor"}, {}, 1, "description is excluded"),
        ({"min_instances": 20}, {}, 19, "19 instances, 20 wanted"),
        ({"min_instances": 20}, {}, 20, ""),
        ({}, {"ImageType": ["DERIVED", "SECONDARY"]}, 1, "derived image"),
        ({"derived": True}, {"ImageType": ["DERIVED", "SECONDARY"]}, 1, ""),
    ],
)
def test_a_rule_says_why_not(rule: dict[str, Any], tags: dict[str, Any], instances: int, reason: str) -> None:
    made = Rule(name="chest", queries=Path("q"), modality=("CT",), **rule)
    assert made.against(header(**tags), instances) == reason


def test_the_first_rule_that_is_met_decides() -> None:
    rules = [{**DOCUMENT["rules"][0], "name": name, "min_instances": least} for name, least in (("a", 50), ("b", 5))]
    config = WatchConfig.model_validate(changed("rules", rules))
    for instances, name in ((60, "a"), (20, "b")):
        rule, _ = config.rule_for(header(), instances)
        assert rule is not None
        assert rule.name == name
    assert config.rule_for(header(), 2) == (None, "a: 2 instances, 50 wanted; b: 2 instances, 5 wanted")


def test_status_and_retry_work_on_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_toml(changed("folder", str(tmp_path / "w")), tmp_path / "watch.toml"))
    assert cli.main(["watch", config, "--status"]) == 2
    assert "no ledger in it" in capsys.readouterr().err
    (tmp_path / "w").mkdir()
    with Ledger(tmp_path / "w") as ledger:
        ledger.note([Sighting("1.2.3.4.5.6", "1.2.3.4.5.7", "CT", 30), Sighting("1.2.3.4.5.6", "1.2.3.4.5.8", "CT", 4)])
        ledger.move(ledger.due()[0], "parked", reason="slices 4 to 6 are missing")
    assert cli.main(["watch", config, "--status"]) == 0
    out = capsys.readouterr().out
    assert "slices 4 to 6 are missing" in out
    assert out.endswith("1 parked, 1 seen\n")
    assert cli.main(["watch", config, "--retry-failed"]) == 0
    assert capsys.readouterr().out.startswith("1 series are tried again")
    assert cli.main(["watch", config, "--status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"seen": 2}
    assert {row["series_uid"] for row in document["series"]} == {"1.2.3.4.5.7", "1.2.3.4.5.8"}


def test_commands_say_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADGLINT_DICOMWEB_URL", raising=False)
    for argv, message in (
        (["pacs", "query"], "--url: is missing"),
        (["pacs", "query", "--url", "nowhere"], "--url: expected an http"),
        (["pacs", "query", "--url", "http://127.0.0.1:9/x", "--where", "Modality"], "expected KEY=VALUE"),
        (["pacs", "fetch", "x", "--url", "http://127.0.0.1:9/x", "--out", "o"], "STUDY_UID: expected digits"),
        (["pacs", "store", "none.dcm", "--url", "http://127.0.0.1:9/x"], "none.dcm: no such file"),
        (["pacs", "echo", "ORTHANC"], "expected AE@host:port"),
        (["pacs", "send", "none.dcm", "--to", "A@127.0.0.1:1"], "none.dcm: no such file"),
        (["pacs", "receive", "--out", "o", "--port", "99999"], "--port: "),
        (["watch", "none.toml"], "none.toml: cannot be read"),
    ):
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err


def test_a_study_goes_out_and_in_by_the_command_line(
    orthanc: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicom_files import phantom_hu
    from pacs_inputs import write_chest, write_ct

    monkeypatch.setenv("RADGLINT_DICOMWEB_URL", orthanc.web)
    ct = write_ct(tmp_path / "ct", phantom_hu(3), StudyInstanceUID="1.2.3.4.5.6", SeriesInstanceUID="1.2.3.4.5.7")
    chest = write_chest(tmp_path / "chest.dcm", StudyInstanceUID="1.2.3.4.5.6", SeriesInstanceUID="1.2.3.4.5.8")
    assert cli.main(["pacs", "echo", orthanc.peer]) == 0
    assert cli.main(["pacs", "send", str(ct[0].parent), "--to", orthanc.peer]) == 0
    assert cli.main(["pacs", "store", str(chest)]) == 0
    assert cli.main(["pacs", "query", "--where", "StudyDate=20260102"]) == 0
    assert cli.main(["pacs", "query", "1.2.3.4.5.6", "--json", "--where", "Modality=DX"]) == 0
    assert cli.main(["pacs", "fetch", "1.2.3.4.5.6", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for words in (
        "answers",
        "3 sent to",
        "1 stored at",
        "1.2.3.4.5.6       20260102",
        '"SeriesInstanceUID": "1.2.3.4.5.8"',
    ):
        assert words in out
    assert "Secret" not in out
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.dcm")) == ["1.2.3.4.5.7"] * 3 + [
        "1.2.3.4.5.8"
    ]


def test_receive_takes_files_until_it_is_told_to_stop(tmp_path: Path) -> None:
    from orthanc import free_port
    from pacs_inputs import write_chest

    port = free_port()
    command = [sys.executable, "-c", "from radglint.cli import entry; entry()", "pacs", "receive", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "in"), "--port", str(port), "--quiet-s", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert f"listens on 127.0.0.1:{port}" in process.stderr.readline()
        assert cli.main(["pacs", "send", str(write_chest(tmp_path / "a.dcm")), "--to", f"X@127.0.0.1:{port}"]) == 0
        assert process.stdout is not None
        assert process.stdout.readline().startswith("1 instances in ")
        process.terminate()
        assert process.communicate(timeout=30)[0] == "1 instances taken, 0 refused\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 1
