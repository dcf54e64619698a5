"""The search of `radglint batch` through a DICOM tree: first start, and start of a run that goes on.

Command: python benchmarks/bench_batch_search.py [--files N]   (5,000 files: about 20 s on one core)
Target: a second start takes less than a third of the first. Processor time counts, so that other work does not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from radglint.batch_cases import Found, look_for_cases
from radglint.batch_headers import HEADERS, open_headers

TARGET = 1 / 3
SLICES = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder, "in"), count)
        _, without = search(Path(folder, "in"), None)
        found, first = search(Path(folder, "in"), Path(folder, "out"))
        again, second = search(Path(folder, "in"), Path(folder, "out"))
        kept = Path(folder, "out", HEADERS).stat().st_size
    assert found == again
    verdict = "ok" if second <= TARGET * first else "MISSED"
    print(f"{count} files, {len(found.cases)} series: every header {without:.2f} s, first start {first:.2f} s, "
          f"second {second:.2f} s, {kept / count:.0f} bytes kept a file  {verdict}")  # fmt: skip


def search(tree: Path, out: Path | None) -> tuple[Found, float]:
    """What is found, and the seconds of processor time it takes; without `out` nothing is kept."""
    start = time.process_time()
    if out is None:
        found = look_for_cases([str(tree)])
    else:
        with open_headers(out) as headers:
            found = look_for_cases([str(tree)], headers=headers)
    return found, time.process_time() - start


def make_tree(folder: Path, count: int) -> None:
    """Small CT slices, 100 to a series, with the tags that a scanner writes before the pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    slice_ = Dataset()
    slice_.SOPClassUID, slice_.Modality, slice_.Rows, slice_.Columns = CTImageStorage, "CT", 8, 8
    slice_.ImageType, slice_.PixelSpacing = ["ORIGINAL", "PRIMARY", "AXIAL"], [0.7, 0.7]
    slice_.ImageOrientationPatient, slice_.BitsAllocated = [1, 0, 0, 0, 1, 0], 16
    slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation, slice_.SamplesPerPixel = 16, 15, 1, 1
    slice_.PhotometricInterpretation, slice_.PixelData = "MONOCHROME2", bytes(128)
    slice_.file_meta = meta
    for number in range(count):
        series = number // SLICES
        slice_.SeriesInstanceUID, slice_.SOPInstanceUID = f"1.2.826.0.1.{series}", f"1.2.826.0.1.{series}.{number}"
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        slice_.ImagePositionPatient, slice_.InstanceNumber = [0, 0, number], number
        path = folder / f"study_{series:05d}" / f"IM{number:07d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)


if __name__ == "__main__":
    main()
