"""Ask a chest radiograph or a chest CT in plain words: a calibrated answer and a mask on your own image.

Example::

    import radglint

    findings = radglint.load("nano").ask("chest.png", ["small left pleural effusion", "pulmonary nodule"])
    findings[0].present, findings[0].probability, findings[0].mask()

The names below are loaded on first use, so that `import radglint` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.findings import Findings
    from radglint.image import MedicalImage
    from radglint.model import GlintModel
    from radglint.pipeline import Pipeline, load
    from radglint.reading import read_image

    __version__: str

_HOME = {
    "Finding": "finding",
    "Findings": "findings",
    "GlintModel": "model",
    "MedicalImage": "image",
    "Pipeline": "pipeline",
    "load": "pipeline",
    "read_image": "reading",
}

__all__ = ["Finding", "Findings", "GlintModel", "MedicalImage", "Pipeline", "__version__", "load", "read_image"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name == "__version__":
        value = _installed_version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"radglint.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'radglint' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("radglint")
    except PackageNotFoundError:
        return "0+not.installed"
