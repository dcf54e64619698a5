"""Small studies with UIDs of their own, a tiny model, and a configuration of `radglint watch` for tests."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dicom_files import phantom_hu, write_ct_series, write_radiograph
from orthanc import Orthanc

if TYPE_CHECKING:
    from radglint.pacs.ledger import Entry

QUERIES = ("pleural effusion", "left lung nodule", "no pneumothorax")
THRESHOLD = 0.05  # of a model without training: low enough that something is marked
PATIENT = {"PatientName": "Secret^Name", "PatientID": "SECRET-ID", "PatientBirthDate": "19500203"}

PLACEHOLDER = "1.2.3.4444444"


def with_evil_name(path: Path) -> Path:
    """The file with a path in place of `PLACEHOLDER`, which pydicom would not write."""
    path.write_bytes(path.read_bytes().replace(PLACEHOLDER.encode(), b"../../../evil"))
    return path


def write_ct(folder: Path, hu: np.ndarray | None = None, **tags: Any) -> list[Path]:
    """A CT series of 24 slices of 128 x 128, or of `hu`, in a study of its own."""
    hu = phantom_hu(24, 128, 128) if hu is None else hu
    return write_ct_series(folder, hu, **{**_identity(), "FrameOfReferenceUID": generate_uid(), **tags})


def write_chest(path: Path, seed: int = 0, **tags: Any) -> Path:
    """A radiograph of 96 x 80 in a study of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:96, :80]
    picture = 900 + 20 * rows + 9 * columns + np.random.default_rng(seed).integers(0, 300, (96, 80))
    return write_radiograph(path, picture.astype(np.uint16), bits=12, **{**_identity(), **tags})


def _identity() -> dict[str, Any]:
    return {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "StudyDate": "20260102", **PATIENT}


@pytest.fixture(scope="session")
def pacs_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny model for CT and radiographs that takes every query as in scope."""
    from radglint.checkpoint import Calibration, LogisticMap, save_checkpoint
    from tiny_models import PROMPTS, PROVENANCE, tiny_calibration, tiny_model

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    shown = {concept: LogisticMap(slope=5.0, bias=-0.5) for concept in PROMPTS}
    maps = {k: entry.model_copy(update={"presence": shown}) for k, entry in tiny_calibration().modalities.items()}
    calibration = Calibration(modalities=maps, scope_threshold=-1.0, origin="made up for tests")
    save_checkpoint(folder, tiny_model(), prompts=PROMPTS, calibration=calibration, provenance=PROVENANCE)
    return folder


def watch_document(orthanc: Orthanc, folder: Path, model: Path | str, **changes: Any) -> dict[str, Any]:
    """The keys and values of a configuration: everything in Orthanc is asked `QUERIES`, and answered by STOW-RS."""
    queries = folder.parent / "queries.txt"
    queries.write_text("\n".join(QUERIES))
    rule = {"name": "chest", "modality": ["CT", "CR", "DX"], "queries": str(queries), "threshold": THRESHOLD}
    quick = {"attempts": 2, "first_wait_s": 0.05}
    return {
        "folder": str(folder), "model": str(model), "device": "cpu", "rules": [rule],
        "source": {"kind": "dicomweb", "url": orthanc.web, "poll_s": 0.1, "existing": "ask", **quick},
        "target": {"kind": "dicomweb", "url": orthanc.web, **quick},
        "quiet_s": 0.0, "first_retry_s": 0.05, "longest_retry_s": 0.2, "max_attempts": 2, **changes,
    }  # fmt: skip


def watch_once(document: dict[str, Any]) -> list[str]:
    """Watch until no series is on its way; returns the log."""
    from radglint.pacs.config import WatchConfig
    from radglint.pacs.watching import open_watcher

    lines: list[str] = []
    with open_watcher(WatchConfig.model_validate(document), lines.append) as watcher:
        watcher.run(threading.Event(), once=True)
    return lines


def ledger_entries(document: dict[str, Any]) -> dict[str, Entry]:
    """What the ledger says, by series UID."""
    from radglint.pacs.ledger import Ledger

    with Ledger(Path(document["folder"])) as ledger:
        return {entry.series_uid: entry for entry in ledger.entries()}


def write_toml(document: dict[str, Any], path: Path) -> Path:
    """The document as a TOML file, tables last."""
    plain = {key: value for key, value in document.items() if value == [] or not isinstance(value, dict | list)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in document.items():
        for table in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
            lines.append(f"[[{key}]]" if isinstance(value, list) else f"[{key}]")
            lines += [f"{name} = {json.dumps(entry)}" for name, entry in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return path
