"""The image of a study for display: as it is drawn, or packed for those who keep it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from radglint.server.problems import Problem, declared
from radglint.server.schemas import StudyId
from radglint.server.service import PREFIX, Service, ServiceOf
from radglint.server.volumes import PACKED, VOLUME, display_file

router = APIRouter(prefix=f"{PREFIX}/studies", tags=["studies"])
GZIP, PLAIN = "application/gzip", "application/octet-stream"


def _declared(media_type: str) -> dict[int | str, Any]:
    return declared(404, 409) | {200: {"description": "the image for display", "content": {media_type: {}}}}


@router.get("/{study_id}/volume.nii.gz", response_class=FileResponse, responses=_declared(GZIP))
def packed(study_id: StudyId, service: ServiceOf) -> Any:
    """The image as NIfTI, from the state encoding on: CT in HU (int16) as it lies; a radiograph as one slice."""
    return image_file(service, study_id, PACKED, PACKED)


@router.get("/{study_id}/volume.nii", response_class=FileResponse, responses=_declared(PLAIN))
def plain(study_id: StudyId, service: ServiceOf) -> Any:
    """The same not compressed: larger, and on a fast line much sooner on the screen."""
    return image_file(service, study_id, VOLUME, VOLUME)


def image_file(service: Service, study_id: str, kind: str, name: str) -> FileResponse:
    """A study's image for display as an answer.

    Args:
        service: of the server.
        study_id: the study.
        kind: `VOLUME` or `PACKED`.
        name: for those who keep it.

    Raises:
        Problem: there is no such study, or it is not read yet.
    """
    state = service.study(study_id)["state"]
    path = display_file(service.folders.study(study_id), kind)
    if not path.is_file():
        raise Problem(409, "not-ready", f"the study is {state}, so there is no image to show")
    return service.file(path, GZIP if kind == PACKED else PLAIN, name)
