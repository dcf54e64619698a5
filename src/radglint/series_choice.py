"""Group slices into stacks and choose the chest CT among them.

A stack is the slices of one series that share orientation, size and pixel spacing (and StackID, and AcquisitionNumber
where one series holds several passes over the same place). Localizers are left out. The choice, first rule that
decides:

1. at least 3 slices;
2. axial (normal within 37 degrees of the body axis);
3. original slices before reformats, averages and projections;
4. body part chest, thorax, lung or unnamed, before any other;
5. covers at least 150 mm, the height of a lung;
6. the most slices.

If two stacks are equal in all six, the user must choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from radglint.errors import ImageError
from radglint.slice_headers import SliceHeader
from radglint.slice_stack import SAME_PLACE_MM

MIN_CHEST_MM = 150.0
AXIAL_COSINE = 0.8
CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "BODY", "TORSO", "TRUNK")
COSINES_TOLERANCE = 2e-3  # direction cosines of one stack agree within this (0.1 degree)
SPACING_TOLERANCE = 1e-3  # share by which pixel spacings of one stack may differ
MAX_LISTED = 20


@dataclass(frozen=True, eq=False)
class SeriesSummary:
    """One stack of slices that could be read as a volume.

    Attributes:
        label: what `--series` takes: the SeriesNumber, with ":2" for the second stack of one series.
        uid: SeriesInstanceUID.
        description: SeriesDescription.
        modality: e.g. "CT".
        headers: its slices.
        localizers: slices of the series that were left out as scouts.
    """

    label: str
    uid: str
    description: str
    modality: str
    headers: tuple[SliceHeader, ...]
    localizers: int = 0

    @property
    def num_slices(self) -> int:
        """Slices, or frames."""
        return len(self.headers)

    @property
    def normal(self) -> np.ndarray | None:
        """Unit normal in LPS, or None if the orientation is missing or not valid."""
        orientation = self.headers[0].orientation
        if orientation is None or not np.abs(orientation).max() > 0:
            return None
        cross = np.cross(orientation[:3], orientation[3:])
        return cross / max(float(np.linalg.norm(cross)), 1e-9)

    @property
    def depths_mm(self) -> np.ndarray | None:
        """Place of each slice along the normal, in the order of `headers`; None without geometry."""
        positions = [h.position_mm for h in self.headers]
        normal = self.normal
        if normal is None or any(p is None for p in positions):
            return None
        return np.array(positions) @ normal

    @property
    def orientation_name(self) -> str:
        """axial, coronal, sagittal or unknown, by the nearest axis."""
        if self.normal is None:
            return "unknown"
        return ("sagittal", "coronal", "axial")[int(np.abs(self.normal).argmax())]

    def describe(self) -> str:
        """One clause for messages: number, description, slices, orientation, size."""
        thickness = self.headers[0].thickness_mm
        thick = f", {thickness:g} mm" if thickness else ""
        rows, columns = self.headers[0].shape
        size = f", {rows}x{columns}" if rows else ""
        return (
            f"{self.label} '{self.description}' ({self.modality}, {self.num_slices} slices, {self.orientation_name}"
            f"{size}{thick})"
        )

    def rank(self) -> tuple[bool, bool, bool, bool, bool, int]:
        """Larger is the better choice; see the module for the six rules."""
        first, normal, depths = self.headers[0], self.normal, self.depths_mm
        return (
            self.num_slices >= 3,
            normal is not None and abs(float(normal[2])) > AXIAL_COSINE,
            not first.is_derived,
            not first.body_part or any(word in first.body_part for word in CHEST_WORDS),
            depths is not None and float(np.ptp(depths)) >= MIN_CHEST_MM,
            self.num_slices,
        )


def group_series(headers: list[SliceHeader]) -> list[SeriesSummary]:
    """Group headers into stacks, in the order of series number.

    Args:
        headers: slices of any number of series, localizers included.

    Returns:
        Every stack; a series of localizers only gives none.
    """
    by_series: dict[str, list[SliceHeader]] = {}
    for header in headers:
        by_series.setdefault(header.series_uid, []).append(header)
    found: list[SeriesSummary] = []
    for uid, members in by_series.items():
        found += _stacks_of_series(uid, members)
    return _with_unique_labels(sorted(found, key=lambda s: (_as_int(s.label), s.uid)))


def choose_series(candidates: list[SeriesSummary], wanted: str | None, name: str) -> tuple[SeriesSummary, str]:
    """The stack to read, by the caller's wish or by the rule of the module.

    Args:
        candidates: CT stacks, at least one.
        wanted: SeriesNumber, label, SeriesInstanceUID or its end; or None.
        name: folder or file, for messages.

    Returns:
        The choice, and a note on what was passed over ("" if nothing).

    Raises:
        ImageError: no stack fits `wanted`, or two are equally good.
    """
    pool = candidates if wanted is None else _matching(candidates, str(wanted).strip(), name)
    ranked = sorted(pool, key=lambda s: s.rank(), reverse=True)
    best = ranked[0]
    if len(ranked) > 1 and ranked[1].rank() == best.rank():
        raise ImageError(
            f"{name}: several CT series are equally good, choose one with --series N: {list_in_words(candidates)}"
        )
    others = [s for s in candidates if s is not best]
    if not others:
        return best, ""
    how = "as asked" if wanted is not None else "by its orientation, type and number of slices"
    return best, f"series {best.describe()} was taken {how}; others here: {list_in_words(others)}"


def list_in_words(series: list[SeriesSummary]) -> str:
    """The stacks, one clause each, parted by semicolons."""
    more = f"; and {len(series) - MAX_LISTED} more" if len(series) > MAX_LISTED else ""
    return "; ".join(s.describe() for s in series[:MAX_LISTED]) + more


def _matching(candidates: list[SeriesSummary], wanted: str, name: str) -> list[SeriesSummary]:
    """Stacks whose label or number is `wanted`, else whose UID is, else whose UID ends so."""
    tests = (
        lambda s: s.label == wanted,
        lambda s: s.label.partition(":")[0] == wanted,
        lambda s: s.uid == wanted,
        lambda s: s.uid.endswith(wanted),
    )
    for test in tests if wanted else ():
        hits = [s for s in candidates if test(s)]
        if hits:
            return hits
    raise ImageError(f"{name}: no series '{wanted}'; choose one with --series N: {list_in_words(candidates)}")


def _stacks_of_series(uid: str, members: list[SliceHeader]) -> list[SeriesSummary]:
    slices = [h for h in members if not h.is_localizer]
    groups: list[list[SliceHeader]] = []
    for header in slices:
        group = next((g for g in groups if _same_stack(g[0], header)), None)
        if group is None:
            groups.append([header])
        else:
            group.append(header)
    stacks = [part for group in groups for part in _split_passes(group)]
    stacks.sort(key=len, reverse=True)
    first = members[0]
    summary = SeriesSummary(first.series_number or "?", uid, first.description, first.modality, (), 0)
    return [replace(summary, headers=tuple(stack), localizers=len(members) - len(slices)) for stack in stacks]


def _same_stack(one: SliceHeader, other: SliceHeader) -> bool:
    """Whether two slices have one modality, size, StackID, orientation and pixel spacing."""
    if (one.modality, one.shape, one.stack) != (other.modality, other.shape, other.stack):
        return False
    pairs = (
        (one.orientation, other.orientation, COSINES_TOLERANCE, 0.0),
        (one.spacing_mm, other.spacing_mm, 0.0, SPACING_TOLERANCE),
    )
    return all(
        (a is None) == (b is None) and (a is None or b is None or np.allclose(a, b, atol=atol, rtol=rtol))
        for a, b, atol, rtol in pairs
    )


def _split_passes(group: list[SliceHeader]) -> list[list[SliceHeader]]:
    """Split by AcquisitionNumber if places repeat and each acquisition is a stack without repeats."""
    if not _repeats(group):
        return [group]
    parts: dict[str, list[SliceHeader]] = {}
    for header in group:
        parts.setdefault(header.acquisition, []).append(header)
    clean = all(len(part) >= 2 and not _repeats(part) for part in parts.values())
    return list(parts.values()) if clean else [group]


def _repeats(group: list[SliceHeader]) -> bool:
    """Whether two slices lie at one place."""
    if any(h.position_mm is None or h.orientation is None for h in group):
        return False
    depths = SeriesSummary("", "", "", "", tuple(group)).depths_mm
    return depths is not None and bool((np.diff(np.sort(depths)) <= SAME_PLACE_MM).any())


def _with_unique_labels(stacks: list[SeriesSummary]) -> list[SeriesSummary]:
    """Add ":1", ":2" where several stacks have one series number."""
    labels = [s.label for s in stacks]
    return [
        replace(s, label=f"{s.label}:{labels[: i + 1].count(s.label)}") if labels.count(s.label) > 1 else s
        for i, s in enumerate(stacks)
    ]


def _as_int(label: str) -> int:
    return int(label) if label.lstrip("-").isdigit() else 0
