"""FHIR R4 into the store: parsed and checked in worker processes, written meanwhile, each resource accounted for.

What the store has already (same type, id and bytes) is neither parsed nor checked nor written again. Order does not
matter: a resource that comes before the patient or encounter it names makes a placeholder of them.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from zoneinfo import ZoneInfo

from medflow.config import Settings
from medflow.errors import InputRejected, MedflowError
from medflow.fhir.check import Checker
from medflow.fhir.read import Context, read_resource
from medflow.garbage import collect_seldom, end_without_search, seldom_collected
from medflow.ingest.fhir_inputs import Deletion, Input, Piece, inputs, parse
from medflow.ingest.offers import Offer, offers
from medflow.ingest.tally import Progress, Refused, Tally
from medflow.processes import follow_parent
from medflow.store import Store
from medflow.store.clinical import ClinicalWriter
from medflow.store.ledger import Reject, record_rejects
from medflow.store.packed import Packed, pack, with_raw
from medflow.store.versions import Outcome, absent_resources, has_resources, known_contents

CHUNK = 2000  # inputs in one transaction
CHUNK_BYTES = 4 << 20
POOL_FROM = 16 << 20  # bytes of new content after which worker processes pay for their start
PAYLOAD = 64 << 20  # a larger reject is recorded without its bytes
REFERENCES = 2_000_000  # references remembered, to say at the end which lead nowhere
HEAD = re.compile(rb'^\{\s*"resourceType"\s*:\s*"([A-Za-z]{2,40})"\s*,\s*"id"\s*:\s*"([A-Za-z0-9\-.]{1,64})"')


def ingest_fhir(
    store: Store,
    settings: Settings,
    paths: Iterable[Path | str | Offer],
    *,
    source: str | None = None,
    run_id: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Ingest FHIR R4 JSON: resources, Bundles, NDJSON, deletions; each also gzipped, in folders and zip archives.

    Parameters
    ----------
    store, settings
        Where to, and the zone, limits and number of processes to read with.
    paths
        What to ingest; an `Offer` is taken as it is.
    source
        The system that the records come from; the default is the settings'. Ids are unique within a source.
    run_id
        The run that rejects are recorded under.
    progress
        Called with the number of inputs after each chunk.

    Raises
    ------
    ConfigurationError
        The object store or the database cannot be written; what was reported to ``progress`` stays stored.
    """
    with FhirIngest(store=store, settings=settings, source=source or settings.source, run_id=run_id) as ingest:
        tally = ingest.take(paths, progress=progress)
        tally.notes.update(ingest.absent())
    return tally


Answer = tuple[list[Packed | InputRejected], Counter[str], set[str]]


@dataclass(kw_only=True, slots=True)
class _Chunk:
    """Some inputs, and what is known of them so far. ``work`` are the positions that must be checked."""

    inputs: Sequence[Input]
    known: dict[int, int] = field(default_factory=dict)  # position -> surrogate id
    work: list[int] = field(default_factory=list)
    answer: Future[Answer] | Answer | None = None


class FhirIngest:
    """One ingest, of as many parts as there are calls of `take`; arguments and errors are those of `ingest_fhir`.

    Chunks go out to be checked while earlier ones are written, in order. What `take` was given is committed when it
    returns; processes and what was learnt of the store stay for the next part.
    """

    def __init__(self, *, store: Store, settings: Settings, source: str, run_id: int | None) -> None:
        self._store, self._settings, self._source, self._run_id = store, settings, source, run_id
        self._writer = ClinicalWriter(source)
        self._checker = Checker(settings.zone)
        self._pool: ProcessPoolExecutor | None = None
        self._fresh_bytes = 0
        self._references: set[str] = set()
        self._look_up = False
        self._open = ExitStack()

    def __enter__(self) -> FhirIngest:
        with self._store.reading() as connection:
            self._look_up = has_resources(connection, self._source)
        self._open.enter_context(seldom_collected())
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._open.close()

    def take(self, paths: Iterable[Path | str | Offer], *, progress: Progress | None = None) -> Tally:
        """Ingest these, an `Offer` as it is, and count what became of them."""
        tally = Tally()
        for counted in self.written(_chunks(self._offered(paths))):
            counted.check()
            tally.add(counted)
            if progress is not None:
                progress(counted.offered)
        tally.check()
        return tally

    def absent(self) -> Counter[str]:
        """How many resources were referred to that are not in the store, and how many by a search only."""
        searches = {item for item in self._references if "?" in item}
        with self._store.reading() as connection:
            missing = absent_resources(connection, self._source, self._references - searches)
        return +Counter({"absent-reference": missing.total(), "conditional-reference": len(searches)})

    def _offered(self, paths: Iterable[Path | str | Offer]) -> Iterator[Input]:
        """Every input, in order."""
        context = Context(source=self._source, zone=self._settings.zone)
        plain = []
        given = []
        for path in paths:
            (given if isinstance(path, Offer) else plain).append(path)
        for item in chain(given, offers(plain)):
            if isinstance(item, Refused):
                yield item
            else:
                its = replace(context, bases=item.bases) if item.bases else context
                yield from inputs(item, its, self._settings.max_input_bytes)

    def written(self, chunks: Iterable[Sequence[Input]]) -> Iterator[Tally]:
        """Take each chunk in; its tally comes when it is committed, in order."""
        waiting: deque[_Chunk] = deque()
        for offered in chunks:
            waiting.append(self._send(offered))
            while len(waiting) > (2 * self._settings.threads if self._pool is not None else 0):
                yield self._write(waiting.popleft())
        while waiting:
            yield self._write(waiting.popleft())

    # --- checking ----------------------------------------------------------------------------------------------

    def _send(self, offered: Sequence[Input]) -> _Chunk:
        chunk = _Chunk(inputs=offered)
        pieces = [(index, item) for index, item in enumerate(offered) if isinstance(item, Piece)]
        chunk.known = self._known(pieces)
        chunk.work = [index for index, _ in pieces if index not in chunk.known]
        work = [(item.raw, item.context, item.id) for index, item in pieces if index not in chunk.known]
        self._fresh_bytes += sum(len(raw) for raw, _, _ in work)
        if not work:
            chunk.answer = ([], Counter(), set())
        elif self._settings.threads > 1 and self._fresh_bytes > POOL_FROM:
            chunk.answer = self._started().submit(_check_in_process, _by_context(work))
        else:
            chunk.answer = _check(self._checker, _by_context(work))
        return chunk

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._settings.threads,
                mp_context=get_context("spawn"),
                initializer=_start_process,
                initargs=(self._settings.timezone,),
            )
        return self._pool

    def _known(self, pieces: Sequence[tuple[int, Piece]]) -> dict[int, int]:
        """Positions, and surrogate ids, of what is stored already, byte for byte, told without parsing."""
        if not self._look_up:
            return {}
        heads = {index: head for index, item in pieces if (head := HEAD.match(item.raw))}
        keys = {index: (head[1].decode(), head[2].decode()) for index, head in heads.items()}
        with self._store.reading() as connection:
            known = known_contents(connection, self._source, list(set(keys.values())))
        found = {}
        for index, item in pieces:
            stored = known.get(keys[index]) if index in keys else None
            if stored is not None and stored[1] == sha256(item.raw).hexdigest():
                found[index] = stored[0]
        return found

    # --- writing -----------------------------------------------------------------------------------------------

    def _write(self, chunk: _Chunk) -> Tally:
        tally = Tally(offered=len(chunk.inputs), unchanged=len(chunk.known))
        try:
            answer = chunk.answer.result() if isinstance(chunk.answer, Future) else chunk.answer
        except BrokenProcessPool:
            raise MedflowError(
                "a process that checks resources died, perhaps for want of memory: set MEDFLOW_WORKERS=1 and run "
                "the same command again; what was stored stays stored"
            ) from None
        assert answer is not None  # noqa: S101 - every chunk was sent
        self._writer.met(chunk.known.values())
        checked, notes, references = answer
        tally.notes.update(notes)
        if len(self._references) < REFERENCES:
            self._references |= references
        refused = [item for item in chunk.inputs if isinstance(item, Refused)]
        packed: list[tuple[Input, Packed]] = [
            (item, pack(item.resource)) for item in chunk.inputs if isinstance(item, Deletion)
        ]
        for index, result in zip(chunk.work, checked, strict=True):
            item = chunk.inputs[index]
            if isinstance(result, InputRejected):
                refused.append(_refusal(item, result))
            elif isinstance(item, Piece):
                packed.append((item, with_raw(result, item.raw)))
        self._commit(packed, refused, tally)
        return tally

    def _commit(self, packed: list[tuple[Input, Packed]], refused: list[Refused], tally: Tally) -> None:
        if not packed and not refused:
            return
        with self._store.writing() as connection:
            outcomes = self._writer.write(connection, [item for _, item in packed])
            tally.stored = outcomes.count(Outcome.STORED)
            if tally.stored < len(outcomes):
                for (item, _), outcome in zip(packed, outcomes, strict=True):
                    if isinstance(outcome, InputRejected):
                        refused.append(_refusal(item, outcome))
                    elif outcome is not Outcome.STORED:
                        tally.unchanged += 1
                        tally.notes.update([outcome.value] if outcome is Outcome.OLDER else [])
            record_rejects(connection, self._run_id, [self._reject(item) for item in refused])
        tally.rejected = len(refused)
        tally.reasons.update(str(item.error.code) for item in refused)

    def _reject(self, item: Refused) -> Reject:
        keep = item.data is not None and len(item.data) <= PAYLOAD
        if keep:
            self._store.objects.put(item.data or b"")
        return Reject(
            kind="fhir",
            source=self._source,
            origin=item.origin,
            code=item.error.code,
            reason=item.error.message,
            sha256=item.sha256,
            payload=keep,
        )


def _refusal(item: Input, error: InputRejected) -> Refused:
    if not isinstance(item, Piece):
        return Refused.of(item.origin, error)
    # of a Bundle's entry the bytes alone would not do: what its references mean lies in the Bundle
    digest = sha256(item.raw).hexdigest()
    return Refused(origin=item.origin, error=error, sha256=digest, data=item.raw if item.replay else None)


def _chunks(offered: Iterable[Input]) -> Iterator[list[Input]]:
    """Lists of at most CHUNK inputs and about CHUNK_BYTES bytes."""
    chunk: list[Input] = []
    held = 0
    for item in offered:
        chunk.append(item)
        held += len(item.raw) if isinstance(item, Piece) else 0
        if len(chunk) >= CHUNK or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


# --- in a worker process -----------------------------------------------------------------------------------------

Work = list[tuple[Context, list[tuple[bytes, str | None]]]]
_of_this_process: list[Checker] = []


def _by_context(work: Iterable[tuple[bytes, Context, str | None]]) -> Work:
    """Grouped by Bundle, so that what its references mean crosses to the worker once."""
    grouped: Work = []
    for raw, context, its_id in work:
        if not grouped or grouped[-1][0] is not context:
            grouped.append((context, []))
        grouped[-1][1].append((raw, its_id))
    return grouped


def _start_process(timezone: str | None) -> None:
    follow_parent()
    collect_seldom()
    end_without_search()
    _of_this_process[:] = [Checker(ZoneInfo(timezone) if timezone else None)]


def _check_in_process(work: Work) -> Answer:
    return _check(_of_this_process[0], work)


def _check(checker: Checker, work: Work) -> Answer:
    """Parse, check and read; the bytes do not travel back."""
    results: list[Packed | InputRejected] = []
    notes: Counter[str] = Counter()
    references: set[str] = set()
    for context, items in work:
        for raw, its_id in items:
            try:
                resource = parse(raw)
                checker.check(resource)
                reading = read_resource(resource, raw, context, id=its_id)
            except InputRejected as error:
                results.append(error)
                continue
            results.append(pack(reading.resource, with_raw=False))
            if reading.notes:
                notes.update(reading.notes)
            references |= reading.references
    return results, notes, references
