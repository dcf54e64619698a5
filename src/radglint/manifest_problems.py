"""Everything that can be wrong with a manifest and that shows without opening its images, all of it at once."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from radglint.errors import ConfigError
from radglint.manifest_boxes import box_problem
from radglint.manifest_labels import label_problem

NAMES = ("id", "dataset", "patient", "study", "series")
"""Columns that hold names; a whole number is read as its text."""
REPORT = ("findings", "impression", "report")
CHOICES = {
    "modality": ("CXR", "CT"),
    "split": ("train", "val", "test", ""),
    "view": ("PA", "AP", "LATERAL", ""),
}
STATES = ("present", "absent", "uncertain")
COLUMNS = (
    "id", "image", "modality", "dataset", "patient", "study", "series", "split", "view", "findings", "impression",
    "report", "labels", "phrases", "size_px", "extra",
)  # fmt: skip
REQUIRED = ("image", "modality")
MAX_SHOWN = 50
"""Problems that a message lists; `radglint data check` lists all."""

_MEANT = {
    "dx": "CXR", "cr": "CXR", "xray": "CXR", "x-ray": "CXR", "xr": "CXR", "chest ct": "CT", "training": "train",
    "valid": "val", "validate": "val", "validation": "val", "dev": "val", "testing": "test", "lat": "LATERAL",
    "ll": "LATERAL", "l": "LATERAL", "positive": "present", "1": "present", "true": "present", "yes": "present",
    "negative": "absent", "0": "absent", "false": "absent", "no": "absent", "-1": "uncertain", "unsure": "uncertain",
    "doubtful": "uncertain",
}  # fmt: skip
_COLUMN_OF = {
    "patient_id": "patient", "patientid": "patient", "subject_id": "patient", "study_id": "study", "label": "labels",
    "phrase": "phrases", "path": "image", "file": "image", "filename": "image", "img": "image", "image_path": "image",
    "size": "size_px", "shape": "size_px", "view_position": "view", "finding": "findings",
}  # fmt: skip
_NAME_CUTOFF, _CHOICE_CUTOFF = 0.8, 0.6
_PHRASE_KEYS = ("text", "label", "boxes", "masks")
_MASK_SUFFIXES = (".png", ".nii", ".nii.gz")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        row: line of a JSONL file, row of a table as a spreadsheet counts it (the header is row 1; in parquet the first
            row is 1); 0 for the file.
        column: or key; a part of it as `phrases[0].boxes[1]`.
        kind: what sort of problem, the same words for all of its sort.
        text: what was expected, what came, what to do.
        id: of the row, if known.
    """

    row: int
    column: str
    kind: str
    text: str
    id: str = ""

    def __str__(self) -> str:
        """As a message names it."""
        named = f" (id {self.id!r})" if self.id else ""
        where = [f"row {self.row}{named}"] if self.row else []
        where += [f"column {self.column}"] if self.column else []
        return f"{', '.join(where)}: {self.text}" if where else self.text


class ManifestError(ConfigError):
    """A manifest cannot be used; the message lists its problems.

    Attributes:
        problems: all of them, in the order of rows.
    """

    def __init__(self, path: str | os.PathLike[str], problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        if len(self.problems) == 1:
            super().__init__(f"{os.fspath(path)}: {self.problems[0]}")
            return
        lines = [f"- {problem}" for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            lines.append(f"- and {len(self.problems) - MAX_SHOWN} more; `radglint data check` lists all")
        super().__init__("\n".join([f"{os.fspath(path)}: {len(self.problems)} problems", *lines]))


@lru_cache(maxsize=4096)
def misspelt_column(name: str) -> str | None:
    """The column that an unknown name seems to mean; None if none is close."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    if plain in COLUMNS or plain in _COLUMN_OF:
        return _COLUMN_OF.get(plain, plain)
    close = difflib.get_close_matches(plain, COLUMNS, n=1, cutoff=_NAME_CUTOFF)
    return close[0] if close else None


class RowCheck:
    """Collects the problems of one row.

    Args:
        number: of the row, see `Problem.row`.
        values: column to value; None and a missing column are the same.
    """

    def __init__(self, number: int, values: Mapping[str, Any]) -> None:
        self.number, self.values = number, values
        identity = values.get("id")
        self.id = identity.strip() if isinstance(identity, str) else ""
        self.problems: list[Problem] = []

    def add(self, column: str, kind: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(self.number, column, kind, text, self.id))

    def run(self, absent: Iterable[str] = ()) -> list[Problem]:
        """All checks of one row.

        Args:
            absent: columns that the whole file lacks, which was said once.
        """
        for column in REQUIRED:
            if self.values.get(column) is None and column not in absent:
                self.add(column, "missing column", f"expected a value, got nothing; every row needs its {column}")
        for column in NAMES:
            self._name(column)
        for column in REPORT:
            self._text(column)
        for column in CHOICES:
            self._choice(column)
        self._image()
        self._view()
        size = self._size()
        labels = self._labels()
        self._phrases(size, labels)
        extra = self.values.get("extra")
        if extra is not None and not isinstance(extra, dict):
            self.add("extra", "extra is no object", f"expected a JSON object, got {_shown(extra)}")
        return self.problems

    def _name(self, column: str) -> None:
        value = self.values.get(column)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return
        if isinstance(value, float) and value != value:
            self.add(column, "NaN", "expected text, got NaN; leave an unknown value empty (null)")
        elif not isinstance(value, str):
            self.add(column, "mixed types", f"expected text, got {_shown(value)}; write it as text, such as '12'")
        elif value != value.strip() or not value.isprintable():
            self.add(column, "spaces or control characters", f"expected a plain name, got {value!r}; take them out")
        elif column == "id" and not value:
            self.add(column, "empty id", "expected a name, got ''; give every row an id of its own, or drop the column")

    def _text(self, column: str) -> None:
        value = self.values.get(column)
        if isinstance(value, float) and value != value:
            self.add(column, "NaN", "expected text, got NaN; leave a missing report empty (null)")
        elif value is not None and not isinstance(value, str):
            self.add(column, "report is no text", f"expected text, got {_shown(value)}; write the report as one text")

    def _choice(self, column: str) -> None:
        value = self.values.get(column)
        choices = CHOICES[column]
        if value is None or value in choices:
            return
        if isinstance(value, float) and value != value:
            self.add(column, "NaN", "expected text, got NaN; leave an unknown value empty (null)")
            return
        shown = ", ".join(choice or "empty" for choice in choices)
        self.add(column, f"bad {column}", f"expected {shown}; got {_shown(value)}{_hint(value, choices)}")

    def _image(self) -> None:
        value = self.values.get("image")
        if isinstance(value, float) and value != value:
            self.add("image", "NaN", "expected a path, got NaN; give the path of the image")
        elif value is not None:
            self._path("image", value)

    def _path(self, column: str, value: Any) -> None:
        """Whether a value can be a path below the manifest's folder, or an absolute one."""
        if not isinstance(value, str):
            self.add(column, "mixed types", f"expected a path as text, got {_shown(value)}")
        elif not value.strip() or not value.isprintable():
            self.add(column, "bad path", f"expected a path, got {value!r}; name the file")
        elif "://" in value:
            self.add(column, "address", f"expected a path, got an address, {value!r}; download it first")
        elif "\\" in value and os.sep == "/":
            self.add(column, "backslashes", f"expected a path with /, got {value!r}; replace each backslash")
        elif value.startswith("~"):
            self.add(column, "bad path", f"expected a full path, got {value!r}; write the home folder out")
        elif ".." in value and not os.path.isabs(value) and posixpath.normpath(value).split("/")[0] == "..":
            self.add(
                column, "path leaves the folder",
                f"expected a path below the manifest's folder, got {value!r}; give an absolute path",
            )  # fmt: skip

    def _view(self) -> None:
        if self.values.get("modality") == "CT" and self.values.get("view"):
            view = self.values["view"]
            self.add("view", "view on a CT", f"expected empty, got {_shown(view)}; only a radiograph has a view")

    def _size(self) -> tuple[int, ...] | None:
        """The native shape, if it is good."""
        value = self.values.get("size_px")
        if value is None:
            return None
        ndim = 3 if self.values.get("modality") == "CT" else 2
        axes = "[depth, height, width]" if ndim == 3 else "[height, width]"
        if not isinstance(value, list | tuple) or len(value) != ndim:
            self.add("size_px", "bad size", f"expected {axes} in pixels, got {_shown(value)}")
        elif not all(type(n) is int for n in value):
            self.add("size_px", "bad size", f"expected whole numbers {axes}, got {_shown(value)}")
        elif min(value) < 1:
            self.add("size_px", "negative size", f"expected {axes} from 1 on, got {_shown(value)}")
        else:
            return tuple(value)
        return None

    def _labels(self) -> Mapping[str, Any]:
        value = self.values.get("labels")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.add("labels", "labels are no object", f'expected {{"concept": "present"}}, got {_shown(value)}')
            return {}
        for name, state in value.items():
            problem = label_problem(str(name))
            if problem:
                self.add("labels", "label typo", problem)
            if state not in STATES or not isinstance(state, str):
                hint = "; leave an unlabelled concept out" if state in (None, "") else _hint(state, STATES)
                text = f"expected {', '.join(STATES)}; got {_shown(state)}{hint}"
                self.add(f"labels[{name!r}]", "unknown label state", text)
        return value

    def _phrases(self, size: tuple[int, ...] | None, labels: Mapping[str, Any]) -> None:
        value = self.values.get("phrases")
        if value is None:
            return
        if not isinstance(value, list | tuple):
            self.add("phrases", "phrases are no list", f'expected [{{"text": ...}}], got {_shown(value)}')
            return
        for k, phrase in enumerate(value):
            where = f"phrases[{k}]"
            if isinstance(phrase, dict):
                self._phrase(where, phrase, size, labels)
            else:
                self.add(where, "phrases are no list", f'expected {{"text": ...}}, got {_shown(phrase)}')

    def _phrase(
        self, where: str, phrase: dict[str, Any], size: tuple[int, ...] | None, labels: Mapping[str, Any]
    ) -> None:
        for key in phrase:
            if key not in _PHRASE_KEYS:
                hint = _hint(key, _PHRASE_KEYS)
                self.add(f"{where}.{key}", "unknown key in a phrase", f"expected {', '.join(_PHRASE_KEYS)}{hint}")
        text, label = phrase.get("text"), phrase.get("label")
        if not isinstance(text, str) or not text.strip():
            advice = "give the reader's words, or the label's name"
            self.add(f"{where}.text", "phrase without text", f"expected text, got {_shown(text)}; {advice}")
        self._phrase_label(where, label, labels, bool(phrase.get("boxes") or phrase.get("masks")))
        for k, box in enumerate(self._list(where, phrase, "boxes")):
            found = box_problem(box, 3 if self.values.get("modality") == "CT" else 2, size)
            if found:
                self.add(f"{where}.boxes[{k}]", *found)
        for k, mask in enumerate(self._list(where, phrase, "masks")):
            self._mask(f"{where}.masks[{k}]", mask)

    def _phrase_label(self, where: str, label: Any, labels: Mapping[str, Any], is_placed: bool) -> None:
        if label is None or label == "":
            return
        if not isinstance(label, str):
            self.add(f"{where}.label", "mixed types", f"expected the name of a label, got {_shown(label)}")
            return
        problem = label_problem(label)
        if problem:
            self.add(f"{where}.label", "label typo", problem)
        if is_placed and labels.get(label) == "absent":
            self.add(
                f"{where}.label", "marked, but labelled absent",
                f"{label!r} is absent in labels, but this phrase marks it; correct one of both",
            )  # fmt: skip

    def _list(self, where: str, phrase: dict[str, Any], key: str) -> Sequence[Any]:
        value = phrase.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            self.add(f"{where}.{key}", "boxes or masks are no list", f"expected a list, got {_shown(value)}")
            return ()
        return value

    def _mask(self, where: str, value: Any) -> None:
        before = len(self.problems)
        path, mark, number = value.partition("#") if isinstance(value, str) else (value, "", "")
        self._path(where, path)
        if len(self.problems) > before:
            return
        if path.lower().endswith(".npz"):
            if not (number.isascii() and number.isdecimal()):
                self.add(where, "bad mask reference", f"expected FILE.npz#K with K from 0 on, got {value!r}")
        elif mark or not path.lower().endswith(_MASK_SUFFIXES):
            expected = "FILE.png, FILE.nii, FILE.nii.gz or FILE.npz#K"
            self.add(where, "bad mask reference", f"expected {expected}, got {value!r}")


def whole_problems(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Problem]:
    """Ids that are there twice, and patients in two splits.

    Args:
        rows: number and values of each row.
    """
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    splits: dict[tuple[str, str], dict[str, int]] = {}
    for number, values in rows:
        identity, patient, split = _plain(values.get("id")), _plain(values.get("patient")), _plain(values.get("split"))
        if identity and ids.setdefault(identity, number) != number:
            text = f"{identity!r} is already the id of row {ids[identity]}; give every row an id of its own"
            problems.append(Problem(number, "id", "duplicate id", text, identity))
        if patient and split:
            seen = splits.setdefault((_plain(values.get("dataset")), patient), {})
            if seen and split not in seen:
                other, row = next(iter(seen.items()))
                text = f"patient {patient!r} is in {split} here and in {other} in row {row}; keep it in one split"
                problems.append(Problem(number, "patient", "patient in two splits", text, identity))
            seen.setdefault(split, number)
    return problems


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _hint(value: Any, choices: Sequence[str]) -> str:
    plain = str(value).strip().lower().removesuffix(".0")
    if _MEANT.get(plain) in choices:
        return f"; did you mean {_MEANT[plain]!r}?"
    close = difflib.get_close_matches(plain, [c.lower() for c in choices if c], n=1, cutoff=_CHOICE_CUTOFF)
    return "".join(f"; did you mean {choice!r}?" for choice in choices if close and choice.lower() == close[0])


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}\u2026"
