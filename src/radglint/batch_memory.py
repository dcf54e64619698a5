"""What a case will need, from its header, what there is, and who may have it: settled before anything is decoded."""

from __future__ import annotations

import os
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

from radglint.batch_cases import Case
from radglint.errors import ImageError
from radglint.reading import list_files, sniff

BYTES_PER_VOXEL = 20
"""The stored values, their float32 copy in the file's order and in ours, the mask and its pieces; maps are made in
blocks. An estimate that errs on the safe side (9 were seen on a CT of int16 with little to mark), not a promise."""
USABLE = 0.8
POLL_S = 0.2
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class TooLargeError(ImageError):
    """A case would not fit into memory."""


class MemoryBudget:
    """Hands out memory in the order of the tickets, so that a late case never takes what an early one waits for.

    Args:
        total: bytes for all cases in work together. One case alone may always go on.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._live = 0
        self._turn = 0
        self._passed: set[int] = set()
        self._closed = False
        self._changed = threading.Condition()

    def take(self, ticket: int, needed: int) -> None:
        """Wait for this ticket's turn and for the memory.

        Raises:
            TimeoutError: the ticket was left or the budget closed meanwhile.
        """
        with self._changed:
            while not self._may_go(ticket, needed):
                self._changed.wait(POLL_S)
            self._live += needed
            self._pass(ticket)

    def _may_go(self, ticket: int, needed: int) -> bool:
        if self._closed or ticket < self._turn or ticket in self._passed:
            raise TimeoutError("given up while it waited for memory")
        return ticket == self._turn and (not self._live or self._live + needed <= self.total)

    def leave(self, ticket: int) -> None:
        """This ticket needs nothing, or is given up; the next one is served. After `take` it does nothing."""
        with self._changed:
            if ticket >= self._turn:
                self._pass(ticket)

    def _pass(self, ticket: int) -> None:
        self._passed.add(ticket)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()

    def give_back(self, needed: int) -> None:
        """What `take` got is free again."""
        with self._changed:
            self._live -= needed
            self._changed.notify_all()

    def close(self) -> None:
        """Send everyone home who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def estimate_bytes(case: Case) -> int:
    """Memory that reading and answering a case takes at its peak; 0 if its header says nothing, so reading will say.

    Args:
        case: only headers of its files are read.
    """
    voxels = case.voxels
    if voxels is None:
        voxels = 0
        with suppress(Exception):  # a broken header is named by the reader, with its reason
            voxels = _voxels(Path(case.path))
    return voxels * BYTES_PER_VOXEL


def check_fits(case: Case, needed: int, memory: int) -> None:
    """Refuse a case that would not fit.

    Raises:
        TooLargeError: it names both numbers.
    """
    if needed > memory:
        raise TooLargeError(
            f"{case.path}: needs about {needed / 1e9:.1f} GB, {memory / 1e9:.1f} GB may be used; crop it, or allow "
            "more with --memory-gb"
        )


def usable_bytes() -> int:
    """Four fifths of the memory of this machine, or of its container or systemd unit if that is less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        total = 8 * 2**30
    return int(USABLE * min(total, *_limits_bytes()))


def _limits_bytes() -> list[int]:
    """Memory limits of the control group that we are in, and of those that it lies in."""
    own = ""
    with suppress(OSError):  # no Linux
        own = _OWN_CGROUP.read_text(encoding="utf-8").rpartition("::")[2].strip().strip("/")
    found = [2**63]
    for folder in (_CGROUPS / own, *(_CGROUPS / own).parents):
        with suppress(OSError, ValueError):  # the topmost has no limit, and "max" is none
            found.append(int((folder / "memory.max").read_text(encoding="ascii")))
    return found


def _voxels(path: Path) -> int:
    kind = sniff(path)
    if kind == "folder":
        return sum(_voxels_or_none(file) for file in list_files(path))
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist()) // 2
    if kind == "nifti":
        import nibabel

        return _product(nibabel.load(path).shape)  # type: ignore[attr-defined]
    if kind == "dicom":
        from radglint.dicom_file import number, open_dicom

        names = ["Rows", "Columns", "NumberOfFrames"]
        header = open_dicom(path, stop_before_pixels=True, tags=names)
        return _product(tuple(int(number(header, name, path) or 1) for name in names))
    from PIL import Image

    with Image.open(path) as picture:
        return _product(picture.size)


def _voxels_or_none(path: Path) -> int:
    with suppress(Exception):
        return _voxels(path)
    return 0


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= int(side)
    return product
