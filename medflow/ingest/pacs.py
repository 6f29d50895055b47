"""A PACS as an archive that images come from: C-FIND says what there is, C-GET or C-MOVE brings what is lacking.

What C-GET brings goes straight into the landing. What C-MOVE sends is received as everything is (`moved`), and the
objects that were asked for are taken from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medflow.config import Settings
from medflow.connections.endpoints import PacsSource
from medflow.dicom.association import closed, echo
from medflow.dicom.query import Query, batches, date_windows
from medflow.dicom.retrieve import APART, PLAIN, SYNTAXES, Getting, Moving, Part
from medflow.errors import InputRejected, RejectCode, ServerUnavailable, SourceUnavailable
from medflow.ingest.landing import Landing
from medflow.ingest.moved import ECHO_S, Arrivals
from medflow.ingest.received import remove_received
from medflow.ingest.retrieval import Asked, Lacking, Listed, fetch_studies
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store

NOT_GIVEN_IN_A_ROW = 5  # instances of a series, asked for one by one, until the others are not


def fetch_pacs(
    store: Store,
    settings: Settings,
    source: PacsSource,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take into the store what a PACS has and the store lacks; errors as for `fetch_studies`."""
    archive = Pacs(source, settings)
    try:
        tally = fetch_studies(store, settings, archive, source, name, run_id=run_id, progress=progress)
    finally:
        archive.close()
    if archive.listened_in is not None:
        remove_received(store, [archive.listened_in])
    return tally


class Pacs:
    """One archive for one fetch; see `medflow.ingest.retrieval.Archive`."""

    def __init__(self, source: PacsSource, settings: Settings) -> None:
        self._source, self._settings = source, settings
        self._calling_aet = source.calling_aet or settings.receive_aet
        self._query = Query(source, self._calling_aet)
        self._classes: dict[str, str | None] = {}  # SOP classes by SOP Instance UID, of the study asked for last
        self._syntaxes: Sequence[str] = SYNTAXES  # proposed at first
        self._declined: set[str] = set()
        self._arrivals: Arrivals | None = None

    def check(self) -> None:
        """C-ECHO."""
        with _away():
            echo(self._source, self._calling_aet, min(self._source.timeout_s, ECHO_S))

    def studies(self, asked: Asked) -> Iterator[str]:
        """Study Instance UIDs, by day and by modality; "" stands for one that is listed without."""
        yield from asked.studies
        for matching in _questions(asked, datetime.now(self._settings.zone or UTC)):
            with _away():
                found, unnamed = self._query.studies(matching)
            yield from found
            if unnamed:
                yield ""

    def series(self, study_uid: str, modalities: Sequence[str]) -> Sequence[Listed]:
        """The series; their instances are asked for one series at a time."""
        if not study_uid:
            raise InputRejected(RejectCode.NOT_RETRIEVED, "the archive lists a study without a StudyInstanceUID")
        self._classes = {}
        with _away():
            found = self._query.series(study_uid)
        wanted = [one for one in found if not modalities or one.modality is None or one.modality in modalities]
        return [Listed(series_uid=one.series_uid) for one in wanted]

    def instances(self, study_uid: str, series_uid: str) -> Sequence[str]:
        """The SOP Instance UIDs of a series."""
        with _away():
            found = self._query.instances(study_uid, series_uid)
        if not found:
            raise InputRejected(RejectCode.NOT_RETRIEVED, "the archive lists a series of this study and no instances")
        self._classes.update((one.sop_instance_uid, one.sop_class_uid) for one in found)
        return [one.sop_instance_uid for one in found]

    def retrieve(self, study_uid: str, lacking: Sequence[Lacking], landing: Landing) -> None:
        """Whole series as such, other instances by name; what did not come of a series is asked for one by one."""
        said = "the archive lists it and does not give it"
        with _away():
            with self._way(lacking, landing) as (way, came):
                for one in lacking:
                    fetching = _Fetching(study_uid=study_uid, lacking=one, way=way, came=came, landing=landing)
                    fetching.run()
                    said = fetching.said or said
            if (missing := _missing(lacking, landing)) and self._source.retrieve == "get":
                missing = self._retrieve_apart(study_uid, missing, landing)
        if missing and self._arrivals is not None and not self._arrivals.some:
            raise SourceUnavailable(
                f"{self._source.public} has moved nothing to {self._arrivals.move_to} yet ({said}): have this AE title "
                "registered in the archive with the address of this host and the port that medflow receives at "
                "(move_to, move_port), and that port be reachable from there"
            )
        if missing:
            raise InputRejected(RejectCode.NOT_RETRIEVED, said)

    def _retrieve_apart(self, study_uid: str, missing: list[Lacking], landing: Landing) -> list[Lacking]:
        """What did not come, for archives that decide on a syntax before they look at the object."""
        for syntaxes in (SYNTAXES, *APART):
            if not missing or syntaxes == self._syntaxes or self._declined.issuperset(syntaxes):
                continue
            with self._way(missing, landing, syntaxes=syntaxes) as (way, came):
                for one in missing:
                    fetching = _Fetching(study_uid=study_uid, lacking=one, way=way, came=came, landing=landing)
                    fetching.by_name()
            left = _missing(missing, landing)
            if left != missing and syntaxes == PLAIN:
                self._syntaxes = syntaxes  # that it keeps its other studies in as well, most likely
            missing = left
        return missing

    def close(self) -> None:
        """End the association, and stop listening."""
        self._query.close()
        if self._arrivals is not None:
            self._arrivals.stop()

    @property
    def listened_in(self) -> Path | None:
        """The folder in which objects were received by this very process."""
        return self._arrivals.root if self._arrivals is not None and self._arrivals.ours else None

    @contextmanager
    def _way(
        self, lacking: Sequence[Lacking], landing: Landing, *, syntaxes: Sequence[str] = ()
    ) -> Iterator[tuple[Getting | Moving, Arrivals | None]]:
        if self._source.retrieve == "move":
            if self._arrivals is None:
                self._arrivals = Arrivals(self._source, self._settings)
            self._arrivals.take_in(landing, lacking)
            way = Moving(self._source, self._calling_aet, self._arrivals.move_to)
        else:
            classes = (self._classes.get(uid) for one in lacking for uid in one.instances)
            way = Getting(
                self._source,
                self._calling_aet,
                [uid for uid in classes if uid],
                _keeping(landing),
                max_bytes=self._settings.max_input_bytes,
                syntaxes=syntaxes or self._syntaxes,
            )
            self._declined |= way.declined
        try:
            yield way, self._arrivals
        finally:
            closed(way.association)
            if self._arrivals is not None:
                self._arrivals.take_in(landing, lacking)


@dataclass(kw_only=True, slots=True)
class _Fetching:
    """What is lacking of one series, brought part by part; ``said`` is why the archive would not."""

    study_uid: str
    lacking: Lacking
    way: Getting | Moving
    came: Arrivals | None
    landing: Landing
    said: str = ""

    def run(self) -> None:
        """Bring it: as a whole or by name, and what did not come one by one."""
        if self.lacking.whole:
            self._bring(())
        else:
            self.by_name()
        in_a_row = 0
        for uid in self._missing() if len(self.lacking.instances) > 1 else ():
            in_a_row = 0 if self._bring((uid,)) else in_a_row + 1
            if in_a_row >= NOT_GIVEN_IN_A_ROW:
                break

    def by_name(self) -> None:
        """Bring its instances, many with one question."""
        for some in batches(self._missing()):
            self._bring(tuple(some))

    def _bring(self, instances: tuple[str, ...]) -> bool:
        part = Part(study_uid=self.study_uid, series_uid=self.lacking.series_uid, instances=instances)
        wanted = instances or self.lacking.instances
        try:
            sent = self.way.retrieve(part)
        except InputRejected as error:
            self.said = error.message
            return False
        if self.came is not None:
            self.came.wait_for(self.landing, wanted, sent.claimed)
        return bool(self.landing.arrived(wanted))

    def _missing(self) -> tuple[str, ...]:
        return next((one.instances for one in _missing([self.lacking], self.landing)), ())


def _missing(lacking: Sequence[Lacking], landing: Landing) -> list[Lacking]:
    """What did not come, by name."""
    left: list[Lacking] = []
    for one in lacking:
        there = landing.arrived(one.instances)
        if missing := tuple(uid for uid in one.instances if uid not in there):
            left.append(Lacking(series_uid=one.series_uid, instances=missing, whole=False))
    return left


def _keeping(landing: Landing):  # noqa: ANN202 - a function
    def keep(parts: Sequence[bytes | memoryview]) -> None:
        with landing.writing() as file:
            for part in parts:
                file.write(part)

    return keep


def _questions(asked: Asked, now: datetime) -> Iterator[dict[str, str]]:
    """The matching keys of every question to ask (PS3.4 C.2.2.2): one value each, as many archives take no lists."""
    keys = {"AccessionNumber": asked.accession_number, "PatientID": asked.patient_id}
    named = {keyword: value for keyword, value in keys.items() if value}
    if asked.studies:
        return  # they stand for themselves
    windows = date_windows(asked.since, asked.until, now.date())
    if named and len(windows) > 1:
        windows = [f"{windows[0].partition('-')[0]}-{windows[-1].partition('-')[2]}"]
    for window in windows:
        for modality in asked.modalities or ("",):
            question = {"StudyDate": window, "ModalitiesInStudy": modality}
            yield named | {keyword: value for keyword, value in question.items() if value}


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except SourceUnavailable:
        raise
    except ServerUnavailable as error:
        raise SourceUnavailable(error.message, retry_after_s=error.retry_after_s) from None
