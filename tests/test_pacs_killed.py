"""kill -9 the watcher in every state: after the last restart there is exactly one SEG and one SR.

Once with DICOMweb on both sides, which is asked what it has; once with C-STORE on both sides, which is not: there an
object that is sent again is the same object, byte for byte, and Orthanc holds one of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicom_files import phantom_hu
from orthanc import Orthanc
from pacs_inputs import ledger_entries, watch_document, write_chest, write_ct, write_toml
from pacs_killed import FETCHED_BEFORE_KILL, POINTS
from radglint.pacs.dimse import Peer, send
from radglint.pacs.receiver import Receiver, ReceiverConfig

SLICES = 9


def run_watcher(config: Path, point: str, *record: Path) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent / "src"), str(here)])
    return subprocess.run(
        [sys.executable, str(here / "pacs_killed.py"), str(config), point, *map(str, record)],
        env={**os.environ, "PYTHONPATH": paths, "RADGLINT_DEBUG": ""}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
def test_exactly_one_result_whenever_it_is_killed(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    """One series, killed at every point in turn; each restart goes on from what the one before left."""
    ct = write_ct(tmp_path / "ct", phantom_hu(SLICES, 64, 64))
    orthanc.upload(*ct)
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    config, record = write_toml(document, tmp_path / "watch.toml"), tmp_path / "fetched.txt"
    states = []
    for point in POINTS:
        run = run_watcher(config, point, record)
        assert run.returncode == -signal.SIGKILL, (point, run.stdout, run.stderr)
        (entry,) = ledger_entries(document).values()
        states.append((entry.state, len(orthanc.find("SEG")), len(orthanc.find("SR"))))
    assert states == [
        ("seen", 0, 0), ("seen", 0, 0), ("fetched", 0, 0), ("fetched", 0, 0), ("answered", 0, 0), ("answered", 1, 0),
        ("answered", 1, 1), ("stored", 1, 1),
    ]  # fmt: skip

    run = run_watcher(config, "never", record)
    assert run.returncode == 0, run.stderr
    assert not list((tmp_path / "watch" / "results").iterdir())
    (seg,), (report,) = orthanc.find("SEG"), orthanc.find("SR")
    referenced = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert referenced == {seg.SOPInstanceUID, *(pydicom.dcmread(path).SOPInstanceUID for path in ct)}
    fetched = record.read_text().split()  # each once, although the watcher was killed in the middle
    assert len(fetched) == len(set(fetched)) == SLICES
    assert FETCHED_BEFORE_KILL < SLICES


@pytest.mark.slow
def test_exactly_one_result_by_c_store(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    """A radiograph that was received, answered and sent; killed wherever something is made or sent."""
    folder = tmp_path / "watch"
    with Receiver(folder / "inbox", ReceiverConfig(port=0)) as receiver:
        send([write_chest(tmp_path / "chest.dcm")], Peer("RADGLINT", "127.0.0.1", receiver.port))
    document = watch_document(orthanc, folder, pacs_model, target={"kind": "dimse", "to": orthanc.peer})
    document["source"] = {"kind": "receive", "port": 0, "poll_s": 0.1}
    config = write_toml(document, tmp_path / "watch.toml")
    states, made = [], []
    for point in ("answering", "one stored", "both stored"):
        run = run_watcher(config, point)
        assert run.returncode == -signal.SIGKILL, (point, run.stdout, run.stderr)
        (entry,) = ledger_entries(document).values()
        states.append((entry.state, len(orthanc.find("SEG")), len(orthanc.find("SR"))))
        made.append({path.name: pydicom.dcmread(path) for path in (folder / "results").rglob("*.dcm")})
    assert states == [("fetched", 0, 0), ("answered", 1, 0), ("answered", 1, 1)]
    uids = [sorted(ds.SOPInstanceUID for ds in objects.values()) for objects in made]
    assert uids == uids[:1] * 3  # also of what was made before the ledger knew of it
    assert made[1] == made[2]  # what is sent again is what was sent

    run = run_watcher(config, "never")
    assert run.returncode == 0, run.stderr
    (seg,), (report,) = orthanc.find("SEG"), orthanc.find("SR")
    assert [seg, report] == [made[1]["001_seg.dcm"], made[1]["001_sr.dcm"]]
    assert [entry.state for entry in ledger_entries(document).values()] == ["stored"]
    assert not list((folder / "results").iterdir())
    assert not list((folder / "inbox").iterdir())
