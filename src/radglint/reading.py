"""One way in: any path to a `MedicalImage`. What a file is, is told by its first bytes, never by its suffix.

The readers are imported where they are used: a PNG needs neither the DICOM nor the NIfTI library, which take a second.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

from radglint.archive import extract_zip
from radglint.errors import ImageError
from radglint.image import MedicalImage
from radglint.signatures import HEAD_BYTES, SUPPORTED, describe, file_kind

Kind = Literal["folder", "zip", "dicom", "nifti", "raster"]

MAX_FILES = 20_000
"""Files looked at in one folder; more is surely the wrong folder."""


def read_image(path: str | Path, *, series: str | None = None) -> MedicalImage:
    """Read a chest radiograph or a chest CT from whatever holds it.

    Args:
        path: a PNG, JPEG, TIFF, NIfTI or DICOM file, a folder of DICOM files (searched with its subfolders), a folder
            with exactly one image of another kind, or a zip of any of these.
        series: which CT series of a folder or zip to take, if it holds several: its number or series UID.

    Returns:
        The image; its `path` is the one given here.

    Raises:
        ImageError: missing, unreadable, empty, of another kind, nothing or too much in the folder, or damaged.
        GeometryError: the geometry is missing, contradictory or singular.
    """
    path = Path(path)
    kind = sniff(path)
    if series is not None and kind in ("nifti", "raster"):
        raise ImageError(f"{path}: a {kind} file has no series, but series {series!r} was asked for; leave it out")
    if kind == "folder":
        return _read_files(list_files(path), path, series)
    if kind == "zip":
        return _read_zip(path, series)
    if kind == "dicom":
        return _read_dicom([path], path, series)
    if kind == "nifti":
        from radglint.nifti import read_nifti

        return read_nifti(path)
    from radglint.raster import read_raster

    return read_raster(path)


def sniff(path: Path) -> Kind:
    """Tell by its first bytes what a path holds.

    Args:
        path: a file or a folder.

    Raises:
        ImageError: missing, not a file or folder, unreadable, empty, or of a kind that is not read. It says which.
    """
    try:
        if path.is_dir():
            return "folder"
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder; check the name")
        if not path.is_file():
            raise ImageError(f"{path}: neither a file nor a folder; give an image file or a folder of DICOM files")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the name and the permission") from error
    if not head:
        raise ImageError(f"{path}: the file is empty (0 bytes); copy or export it again")
    kind = file_kind(head)
    if kind == "gzip":
        _check_inside_gzip(path)
        return "nifti"
    if kind is None:
        raise ImageError(f"{path}: {describe(head)}; {SUPPORTED}")
    return kind


def list_files(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders, sorted, without hidden ones, DICOMDIR and macOS side files.

    Args:
        folder: where to look; links to folders are not followed.

    Raises:
        ImageError: a folder that cannot be read, or more than `MAX_FILES` files.
    """
    files: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        files += [Path(where, name) for name in names if not name.startswith(".") and name.upper() != "DICOMDIR"]
        if len(files) > MAX_FILES:
            raise ImageError(f"{folder}: more than {MAX_FILES} files; give the folder of one study")
    return sorted(file for file in files if file.is_file())


def _refuse_unreadable(error: OSError) -> None:
    raise ImageError(f"{error.filename}: the folder cannot be read ({error.strerror}); check the permission") from error


def _check_inside_gzip(path: Path) -> None:
    try:
        with gzip.open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: the gzip file is truncated or damaged ({error}); copy it again") from error
    if file_kind(head) != "nifti":
        raise ImageError(f"{path}: gzip, but what is inside is no NIfTI: {describe(head)}; unpack it and give that")


def _read_zip(path: Path, series: str | None) -> MedicalImage:
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        try:
            return _from_archive(_read_files(extract_zip(path, folder), path, series), path)
        except ImageError as error:
            message = str(error).replace(f"{folder}{os.sep}", "")
            named = message if str(path) in message else f"{path}: {message}"
            raise type(error)(named) from error


def _from_archive(image: MedicalImage, archive: Path) -> MedicalImage:
    """Sources named as members of the zip, since the unpacked files are about to go."""
    frames = tuple(
        dataclasses.replace(frame, path=Path(frame.path.name), archive=archive.absolute())
        for frame in image.source_frames
    )
    return dataclasses.replace(image, source_frames=frames)


def _read_files(files: list[Path], name: Path, series: str | None) -> MedicalImage:
    """Read what a folder or a zip holds: DICOM first, else the one image that is there."""
    kinds = {file: _kind_or_none(file) for file in files}
    dicoms = [file for file in files if kinds[file] == "dicom"]
    if dicoms:
        return _read_dicom(dicoms, name, series, beside=files)
    images = [file for file in files if kinds[file] in ("nifti", "raster")]
    if len(images) == 1 and series is not None:
        raise ImageError(f"{name}: holds {images[0].name}, which has no series; leave out series {series!r}")
    if len(images) == 1:
        return dataclasses.replace(read_image(images[0]), path=str(name))
    if not files:
        raise ImageError(f"{name}: the folder is empty; give a folder of DICOM files or one image")
    if not images:
        raise ImageError(f"{name}: no image among {len(files)} files ({_names(files)}); {SUPPORTED}")
    raise ImageError(f"{name}: no DICOM, but {len(images)} other images ({_names(images)}); give one of them")


def _kind_or_none(path: Path) -> Kind | None:
    """The kind of a file in a folder; what is not read does not matter there, what cannot be opened does."""
    try:
        return sniff(path)
    except ImageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return None


def _names(files: list[Path]) -> str:
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ", ".join(file.name for file in files[:5]) + more


def _read_dicom(files: list[Path], name: Path, series: str | None, beside: list[Path] | None = None) -> MedicalImage:
    """CT if there is any, else the one radiograph.

    A CT gets `beside`, all files of its folder: a slice so damaged that it no longer looks like DICOM must be named,
    not closed over as a gap.
    """
    from radglint.dicom import RADIOGRAPH_MODALITIES, read_dicom_radiograph
    from radglint.dicom_file import number, open_dicom, text
    from radglint.dicom_series import read_dicom_ct

    headers = {file: open_dicom(file, stop_before_pixels=True, tags=["Modality", "NumberOfFrames"]) for file in files}
    modality = {file: text(header, "Modality").upper() for file, header in headers.items()}
    slices = [file for file in files if modality[file] == "CT"]
    if len(slices) == 1 and (number(headers[slices[0]], "NumberOfFrames", slices[0]) or 1) <= 1:
        raise ImageError(f"{name}: one CT slice, a CT needs its whole series; give the folder that holds all slices")
    if slices or series is not None:
        return dataclasses.replace(
            read_dicom_ct(beside or slices or files, name=str(name), series=series), path=str(name)
        )
    if len(files) == 1:
        return dataclasses.replace(read_dicom_radiograph(files[0]), path=str(name))
    radiographs = [file for file in files if modality[file] in RADIOGRAPH_MODALITIES]
    if len(radiographs) == 1:
        return dataclasses.replace(read_dicom_radiograph(radiographs[0]), path=str(name))
    if radiographs:
        raise ImageError(f"{name}: {len(radiographs)} radiographs ({_names(radiographs)}); give one of them")
    found = ", ".join(f"{count} x {kind or 'no modality'}" for kind, count in Counter(modality.values()).items())
    raise ImageError(f"{name}: no CT and no radiograph among {len(files)} DICOM files ({found}); give a chest study")
