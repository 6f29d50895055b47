"""Images from an archive that speaks DICOMweb: listed by QIDO-RS, retrieved by WADO-RS, a series at a time.

A series that breaks off is not begun anew: what it gave stays, and the rest is asked for one by one, so that every try
comes further than the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

from medflow.config import Settings
from medflow.connections.endpoints import DicomWebSource
from medflow.connections.patience import Patience, tries
from medflow.dicom.multipart import Part, media_type_of
from medflow.dicom.web import DICOM, DicomWeb, Result, text_of
from medflow.errors import InputRejected, RejectCode, ServerUnavailable
from medflow.ingest.landing import Landing
from medflow.ingest.retrieval import Asked, Lacking, Listed, fetch_studies
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store

log = logging.getLogger(__name__)
STUDY_UID, SERIES_UID, INSTANCE_UID, MODALITY = "0020000D", "0020000E", "00080018", "00080060"
PATIENCE = Patience()
AT_START = Patience(attempts=3)
A_YEAR = 366  # days
UNNAMED = ""  # in place of a SOP Instance UID: what an archive lists without one is not passed over
GIVE_UP_AFTER = 3  # instances of a series that are refused in a row

Answer = TypeVar("Answer")


def fetch_dicomweb(
    store: Store,
    settings: Settings,
    source: DicomWebSource,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take into the store what an archive has and the store lacks; errors as for `fetch_studies`."""
    archive = DicomWebArchive(source, settings)
    try:
        return fetch_studies(store, settings, archive, source, name, run_id=run_id, progress=progress)
    finally:
        archive.close()


class DicomWebArchive:
    """The archive of a configured source; see `medflow.ingest.retrieval.Archive`."""

    def __init__(self, source: DicomWebSource, settings: Settings) -> None:
        self._max_bytes = settings.max_input_bytes
        self._web = DicomWeb(
            source,
            timeout_s=settings.http_timeout_s,
            qido_prefix=source.qido_prefix,
            wado_prefix=source.wado_prefix,
        )

    def close(self) -> None:
        """Close connections."""
        self._web.close()

    def check(self) -> None:
        """See that it can be searched."""
        _patiently(self._web.check, AT_START)

    def studies(self, asked: Asked) -> Iterator[str]:
        """Study Instance UIDs, in the order of the server."""
        if asked.studies:
            yield from asked.studies
            return
        self.check()
        for modality in asked.modalities or (None,):
            yield from self._found(asked, modality)

    def _found(self, asked: Asked, modality: str | None) -> Iterator[str]:
        """What matches; where the server fails over all of it, what it tells day by day, and its failure at the end."""
        try:
            yield from self._matching(asked, modality)
            return
        except ServerUnavailable as error:
            failure = error
        days = _days(asked)
        for day in days:
            self.check()  # it may be away altogether
            try:
                yield from self._matching(replace(asked, since=day, until=day), modality, AT_START)
            except ServerUnavailable as error:
                failure = error
        raise failure

    def _matching(self, asked: Asked, modality: str | None, patience: Patience | None = None) -> list[str]:
        found = _patiently(lambda: list(self._web.studies(filters(asked, modality))), patience)
        return [text_of(study, STUDY_UID) for study in found]

    def series(self, study_uid: str, modalities: Sequence[str]) -> list[Listed]:
        """The series with their instances, from two queries; `UNNAMED` stands for what is listed without UIDs."""
        listed = _patiently(lambda: self._web.series(study_uid))
        wanted = {text_of(series, SERIES_UID) for series in listed if _is_wanted(text_of(series, MODALITY), modalities)}
        if not wanted:
            return []
        found = _patiently(lambda: self._web.instances(study_uid))
        named = _by_series(found, wanted)
        for uid in wanted - named.keys():  # the server does not tell of an instance which series it is of
            named[uid] = (list(self.instances(study_uid, uid)) if uid else []) or [UNNAMED]
        return [Listed(series_uid=uid, instances=tuple(named[uid])) for uid in sorted(wanted)]

    def instances(self, study_uid: str, series_uid: str) -> Sequence[str]:
        """The SOP Instance UIDs of one series."""
        found = _patiently(lambda: self._web.instances(study_uid, series_uid))
        return [text_of(instance, INSTANCE_UID) or UNNAMED for instance in found]

    def retrieve(self, study_uid: str, lacking: Sequence[Lacking], landing: Landing) -> None:
        """Fetch what is lacking, series by series."""
        refused: list[InputRejected] = []
        for series in lacking:
            named = tuple(uid for uid in series.instances if uid != UNNAMED)
            if named != series.instances:
                reason = "the archive lists a series of this study and not what is in it"
                refused.append(InputRejected(RejectCode.NOT_RETRIEVED, reason))
            self._retrieve_series(study_uid, replace(series, instances=named), landing, refused)
        if refused:
            raise refused[0]

    def _retrieve_series(self, study_uid: str, series: Lacking, landing: Landing, refused: list[InputRejected]) -> None:
        if series.whole and len(series.instances) > 1:

            def whole() -> None:
                if not landing.arrived(series.instances):  # else it broke off: what is left is asked for below
                    self._get(landing, study_uid, series.series_uid)

            try:
                _patiently(whole, stopping=lambda: landing.stopped)
            except InputRejected as error:  # some servers give instances and no series
                log.info("a series is not given as one (%s)", error.message)
        arrived = landing.arrived(series.instances)
        in_a_row = 0
        for uid in series.instances:
            if uid in arrived or in_a_row >= GIVE_UP_AFTER or landing.stopped:
                continue
            try:
                _patiently(
                    lambda uid=uid: self._get(landing, study_uid, series.series_uid, uid),
                    stopping=lambda: landing.stopped,
                )
                in_a_row = 0
            except InputRejected as error:
                refused.append(error)
                in_a_row += 1

    def _get(self, landing: Landing, study_uid: str, series_uid: str, instance_uid: str | None = None) -> None:
        with self._web.retrieving(study_uid, series_uid, instance_uid) as parts:
            for part in parts:
                if media_type_of(part.content_type) in (DICOM, ""):
                    _keep(part, landing, self._max_bytes)


def filters(asked: Asked, modality: str | None) -> dict[str, str]:
    """What is asked for as matching keys of QIDO-RS (PS3.18 8.3.4.1): keywords and values."""
    found: dict[str, str] = {}
    if asked.since is not None or asked.until is not None:
        dates = [f"{day:%Y%m%d}" if day is not None else "" for day in (asked.since, asked.until)]
        found["StudyDate"] = "-".join(dates)
    if modality is not None:
        found["ModalitiesInStudy"] = modality
    if asked.accession_number is not None:
        found["AccessionNumber"] = asked.accession_number
    if asked.patient_id is not None:
        found["PatientID"] = asked.patient_id
    return found


def _days(asked: Asked) -> list[date]:
    """The days of a window that has a beginning and is no longer than a year."""
    if asked.since is None:
        return []
    last = asked.until or datetime.now(UTC).date() + timedelta(days=1)
    count = (last - asked.since).days + 1
    return [asked.since + timedelta(days=number) for number in range(count)] if count <= A_YEAR else []


def _is_wanted(modality: str, modalities: Sequence[str]) -> bool:
    return not modalities or not modality or modality in modalities  # of one that the server does not tell, all


def _by_series(found: Sequence[Result], wanted: Collection[str]) -> dict[str, list[str]]:
    """SOP Instance UIDs by series, as far as the server tells both."""
    named: dict[str, list[str]] = {}
    for instance in found:
        series, uid = text_of(instance, SERIES_UID), text_of(instance, INSTANCE_UID)
        if series and series in wanted:
            named.setdefault(series, []).append(uid or UNNAMED)
    return named


def _keep(part: Part, landing: Landing, max_bytes: int) -> None:
    with landing.writing() as file:
        for block in part.blocks:
            file.write(block)
            if file.size > max_bytes:  # which ingest would refuse, and may have no end
                raise InputRejected(RejectCode.NOT_RETRIEVED, "it is larger than MEDFLOW_MAX_INPUT_BYTES")


def _patiently(
    ask: Callable[[], Answer], patience: Patience | None = None, *, stopping: Callable[[], bool] = lambda: False
) -> Answer:
    """What ``ask`` gives, tried again while the server is busy or away."""
    for attempt in tries(patience or PATIENCE, stopping=stopping):
        with attempt:
            return ask()
    raise AssertionError  # the last attempt raises
