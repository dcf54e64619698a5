"""Which study a MONAI Label client means: by our id, by the name it gave, or by a series of the archive."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from radglint.errors import PacsError, PacsUnreachableError
from radglint.server.database import Row
from radglint.server.folders import ID_PATTERN
from radglint.server.problems import Problem, not_found
from radglint.server.routes_studies import from_pacs
from radglint.server.schemas import UID_PATTERN, DicomwebRequest
from radglint.server.service import Service
from radglint.server.uploads import MAX_NAME_CHARACTERS

if TYPE_CHECKING:
    from radglint.pacs.access import DicomWebConfig

_OPENING = threading.Lock()  # two questions on a series at once must not fetch it twice


def study_of(service: Service, given: str) -> str:
    """The id of the study that a client means; a series of the archive is fetched if it is not here.

    Args:
        service: of the server.
        given: an id of ours, a name as `image_name` makes it, or a SeriesInstanceUID.

    Raises:
        Problem: nothing was given, there is no such image, or the archive does not give it.
    """
    if not given:
        raise Problem(422, "no-image", "neither an image id, nor a session id, nor a file was given")
    if re.fullmatch(ID_PATTERN, given) and service.database.study(given) is not None:
        return given
    with _OPENING:
        found = _among(service, given)
        if found is not None:
            return found
        pacs = service.config.pacs
        if pacs is None or not re.fullmatch(UID_PATTERN, given) or len(given) > 64:
            raise not_found("image")
        wanted = DicomwebRequest(study_uid=_study_uid(pacs, given), series_uid=given)
        return from_pacs(wanted, service)["id"]


def image_name(given: str) -> str:
    """The name that an upload goes by from then on: what its client proposed, as far as it can be shown."""
    return "".join(c if c.isprintable() else "?" for c in given)[:MAX_NAME_CHARACTERS].strip()


def _among(service: Service, given: str) -> str | None:
    """The newest usable study of this name or series."""
    name = image_name(given)
    for row in service.database.studies(service.config.studies, 0):
        if row["state"] != "failed" and (row["name"] == name or row["source"].get("series_uid") == given):
            return row["id"]
    return None


def _study_uid(pacs: DicomWebConfig, series_uid: str) -> str:
    """The StudyInstanceUID of a series, from the archive.

    Raises:
        Problem: the archive does not answer, refuses, or has no such series.
    """
    from radglint.pacs.dicomweb import DicomWeb

    try:
        found = DicomWeb(pacs).study_of(series_uid)
    except PacsUnreachableError as error:
        raise Problem(503, "no-pacs", "the archive does not answer; try again", retry_s=30) from error
    except PacsError as error:
        raise Problem(409, "no-pacs", "the archive did not say to which study this series belongs") from error
    if found is None:
        raise not_found("image here, nor such a series in the archive")
    return found


def next_image(rows: list[Row], asked: set[str]) -> Row | None:
    """What to look at next: the newest study that nobody has asked, else the newest."""
    ready = [row for row in rows if row["state"] == "ready"]
    return next((row for row in ready if row["id"] not in asked), ready[0] if ready else None)
