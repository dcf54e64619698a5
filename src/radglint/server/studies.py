"""Reading and encoding a study, and asking it; runs in the model process."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radglint import batch_memory
from radglint.batch_cases import Case
from radglint.errors import ConfigError, ImageError, InputError, PacsError, RadglintError
from radglint.reading import list_files, read_image
from radglint.server import artifacts
from radglint.server.features import FeatureCache, load_features, save_features
from radglint.server.volumes import VOLUME, display_volume
from radglint.writing import whole_file

if TYPE_CHECKING:
    from radglint.findings import Findings
    from radglint.image import MedicalImage
    from radglint.pipeline import EncodedImage, GlintAnswerer, Pipeline

Report = Callable[[dict[str, Any]], None]
FEATURES, LOGITS = "features.npz", "logits.npy"


class Studies:
    """What the model process knows of the studies.

    Args:
        pipeline: the model.
        root: folder of all studies.
        cache: encoded images in memory.
    """

    def __init__(self, pipeline: Pipeline, root: Path, cache: FeatureCache) -> None:
        self.pipeline = pipeline
        self.model: GlintAnswerer = pipeline.model  # type: ignore[assignment]
        self.root = root
        self.cache = cache
        self._encoding, self._asking = threading.Lock(), threading.Lock()  # the model does one of each at a time
        self._slices = _SliceCount(self.model)

    def prepare(self, study_id: str, name: str, source: dict[str, Any], report: Report) -> dict[str, Any]:
        """Fetch, read and encode a study; what is there already is used.

        Args:
            study_id: its folder.
            name: in messages, in place of a path on this machine.
            source: {"kind": "upload"} or {"kind": "dicomweb", "study_uid", "series_uid", "pacs"}; see `fetch_series`.
            report: told of each state, and of the progress from 0 to 1.

        Returns:
            What the image is, as in `ask --json` without path and steps.

        Raises:
            RadglintError: the files cannot be used.
        """
        folder = self.root / study_id / "source"
        if source["kind"] == "dicomweb" and not any(folder.iterdir()):
            fetch_series(source, folder)
        report({"state": "reading", "progress": 0.1})
        image = self._read(study_id, name)
        volume = self.root / study_id / VOLUME
        if not volume.is_file():
            artifacts.write_volume(volume, display_volume(image))
        about = describe(image)
        report({"state": "encoding", "progress": 0.2, "image": about})
        self._encoded_from(study_id, image, lambda share: report({"progress": 0.2 + 0.8 * share}))
        return about

    def encoded(self, study_id: str, name: str) -> EncodedImage:
        """The encoded study, from memory, from disk, or made again."""
        found = self.cache.get(study_id)
        return found if found is not None else self._encoded_from(study_id, self._read(study_id, name), _ignore)

    def ask(self, study_id: str, name: str, jobs: Sequence[dict[str, Any]], threshold: float | None) -> list[Any]:
        """Answer several jobs on one study at once.

        Args:
            study_id: the study.
            name: of the study.
            jobs: {"id", "queries"} each.
            threshold: as in `Pipeline.ask`.

        Returns:
            One `ask --json` document a job, without paths.
        """
        encoded = self.encoded(study_id, name)
        queries = [query for job in jobs for query in job["queries"]]
        with self._asking:
            findings = self.pipeline.ask(encoded, queries, threshold)
        documents, start = [], 0
        for job in jobs:
            part = self._part(findings, start, len(job["queries"]))
            start += len(job["queries"])
            self._save_logits(study_id, job["id"], part)
            self.cache.keep_answer(study_id, job["id"], part)
            documents.append(_without_paths(part, encoded.image))
        return documents

    def artifact(self, task: dict[str, Any]) -> str:
        """Make a result of an answer that was given before; returns its path."""
        folder = self.root / task["study"] / "jobs" / task["job"]
        made = artifacts.place_of(task["result"], task["index"], folder)
        if made.is_file():
            return str(made)
        findings = self.cache.answer(task["study"], task["job"])
        if findings is None:
            encoded = self.encoded(task["study"], task["name"])
            with self._asking:
                asked = self.pipeline.ask(encoded, task["queries"], task["threshold"])
            findings = self._as_answered(asked, folder, task["values"])
        return str(artifacts.make(findings, task["result"], task["index"], folder))

    def forget(self, study_id: str) -> None:
        """The study was deleted."""
        self.cache.forget(study_id)

    def _read(self, study_id: str, name: str) -> MedicalImage:
        """Read the source files; messages name the study as its user does."""
        folder = self.root / study_id / "source"
        files = list_files(folder)
        where = files[0] if len(files) == 1 else folder
        check_memory(where, name)
        try:
            image = read_image(where)
        except RadglintError as error:
            raise type(error)(public_message(str(error), where, folder, name)) from error
        return dataclasses.replace(image, path=name)

    def _encoded_from(self, study_id: str, image: MedicalImage, report: Callable[[float], None]) -> EncodedImage:
        path = self.root / study_id / FEATURES
        with self._encoding:
            encoded = load_features(path, image, self.model.fingerprint, self.model.device)
            if encoded is None:
                with self._slices.counted(image, report):
                    encoded = self.pipeline.encode_image(image)
                save_features(path, encoded)
            encoded = self.model.prepared(encoded)
        self.cache.put(study_id, encoded)
        return encoded

    def _part(self, findings: Findings, start: int, count: int) -> Findings:
        from radglint.findings import Findings

        name, fingerprint = findings.model_name, findings.model_fingerprint
        own = findings[start : start + count]
        return Findings(own, findings.image, model_name=name, model_fingerprint=fingerprint)

    def _save_logits(self, study_id: str, job_id: str, findings: Findings) -> None:
        folder = self.root / study_id / "jobs" / job_id
        for made in (folder.parent, folder):  # not the study's own: if that is gone, it was deleted
            made.mkdir(exist_ok=True)
        with whole_file(folder / LOGITS) as file:
            np.save(file, np.stack([finding.token_logits for finding in findings]).astype(np.float32))

    def _as_answered(self, asked: Findings, folder: Path, values: Sequence[Sequence[float]]) -> Findings:
        """The findings with the very numbers of the answer; asked alone they can differ in the last digit."""
        from radglint.findings import Findings

        logits = np.load(folder / LOGITS, allow_pickle=False)
        own = [
            dataclasses.replace(finding, token_logits=map_, score=score, probability=probability)
            for finding, map_, (score, probability) in zip(asked, logits, values, strict=True)
        ]
        name, fingerprint = asked.model_name, asked.model_fingerprint
        return Findings(own, asked.image, model_name=name, model_fingerprint=fingerprint)


class _SliceCount:
    """Counts the slices that pass the trunk, for progress."""

    def __init__(self, model: GlintAnswerer) -> None:
        self._trunk = model.model.trunk

    def counted(self, image: MedicalImage, report: Callable[[float], None]) -> Any:
        """While this context is open, `report` gets the share of an image's slices that are done (an estimate)."""
        total, done = max(1, image.shape[0] if image.affine is not None else 1), 0

        def count(_module: Any, inputs: tuple[Any, ...], _output: Any) -> None:
            nonlocal done
            done += int(inputs[0].shape[0])
            report(min(0.95, done / total))

        return _Handle(self._trunk.register_forward_hook(count))


class _Handle:
    """A hook as a context."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _ignore(_: float) -> None:
    pass


def fetch_series(source: dict[str, Any], folder: Path) -> None:
    """Fill a study's folder with a series of the PACS, all or nothing; goes on with what an earlier attempt brought.

    Args:
        source: {"pacs", "study_uid", "series_uid"}; `pacs` holds the values of a `DicomWebConfig`.
        folder: existing and empty.

    Raises:
        PacsError: the PACS cannot be reached, refuses, has no such series, or it is too large; without the address.
        ConfigError: there is no PACS any more.
    """
    from radglint.pacs.access import DicomWebConfig
    from radglint.pacs.dicomweb import DicomWeb

    if "pacs" not in source:
        raise ConfigError("this server has no PACS any more; it was started without --dicomweb")
    pacs = DicomWebConfig.model_validate(source["pacs"])
    coming = folder.with_name("fetching")
    coming.mkdir(exist_ok=True)  # not the study's own: if that is gone, it was deleted
    try:
        DicomWeb(pacs).fetch(source["study_uid"], source["series_uid"], coming)
    except PacsError as error:
        raise type(error)(str(error).replace(pacs.url, "the PACS")) from error
    coming.replace(folder)


def describe(image: MedicalImage) -> dict[str, Any]:
    """What an image is: the keys of `ask --json`, and whether DICOM results can be made of it."""
    spacing = None if image.spacing_mm is None else [float(mm) for mm in image.spacing_mm]
    return {
        "modality": image.modality, "shape": list(image.shape), "spacing_mm": spacing,
        "orientation": image.orientation, "value_unit": image.value_unit, "source_format": image.source_format,
        "is_dicom": bool(image.source_frames), "warnings": list(image.warnings),
    }  # fmt: skip


def check_memory(where: Path, name: str) -> None:
    """Refuse an image by its header that this machine could not hold: else the model process would die of it.

    Args:
        where: its file or folder.
        name: in the message.

    Raises:
        ImageError: it would need too much.
    """
    needed, most = batch_memory.estimate_bytes(Case(id=name, path=str(where))), batch_memory.usable_bytes()
    if needed > most:
        raise ImageError(
            f"{name}: needs about {needed / 1e9:.1f} GB of memory, this server may use {most / 1e9:.1f} GB; crop it"
        )


def public_message(message: str, where: Path, folder: Path, name: str) -> str:
    """A reader's message without paths of this machine."""
    text = message.replace(str(where), name).replace(f"{folder}/", "").replace(str(folder), name)
    return text.replace(str(folder.parent.parent), "").replace(folder.parent.name, name)


def model_facts(pipeline: Pipeline) -> dict[str, Any]:
    """What the server tells of its model."""
    model: GlintAnswerer = pipeline.model  # type: ignore[assignment]
    known = {modality: list(maps.presence) for modality, maps in model.calibration.modalities.items()}
    return {"name": model.name, "fingerprint": model.fingerprint, "modalities": list(known), "findings": known}


def explain(error: Exception) -> str:
    """A failure in words that may leave the server."""
    if isinstance(error, ImageError | InputError):
        return " ".join(str(error).split())[:2000]
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "not enough memory for this image; crop it or use a larger machine"
    return f"radglint itself is at fault ({type(error).__name__}); the server's log has more"


def to_line(message: dict[str, Any]) -> bytes:
    """A message between the processes."""
    return json.dumps(message, allow_nan=False).encode()


def _without_paths(findings: Findings, image: MedicalImage) -> dict[str, Any]:
    """The document of `ask --json` without paths of this machine, but with the source's format and every decision."""
    document = findings.to_dict()
    document["image"]["source_format"] = image.source_format
    for told, finding in zip(document["findings"], findings, strict=True):
        told |= {"decision": finding.decision, "verdict": finding.verdict, "mask_threshold": finding.mask_level}
    return document
