"""What the model keeps of a study: in memory as long as there is room, and on disk for the next time."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radglint.image import MedicalImage
from radglint.preprocess import PreprocessRecord
from radglint.writing import whole_file

if TYPE_CHECKING:
    from radglint.findings import Findings
    from radglint.pipeline import EncodedImage

ANSWERS_KEPT = 16  # whoever has an answer asks for its map next
_PARTS = ("tokens", "places", "native_to_grid", "native_shape", "grid_shape", "about")


class FeatureCache:
    """Encoded images by study, the least recently used one dropped first.

    Args:
        limit_bytes: of pixels and tokens together; the newest image is kept also where it is larger.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[str, EncodedImage] = OrderedDict()
        self._answers: OrderedDict[tuple[str, str], Findings] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def get(self, study_id: str) -> EncodedImage | None:
        """The encoded image if it is in memory."""
        with self._lock:
            found = self._entries.get(study_id)
            if found is None:
                self.misses += 1
                return None
            self._entries.move_to_end(study_id)
            self.hits += 1
            return found

    def peek(self, study_id: str) -> EncodedImage | None:
        """`get` that counts for nothing."""
        with self._lock:
            return self._entries.get(study_id)

    def put(self, study_id: str, encoded: EncodedImage) -> None:
        """Keep an encoded image, and drop others until all fit."""
        with self._lock:
            self._entries[study_id] = encoded
            self._entries.move_to_end(study_id)
            while len(self._entries) > 1 and self._bytes() > self._limit_bytes:
                self._drop(next(iter(self._entries)))

    def keep_answer(self, study_id: str, job_id: str, findings: Findings) -> None:
        """Keep the last few answers, each as long as its study is in memory: they hold its pixels."""
        with self._lock:
            if study_id in self._entries:
                self._answers[study_id, job_id] = findings
                while len(self._answers) > ANSWERS_KEPT:
                    self._answers.popitem(last=False)

    def answer(self, study_id: str, job_id: str) -> Findings | None:
        """An answer of `keep_answer`, if it is still there."""
        with self._lock:
            return self._answers.get((study_id, job_id))

    def forget(self, study_id: str) -> None:
        """Drop a study."""
        with self._lock:
            self._drop(study_id)

    def _drop(self, study_id: str) -> None:
        self._entries.pop(study_id, None)
        for key in [key for key in self._answers if key[0] == study_id]:
            del self._answers[key]

    def status(self) -> dict[str, int]:
        """Bytes, entries, hits and misses so far."""
        with self._lock:
            return {
                "cache_bytes": self._bytes(), "cache_entries": len(self._entries), "cache_hits": self.hits,
                "cache_misses": self.misses,
            }  # fmt: skip

    def _bytes(self) -> int:
        return sum(held_bytes(encoded) for encoded in self._entries.values())


def held_bytes(encoded: EncodedImage) -> int:
    """Bytes that an encoded image holds: pixels, tokens and what was prepared from them."""
    tensors = [encoded.tokens, encoded.places, *(encoded.prepared or ())]
    return encoded.image.array.nbytes + sum(t.nelement() * t.element_size() for t in tensors if t is not None)


def save_features(path: Path, encoded: EncodedImage) -> None:
    """Write tokens and record as .npz, whole or not at all; the pixels stay in the source files.

    Raises:
        OutputError: it cannot be written.
    """
    record = encoded.record
    places = np.zeros(0, np.float32) if encoded.places is None else encoded.places.float().cpu().numpy()
    about = json.dumps({"model": encoded.model, "steps": record.steps})
    values = (encoded.tokens.float().cpu().numpy(), places, record.native_to_grid, record.native_shape,
              record.grid_shape, about)  # fmt: skip
    with whole_file(path) as file:
        np.savez(file, **dict(zip(_PARTS, map(np.asarray, values), strict=True)))  # pyright: ignore[reportArgumentType]


def load_features(path: Path, image: MedicalImage, model: str, device: Any) -> EncodedImage | None:
    """What `save_features` wrote.

    Args:
        path: the .npz.
        image: the image, read again.
        model: fingerprint of the model in use.
        device: where the tokens go.

    Returns:
        The encoded image; None if there is no such file, it is of another model or image, or it is damaged.
    """
    import torch

    from radglint.pipeline import EncodedImage

    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            tokens, places, grid, native, shape, about = (stored[name] for name in _PARTS)
        told = json.loads(str(about))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if told["model"] != model or tuple(native) != image.shape:
        return None
    record = PreprocessRecord(_shape(native), _shape(shape), grid, tuple(told["steps"]))
    field = None if places.size == 0 else torch.from_numpy(places).to(device)
    return EncodedImage(image, record, torch.from_numpy(tokens).to(device), model, field)


def _shape(numbers: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers)
