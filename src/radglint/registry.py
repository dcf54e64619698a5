"""Names and folders of models, without torch: what ships in the package and what the user imported.

A model is a checkpoint folder (`config.json`, `model.safetensors`, ...). It is found in this order:

1. `weights/NAME` inside the package (these ship with radglint);
2. `models/NAME` under `RADGLINT_HOME` (default `~/.radglint`), filled by `radglint models import`;
3. an existing folder, given as a path.

Nothing here opens a network connection.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radglint.errors import CheckpointError, ConfigError, OutputError

DEFAULT_MODEL = "nano"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_UNKNOWN = "not stated"


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without loading its weights.

    Attributes:
        name: the name that `radglint.load` takes.
        folder: where its files lie.
        origin: "shipped" with the package, or "imported" by the user.
        modalities: what it can be asked about, of "CXR" and "CT".
        size_bytes: all files of the folder together.
        code_licence: licence of the code.
        weights_licence: licence of the weights.
        data_licence: licence, or list of licences, of the training data.
        fingerprint: short hash of the model's outputs on a fixed input.
    """

    name: str
    folder: Path
    origin: str
    modalities: tuple[str, ...]
    size_bytes: int
    code_licence: str
    weights_licence: str
    data_licence: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self) | {"folder": str(self.folder), "modalities": list(self.modalities)}


def shipped_folder() -> Path:
    """The folder of weights inside the package."""
    return Path(__file__).parent / "weights"


def imported_folder() -> Path:
    """The folder of the user's own models: `models` under `RADGLINT_HOME`, by default under `~/.radglint`."""
    home = os.environ.get("RADGLINT_HOME", "").strip()
    return (Path(home).expanduser() if home else Path.home() / ".radglint") / "models"


def list_models() -> list[ModelInfo]:
    """Every model that can be loaded by name, shipped ones first, each group sorted by name.

    Raises:
        CheckpointError: a model's description is not valid JSON.
    """
    return [describe(folder, origin=origin) for origin, folder in _named_folders().values()]


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder looks like a checkpoint (its content is checked on loading)."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def locate(name_or_path: str | os.PathLike[str] = DEFAULT_MODEL) -> Path:
    """The checkpoint folder of a model name or of a path.

    Args:
        name_or_path: "nano", a name from `list_models`, or the path of a checkpoint folder.

    Raises:
        CheckpointError: no such model, or the folder is not a checkpoint.
    """
    text = os.fspath(name_or_path)
    named = _named_folders()
    if text in named:
        return named[text][1]
    if text and Path(text).expanduser().is_dir():
        return _checkpoint_folder(Path(text).expanduser())
    known = ", ".join(named) or "none"
    raise CheckpointError(f"model {text!r}: unknown name and no such folder; known models: {known}")


def describe(folder: Path, *, origin: str = "imported") -> ModelInfo:
    """Read a checkpoint folder's description without loading its weights.

    Raises:
        CheckpointError: `config.json` or `provenance.json` is not a JSON object.
    """
    config = _read_object(folder / CONFIG_FILE)
    provenance = _read_object(folder / PROVENANCE_FILE) if (folder / PROVENANCE_FILE).is_file() else {}
    facts = config | provenance
    modalities = facts.get("modalities")
    return ModelInfo(
        name=folder.name,
        folder=folder,
        origin=origin,
        modalities=tuple(map(str, modalities)) if isinstance(modalities, list) else (),
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        code_licence=_licence(facts, "code"),
        weights_licence=_licence(facts, "weights"),
        data_licence=_licence(facts, "data"),
        fingerprint=_fingerprint(facts),
    )


def export_model(name: str, target: str | os.PathLike[str]) -> Path:
    """Copy a model's folder out, whole or not at all.

    Args:
        name: a model name (or a checkpoint folder).
        target: the folder to make; it must not exist, or be empty.

    Returns:
        The folder that was made.

    Raises:
        CheckpointError: no such model.
        OutputError: the target is in the way or cannot be written.
    """
    return _copy_folder(locate(name), Path(target))


def import_model(
    folder: str | os.PathLike[str], *, name: str | None = None, validate: Callable[[Path], object] | None = None
) -> ModelInfo:
    """Copy a checkpoint folder to where `radglint.load` finds it by name.

    Args:
        folder: the checkpoint folder to import.
        name: the name to give it; by default the folder's own name.
        validate: called with the folder before anything is copied; raises if the checkpoint is bad.

    Raises:
        CheckpointError: not a checkpoint, or `validate` refused it.
        ConfigError: the name is malformed or belongs to a shipped model.
        OutputError: a model of this name was imported before, or the copy cannot be written.
    """
    source = _checkpoint_folder(Path(folder).expanduser())
    name = name or source.resolve().name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"model name {name!r}: use lower-case letters, digits, '.', '_' and '-', at most 64; see --name"
        )
    if is_checkpoint(shipped_folder() / name):
        raise ConfigError(f"model name {name!r}: it belongs to a model that ships with radglint; choose another --name")
    describe(source)
    if validate is not None:
        validate(source)
    return describe(_copy_folder(source, imported_folder() / name))


def _named_folders() -> dict[str, tuple[str, Path]]:
    found: dict[str, tuple[str, Path]] = {}
    for origin, root in (("shipped", shipped_folder()), ("imported", imported_folder())):
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if _NAME.fullmatch(folder.name) and is_checkpoint(folder):
                found.setdefault(folder.name, (origin, folder))
    return found


def _checkpoint_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give a checkpoint folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: not a checkpoint folder, it lacks {' and '.join(missing)}; choose another one"
        )
    return folder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}; copy the checkpoint again")
    return value


def _licence(facts: dict[str, Any], part: str) -> str:
    licences = facts.get("licences")
    value = licences.get(part) if isinstance(licences, dict) else facts.get(f"{part}_licence")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or _UNKNOWN)


def _fingerprint(facts: dict[str, Any]) -> str:
    value = facts.get("fingerprint")
    if isinstance(value, dict):
        value = value.get("hash") or value.get("sha256")
    return str(value or _UNKNOWN)


def _copy_folder(source: Path, target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target}: is in the way; remove it or choose another name")
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        shutil.copytree(source, staging, dirs_exist_ok=True)
        staging.chmod(0o755)
        os.replace(staging, target)
    except OSError as error:  # shutil.Error is one too
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); check permission and space"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return target
