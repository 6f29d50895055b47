"""Records from a FHIR server by REST: what changed since last time, type by type, each page stored as it comes.

A page is checked and written while the next one is asked for. A type's watermark moves when what came before it is
committed, and never beyond the server's time when its window was begun: what was written before that, and shows up to
``overlap_s`` late, is in the next window, which begins that much before the mark. No clock need be right for that. The
mark is made of the times in ``meta.lastUpdated``, less the time that reading took, by which one of them may lie after
the beginning; the server's Date bounds it where one of them lies in the future.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from medflow.config import Settings
from medflow.connections.endpoints import FhirSource
from medflow.connections.patience import Patience
from medflow.errors import ConfigurationError, MedflowError, SourceUnavailable
from medflow.fhir.read import Context, resolve
from medflow.fhir.search import Capabilities, Page, RecordServer, SearchRefused, ahead, is_match
from medflow.fhir.window import Step, Window, instant_text
from medflow.ingest.fhir import FhirIngest
from medflow.ingest.fhir_inputs import Input
from medflow.ingest.fhir_pages import bases_of, changed_us, gone, offered_on, self_base
from medflow.ingest.record_source import record_source
from medflow.ingest.tally import Progress, Tally
from medflow.store import Store, watermarks
from medflow.store.watermarks import Watermark

log = logging.getLogger(__name__)
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
TELLING = ("Patient", "Encounter")  # types whose changes tell which patients changed, unless others are configured
GONE = (404, 410)
NEVER = 10  # records refused, and none given, after which no more patients are asked for
CUT_OFF = "full-page-without-links"


def fetch_records(
    store: Store,
    settings: Settings,
    source: FhirSource,
    name: str,
    *,
    run_id: int | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Tally:
    """Take in what changed on a FHIR server since it was last read (modes "search" and "everything").

    ``name`` is what the watermarks are kept under. A type that the server refuses is in ``Tally.broken``, and the
    others are read.

    Raises
    ------
    SourceUnavailable
        It does not answer (any more). What came before is stored, and the next run goes on from there.
    ConfigurationError
        It wants other credentials, is no FHIR server, refuses every type, or its records would be mixed with another's.
    """
    system = record_source(store, settings, source, name)
    with RecordServer(source, timeout_s=settings.http_timeout_s, also=source.also, patience=patience) as server:
        capabilities = server.capabilities()
        with FhirIngest(store=store, settings=settings, source=system, run_id=run_id) as ingest:
            fetching = _Fetching(
                store=store,
                source=source,
                name=name,
                server=server,
                capabilities=capabilities,
                ingest=ingest,
                progress=progress or (lambda _count: None),
                context=Context(
                    source=system,
                    zone=settings.zone,
                    bases=bases_of((source.url, *source.also, capabilities.url)),
                ),
            )
            fetching.run()
            fetching.tally.notes.update(ingest.absent())
    fetching.tally.check()
    return fetching.tally


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Inputs that are written together, and until when everything is stored once they are (None: unknown).

    ``unsure``: what was said before of this window is not so.
    """

    inputs: list[Input]
    read_us: int | None = None
    unsure: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Beginning:
    """When a window was begun: what the server said that its time was, and where our stopwatch stood."""

    server_us: int | None
    ours_s: float = field(default_factory=time.monotonic)

    def before(self, read_us: int) -> int:
        """A moment that is at or before the beginning, by the server's time, given the time of something read since."""
        sure_us = read_us - int((time.monotonic() - self.ours_s) * SECOND_US)
        return sure_us if self.server_us is None else min(sure_us, self.server_us)


class _Fetching:
    """One run over one server."""

    def __init__(
        self,
        *,
        store: Store,
        source: FhirSource,
        name: str,
        server: RecordServer,
        capabilities: Capabilities,
        ingest: FhirIngest,
        progress: Progress,
        context: Context,
    ) -> None:
        self._store, self._source, self._name, self._server = store, source, name, server
        self._capabilities, self._ingest, self._progress, self._context = capabilities, ingest, progress, context
        self._refusals = 0  # of records of patients that are there, before any was answered; then -1
        self.tally = Tally()

    def run(self) -> None:
        """Read every type; one that fails does not keep the next from being tried, two in a row do."""
        failure: SourceUnavailable | None = None
        failed_before = False
        kinds = self._kinds()
        for kind in kinds:
            try:
                self._read(kind)
                failed_before = False
            except SearchRefused as error:
                self.tally.broken[kind] = f"the server refuses to be searched for it ({error.message})"
                failed_before = False
            except SourceUnavailable as error:
                if failed_before:
                    raise
                failure, failed_before = error, True
        if failure is not None:
            raise failure
        if kinds and all(kind in self.tally.broken for kind in kinds) and not self.tally.offered:
            why = next(iter(self.tally.broken.values()))
            raise ConfigurationError(f"nothing can be read from {self._name}: {why}; check its auth and its scopes")

    def _kinds(self) -> list[str]:
        """The types to read: those configured that the server has."""
        chosen = "types" in self._source.model_fields_set
        wanted = self._source.types if chosen or self._source.mode != "everything" else TELLING
        kinds = []
        for kind in dict.fromkeys(wanted):
            if self._capabilities.offers(kind, "search-type") is not False:
                kinds.append(kind)
            elif chosen:
                self.tally.broken[kind] = "the server does not offer to search for it (its CapabilityStatement)"
            else:
                self.tally.notes["type-not-offered"] += 1
        if not kinds:
            raise ConfigurationError(f"{self._name} offers to search for none of the types asked: check its `types`")
        return kinds

    # --- one type --------------------------------------------------------------------------------------------------

    def _read(self, kind: str) -> None:
        everything = self._source.mode == "everything"
        key = f"{kind}/$everything" if everything else kind
        begun = _Beginning(server_us=self._server.now_us)
        mark = self._mark(key)
        window = Window(
            self._server,
            kind,
            since_us=self._since_us(mark),
            count=self._source.count,
            extra=self._extra(kind),
        )
        begins = self._tells_deletions(kind) and self._mark(f"{kind}/_history").until_us is None
        if begins:
            self._begin_history(kind, mark, begun)
        parts = self._with_patients(window.steps(), kind) if everything else map(self._part_of(kind), window.steps())
        try:
            self._take(parts, key, mark, begun)
        finally:
            self._tell(kind, window.notes)
        if begins:
            self._begin_history(kind, self._mark(key), begun)
        elif self._tells_deletions(kind):
            self._read_deletions(kind, begun)
        elif self._source.deletions:
            self.tally.notes["deletions-not-told"] += 1

    def _since_us(self, mark: Watermark) -> int | None:
        if mark.until_us is not None:
            return mark.until_us - int(self._source.overlap_s * SECOND_US)
        since = self._source.since
        return None if since is None else int(since.timestamp()) * SECOND_US

    def _extra(self, kind: str) -> list[tuple[str, str]]:
        """The includes that concern this type: `Observation:subject` is its own, `Provenance:target` is of any."""
        found = [("_include", item) for item in self._source.include if item.partition(":")[0] in (kind, "*")]
        for item in self._source.revinclude:
            target = (*item.split(":"), "", "")[2]
            if target in ("", kind):
                found.append(("_revinclude", item))
        return found

    def _tell(self, kind: str, notes: Counter[str]) -> None:
        for note, count in notes.items():
            self.tally.notes[note] += count
            log.warning(
                "a server does not answer as it was asked: %s", note, extra={"source": self._name, "type": kind}
            )
            if note == CUT_OFF:
                self.tally.broken[kind] = "the server cuts its answers off without a next link: choose a larger `count`"

    def _take(self, parts: Iterator[_Part], key: str, mark: Watermark, begun: _Beginning) -> None:
        """Write the parts as they come, and move the mark behind each; what came before a failure is written."""
        waiting: deque[_Part] = deque()
        failures: list[Exception] = []

        def chunks() -> Iterator[list[Input]]:
            coming = ahead(parts, self._server.stop)
            try:
                for part in coming:
                    waiting.append(part)
                    yield part.inputs
            except MedflowError as error:
                failures.append(error)
            finally:
                coming.close()

        moved = False
        for counted in self._ingest.written(chunks()):
            counted.check()
            self.tally.add(counted)
            self._progress(counted.offered)
            part = waiting.popleft()
            if part.read_us is not None:
                self._move(key, mark, part.read_us, begun)
                moved = True
            elif moved and part.unsure:
                self._set(key, mark.until_us)
                moved = False
        if failures:
            raise failures[0]

    # --- marks -----------------------------------------------------------------------------------------------------

    def _mark(self, key: str) -> Watermark:
        """The mark of this type, if it was made at this server."""
        with self._store.reading() as connection:
            mark = watermarks.read_mark(connection, self._name, key)
        return mark if mark.state.get("url") in (self._source.url, *self._source.also) else Watermark()

    def _move(self, key: str, mark: Watermark, read_us: int, begun: _Beginning) -> None:
        until_us = begun.before(read_us)
        self._set(key, until_us if mark.until_us is None else max(mark.until_us, until_us))

    def _set(self, key: str, until_us: int | None) -> None:
        with self._store.writing() as connection:
            mark = Watermark(until_us=until_us, state={"url": self._source.url})
            watermarks.set_mark(connection, self._name, key, mark)

    # --- pages -----------------------------------------------------------------------------------------------------

    def _part_of(self, path: str) -> Callable[[Step], _Part]:
        def part(step: Step) -> _Part:
            inputs: list[Input] = []
            if step.page is not None:
                inputs = list(offered_on(step.page, self._at(step.page, path), self._name, again=step.again))
            return _Part(inputs=inputs, read_us=step.read_us, unsure=step.unsure)

        return part

    def _at(self, page: Page, path: str) -> Context:
        """The context of a page; its self link may name the server as it is called behind a proxy."""
        base = self_base(page, path)
        if base is not None and base not in self._context.bases:
            self._context = replace(self._context, bases=self._context.bases | {base})
        return self._context

    def _with_patients(self, steps: Iterator[Step], kind: str) -> Iterator[_Part]:
        """Pages that tell who changed, and after each one everything about those patients."""
        met: set[str] = set()
        held = False
        for step in steps:
            if step.page is not None:
                context = self._at(step.page, kind)
                yield _Part(inputs=list(offered_on(step.page, context, self._name, again=step.again)))
                for patient in _patients(step.page, context):
                    if patient not in met:
                        met.add(patient)
                        try:
                            yield from self._everything(patient)
                            self._refusals = -1
                        except SearchRefused as error:
                            held |= not self._refused(patient, error)
            yield _Part(inputs=[], read_us=None if held else step.read_us, unsure=step.unsure)

    def _everything(self, patient: str) -> Iterator[_Part]:
        path = f"Patient/{quote(patient, safe='')}/$everything"
        for page in self._server.pages(f"{self._server.base_url}/{path}", [("_count", str(self._source.count))]):
            yield _Part(inputs=list(offered_on(page, self._at(page, path), self._name)))

    def _refused(self, patient: str, error: SearchRefused) -> bool:
        """Note that one patient's record was refused; whether that is because there is no such patient any more."""
        if error.status in GONE and not self._server.has(f"Patient/{quote(patient, safe='')}"):
            self.tally.notes["patient-gone"] += 1
            return True
        why = f"the server refuses it of patients that it has ({error.message}): mode search may be what it offers"
        self.tally.broken["Patient/$everything"] = why
        if self._refusals >= 0:
            self._refusals += 1
            if self._refusals == NEVER:
                raise ConfigurationError(f"nothing can be read by patient from {self._name}: {why}")
        return False

    # --- deletions -------------------------------------------------------------------------------------------------

    def _tells_deletions(self, kind: str) -> bool:
        return self._source.deletions and self._capabilities.offers(kind, "history-type") is not False

    def _begin_history(self, kind: str, read: Watermark, begun: _Beginning) -> None:
        """Note from when on the history is to be asked: before anything is stored, and better when all is.

        What went before the first run never came. ``read`` is how far the type is read; before, there is only the
        server's clock to go by, or ours, less a day.
        """
        key = f"{kind}/_history"
        clock_us = begun.server_us if begun.server_us is not None else time.time_ns() // 1000
        moments = (clock_us - DAY_US, read.until_us, self._mark(key).until_us)
        self._set(key, min(moment for moment in moments if moment is not None))

    def _read_deletions(self, kind: str, begun: _Beginning) -> None:
        """What the type's history says is gone since it was last asked."""
        key = f"{kind}/_history"
        mark = self._mark(key)
        if mark.until_us is None:
            return
        since = instant_text(mark.until_us - int(self._source.overlap_s * SECOND_US))
        asked = [("_since", since), ("_count", str(self._source.count))]
        try:
            self._take(self._history(kind, asked), key, mark, begun)
        except SearchRefused:
            self.tally.notes["deletions-not-told"] += 1

    def _history(self, kind: str, asked: list[tuple[str, str]]) -> Iterator[_Part]:
        met: set[str] = set()
        latest_us = None
        for page in self._server.pages(f"{self._server.base_url}/{kind}/_history", asked):
            times = [time for time in (latest_us, changed_us(page)) if time is not None]
            latest_us = max(times, default=None)
            yield _Part(inputs=list(gone(page, self._context, self._name, met)))
        yield _Part(inputs=[], read_us=latest_us)


def _patients(page: Page, context: Context) -> Iterable[str]:
    """The ids of the patients that a page's matches are about."""
    found: dict[str, None] = {}
    for entry in page.entries:
        resource = entry.get("resource")
        if not is_match(entry) or not isinstance(resource, dict):
            continue
        if resource.get("resourceType") == "Patient" and isinstance(resource.get("id"), str):
            found[resource["id"]] = None
        for name in ("subject", "patient"):
            element = resource.get(name)
            literal = element.get("reference") if isinstance(element, dict) else None
            target = resolve(literal, context) if isinstance(literal, str) else None
            if target is not None and target.startswith("Patient/"):
                found[target.partition("/")[2]] = None
    return found
