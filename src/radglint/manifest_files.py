"""The three files of a manifest, and what each of its rows holds before it is checked.

JSONL is one object a line. CSV and parquet are flat: one text column for each entry, with `labels`, `phrases`,
`size_px` and `extra` as JSON text; a label can also have a column `label:NAME` with 1, 0, -1 or nothing (present,
absent, uncertain, unlabelled).
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radglint.errors import ConfigError, InputError
from radglint.manifest_problems import COLUMNS, REQUIRED, Problem, misspelt_column

SUFFIXES = (".jsonl", ".csv", ".parquet")
LABEL_PREFIX = "label:"

_NESTED = {"labels": dict, "phrases": list, "size_px": list, "extra": dict}
_SECTIONS = ("findings", "impression")
_LABEL_CELLS = {"1": "present", "0": "absent", "-1": "uncertain"}
_WIDE_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip


@dataclass
class RawRows:
    """What a file holds.

    Attributes:
        rows: number (see `Problem.row`) and values of each row; None values are left out.
        problems: of the file and of rows that could not be taken apart.
        absent: required columns that the whole file lacks.
    """

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    absent: tuple[str, ...] = ()


def read_raw(path: Path) -> RawRows:
    """Take a manifest file apart.

    Raises:
        ConfigError: missing, of another kind, empty, or not in its format at all.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}; convert the manifest")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the manifest cannot be read ({error.strerror}); check the path") from error
    if not content.strip():
        raise ConfigError(f"{path}: the manifest is empty ({len(content)} bytes); write it again")
    if suffix == ".parquet":
        return _flat(path, *_read_parquet(path, content), number_of_first=1)
    if suffix == ".csv":
        return _flat(path, *_read_csv(path, decode(path, content)), number_of_first=2)
    return _read_jsonl(decode(path, content))


def decode(path: Path, content: bytes) -> str:
    """UTF-8 text; a mark at its start (as Excel writes) is taken off.

    Raises:
        ConfigError: another encoding; it names it or the first bad line.
    """
    for mark, name in _WIDE_ENCODINGS.items():
        if content.startswith(mark):
            raise ConfigError(f"{path}: expected UTF-8, got {name}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        got = f"byte {content[error.start]:#04x} in line {line}"
        raise ConfigError(f"{path}: expected UTF-8, got {got} (Latin-1 or Windows-1252?); save it as UTF-8") from error


def _read_jsonl(text: str) -> RawRows:
    raw = RawRows()
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    for number in filled:
        try:
            value = _loads(lines[number - 1])
        except (ValueError, RecursionError) as error:
            raw.problems.append(_json_problem(number, lines[number - 1], error, number == filled[-1]))
            continue
        if isinstance(value, dict):
            raw.rows.append((number, _from_object(number, value, raw.problems)))
        else:
            hint = "; take the array's brackets and commas away" if isinstance(value, list) else ""
            what = f"expected one JSON object a line, got {type(value).__name__}{hint}"
            raw.problems.append(Problem(number, "", "no JSON object", what))
    return raw


def _json_problem(number: int, line: str, error: Exception, is_last: bool) -> Problem:
    if is_last and line.lstrip().startswith("{") and not line.rstrip().endswith("}"):
        return Problem(number, "", "truncated JSON", f"the last line is cut off ({error}); copy the file again")
    if line.strip() in ("[", "{"):
        text = f"expected one whole JSON object a line, got {line.strip()!r}; put each on a line of its own"
        return Problem(number, "", "no JSONL", text)
    return Problem(number, "", "not JSON", f"not JSON ({error}); expected one object a line")


def _loads(text: str) -> Any:
    """Strict JSON: no NaN and no key twice."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value, write null or leave it out")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice, keep one")
    return found


def _from_object(number: int, line: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Values by column; a report of sections is taken apart, unknown keys go to `extra`."""
    values = {key: value for key, value in line.items() if key in COLUMNS and value is not None}
    if "id" in line and line["id"] is None:
        values["id"] = ""
    name = str(values.get("id", ""))
    if isinstance(values.get("report"), dict):
        _take_sections(number, values, problems, name)
    extra = values.get("extra", {})
    for key, value in line.items():
        if key in COLUMNS or (key == "group" and "patient" not in values):
            continue
        meant = misspelt_column(key)
        if meant:
            text = f"unknown key, did you mean {meant!r}? What is really another goes into extra"
            problems.append(Problem(number, key, "unknown column", text, name))
        elif isinstance(extra, dict) and key in extra:
            text = "is there twice, here and in extra; keep one"
            problems.append(Problem(number, key, "key twice", text, name))
        elif isinstance(extra, dict):
            extra = extra | {key: value}
    if extra:
        values["extra"] = extra
    if "patient" not in values and line.get("group") is not None:
        values["patient"] = line["group"]
    return values


def _take_sections(number: int, values: dict[str, Any], problems: list[Problem], name: str) -> None:
    for key, value in values.pop("report").items():
        if key not in _SECTIONS:
            text = "expected findings and impression in a report of sections; write others into extra"
            problems.append(Problem(number, f"report.{key}", "unknown section of a report", text, name))
        elif values.get(key) not in (None, "", value):
            text = f"expected one text, got another in report.{key}; keep one"
            problems.append(Problem(number, key, "key twice", text, name))
        elif value is not None:
            values[key] = value


def _read_csv(path: Path, text: str) -> tuple[list[str], Iterator[list[Any]]]:
    limit = csv.field_size_limit(2**31 - 1)  # a cell with the boxes of a CT is longer than the default of 128 KiB
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV ({error}); is a quote open or doubled? Save the table again") from error
    finally:
        csv.field_size_limit(limit)
    header = table[0]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise ConfigError(f"{path}: row 1: expected commas between columns, got {header[0]!r:.60}; save it with commas")
    return header, iter(table[1:])


def _read_parquet(path: Path, content: bytes) -> tuple[list[str], Iterator[list[Any]]]:
    parquet = import_parquet()
    import pyarrow as pa

    try:
        table = parquet.read_table(pa.BufferReader(content))
        table.validate(full=True)
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path}: not a parquet file, or cut off ({reason}); write or copy it again") from error
    return list(table.column_names), (list(row) for row in zip(*columns, strict=True))


def import_parquet() -> Any:
    """`pyarrow.parquet`.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError("parquet manifests need pyarrow; run `pip install pyarrow`, or use .jsonl or .csv") from error
    return parquet


def _flat(path: Path, header: list[str], table: Iterator[list[Any]], number_of_first: int) -> RawRows:
    """Rows of a table; problems of the header are said once."""
    raw = RawRows(problems=_header_problems(header))
    raw.absent = tuple(column for column in REQUIRED if column not in header)
    known = ["" if _misspelt(name) else name for name in header]
    for number, cells in enumerate(table, start=number_of_first):
        if len(cells) == len(header):
            raw.rows.append((number, _from_cells(number, dict(zip(known, cells, strict=True)), raw.problems)))
        elif cells:  # a blank line is no row
            text = f"expected {len(header)} cells as in the header, got {len(cells)}; is a comma or quote missing?"
            raw.problems.append(Problem(number, "", "wrong number of cells", text))
    if not raw.rows and not raw.problems:
        raise ConfigError(f"{path}: the manifest has a header and no rows; write it again")
    return raw


def _misspelt(name: str) -> str | None:
    """The column that the name of a table's column misspells."""
    return None if name in COLUMNS or name.startswith(LABEL_PREFIX) else misspelt_column(name)


def _header_problems(header: list[str]) -> list[Problem]:
    problems = []
    for column in REQUIRED:
        if column not in header:
            text = f"the column is missing; the file has {', '.join(header)!s:.200}"
            problems.append(Problem(1, column, "missing column", text))
    for name, count in Counter(header).items():
        meant = _misspelt(name)
        if not name.strip():
            problems.append(Problem(1, "", "column without name", f"expected a name for each column, got {name!r}"))
        elif count > 1:
            problems.append(Problem(1, name, "column twice", f"expected it once, got it {count} times; keep one"))
        elif meant:
            text = f"unknown column, did you mean {meant!r}? What is really another goes into extra"
            problems.append(Problem(1, name, "unknown column", text))
    return problems


def _from_cells(number: int, cells: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Values by column; JSON cells are parsed, label columns are merged into `labels`."""
    values: dict[str, Any] = {}
    name = str(cells.get("id") or "")
    extra: dict[str, Any] = {}
    for column, cell in cells.items():
        if column == "id":
            cell = "" if cell is None else cell
        elif cell in (None, "") or column == "" or column.startswith(LABEL_PREFIX):
            continue
        if column in _NESTED:
            cell = _nested(number, column, cell, problems, name)
        if column in COLUMNS:
            values[column] = cell
        else:
            extra[column] = cell
    if extra and isinstance(values.get("extra", {}), dict):
        values["extra"] = extra | values.get("extra", {})
    _merge_labels(number, cells, values, problems, name)
    return {column: value for column, value in values.items() if value is not None}


def _nested(number: int, column: str, cell: Any, problems: list[Problem], name: str) -> Any:
    """The value of a JSON cell; None after a problem."""
    if not isinstance(cell, str):
        if isinstance(cell, list) and _NESTED[column] is list:
            return cell
        text = f"expected JSON as text, got {type(cell).__name__}; write json.dumps of it"
        problems.append(Problem(number, column, "cell is no JSON", text, name))
        return None
    try:
        return _loads(cell)
    except (ValueError, RecursionError) as error:
        text = f"expected JSON as text, got {cell!r:.40} ({error}); is a quote missing?"
        problems.append(Problem(number, column, "cell is no JSON", text, name))
        return None


def _merge_labels(
    number: int, cells: Mapping[str, Any], values: dict[str, Any], problems: list[Problem], name: str
) -> None:
    merged: dict[str, str] = {}
    for column, cell in cells.items():
        if not column.startswith(LABEL_PREFIX) or cell is None or cell == "":
            continue
        label = column.removeprefix(LABEL_PREFIX)
        state = _LABEL_CELLS.get(str(cell).strip().removesuffix(".0")) if not isinstance(cell, bool) else None
        stated = values["labels"].get(label) if isinstance(values.get("labels"), dict) else None
        if state is None:
            text = f"expected 1, 0, -1 or nothing (present, absent, uncertain, unlabelled); got {cell!r}"
            problems.append(Problem(number, column, "label column out of range", text, name))
        elif stated not in (None, state):
            text = f"is {state} here, but {stated} in labels; keep one of both"
            problems.append(Problem(number, column, "labels contradict each other", text, name))
        else:
            merged[label] = state
    if merged and isinstance(values.get("labels", {}), dict):
        values["labels"] = values.get("labels", {}) | merged


def raw_bytes(path: Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of a manifest file.

    Args:
        path: its suffix decides the format.
        rows: values by column, without problems; empty values left out.

    Raises:
        InputError: another suffix, or a value in `extra` that JSON cannot hold.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}; choose such a name")
    try:
        if suffix == ".jsonl":
            return "".join(jsonl_line(row) + "\n" for row in rows).encode("utf-8")
        table = [[_cell(row.get(column)) for column in COLUMNS] for row in rows]
        return _parquet_bytes(table) if suffix == ".parquet" else _csv_text(table).encode("utf-8")
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise InputError(f"{path}: a row cannot be written ({error}); extra may hold JSON values only") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def jsonl_line(row: Mapping[str, Any]) -> str:
    """One line of a JSONL manifest, without its line end.

    Args:
        row: values by column, without problems; empty values left out.
    """
    return _dumps(_to_object(row))


def _to_object(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line, as `report_pairs` reads it too: the report always under `report`."""
    line = {key: value for key, value in row.items() if key not in (*_SECTIONS, "report", "extra")}
    sections = {key: row[key] for key in _SECTIONS if row.get(key)}
    if row.get("report") or not sections:
        line |= {"report": row.get("report", ""), **sections}
    else:
        line["report"] = {key: row.get(key, "") for key in _SECTIONS}
    inner = {}
    for key, value in row.get("extra", {}).items():
        if key == "group" or misspelt_column(key):  # a reader would take it for the column
            inner[key] = value
        else:
            line[key] = value
    return line | ({"extra": inner} if inner else {})


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _dumps(value)


def _csv_text(table: list[list[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([list(COLUMNS), *table])  # its line end \r\n makes it quote a lone \r in a cell too
    return text.getvalue()


def _parquet_bytes(table: list[list[str]]) -> bytes:
    parquet = import_parquet()
    import pyarrow as pa

    columns = [pa.array([row[k] or None for row in table], pa.string()) for k in range(len(COLUMNS))]
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns, names=list(COLUMNS)), buffer, compression="zstd")
    return buffer.getvalue()
