"""One series out of a PACS, over DICOMweb."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from radglint.errors import ImageError, InputError

CREDENTIALS = "RADGLINT_DICOMWEB"
MAX_INSTANCES = 20_000
MAX_BYTES = 8 * 2**30
TIMEOUT_S = (10.0, 60.0)
AS_STORED = (("application/dicom", "*"),)  # whatever its transfer syntax


def fetch_series(origin: str, study_uid: str, series_uid: str, folder: Path) -> int:
    """Retrieve all instances of a series, one file each; the folder is filled at the end, or not at all.

    Args:
        origin: base URL, for example http://pacs:8042/dicom-web. The variables RADGLINT_DICOMWEB_USER and _PASSWORD, or
            RADGLINT_DICOMWEB_TOKEN, are its credentials.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        folder: an existing, empty folder.

    Returns:
        The number of instances.

    Raises:
        InputError: DICOMweb support is not installed.
        ImageError: the PACS cannot be reached, refuses, has no such series, or sends too much.
    """
    staging = folder.with_name("fetching")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        number = _retrieve(_client(origin), study_uid, series_uid, staging)
    except InputError:
        raise
    except Exception as error:  # requests, urllib3, pydicom and the client each raise their own
        what = f"the PACS did not give this series ({type(error).__name__})"
        raise ImageError(f"{what}; check the UIDs and the PACS") from error
    if not number:
        raise ImageError("the PACS has no such series; check the study and series UID")
    for path in sorted(staging.iterdir()):
        os.replace(path, folder / path.name)
    staging.rmdir()
    return number


def _retrieve(client: Any, study_uid: str, series_uid: str, staging: Path) -> int:
    """Write what comes, one instance in memory at a time."""
    number = size = 0
    for dataset in client.iter_series(study_uid, series_uid, media_types=AS_STORED):
        number += 1
        path = staging / f"{number:05d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        size += path.stat().st_size
        if number > MAX_INSTANCES or size > MAX_BYTES:
            raise ImageError(f"the series has more than {MAX_INSTANCES} instances or {MAX_BYTES} bytes; too large")
    return number


def _client(origin: str) -> Any:
    """A client with the credentials of the environment."""
    try:
        import requests
        from dicomweb_client import DICOMwebClient
    except ImportError as error:
        raise InputError('studies from a PACS need DICOMweb: pip install "radglint[server]"') from error
    user, password, token = (os.environ.get(f"{CREDENTIALS}_{name}") for name in ("USER", "PASSWORD", "TOKEN"))
    session = requests.Session()
    session.trust_env = False  # no proxy stands between a hospital's machines, and no .netrc says who we are
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user:
        session.auth = (user, password or "")
    client = DICOMwebClient(origin, session=session, timeout=TIMEOUT_S)
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
    return client
