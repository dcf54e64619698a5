"""Errors of radglint. Every message names the file, tag or key, what was expected, what came, and what to do."""

from __future__ import annotations

import reprlib


class RadglintError(Exception):
    """Base of every error that radglint raises on purpose."""


class InputError(RadglintError, ValueError):
    """The user's input cannot be used. The command line exits with 2."""


class ImageError(InputError):
    """An image file cannot be read, or does not hold a usable radiograph or CT."""


class GeometryError(ImageError):
    """Positions, spacing or orientation of an image are missing, contradictory or singular."""


class QueryError(InputError):
    """A text query is empty, too long or not text."""


class ReportError(InputError):
    """A radiology report is not text, or its sentences cannot be embedded."""


class ConfigError(InputError):
    """A configuration holds an unknown key or a value out of range."""


class CheckpointError(InputError):
    """A checkpoint is missing, truncated, altered or of another version."""


class OutputError(InputError):
    """A result cannot be written: no permission, no space, or a path that is in the way."""


class TrainingError(InputError):
    """A training run cannot start, go on or be resumed."""


class PacsError(InputError):
    """A PACS refuses what it was asked or sent, or answers with something else."""


class PacsUnreachableError(PacsError):
    """A PACS does not answer, or says that it cannot just now; the same call may work later."""


def shown(value: object, most: int = 100) -> str:
    """A value as a message shows it: cut, and never without end, however deeply it is nested."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 4, most, most
    text = short.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
