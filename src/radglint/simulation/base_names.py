"""What a base is called and whose it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from radglint.archive import extract_zip
from radglint.errors import InputError
from radglint.reading import list_files, sniff


def base_name(path: Path) -> str:
    """Name of a CT: that of its file or folder up to the first dot."""
    return path.name.split(".")[0]


def patients_of(path: Path) -> dict[str, str]:
    """Patients by image, of a `records.json` if there is one: a list of `{"image": path, "patient": id}`.

    Raises:
        InputError: it is something else.
    """
    if not path.is_file():
        return {}
    try:
        return {record["image"]: str(record["patient"]) for record in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: expected a list of {{"image": ..., "patient": ...}}, got {error!r}') from error


def patient_of_ct(path: Path) -> str:
    """Whose a CT is: by `records.json` beside it, else by the PatientID of its DICOM, else by its name.

    Args:
        path: of `ct_files`.

    Raises:
        InputError: `records.json` is something else than a list of `{"image": name, "patient": id}`.
    """
    listed = patients_of(path.parent / "records.json").get(path.name)
    return listed or _patient_id(path) or base_name(path)


def _patient_id(path: Path) -> str:
    """PatientID of a DICOM file, or of the first one in a folder or zip; empty if there is none."""
    kind = sniff(path)
    if kind == "zip":
        with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
            return _first_patient_id(extract_zip(path, folder))
    return _first_patient_id(list_files(path) if kind == "folder" else [path])


def _first_patient_id(files: Sequence[Path]) -> str:
    from radglint.dicom_file import is_dicom, open_dicom, text  # a second, and most bases are no DICOM

    file = next((file for file in files if is_dicom(file)), None)
    if file is None:
        return ""
    return text(open_dicom(file, stop_before_pixels=True, tags=["PatientID"]), "PatientID")
