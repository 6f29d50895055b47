"""Records by FHIR Bulk Data: an export is asked for, waited for, fetched and taken in, each once however often we die.

Files are fetched a few at a time while those before them are taken in; one that the store has is noted as done and
removed. The marks move to the export's transactionTime when the store has all of them, and not before: a file that is
gone, or that has fewer resources than the server told, leaves them where they are, and the next run asks again.
"""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import time
import zlib
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Event
from typing import IO

import orjson

from medflow.config import Settings
from medflow.connections.endpoints import FhirSource
from medflow.connections.patience import Patience
from medflow.errors import ConfigurationError, ServerUnavailable, SourceUnavailable
from medflow.fhir.bulk import BulkServer, Lost, outcome_issues
from medflow.fhir.bulk_files import FileFetcher
from medflow.fhir.bulk_manifest import ExportFile, Manifest, Section, origin
from medflow.ingest.export_job import ExportJob, ExportJobs, wanted
from medflow.ingest.fhir import FhirIngest
from medflow.ingest.fhir_inputs import GZIP, LINE_BYTES
from medflow.ingest.offers import Offer
from medflow.ingest.record_source import record_source
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store
from medflow.store.ledger import now_us

FOLDER, LOCK = "fetching", ".lock"
DOWNLOADS = 3  # at a time
AHEAD = 4  # files asked for or on disk beside the one that is taken in
ABANDONED_US = 7 * 86400 * 10**6  # an export this old is asked for anew
FRESH_US = 3600 * 10**6  # one that an earlier run asked for is enough for this run too where it is no older
log = logging.getLogger(__name__)


def fetch_export(
    store: Store,
    settings: Settings,
    source: FhirSource,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Tally:
    """Take in what changed at a server since its last export, or everything at first; arguments as for `fetch`.

    Raises
    ------
    ServerUnavailable
        It does not answer, its export is not done in ``export_hours``, or its files are not whole. What came is stored,
        and an export that runs is gone on with next time.
    ConfigurationError
        It has no such export, wants other credentials, or another process is at it.
    """
    system = record_source(store, settings, source, name)
    until = time.monotonic() + source.export_hours * 3600
    with ExitStack() as open_:
        folder = open_.enter_context(_alone(settings.home, name, source.level))
        server = open_.enter_context(BulkServer(source, timeout_s=settings.http_timeout_s, patience=patience))
        fetcher = FileFetcher(server, source, folder, until=until, max_bytes=settings.max_input_bytes)
        taking = FhirIngest(store=store, settings=settings, source=system, run_id=run_id)
        export = _Export(
            source=source,
            jobs=ExportJobs(store, source, name),
            server=server,
            fetcher=fetcher,
            ingest=open_.enter_context(taking),
            until=until,
            progress=progress,
        )
        return export.run()


class _Export:
    """One run: the export that an earlier one left, then whatever else is due."""

    def __init__(
        self,
        *,
        source: FhirSource,
        jobs: ExportJobs,
        server: BulkServer,
        fetcher: FileFetcher,
        ingest: FhirIngest,
        until: float,
        progress: Progress | None,
    ) -> None:
        self._source, self._jobs, self._server, self._fetcher = source, jobs, server, fetcher
        self._ingest, self._until, self._progress = ingest, until, progress
        self._tally = Tally()

    def run(self) -> Tally:
        covered: tuple[str, ...] = ()
        job = self._jobs.current()
        if job is not None and now_us() - job.asked_us > ABANDONED_US:
            log.warning("the export of %s that was asked for a week ago never ended: another is asked for", self._where)
            self._give_up(job)
        elif job is not None and not self._jobs.reaches(job):
            self._give_up(job)  # since it was asked for, more was
        elif job is not None and self._completed(job, resumed=True) and now_us() - job.asked_us < FRESH_US:
            covered = job.types
        for since_us, types in self._jobs.due(covered):
            _empty(self._fetcher.folder)
            status = self._server.kick_off(self._source.level, wanted(types), since_us)
            job = ExportJob(status=status, types=types, since_us=since_us, asked_us=now_us())
            self._jobs.keep(job)
            if not self._completed(job):
                raise SourceUnavailable(f"{self._where} forgot an export that it had just begun")
        self._tally.notes.update(self._ingest.absent())
        self._tally.check()
        return self._tally

    @property
    def _where(self) -> str:
        return self._source.public

    def _completed(self, job: ExportJob, *, resumed: bool = False) -> bool:
        """Have all of an export in the store; False if the server does not know it any more."""
        manifest = self._waited(job, resumed=resumed)
        if manifest is None:
            return False
        rounds = 0
        while True:
            before, rounds = job.done, rounds + 1
            job, faults = self._round(job, manifest)
            if not faults:
                break
            again = self._waited(job) if rounds == 1 or job.done != before else None
            if again is None:
                self._give_up(job)
                raise _incomplete(self._where, faults, len(manifest.files))
            manifest = again  # with addresses that may be new
        self._jobs.finish(job, manifest.transaction_us)
        self._server.end(job.status)
        _empty(self._fetcher.folder)
        return True

    def _waited(self, job: ExportJob, *, resumed: bool = False) -> Manifest | None:
        """The manifest, or None where the export is no longer known."""
        try:
            found = self._server.wait(job.status, until=self._until)
        except ServerUnavailable as error:
            if resumed and error.fields.get("http") == 500:  # it broke before, too: waiting longer will not mend it
                self._give_up(job)
            raise
        except ConfigurationError:
            if origin(job.status) != origin(self._source.url):
                self._jobs.forget()  # once the server is mended, its exports are elsewhere
            raise
        if isinstance(found, Manifest):
            return found
        return self._lost(job, found)

    def _lost(self, job: ExportJob, found: Lost) -> None:
        if found.expired:
            log.warning("%s does not know the export any more that it began (%s)", self._where, found.reason)
            self._jobs.forget()
            return
        self._give_up(job)
        raise SourceUnavailable(f"the export failed at {self._where} ({found.reason}): the next run asks for another")

    def _give_up(self, job: ExportJob) -> None:
        self._server.end(job.status)
        self._jobs.forget()

    # --- files -----------------------------------------------------------------------------------------------

    def _round(self, job: ExportJob, manifest: Manifest) -> tuple[ExportJob, Counter[str]]:
        """Take in every file that is not done yet; what was wrong with those that are not done now either."""
        faults: Counter[str] = Counter()
        files = {file.key: file for file in manifest.files if file.key not in job.done}
        ordered = sorted(files.values(), key=lambda file: list(Section).index(file.section))
        with closing(self._fetched(ordered, manifest.requires_token)) as fetched:
            for file, gone in fetched:
                fault = gone or self._taken(file)
                if fault is None:
                    job = replace(job, done=job.done | {file.key})
                    self._jobs.keep(job)
                else:
                    faults[fault] += 1
                self._fetcher.path(file).unlink(missing_ok=True)
        return job, faults

    def _fetched(self, files: Sequence[ExportFile], requires_token: bool) -> Generator[tuple[ExportFile, str | None]]:
        """Each file, in order, and why it did not come if so; others are on their way meanwhile."""
        stop = Event()
        left = iter(files)
        waiting: deque[tuple[ExportFile, Future[str | None]]] = deque()
        with ThreadPoolExecutor(DOWNLOADS, "download") as pool:
            try:
                while True:
                    for file in islice(left, AHEAD + 1 - len(waiting)):
                        job = pool.submit(
                            self._fetcher.fetch, file, requires_token=requires_token, stopping=stop.is_set
                        )
                        waiting.append((file, job))
                    if not waiting:
                        return
                    file, job = waiting.popleft()
                    yield file, job.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)  # the folder is ours alone until the last of them has ended

    def _taken(self, file: ExportFile) -> str | None:
        """Take one file in; what is wrong with it, if anything is."""
        path = self._fetcher.path(file)
        if file.section is Section.ERROR:
            self._tell_errors(path)
            return None
        lines, whole = _lines(path)
        if lines is None or not (whole or file.count is None or lines > file.count):
            log.error("a file (%s) of the export of %s is damaged", file.type or file.section, self._where)
            return "damaged"
        taken = Tally()
        if lines:
            origin = f"{self._where}/$export/{file.type or file.section}/{file.key}"
            offer = Offer(origin=origin, path=path, bases=frozenset({self._source.url, *self._source.also}))
            taken = self._ingest.take([offer], progress=self._progress)
            self._tally.add(taken)
        if file.section is Section.DELETED:
            self._tally.notes["deleted"] += taken.stored
            return None if taken.offered >= lines else "damaged"
        return self._short(file, lines, min(lines, taken.offered))

    def _short(self, file: ExportFile, lines: int, came: int) -> str | None:
        told = file.count if file.count is not None else lines  # a reader may have stopped before its end
        if came != told:
            kind = file.type or "unnamed type"
            log.error("a file (%s) of the export of %s has %d resources of %d", kind, self._where, came, told)
            self._tally.notes["export-count-differs"] += 1
        return "short" if came < told else None

    def _tell_errors(self, path: Path) -> None:
        found: Counter[str] = Counter()
        try:
            with _text(path) as stream:
                for line in _held(stream):
                    if line.strip():
                        found.update(f"export-{grade}-{code}" for grade, code in _issues(line))
        except (OSError, EOFError, zlib.error):
            found["export-error-unreadable"] += 1
        wrong = {note: count for note, count in found.items() if note.startswith("export-error-")}
        if wrong:
            told = ", ".join(f"{count} {note.removeprefix('export-error-')}" for note, count in sorted(wrong.items()))
            log.error("%s could not export everything that was asked for: %s", self._where, told)
        self._tally.notes.update(found)


def _issues(line: bytes) -> list[tuple[str, str]]:
    """Each issue's grade (error, or warning for what is less) and code."""
    try:
        issues = outcome_issues(orjson.loads(line))
    except orjson.JSONDecodeError:
        issues = []
    grades = [("warning" if severity in ("warning", "information") else "error", code) for severity, code in issues]
    return grades or [("error", "unreadable")]


def _lines(path: Path) -> tuple[int | None, bool]:
    """How many lines of a file hold something, and whether the last ends as a resource does; None: it is damaged."""
    count, last = 0, b"}"
    try:
        with _text(path) as stream:
            for line in _held(stream):
                if held := line.strip():
                    count, last = count + 1, held
    except (OSError, EOFError, zlib.error):
        return None, False
    return count, last.endswith(b"}")


def _held(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines, those that are too long by their ends: no server decides how much memory one takes."""
    while line := stream.readline(LINE_BYTES):
        if not line.endswith(b"\n"):
            while rest := stream.readline(LINE_BYTES):
                line = rest
                if rest.endswith(b"\n"):
                    break
        yield line


def _text(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(len(GZIP))
    return gzip.open(path) if head == GZIP else path.open("rb")  # type: ignore[return-value]  # reads bytes


def _incomplete(where: str, faults: Counter[str], total: int) -> SourceUnavailable:
    told = ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()))
    return SourceUnavailable(
        f"the export of {where} is not whole (of {total} files: {told}): what came is stored, and the next run asks "
        "for an export since the same moment"
    )


# --- the folder --------------------------------------------------------------------------------------------------


@contextmanager
def _alone(home: Path, name: str, level: str) -> Iterator[Path]:
    """The folder that the files of this source come to, for one process at a time."""
    folder = home / FOLDER / sha256(f"{name} {level}".encode()).hexdigest()[:16]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder}, which files of an export come to, cannot be written ({error.strerror})"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another process fetches the export of {name}: wait for it") from None
        yield folder
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink(missing_ok=True)
