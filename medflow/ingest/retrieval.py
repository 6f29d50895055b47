"""What an archive has and the store lacks: found, fetched and ingested, one study after the other.

The next study is fetched while the one before is ingested. What an archive lists ends stored, unchanged (the store had
it) or rejected: a study that cannot be retrieved is a reject of its own, which is settled when a later fetch brings it,
and the rest goes on. When the archive itself is away, what came is committed before that is said. Nothing is remembered
of a fetch but how far it came: what the store has is not fetched again, and so running it again goes on where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Protocol

from medflow.config import Settings
from medflow.connections.endpoints import Wanted
from medflow.errors import ConfigurationError, InputRejected, RejectCode, ServerUnavailable, SourceUnavailable
from medflow.ingest.landing import Landed, Landing
from medflow.ingest.offers import Offer
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store
from medflow.store.imaging import held_instances
from medflow.store.ledger import Reject, now_us, open_origins, record_rejects, settle_origins
from medflow.store.watermarks import Watermark, read_mark, set_mark

BATCH = 256  # files ingested at once
TOGETHER_S = 0.5  # how long fewer than that are waited for
GIVE_UP_AFTER = 3  # studies in a row that an archive, which answers otherwise, does not give


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which studies are asked for; dates are of the study, both included. ``studies`` stands for itself."""

    since: date | None = None
    until: date | None = None
    modalities: tuple[str, ...] = ()
    accession_number: str | None = field(default=None, repr=False)
    patient_id: str | None = field(default=None, repr=False)
    studies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A series as an archive lists it: its SOP Instance UIDs, or None where those are to be asked for."""

    series_uid: str
    instances: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lacking:
    """What the store lacks of a series. ``whole``: all of it, so that it is best asked for as one."""

    series_uid: str
    instances: tuple[str, ...]
    whole: bool


class Archive(Protocol):
    """A server that images come from. Every method may raise SourceUnavailable and ConfigurationError."""

    def check(self) -> None:
        """See that it is there."""
        ...

    def studies(self, asked: Asked) -> Iterator[str]:
        """Study Instance UIDs of what is asked for, as they are listed."""
        ...

    def series(self, study_uid: str, modalities: Sequence[str]) -> Sequence[Listed]:
        """The series of a study, of these modalities where any are named; none if the archive has no such study.

        Raises
        ------
        InputRejected
            NOT_RETRIEVED: this study cannot be listed.
        """
        ...

    def instances(self, study_uid: str, series_uid: str) -> Sequence[str]:
        """The SOP Instance UIDs of a series that was listed without them; errors as for `series`."""
        ...

    def retrieve(self, study_uid: str, lacking: Sequence[Lacking], landing: Landing) -> None:
        """Put the files of what is lacking into the landing, each as soon as it is there.

        Raises
        ------
        InputRejected
            NOT_RETRIEVED: something of this study cannot be had; the rest was put in.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def asked_for(wanted: Wanted, mark: Watermark, settings: Settings, *, now: datetime | None = None) -> Asked:
    """The studies that a source asks for: ``days`` back from now, or back to the last complete fetch if that is longer.

    Study dates are the archive's local ones: one day more is asked for on account of that.
    """
    since = wanted.since.date() if wanted.since else None
    if since is None and wanted.days is not None and wanted.until is None and not wanted.studies:
        moment = (now or datetime.now(UTC)) - timedelta(days=wanted.days)
        if mark.until_us is not None:
            moment = min(moment, datetime.fromtimestamp(mark.until_us / 1e6, UTC))
        since = moment.astimezone(settings.zone or UTC).date() - timedelta(days=1)
    return Asked(
        since=since,
        until=wanted.until.date() if wanted.until else None,
        modalities=wanted.modalities,
        accession_number=wanted.accession_number,
        patient_id=wanted.patient_id,
        studies=wanted.studies,
    )


def narrowed(wanted: Wanted) -> bool:
    """Whether something particular is asked for: such a fetch says nothing about how far the source was read."""
    return any((wanted.since, wanted.until, wanted.accession_number, wanted.patient_id, wanted.studies))


def mark_of(wanted: Wanted) -> str:
    """The kind of watermark: one for each choice of modalities, as the others were not read."""
    return " ".join(["studies", *sorted(wanted.modalities)])


def lacking_of(listed: Sequence[Listed], store: Store) -> tuple[list[Lacking], int]:
    """What the store lacks of series listed with their instances, and how many instances of them it has."""
    with store.reading() as connection:
        held = held_instances(connection, (uid for series in listed for uid in series.instances or ()))
    lacking: list[Lacking] = []
    for series in listed:
        named = dict.fromkeys(series.instances or ())
        if missing := tuple(uid for uid in named if uid not in held):
            whole = len(missing) == len(named)
            lacking.append(Lacking(series_uid=series.series_uid, instances=missing, whole=whole))
    return lacking, len(held)


def fetch_studies(
    store: Store,
    settings: Settings,
    archive: Archive,
    wanted: Wanted,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take into the store what an archive has and the store lacks of the studies wanted.

    ``offered`` counts the instances that the archive listed, and what it gave beyond them.

    Raises
    ------
    SourceUnavailable
        The archive is away. What came before is committed.
    ConfigurationError
        It wants other credentials, or a folder cannot be written. What came before is committed.
    """
    landing = Landing(settings.home, name, min_free_bytes=settings.receive_min_free_mib << 20)
    landing.prepare()
    try:
        return _Fetch(store, settings, archive, wanted, name).run(landing, run_id, progress or (lambda _count: None))
    except SourceUnavailable:
        raise
    except ServerUnavailable as error:
        raise SourceUnavailable(error.message, retry_after_s=error.retry_after_s) from None
    finally:
        landing.stop()
        landing.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Study:
    """What became of asking for one study; its files were put in before this is told.

    ``silent``: the archive stopped answering over it.
    """

    uid: str
    had: int = 0
    requested: tuple[str, ...] = ()
    error: InputRejected | None = None
    silent: ServerUnavailable | None = None


class _Fetch:
    """One fetch: a thread that asks the archive, and the caller's own that ingests."""

    def __init__(self, store: Store, settings: Settings, archive: Archive, wanted: Wanted, name: str) -> None:
        self._store, self._settings, self._archive, self._name = store, settings, archive, name
        self._wanted = wanted
        self._listed_now: set[str] = set()  # studies, by the archive
        self._told: SimpleQueue[_Study] = SimpleQueue()
        with store.reading() as connection:
            self._mark = read_mark(connection, name, mark_of(wanted))
            open_ones = open_origins(connection, name, RejectCode.NOT_RETRIEVED)
        self._open = {study_of(origin) for origin in open_ones}

    def run(self, landing: Landing, run_id: int | None, progress: Progress) -> Tally:
        """Fetch to the end."""
        began_us, tally = now_us(), Tally()
        self._take(landing.waiting(), landing, tally, run_id, progress)  # what a killed process had fetched
        with ThreadPoolExecutor(1, thread_name_prefix="medflow-fetch") as pool:
            try:
                fetching = pool.submit(self._fetch, landing)
                fetching.add_done_callback(lambda _fetching: landing.end())
                finished = False
                while not finished:
                    finished = fetching.done()  # asked first: then whatever it did is seen below
                    told = self._told_by_now()
                    waiting = landing.waiting(for_more_than=BATCH, timeout_s=0.0 if finished else TOGETHER_S)
                    self._take(waiting, landing, tally, run_id, progress)  # and so all files of those studies
                    self._account(told, landing, tally, run_id, progress)
            except BaseException:
                landing.stop()
                raise
        fetching.result()  # raises what ended it
        if not narrowed(self._wanted):
            with self._store.writing() as connection:
                set_mark(connection, self._name, mark_of(self._wanted), Watermark(until_us=began_us))
        tally.check()
        return tally

    # --- in the thread that asks the archive ---

    def _fetch(self, landing: Landing) -> None:
        held_back: list[_Study] = []  # given by nobody: their own fault only if the archive gives others after them
        answered = False  # to anything that was asked about a study
        for uid in self._uids():
            if landing.stopped:
                return
            study = self._fetch_study(uid, landing)
            if study.silent is not None:
                self._archive.check()  # raises where it is away altogether
                held_back.append(study)
                if len(held_back) >= GIVE_UP_AFTER:
                    raise study.silent
                continue
            for told in (*held_back, study):
                self._told.put(told)
            held_back, answered = [], True
        for told in held_back:
            self._told.put(told)
        if held_back and not answered:  # on record one by one, and as a failure of the archive too
            raise held_back[-1].silent or SourceUnavailable(f"{self._name} gave nothing that it was asked for")

    def _uids(self) -> Iterator[str]:
        asked = asked_for(self._wanted, self._mark, self._settings)
        seen = self._listed_now
        for uid in self._archive.studies(asked):
            if uid not in seen:
                seen.add(uid)
                yield uid
        if not narrowed(self._wanted):
            left = self._open - seen
            if "" in left:  # it stood for one that was listed without a UID, which is mended
                self._told.put(_Study(uid=""))
            yield from sorted(left - {""})  # outside the window by now, and still lacking

    def _fetch_study(self, uid: str, landing: Landing) -> _Study:
        had, requested = 0, ()
        try:
            listed = self._listed(uid)
            lacking, had = lacking_of(listed, self._store)
            if not listed:
                self._see_that_nothing_is_there(uid)
            requested = tuple(item for series in lacking for item in series.instances)
            if lacking:
                self._archive.retrieve(uid, lacking, landing)
            return _Study(uid=uid, had=had, requested=requested)
        except InputRejected as error:
            return _Study(uid=uid, had=had, requested=requested, error=error)
        except ServerUnavailable as error:
            refused = InputRejected(RejectCode.NOT_RETRIEVED, error.message)
            return _Study(uid=uid, had=had, requested=requested, error=refused, silent=error)
        except OSError as error:
            raise ConfigurationError(
                f"what is fetched cannot be written to {landing.root} ({error.strerror}): free space or mend its "
                "permissions, then run the same command again; it goes on where it was"
            ) from None

    def _see_that_nothing_is_there(self, uid: str) -> None:
        """Raise InputRejected for a study that is asked for or listed, and empty; other series it may well have."""
        if uid in self._wanted.studies:
            raise InputRejected(RejectCode.NOT_RETRIEVED, "the archive has no such study")
        if uid in self._listed_now and not (self._wanted.modalities and self._archive.series(uid, ())):
            raise InputRejected(RejectCode.NOT_RETRIEVED, "the archive lists the study and no series of it")

    def _listed(self, uid: str) -> list[Listed]:
        """The series with their instances. A number alone would not tell of one that was replaced by another."""
        return [
            series if series.instances is not None else replace(series, instances=self._instances(uid, series))
            for series in self._archive.series(uid, self._wanted.modalities)
        ]

    def _instances(self, uid: str, series: Listed) -> tuple[str, ...]:
        return tuple(self._archive.instances(uid, series.series_uid))

    # --- in the caller's thread ---

    def _told_by_now(self) -> list[_Study]:
        told: list[_Study] = []
        with suppress(Empty):
            while True:
                told.append(self._told.get_nowait())
        return told

    def _take(self, count: int, landing: Landing, tally: Tally, run_id: int | None, progress: Progress) -> None:
        while count > 0:
            files = landing.take(min(BATCH, count))
            self._ingest(files, tally, run_id, progress)
            landing.done(files)
            count -= len(files)

    def _ingest(self, files: Sequence[Landed], tally: Tally, run_id: int | None, progress: Progress) -> None:
        from medflow.ingest.dicom import ingest_dicom  # with pydicom

        offered = [
            Offer(origin=f"{self._name}/instances/{file.uid or file.path.stem}", path=file.path) for file in files
        ]
        tally.add(ingest_dicom(self._store, self._settings, offered, run_id=run_id, progress=progress))

    def _account(
        self, told: Sequence[_Study], landing: Landing, tally: Tally, run_id: int | None, progress: Progress
    ) -> None:
        """Count the studies told of, whose files are ingested, and put on record what was not had of them."""
        rejects: list[Reject] = []
        settled: list[str] = []
        for study in told:
            lacking = set(study.requested) - landing.arrived(study.requested)
            taken = len(self._held(lacking))  # another process received and ingested these meanwhile
            missing = len(lacking) - taken
            if study.error is not None and not study.requested:
                missing = 1  # it could not even be listed
            landing.forget(study.requested)
            had = study.had + taken
            counted = Tally(offered=had + missing, unchanged=had, rejected=missing)
            if missing:
                counted.reasons[str(RejectCode.NOT_RETRIEVED)] = missing
                rejects.append(self._reject(study, missing))
            elif study.uid in self._open:
                settled.append(origin_of(self._name, study.uid))
            tally.add(counted)
            progress(counted.offered)
        if rejects or settled:
            with self._store.writing() as connection:
                record_rejects(connection, run_id, rejects)
                settle_origins(connection, self._name, RejectCode.NOT_RETRIEVED, settled)

    def _held(self, uids: Collection[str]) -> set[str]:
        if not uids:
            return set()
        with self._store.reading() as connection:
            return held_instances(connection, uids)

    def _reject(self, study: _Study, missing: int) -> Reject:
        reason = study.error.message if study.error is not None else "the archive listed more than it gave"
        return Reject(
            kind="dicom",
            source=self._name,
            origin=origin_of(self._name, study.uid),
            code=str(RejectCode.NOT_RETRIEVED),
            reason=f"{missing} instances were not had: {reason}" if study.requested else reason,
        )


def origin_of(name: str, study_uid: str) -> str:
    """Where a study that was not retrieved would have come from."""
    return f"{name}/studies/{study_uid}"


def study_of(origin: str) -> str:
    """The Study Instance UID of such an origin."""
    return origin.rpartition("/")[2]
