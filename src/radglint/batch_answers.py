"""What is kept of a case: its line, its masks, or in words why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radglint.batch_cases import Case
from radglint.batch_files import DIGITS
from radglint.batch_memory import TooLargeError
from radglint.errors import ConfigError, GeometryError, ImageError, InputError
from radglint.findings import Findings

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (TooLargeError, "too large"),
    (GeometryError, "bad geometry"),
    (ImageError, "unreadable image"),
    (ConfigError, "not answered by this model"),
    (InputError, "bad input"),
    (TimeoutError, "timeout"),
)
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_memory_error(error: BaseException | None) -> bool:
    """Whether memory did not suffice, on the processor or an accelerator, also as the cause of a reader's error."""
    if error is None:
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS):
        return True
    return is_memory_error(error.__cause__)


def describe_failure(case: Case, error: Exception) -> tuple[str, str]:
    """The kind of a failure, and one line about it."""
    if is_memory_error(error):
        return "memory", f"{case.path}: not enough memory, also alone; crop it or use a larger machine"
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return name, " ".join(str(error).split())
    text = f"{case.path}: {type(error).__name__}: {' '.join(str(error).split())}"
    return "internal error", f"{text}; please report it"


def write_masks(findings: Findings, folder: Path) -> None:
    """A mask for each finding, as `Findings.save` writes and names them."""
    for finding, name in zip(findings, findings.mask_names, strict=True):
        write = finding.to_png if findings.image.affine is None else finding.to_nifti
        write(folder / name)


def result_line(case: Case, findings: Findings, masks: Sequence[str | None]) -> dict[str, Any]:
    """The line of a case in results.jsonl: no time and no machine in it, so that two runs can be compared."""
    answers = []
    for finding, mask in zip(findings, masks, strict=True):
        answer: dict[str, Any] = finding.to_dict(mask) | {"decision": finding.decision}
        rounded = {name: round(answer[name], DIGITS) for name in ("score", "probability") if answer[name] is not None}
        answers.append(answer | rounded)
    return {
        "id": case.id, "path": case.path, "modality": findings.image.modality, "shape": list(findings.image.shape),
        "model": {"name": findings.model_name, "fingerprint": findings.model_fingerprint},
        "findings": answers, "warnings": list(findings.warnings),
    }  # fmt: skip
