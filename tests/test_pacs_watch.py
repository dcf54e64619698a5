"""`radglint watch` against a real Orthanc: stored, watched, answered, back in Orthanc, each exactly once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

import radglint
from dicom_files import phantom_hu
from dicom_results import measurement_groups, seg_pixels, segment_of, segment_on_grid
from orthanc import Orthanc
from pacs_inputs import (
    QUERIES,
    THRESHOLD,
    ledger_entries,
    watch_document,
    watch_once,
    write_chest,
    write_ct,
)
from radglint.errors import InputError, PacsError, PacsUnreachableError
from radglint.findings import Findings
from radglint.pacs.access import DicomWebConfig
from radglint.pacs.config import WatchConfig
from radglint.pacs.dicomweb import DicomWeb
from radglint.pacs.dimse import parse_peer, send
from radglint.pacs.watching import open_watcher


@pytest.fixture(scope="session")
def tiny(pacs_model: Path) -> radglint.Pipeline:
    return radglint.load(pacs_model, device="cpu")


def uid_of(path: Path, keyword: str = "SeriesInstanceUID") -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True)[keyword].value)


def result_for(orthanc: Orthanc, modality: str, source: Path) -> pydicom.Dataset:
    """The only result of a modality in the study of a source file, as Orthanc holds it."""
    study = uid_of(source, "StudyInstanceUID")
    (found,) = [ds for ds in orthanc.find(modality) if ds.StudyInstanceUID == study]
    return found


def assert_ct_masks_equal(seg: pydicom.Dataset, findings: Findings, folder: Path) -> None:
    for number, finding in enumerate(findings, start=1):
        nifti = nib.load(finding.to_nifti(folder / f"{number}.nii.gz"))
        np.testing.assert_array_equal(segment_on_grid(seg, number, nifti), np.asanyarray(nifti.dataobj))


def assert_radiograph_masks_equal(seg: pydicom.Dataset, findings: Findings) -> None:
    frames = seg_pixels(seg)
    for number, finding in enumerate(findings, start=1):
        own = [values for frame, values in enumerate(frames) if segment_of(seg, frame) == number]
        found = own[0] > 0 if own else np.zeros(finding.mask().shape, bool)
        np.testing.assert_array_equal(found, finding.mask())


def test_a_ct_and_a_radiograph_come_back_as_seg_and_sr(
    orthanc: Orthanc,
    tiny: radglint.Pipeline,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    ct, chest = write_ct(tmp_path / "ct"), write_chest(tmp_path / "chest.dcm")
    send(ct, parse_peer(orthanc.peer))
    DicomWeb(DicomWebConfig(url=orthanc.web)).store(chest)
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    lines = watch_once(document)

    volume = tiny.ask(tmp_path / "ct", QUERIES, THRESHOLD)
    picture = tiny.ask(chest, QUERIES, THRESHOLD)
    assert any(finding.mask().any() for finding in volume)
    assert any(finding.mask().any() for finding in picture)
    assert_ct_masks_equal(result_for(orthanc, "SEG", ct[0]), volume, tmp_path)
    assert_radiograph_masks_equal(result_for(orthanc, "SEG", chest), picture)
    for source, findings in ((ct[0], volume), (chest, picture)):
        seg, report = result_for(orthanc, "SEG", source), result_for(orthanc, "SR", source)
        assert seg.PatientID == report.PatientID == "SECRET-ID"
        assert len(seg.SegmentSequence) == len(measurement_groups(report)) == len(QUERIES)
        certainty = [group["Certainty of Finding"][0] for group in measurement_groups(report)]
        assert certainty == pytest.approx([100 * finding.probability for finding in findings], rel=1e-5)
        evidence = [
            item.ReferencedSOPInstanceUID
            for study in report.CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        ]
        assert seg.SOPInstanceUID in evidence
    assert Counter(entry.state for entry in ledger_entries(document).values()) == {"stored": 2}
    log = "\n".join(lines)
    assert "stored 2 objects" in log
    for secret in ("Secret", "SECRET-ID", "19500203", uid_of(ct[0]), uid_of(chest), str(orthanc.password)):
        assert secret not in log


def test_a_second_watcher_and_a_lost_ledger_store_nothing_again(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    orthanc.upload(write_chest(tmp_path / "chest.dcm"))
    first = watch_document(orthanc, tmp_path / "first", pacs_model)
    watch_once(first)
    before = [ds.SOPInstanceUID for ds in (*orthanc.find("SEG"), *orthanc.find("SR"))]
    watch_once(first)
    watch_once(watch_document(orthanc, tmp_path / "second", pacs_model))
    assert [ds.SOPInstanceUID for ds in (*orthanc.find("SEG"), *orthanc.find("SR"))] == before
    assert len(before) == 2


def test_a_broken_series_is_parked_and_the_others_go_on(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    gap = write_ct(tmp_path / "gap", phantom_hu(10, 64, 64), skip=(4, 5, 6))
    flat = write_chest(tmp_path / "flat.dcm")
    ds = pydicom.dcmread(flat)
    ds.PixelData = b"\0" * len(ds.PixelData)
    ds.save_as(flat)
    good = [write_chest(tmp_path / f"good{k}.dcm", seed=k) for k in range(2)]
    orthanc.upload(*gap, flat, *good)
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    watch_once(document)
    entries = ledger_entries(document)
    assert {entries[uid_of(path)].state for path in good} == {"stored"}
    for path, word in ((gap[0], "slice"), (flat, "same value")):
        entry = entries[uid_of(path)]
        assert (entry.state, entry.attempts) == ("parked", 2)
        assert word in entry.reason
    assert len(orthanc.find("SEG")) == len(orthanc.find("SR")) == 2
    assert not list((tmp_path / "watch" / "fetched").iterdir())


def test_missing_slices_that_arrive_make_a_parked_series_whole(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(10, 64, 64))
    late = ct[4:7]
    orthanc.upload(*(path for path in ct if path not in late))
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    watch_once(document)
    assert ledger_entries(document)[uid_of(ct[0])].state == "parked"
    orthanc.upload(*late)
    watch_once(document)
    assert ledger_entries(document)[uid_of(ct[0])].state == "stored"
    assert len(orthanc.find("SEG")) == 1


def test_a_series_that_grows_is_waited_for(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(8, 64, 64))
    document = watch_document(orthanc, tmp_path / "watch", pacs_model, quiet_s=0.6)
    orthanc.upload(*ct[:2])
    lines: list[str] = []
    stop = threading.Event()
    with open_watcher(WatchConfig.model_validate(document), lines.append) as watcher:
        feeder = threading.Thread(target=lambda: [(time.sleep(0.25), orthanc.upload(path)) for path in ct[2:]])
        feeder.start()
        watcher.run(stop, once=True)
        feeder.join()
    (line,) = [line for line in lines if "fetched" in line]
    assert "fetched 8 instances" in line
    assert ledger_entries(document)[uid_of(ct[0])].state == "stored"


@pytest.mark.parametrize(("when_grown", "results"), [("leave", 1), ("ask", 2)])
def test_a_series_that_grows_after_it_was_stored(
    when_grown: str, results: int, orthanc: Orthanc, pacs_model: Path, tmp_path: Path
) -> None:
    """It is told and noted; asked again only on wish, under new UIDs beside the old ones."""
    ct = write_ct(tmp_path / "ct", phantom_hu(10, 64, 64))
    document = watch_document(orthanc, tmp_path / "watch", pacs_model, when_grown=when_grown)
    orthanc.upload(*ct[:8])
    watch_once(document)
    orthanc.upload(*ct[8:])
    lines = watch_once(document)
    assert sum("2 more instances since it was answered" in line for line in lines) == 1
    (entry,) = ledger_entries(document).values()
    assert (entry.state, entry.instances) == ("stored", 10)
    assert entry.reason == ("10 instances since it was stored" if when_grown == "leave" else "")
    assert len(orthanc.find("SEG")) == len(orthanc.find("SR")) == results
    referenced = sorted(len(ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence) for ds in orthanc.find("SEG"))
    assert referenced[-1] == (10 if when_grown == "ask" else 8)
    assert not any("more instances" in line for line in watch_once(document))
    assert len(orthanc.find("SEG")) == results


def test_rules_decide_and_results_never_match(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    wanted = write_chest(tmp_path / "a.dcm", SeriesDescription="Chest PA")
    others = {
        "body part": write_chest(tmp_path / "b.dcm", SeriesDescription="Chest PA", BodyPartExamined="HAND"),
        "description": write_chest(tmp_path / "c.dcm", SeriesDescription="knee"),
        "derived": write_chest(tmp_path / "d.dcm", SeriesDescription="Chest", ImageType=["DERIVED", "PRIMARY"]),
        "excluded": write_chest(tmp_path / "e.dcm", SeriesDescription="chest portable bone suppressed"),
        "lateral view": write_chest(tmp_path / "f.dcm", SeriesDescription="chest lat", ViewPosition="LL"),
    }
    orthanc.upload(wanted, *others.values())
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    document["rules"][0] |= {"body_part": ["chest"], "description": r"\bchest", "exclude_description": "suppressed"}
    watch_once(document)
    watch_once(document)  # the results of the first are there now
    entries = ledger_entries(document)
    assert len(entries) == 1 + len(others)
    assert entries[uid_of(wanted)].state == "stored"
    for reason, path in others.items():
        assert entries[uid_of(path)].state == "passed"
        assert reason in entries[uid_of(path)].reason


def test_what_was_there_before_is_left(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    old, new = (write_chest(tmp_path / name) for name in ("old.dcm", "new.dcm"))
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    document["source"]["existing"] = "leave"
    orthanc.upload(old)
    watch_once(document)
    orthanc.upload(new)
    watch_once(document)
    states = {uid: entry.state for uid, entry in ledger_entries(document).items()}
    assert states == {uid_of(old): "left", uid_of(new): "stored"}


def test_orthanc_that_restarts_in_mid_run_loses_nothing(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
) -> None:
    """Killed while series are under way; the watcher waits, and parks nothing."""
    orthanc.upload(*(write_chest(tmp_path / f"{k}.dcm", seed=k) for k in range(4)))
    document = watch_document(orthanc, tmp_path / "watch", pacs_model, max_attempts=1)
    lines: list[str] = []
    stop = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if sum("answered" in line for line in lines) == 2 and "answered" in line:
            orthanc.kill()
        if "does not answer" in line and orthanc.is_down:
            orthanc.start()
        if sum("stored" in line for line in lines) == 4:
            stop.set()

    with open_watcher(WatchConfig.model_validate(document), say) as watcher:
        watcher.run(stop)
    assert any("does not answer" in line for line in lines)
    assert {entry.state for entry in ledger_entries(document).values()} == {"stored"}
    assert len(orthanc.find("SEG")) == len(orthanc.find("SR")) == 4


def test_a_pacs_that_is_away_ends_a_single_run(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    document["source"]["url"] = "http://127.0.0.1:9/dicom-web"
    with pytest.raises(PacsUnreachableError, match="does not answer"):
        watch_once(document)


def test_wrong_credentials_end_the_watcher_at_once(
    orthanc: Orthanc,
    pacs_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RADGLINT_DICOMWEB_PASSWORD", "guessed")
    with pytest.raises(PacsError, match="RADGLINT_DICOMWEB_USER") as caught:
        watch_once(watch_document(orthanc, tmp_path / "watch", pacs_model))
    assert "guessed" not in str(caught.value)


def test_two_watchers_cannot_share_a_folder(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    document = watch_document(orthanc, tmp_path / "watch", pacs_model)
    with (
        open_watcher(WatchConfig.model_validate(document), print),
        pytest.raises(InputError, match="another watcher"),
    ):
        watch_once(document)


def test_received_and_sent_back_by_c_store(orthanc: Orthanc, pacs_model: Path, tmp_path: Path) -> None:
    """The same watcher without DICOMweb on either side."""
    chest = write_chest(tmp_path / "chest.dcm")
    document = watch_document(
        orthanc, tmp_path / "watch", pacs_model, target={"kind": "dimse", "to": orthanc.peer}, quiet_s=0.3
    )
    document["source"] = {"kind": "receive", "port": 0, "poll_s": 0.1}
    stop, lines = threading.Event(), []

    def say(line: str) -> None:
        lines.append(line)
        if "stored" in line:
            stop.set()

    with open_watcher(WatchConfig.model_validate(document), say) as watcher:
        port = watcher.source.receiver.port  # type: ignore[attr-defined]
        send([chest], parse_peer(f"RADGLINT@127.0.0.1:{port}"))
        watcher.run(stop)
    assert result_for(orthanc, "SEG", chest).Modality == "SEG"
    assert result_for(orthanc, "SR", chest).Modality == "SR"
    assert not list((tmp_path / "watch" / "inbox").iterdir())


def test_nano_answers_a_real_ct(orthanc: Orthanc, shared_data: Path, tmp_path: Path) -> None:
    heights = {
        path: float(header.ImagePositionPatient[2])
        for path in (shared_data / "ct_chest/fourd_lung_113/dicom").glob("*.dcm")
        if (header := pydicom.dcmread(path, stop_before_pixels=True)).Modality == "CT"
    }
    places = sorted(heights, key=heights.__getitem__)[44:56]
    document = watch_document(orthanc, tmp_path / "watch", "nano")
    del document["rules"][0]["threshold"]
    orthanc.upload(*places)
    watch_once(document)
    (tmp_path / "cut").mkdir()
    for path in places:
        (tmp_path / "cut" / path.name).symlink_to(path)
    findings = radglint.load("nano", device="cpu").ask(tmp_path / "cut", QUERIES)
    assert_ct_masks_equal(result_for(orthanc, "SEG", places[0]), findings, tmp_path)
    assert len(orthanc.find("SR")) == 1
