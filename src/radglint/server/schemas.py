"""The documents of the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path as PathParameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from radglint.errors import QueryError
from radglint.query import parse_query
from radglint.server.folders import ID_PATTERN

MAX_QUERIES = 32
MAX_QUERY_CHARACTERS = 500
"""A quarter of what the command line takes: rules over hostile words take time that grows with the square of this."""
MAX_INDEX = MAX_QUERIES - 1
UID_PATTERN = r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*$"
StudyState = Literal["queued", "reading", "encoding", "ready", "failed"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
_ID = "0123456789abcdef01234567"
StudyId = Annotated[str, PathParameter(pattern=ID_PATTERN, description="id of a study", examples=[_ID])]
JobId = Annotated[str, PathParameter(pattern=ID_PATTERN, description="id of a job", examples=[_ID])]
Index = Annotated[int, PathParameter(ge=0, le=MAX_INDEX, description="which finding, from 0", examples=[0])]
Uid = Annotated[str, Field(pattern=UID_PATTERN, max_length=64)]


def _is_query(text: str) -> str:
    try:
        text.encode()
        parse_query(text)
    except (QueryError, UnicodeEncodeError) as error:
        raise ValueError("not a query: expected words, such as 'pleural effusion'") from error
    return text


_WORDS = {"min_length": 1, "max_length": MAX_QUERY_CHARACTERS, "pattern": "[A-Za-z]{2}"}
Query = Annotated[str, Field(**_WORDS), AfterValidator(_is_query)]


class Document(BaseModel):
    """Base of what is taken in: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class ImageFacts(BaseModel):
    """What an image is, as far as a viewer has to know."""

    modality: Literal["CXR", "CT"]
    shape: list[int] = Field(description="depth height width, or height width")
    spacing_mm: list[float] | None
    orientation: str | None = Field(description="where each array axis points, such as SPL; null in 2D")
    value_unit: Literal["HU", "display"]
    source_format: str
    is_dicom: bool = Field(description="whether DICOM results can be made of it")
    warnings: list[str]


class Study(BaseModel):
    """One image and how far it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "0123456789abcdef01234567", "name": "chest.png", "state": "encoding", "progress": 0.4,
                "created": "2026-11-24T22:00:00Z", "image": None, "problem": None,
            }
        }
    )  # fmt: skip
    id: str
    name: str
    state: StudyState
    progress: float = Field(ge=0, le=1)
    created: str
    image: ImageFacts | None = Field(description="known from the state encoding on")
    problem: str | None


class StudyList(BaseModel):
    """Studies, the newest first."""

    studies: list[Study]


class DicomwebRequest(Document):
    """A series in the PACS that this server is set up for."""

    model_config = ConfigDict(json_schema_extra={"example": {"study_uid": "1.2.3", "series_uid": "1.2.3.4"}})
    study_uid: Uid
    series_uid: Uid


class JobRequest(Document):
    """Questions to one study."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"study_id": "0123456789abcdef01234567", "queries": ["pleural effusion", "no pneumothorax"]}
        }
    )
    study_id: str = Field(pattern=ID_PATTERN)
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    threshold: float | None = Field(None, gt=0, lt=1, description="present from this probability on; null: the model's")


class Job(BaseModel):
    """Questions and, when done, their answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "fedcba987654321001234567", "study_id": "0123456789abcdef01234567", "state": "queued",
                "progress": 0, "queries": ["pleural effusion"], "threshold": None, "created": "2026-11-24T22:00:00Z",
                "findings": None, "model": None, "warnings": [], "problem": None,
            }
        }
    )  # fmt: skip
    id: str
    study_id: str
    state: JobState
    progress: float = Field(ge=0, le=1)
    queries: list[str]
    threshold: float | None
    created: str
    findings: list[dict[str, Any]] | None = Field(description="as in `ask --json`, with links in place of paths")
    model: dict[str, str] | None
    warnings: list[str]
    problem: str | None


class JobList(BaseModel):
    """Jobs, the newest first; without findings."""

    jobs: list[Job]


class ModelFacts(BaseModel):
    """The model that answers."""

    name: str
    fingerprint: str
    modalities: list[str]
    findings: dict[str, list[str]] = Field(description="by modality; close paraphrases are understood too")
    notice: str
    dicomweb: bool = Field(description="whether series can be fetched from a PACS")


class Health(BaseModel):
    """Whether questions can be answered."""

    status: Literal["ok", "starting", "degraded"]
