"""One series out of a PACS, over DICOMweb."""

from __future__ import annotations

import os
from pathlib import Path

from radglint.errors import ImageError, InputError

AUTHORIZATION_VARIABLE = "RADGLINT_DICOMWEB_AUTHORIZATION"
MAX_INSTANCES = 20_000
MAX_BYTES = 8 * 2**30


def fetch_series(origin: str, study_uid: str, series_uid: str, folder: Path) -> int:
    """Retrieve all instances of a series, one file each; the folder is filled at the end, or not at all.

    Args:
        origin: base URL, for example http://pacs:8042/dicom-web. If RADGLINT_DICOMWEB_AUTHORIZATION is set, it is sent
            as the Authorization header.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        folder: an existing, empty folder.

    Returns:
        The number of instances.

    Raises:
        InputError: DICOMweb support is not installed.
        ImageError: the PACS cannot be reached, refuses, has no such series, or sends too much.
    """
    try:
        from dicomweb_client import DICOMwebClient
    except ImportError as error:
        raise InputError('studies from a PACS need DICOMweb: pip install "radglint[server]"') from error
    authorization = os.environ.get(AUTHORIZATION_VARIABLE)
    client = DICOMwebClient(origin, headers={"Authorization": authorization} if authorization else None)
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
    number = size = 0
    staging = folder.with_name("fetching")
    staging.mkdir(exist_ok=True)
    try:
        for dataset in client.iter_series(study_uid, series_uid):
            number += 1
            path = staging / f"{number:05d}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            size += path.stat().st_size
            if number > MAX_INSTANCES or size > MAX_BYTES:
                raise ImageError(f"the series has more than {MAX_INSTANCES} instances or {MAX_BYTES} bytes; too large")
    except ImageError:
        raise
    except Exception as error:  # requests, urllib3 and pydicom each raise their own
        what = f"the PACS did not give this series ({type(error).__name__})"
        raise ImageError(f"{what}; check the UIDs and the PACS") from error
    if not number:
        raise ImageError("the PACS has no such series; check the study and series UID")
    for path in sorted(staging.iterdir()):
        os.replace(path, folder / path.name)
    staging.rmdir()
    return number
