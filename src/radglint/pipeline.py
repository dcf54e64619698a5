"""START HERE: how a phrase becomes a mask.

    image file --read_image--> MedicalImage --preprocess--> pixels + record (the exact way back)
    pixels --trunk, mixer--> tokens on a grid                              once per image
    query --parse_query--> phrase + assertion --text tower--> embedding    once per phrase
    tokens, embedding --gate--> cosine score, map logit per token
    score --calibration--> probability;  map logits --calibration--> token logits
    token logits --record--> probability map and mask on the native grid   only when asked for

A model is anything that turns an image and queries into findings: see `Answerer`. GLINT is `GlintAnswerer`; a language
model that answers with region codes, or a multimodal model whose hidden states score a query, would stand beside it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from radglint.checkpoint import Checkpoint, ModalityCalibration
from radglint.decisions import Abstention
from radglint.errors import ConfigError, InputError, QueryError
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.gate import GatedScores, PreparedTokens
from radglint.hub import from_pretrained
from radglint.image import MedicalImage, Modality
from radglint.place import heart_logits, place_of, place_prior
from radglint.preprocess import PreprocessRecord, preprocess
from radglint.query import Query, parse_query
from radglint.reading import read_image
from radglint.scope import ConceptIndex, core_phrase
from radglint.score_maps import LogisticMap, ScoreMap, probability

Device = Literal["auto", "cpu", "cuda", "mps"]
DEFAULT_THRESHOLD = 0.5  # calibrated probabilities: present, and marked, from one half on
SLICES_AT_ONCE = 8
KEEP_ORDER = 1e-3  # share of a patch's logit that is added to its slice's where that caps it
GATES_AT_ONCE = 2**20  # queries times tokens


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as a model keeps it between questions.

    Attributes:
        image: the native image.
        record: from the native grid to the token grid and back.
        tokens: `1 tokens width`, text-independent.
        model: fingerprint of the model that made it; another model refuses it.
        places: `1 places tokens`, log-probabilities of lung, side and height; None if the model has no place field.
        prepared: what `GlintAnswerer.prepared` added for an image that is asked often.
    """

    image: MedicalImage
    record: PreprocessRecord
    tokens: torch.Tensor
    model: str
    places: torch.Tensor | None = None
    prepared: PreparedTokens | None = None


class Answerer(Protocol):
    """The seam: what every model offers."""

    name: str
    fingerprint: str
    folder: Path

    def encode(self, image: MedicalImage) -> EncodedImage:
        """Everything about the image that does not depend on a query."""
        ...

    def answer(self, encoded: EncodedImage, queries: Sequence[Query], threshold: float | None) -> list[Finding]:
        """One finding per query, in order; without a threshold the model's own decides."""
        ...


class Pipeline:
    """A model with reading, query parsing and results around it.

    Args:
        model: any `Answerer`.

    Example:
        >>> import radglint
        >>> findings = radglint.load("nano").ask("chest.png", ["pulmonary nodule"])  # doctest: +SKIP
    """

    def __init__(self, model: Answerer) -> None:
        self.model = model

    def encode_image(self, image: str | os.PathLike[str] | MedicalImage, *, series: str | None = None) -> EncodedImage:
        """Read and encode an image once, to ask it many times.

        Args:
            image: path of a PNG, JPEG, TIFF, DICOM file, DICOM folder or zip, or NIfTI; or a MedicalImage.
            series: which CT series of a folder, by number or UID.

        Raises:
            ImageError: it cannot be read, or the model has no branch for its modality.
        """
        return self.model.encode(
            image if isinstance(image, MedicalImage) else read_image(os.fspath(image), series=series)
        )

    def ask(
        self,
        image: str | os.PathLike[str] | MedicalImage | EncodedImage,
        queries: Sequence[str],
        threshold: float | None = None,
        *,
        series: str | None = None,
    ) -> Findings:
        """Ask one image any number of queries.

        Args:
            image: path, MedicalImage, or what `encode_image` returned.
            queries: plain English, for example "small left pleural effusion" or "no pneumothorax".
            threshold: probability from which a finding is present and a voxel is marked. By default the one that the
                model was calibrated to for the query's concept (see `level_of`), else 0.5.
            series: which CT series of a folder, by number or UID.

        Returns:
            Findings, one per query, in order.

        Raises:
            QueryError: no query, or one that is empty, too long or without a word.
            ImageError: the image cannot be read.
            InputError: the threshold is not between 0 and 1, or the encoded image is of another model.
        """
        if isinstance(queries, str):
            raise QueryError('queries must be a list of texts, got one text; write ["..."]')
        parsed = [parse_query(query) for query in queries]
        if not parsed:
            raise QueryError('no query given; ask for something, for example "pleural effusion"')
        if threshold is not None and not 0.0 < threshold < 1.0:
            raise InputError(f"threshold must be between 0 and 1, got {threshold}")
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image, series=series)
        if encoded.model != self.model.fingerprint:
            raise InputError(f"{encoded.image.path}: was encoded by another model ({encoded.model}); encode it again")
        findings = self.model.answer(encoded, parsed, threshold)
        return Findings(findings, encoded.image, model_name=self.model.name, model_fingerprint=self.model.fingerprint)


class GlintAnswerer:
    """GLINT behind the seam.

    Args:
        checkpoint: a loaded checkpoint.
        device: where it runs.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.name = checkpoint.name
        self.fingerprint = checkpoint.fingerprint
        self.folder = checkpoint.folder
        self.device = device
        self.dtype = trunk_dtype(device)
        self.slices_at_once = SLICES_AT_ONCE
        self.model = checkpoint.model.to(device).eval()
        self.model.trunk.to(self.dtype)
        self.model.text.to(self.dtype)
        self.calibration = checkpoint.calibration
        self._embeddings: dict[str, torch.Tensor] = {}
        self._concepts = ConceptIndex(checkpoint.prompts, self._embed)

    @torch.inference_mode()
    def encode(self, image: MedicalImage) -> EncodedImage:
        """Preprocess, trunk in chunks of slices, mixer over the whole volume."""
        branches = self.model.config.branches
        if image.modality not in branches:
            raise ConfigError(
                f"{image.path}: model {self.name} answers {', '.join(branches)}, this is {image.modality}"
            )
        prepared = preprocess(image, branches[image.modality].preprocess)
        pixels = torch.from_numpy(prepared.pixels)
        chunks = [self._trunk(part, image.modality) for part in pixels.split(self.slices_at_once)]
        tokens = torch.cat(chunks, dim=1)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            branch, grid = self.model.branch(image.modality), prepared.record.grid_shape[-2:]
            mixed = branch.mixer(tokens, grid)
            places = None if branch.place is None else branch.place(tokens, grid)
        return EncodedImage(image, prepared.record, mixed.float(), self.fingerprint, places)

    def _trunk(self, slices: torch.Tensor, modality: Modality) -> torch.Tensor:
        """`depth height width` pixels to `1 depth patches embed` tokens."""
        return self.model.branch_features(slices[None].to(self.device, self.dtype), modality).tokens

    @torch.inference_mode()
    def prepared(self, encoded: EncodedImage) -> EncodedImage:
        """Do all that does not depend on a query, for an image that is asked often.

        A CT then holds 1.5 times its tokens more and answers ten times faster; answers are the same but for rounding.
        """
        return replace(encoded, prepared=self.model.branch(encoded.image.modality).gate.prepare(encoded.tokens))

    @torch.inference_mode()
    def concepts_of(self, phrases: Sequence[str]) -> list[str | None]:
        """The known concept that each phrase is taken for; None where it is out of scope."""
        least = self.calibration.scope_threshold
        return [concept if similarity >= least else None for concept, similarity in self._concepts.nearest(phrases)]

    @torch.inference_mode()
    def answer(self, encoded: EncodedImage, queries: Sequence[Query], threshold: float | None) -> list[Finding]:
        """Score all phrases, then calibrate each."""
        findings: list[Finding] = []
        step = max(1, GATES_AT_ONCE // encoded.tokens.shape[1])
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            self._embed([text for query in part for text in (query.phrase, core_phrase(query.phrase))])  # at once
            nearest = self._concepts.nearest([query.phrase for query in part])
            gated = self._gate(encoded, part, [concept for concept, _ in nearest])
            findings += self._calibrated(encoded, part, nearest, gated, threshold)
        return findings

    def _gate(self, encoded: EncodedImage, queries: Sequence[Query], concepts: Sequence[str]) -> GatedScores:
        """Gate all tokens for some phrases where they may be; a long CT is scored as its best run of slices."""
        modality = encoded.image.modality
        branch, window = self.model.branch(modality), self.model.config.branches[modality].score_window_slices
        texts = branch.text_adapter(self._embed([query.phrase for query in queries]))
        prior = None
        if encoded.places is not None:
            in_lungs = self.calibration.modalities[modality].in_lungs
            places = [place_of(q.phrase, c in in_lungs) for q, c in zip(queries, concepts, strict=True)]
            prior = place_prior(encoded.places, places)
        tokens = encoded.tokens if encoded.prepared is None else encoded.prepared
        if window is None:
            return branch.gate(tokens, texts, prior)
        return branch.gate.forward_windows(tokens, texts, encoded.record.grid_shape[0], window, prior)

    def _calibrated(
        self, encoded: EncodedImage, queries: Sequence[Query], nearest: Sequence[tuple[str, float]],
        gated: GatedScores, threshold: float | None,
    ) -> list[Finding]:  # fmt: skip
        """Turn raw scores and map logits into findings; see `capped` for the maps."""
        maps = self.calibration.modalities[encoded.image.modality]
        findings = []
        for k, (query, (concept, similarity)) in enumerate(zip(queries, nearest, strict=True)):
            in_scope = similarity >= self.calibration.scope_threshold and concept in maps.presence
            score = float(gated.scores[k, 0])
            to_logit = maps.presence.get(concept, maps.presence_default)
            pixel = maps.pixel_by_concept.get(concept, maps.pixel)
            tokens = pixel.slope * self._map_logits(encoded, gated, k, concept) + pixel.bias
            tokens = tokens.reshape(encoded.record.grid_shape)
            level = level_of(maps, concept, threshold)
            least, shown = _logit(level.mask), _logit(level.presence)
            slices = _logits(gated.slice_scores[k, 0], to_logit) + (least - shown)  # shown from `presence` on
            tokens = capped(tokens, slices, least)
            findings.append(
                Finding(
                    query=query.text, phrase=query.phrase, assertion=query.assertion, score=score,
                    probability=probability(score, to_logit),
                    threshold=level.presence, mask_threshold=level.mask, threshold_source=level.source,
                    abstention=level.abstention, in_scope=in_scope, image=encoded.image, record=encoded.record,
                    token_logits=tokens.float().cpu().numpy(), density=maps.density.get(concept),
                    is_uncalibrated=concept in maps.uncalibrated,
                    note=query.note if in_scope else self._scope_note(query.phrase, encoded.image.modality),
                )
            )  # fmt: skip
        return findings

    def _map_logits(self, encoded: EncodedImage, gated: GatedScores, row: int, concept: str) -> torch.Tensor:
        """Where a finding is, `tokens`: what its gate saw, or the heart if it is a finding of the heart as a whole."""
        at_heart = concept in self.calibration.modalities[encoded.image.modality].at_heart
        if not at_heart or encoded.places is None:
            return gated.map_logits[row, 0]
        return heart_logits(encoded.places)[0]

    def _scope_note(self, phrase: str, modality: Modality) -> str:
        known = ", ".join(self.calibration.modalities[modality].presence)
        return f"{phrase!r} is outside what {self.name} learned for {modality}, so nothing is marked; it knows {known}"

    def _embed(self, phrases: Sequence[str]) -> torch.Tensor:
        """Sentence embeddings, each phrase computed once in the life of the pipeline."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._embeddings]
        if new:
            self._embeddings |= dict(zip(new, self.model.text.embed(new), strict=True))
        return torch.stack([self._embeddings[phrase] for phrase in phrases])


def _logit(share: float) -> float:
    """Log-odds of a probability."""
    return math.log(share / (1 - share))


def capped(tokens: torch.Tensor, slices: torch.Tensor, least: float) -> torch.Tensor:
    """Where a slice does not show a finding, no patch of it does.

    Args:
        tokens: logit of each patch, `depth height width`, or `height width` with one slice.
        slices: logit of each slice, `depth`.
        least: slices below this logit cap their patches, in the order that these had.
    """
    cap = slices.reshape(-1, *(1 for _ in tokens.shape[1:]))
    return torch.where(cap < least, torch.minimum(tokens, cap + KEEP_ORDER * tokens), tokens)


def _logits(values: torch.Tensor, to_logit: ScoreMap) -> torch.Tensor:
    """Logits of raw scores, on their device."""
    if isinstance(to_logit, LogisticMap):
        return to_logit.logit(values)
    return torch.from_numpy(to_logit.logit(values.float().cpu().numpy())).to(values)


@dataclass(frozen=True)
class Level:
    """The threshold of one query, and where it comes from.

    Attributes:
        presence: probability from which the finding is present.
        mask: probability from which a voxel is marked.
        source: in words; empty for the default or the user's own where the model has no other for this concept.
        abstention: where the model does not decide, if it is not overruled.
    """

    presence: float
    mask: float
    source: str = ""
    abstention: Abstention | None = None


def level_of(maps: ModalityCalibration, concept: str, given: float | None) -> Level:
    """Which threshold decides: the user's own, else the concept's, else 0.5.

    The user's own decides alone, also where the calibration would abstain. Voxels are marked from the user's threshold
    or from 0.5, never from the concept's: that one was chosen for presence, and the maps were not fitted with it.
    """
    stored, abstention = maps.thresholds.get(concept), maps.abstention.get(concept)
    if stored is not None:
        own = f"calibrated for {stored.goal} {stored.wanted:g}"
        level = Level(stored.probability, DEFAULT_THRESHOLD, own, abstention)
    elif abstention is not None:
        moved = abstention.nearest(DEFAULT_THRESHOLD)
        level = Level(moved, DEFAULT_THRESHOLD, f"calibrated to abstain, alpha {abstention.alpha:g}", abstention)
    else:
        plain = DEFAULT_THRESHOLD if given is None else given
        return Level(plain, plain)
    return level if given is None else Level(given, given, f"given, in place of {level.presence:.3g} ({level.source})")


def trunk_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where the processor multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def choose_device(wanted: Device = "auto") -> torch.device:
    """The device to run on.

    Raises:
        ConfigError: it is not there, or the name is unknown.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there.get(wanted, False):
        raise ConfigError(
            f"device {wanted!r} is not available here; use one of auto, {', '.join(n for n in there if there[n])}"
        )
    return torch.device(wanted)


def load(name_or_path: str | os.PathLike[str] = "nano", *, device: Device = "auto") -> Pipeline:
    """Load a model by name ("nano"), folder or hub id.

    Args:
        name_or_path: a shipped or imported name, a checkpoint folder, or a hub id (needs permission to go online).
        device: auto, cpu, cuda or mps.

    Raises:
        CheckpointError: not found, incomplete, altered, or its outputs are not those it was saved with.
        ConfigError: the device is not available.
    """
    where = choose_device(device)
    return Pipeline(GlintAnswerer(from_pretrained(name_or_path), where))
