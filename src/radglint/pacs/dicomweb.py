"""A DICOMweb server: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS), on `dicomweb-client`.

A call that gets no answer is repeated with growing waits. A series comes instance by instance, each under a temporary
name until it is whole; what lies in the folder already is not fetched again. Memory holds one instance at a time. What
a server sends is bounded: an answer, an instance, a series; and it cannot send us elsewhere (see `session`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydicom import dcmread, dcmwrite
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

from radglint.dicom_file import items, quiet_pydicom, text
from radglint.errors import ConfigError, PacsError, PacsUnreachableError, RadglintError
from radglint.pacs.access import INSTALL_HINT, DicomWebConfig, open_session
from radglint.pacs.dimse import failure_words
from radglint.pacs.uids import check_uid, is_uid
from radglint.writing import output_errors, whole_file

if TYPE_CHECKING:
    from radglint.pacs.session import BoundedSession

T = TypeVar("T")
Row = dict[str, str]

PAGE_ROWS = 200
STUDY_FIELDS = (
    *("StudyInstanceUID", "StudyDate", "StudyDescription", "ModalitiesInStudy"),
    *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
)
SERIES_FIELDS = (
    *("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "BodyPartExamined"),
    "NumberOfSeriesRelatedInstances",
)
AS_STORED = (("application/dicom", "*"),)  # whatever its transfer syntax
MAY_PASS = (408, 425, 429, 502, 503, 504)
"""HTTP status codes that say "not now"."""


class DicomWeb:
    """One server.

    Args:
        config: where it is; credentials are read from the environment at the first call.
    """

    def __init__(self, config: DicomWebConfig) -> None:
        self.config = config

    def prepare(self) -> None:
        """Read credentials and certificates now rather than at the first call.

        Raises:
            ConfigError: see `access.open_session`.
        """
        _ = self._client

    def studies(self, filters: dict[str, str] | None = None) -> Iterator[Row]:
        """Studies that match.

        Args:
            filters: keyword to value, for example `{"StudyDate": "20260101-", "ModalitiesInStudy": "CT"}`.

        Yields:
            `STUDY_FIELDS` as text, empty where the server does not say.

        Raises:
            PacsError: an unknown keyword, or the server refuses. See also `_call`.
        """
        yield from self._pages(self._client.search_for_studies, STUDY_FIELDS, "StudyInstanceUID", filters or {})

    def series(self, study: str, filters: dict[str, str] | None = None) -> Iterator[Row]:
        """Series of a study that match, as `SERIES_FIELDS`; see `studies`."""
        check_uid(study, "StudyInstanceUID")

        def search(**kwargs: Any) -> list[Any]:
            return self._client.search_for_series(study, **kwargs)

        for row in self._pages(search, SERIES_FIELDS, "SeriesInstanceUID", filters or {}):
            yield {**row, "StudyInstanceUID": row["StudyInstanceUID"] or study}

    def study_of(self, series: str) -> str | None:
        """StudyInstanceUID of a series, None where the server has no such series; see `studies`."""
        check_uid(series, "SeriesInstanceUID")
        rows = self._pages(
            self._client.search_for_series, SERIES_FIELDS, "SeriesInstanceUID", {"SeriesInstanceUID": series}
        )
        return next((row["StudyInstanceUID"] for row in rows if row["SeriesInstanceUID"] == series), None)

    def instances(self, study: str, series: str, filters: dict[str, str] | None = None) -> list[str]:
        """SOPInstanceUIDs of a series, sorted; empty where the server has none.

        Raises:
            PacsError: see `studies`, a UID that cannot be a file name, or more than `max_instances`.
        """
        check_uid(study, "StudyInstanceUID")
        check_uid(series, "SeriesInstanceUID")

        def search(**kwargs: Any) -> list[Any]:
            return self._client.search_for_instances(study, series, **kwargs)

        rows = self._pages(search, ("SOPInstanceUID",), "SOPInstanceUID", filters or {})
        found = [row["SOPInstanceUID"] for row in islice(rows, self.config.max_instances + 1)]
        if len(found) > self.config.max_instances:
            raise self._too_large(f"{self.config.max_instances} instances")
        return sorted(check_uid(uid, "SOPInstanceUID") for uid in found)

    def has(self, study: str, series: str, instance: str) -> bool:
        """Whether the server has an instance."""
        return instance in self.instances(study, series, {"SOPInstanceUID": instance})

    def header(self, study: str, series: str, instance: str) -> Dataset:
        """All tags of an instance but its pixels and other bulk data."""
        for uid, what in ((study, "StudyInstanceUID"), (series, "SeriesInstanceUID"), (instance, "SOPInstanceUID")):
            check_uid(uid, what)
        found = self._call(
            "the header of an instance", lambda: self._client.retrieve_instance_metadata(study, series, instance)
        )
        document: Any = found[0] if isinstance(found, list) and found else found
        with quiet_pydicom(), self._answers("the header of an instance"):
            return Dataset.from_json(document, bulk_data_uri_handler=lambda *_: None)

    def fetch(self, study: str, series: str, folder: Path) -> list[Path]:
        """Bring a series into a folder, one file for each instance.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.
            folder: made if missing; instances that lie there already stay as they are.

        Returns:
            The files, `SOPInstanceUID.dcm`, sorted.

        Raises:
            PacsError: the server has no such series, does not send all that it lists, or the series is larger than the
                configuration allows. See also `_call`.
            OutputError: the folder cannot be written.
        """
        wanted = self.instances(study, series)
        if not wanted:
            raise PacsError(f"{self.config.url}: has no instance of series {series} in study {study}; check both UIDs")
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".radglint-*"):  # of a fetch that was killed
                left_over.unlink()
        targets = {uid: folder / f"{uid}.dcm" for uid in wanted}
        if len(wanted) > 1 and not any(path.exists() for path in targets.values()):
            with suppress(PacsError):  # whatever is missing then is asked for again below, one by one
                self._fetch_all(study, series, targets)
        size = sum(path.stat().st_size for path in targets.values() if path.exists())
        for uid, path in targets.items():
            self._check_size(size)
            if not path.exists():
                size += self._call("an instance", lambda uid=uid: self._fetch_one(study, series, uid, targets))
        self._check_size(size)
        return list(targets.values())

    def store(self, path: Path) -> None:
        """Store one instance.

        Args:
            path: a DICOM file.

        Raises:
            PacsError: the server refuses it, with its reason, or does not have it afterwards. See also `_call`.
        """
        with quiet_pydicom(), self._answers(str(path)):
            dataset = dcmread(path)
        answer = self._call(f"to store {path.name}", lambda: self._post(dataset, path))
        confirmed = [text(item, "ReferencedSOPInstanceUID") for item in items(answer, "ReferencedSOPSequence")]
        if dataset.SOPInstanceUID in confirmed:
            return
        if not self.has(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID):
            raise PacsError(f"{path}: {self.config.url} said nothing against it, but does not have it; see its log")

    def _post(self, dataset: Dataset, path: Path) -> Dataset:
        from requests import HTTPError

        try:
            answer = self._client.store_instances([dataset])
        except HTTPError as error:
            self._refuse_failed(_body(error.response), path)
            raise
        self._refuse_failed(answer, path)
        return answer

    def _refuse_failed(self, answer: Dataset, path: Path) -> None:
        """Raise what the server says against an instance."""
        for item in items(answer, "FailedSOPSequence"):
            reason = int(text(item, "FailureReason") or 0)
            raise PacsError(
                f"{path}: {self.config.url} refuses it with reason {reason:04X}H ({failure_words(reason)}); see its log"
            )

    def _fetch_all(self, study: str, series: str, targets: dict[str, Path]) -> None:
        """All instances in one answer, until there are enough of them."""
        size = 0
        with self._answers("a series"), closing(self._stream(study, series)) as coming:
            for dataset in islice(coming, len(targets)):
                self._session.restart()
                size += _keep(dataset, series, targets)
                self._check_size(size)

    def _stream(self, study: str, series: str) -> Generator[Dataset]:
        yield from self._client.iter_series(study, series, media_types=AS_STORED)

    def _fetch_one(self, study: str, series: str, uid: str, targets: dict[str, Path]) -> int:
        size = _keep(self._client.retrieve_instance(study, series, uid), series, targets)
        if not targets[uid].exists():
            raise PacsError(f"{self.config.url}: sends another instance in place of {uid}; see its log")
        return size

    def _check_size(self, size: int) -> None:
        if size > self.config.max_series_bytes:
            raise self._too_large(f"{self.config.max_series_bytes} bytes")

    def _too_large(self, what: str) -> PacsError:
        return PacsError(f"{self.config.url}: the series has more than {what}, which is the limit here; too large")

    def _pages(
        self, search: Callable[..., list[Any]], fields: tuple[str, ...], key: str, filters: dict[str, str]
    ) -> Iterator[Row]:
        """Every row of a search, page by page, each once; until a page brings nothing new."""
        for keyword in filters:
            if tag_for_keyword(keyword) is None:
                raise PacsError(f"{keyword}: is no DICOM keyword, so it cannot be searched for; check its spelling")
        seen: set[str] = set()
        while True:
            offset = len(seen)
            page = self._call("a search", lambda offset=offset: _rows(search, fields, filters, offset))
            fresh = [row for row in page if row.get(key) and row[key] not in seen]
            for row in fresh:
                seen.add(row[key])
                yield {field: row.get(field, "") for field in fields}
            if len(page) < PAGE_ROWS or not fresh:
                return

    def _call(self, what: str, call: Callable[[], T]) -> T:
        """Make one call, again with growing waits where the server does not answer.

        Raises:
            PacsUnreachableError: no answer after all attempts, or a status that may pass.
            PacsError: the server refuses, or answers with something that is no answer.
        """
        for attempt in range(self.config.attempts):
            if attempt:
                time.sleep(self.config.first_wait_s * 2 ** (attempt - 1))
            try:
                with self._answers(what):
                    return call()
            except PacsUnreachableError:
                if attempt + 1 == self.config.attempts:
                    raise
        raise AssertionError("attempts is at least 1")

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        """Turn what goes wrong on the way into one clear line, without a word of the answer: it may name a patient."""
        from requests import HTTPError, RequestException

        where = self.config.url
        try:
            yield
        except RadglintError:
            raise
        except HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            raise self._refusal(what, status) from error
        except RequestException as error:
            if isinstance(error, ValueError):  # not JSON, or an address that is none
                raise PacsError(f"{where}: asked for {what}, sends no DICOMweb answer; check the address") from error
            raise PacsUnreachableError(
                f"{where}: asked for {what}, does not answer ({type(error).__name__}); check address and network"
            ) from error
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise PacsUnreachableError(
                    f"{where}: asked for {what}, the connection broke; check the network"
                ) from error
            raise
        except (ValueError, TypeError, KeyError, AttributeError, LookupError, EOFError) as error:
            raise PacsError(
                f"{where}: asked for {what}, sends no usable answer ({type(error).__name__}); check the address"
            ) from error

    def _refusal(self, what: str, status: int) -> PacsError:
        prefix = self.config.credentials_env
        advice = {
            401: f"it wants credentials; set {prefix}_USER and {prefix}_PASSWORD, or {prefix}_TOKEN",
            403: "these credentials do not allow it; ask who runs the server",
            404: "it is not there; check address and UIDs",
            413: "it is too large for the server; ask who runs it",
        }.get(status, "see the log of the server")
        kind = PacsUnreachableError if status in MAY_PASS else PacsError
        return kind(f"{self.config.url}: asked for {what}, refuses with HTTP {status}: {advice}")

    @cached_property
    def _session(self) -> BoundedSession:
        return open_session(self.config)

    @cached_property
    def _client(self) -> Any:
        session = self._session
        try:
            from dicomweb_client.web import DICOMwebClient
        except ImportError as error:
            raise ConfigError(f"DICOMweb needs the package dicomweb-client ({error}); {INSTALL_HINT}") from error
        config = self.config
        client = DICOMwebClient(
            config.url, session=session, timeout=(config.connect_timeout_s, config.read_timeout_s), permissive_uid=True
        )  # UIDs are checked here; real ones have leading zeros
        client.set_http_retry_params(retry=False)  # `_call` does it, and knows what may pass
        return client


def _keep(dataset: Dataset, series: str, targets: dict[str, Path]) -> int:
    """Write an instance that came, if it is one of those that were asked for; bytes of the file, or 0."""
    uid = text(dataset, "SOPInstanceUID")
    if uid not in targets or text(dataset, "SeriesInstanceUID") != series:
        return 0
    with whole_file(targets[uid]) as file, quiet_pydicom():
        dcmwrite(file, dataset, enforce_file_format=True)
    return targets[uid].stat().st_size


def _rows(search: Callable[..., list[Any]], fields: tuple[str, ...], filters: dict[str, str], offset: int) -> list[Row]:
    """One page of a search."""
    found = search(search_filters=filters, fields=fields, limit=PAGE_ROWS, offset=offset)
    return [_row(item) for item in found]


def _row(item: Any) -> Row:
    """One result of a search as keyword to text; names of persons are left out."""
    row: Row = {}
    for tag, element in item.items() if isinstance(item, dict) else ():
        keyword = keyword_for_tag(int(tag, 16))
        values = element.get("Value") or []
        if keyword and element.get("vr") not in ("PN", "SQ"):
            row[keyword] = "\\".join(str(value) for value in values if value is not None)
    return row if is_uid(row.get("StudyInstanceUID", "0")) else {}


def _body(response: Any) -> Dataset:
    """What a server says with a refusal, if it says so in DICOM JSON."""
    try:
        return Dataset.from_json(response.json())
    except (ValueError, TypeError, AttributeError, KeyError):
        return Dataset()
