"""From what is stored to what a model asked for: which units are due, and the case of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Lock

from medflow.errors import InputNotUsable
from medflow.genomics.sequence import centre_window
from medflow.genomics.site import GenomeSite
from medflow.plugin import (
    Case,
    CaseInput,
    ImagingInput,
    ModelSpec,
    SequenceInput,
    SequenceWindow,
    TimeSeriesInput,
)
from medflow.records import DueUnit, Instance, Instant, UnitKind
from medflow.samples import SampleOpener, due_samples_of
from medflow.series_rule import imaging_inputs
from medflow.store import Connection, Store
from medflow.store.genomics import due_sequences, load_sequences
from medflow.store.imaging import content_of, series_instances
from medflow.store.jobs import Job
from medflow.store.selection import chosen_series, due_series, due_studies, series_key, study_key
from medflow.store.timeseries import SeriesBlock, due_encounters, input_keys, load_series
from medflow.store.units import UnitFacts, unit_facts
from medflow.variant_rule import variants_of

NOWHERE = GenomeSite()
CaseOpener = Callable[[], Case]
_Inputs = Sequence[CaseInput | InputNotUsable]
_Read = Callable[[int], _Inputs]


def due_units(
    connection: Connection,
    spec: ModelSpec,
    *,
    as_of: Instant,
    model_id: int,
    genomes: GenomeSite = NOWHERE,
    expect: Callable[[int], None] = lambda _count: None,
) -> Iterable[DueUnit]:
    """The units whose input may be new to this model; of records some hundred are read when they are asked for.

    ``genomes`` is what variants are read with. ``expect`` is told of time series, before they are looked at, how many
    may come.
    """
    wanted = spec.accepts[0]
    if (variants := variants_of(spec)) is not None:
        return due_samples_of(connection, variants, genomes, as_of=as_of, model_id=model_id)
    if spec.unit is UnitKind.STUDY:
        return due_studies(connection, imaging_inputs(spec), as_of=as_of, model_id=model_id)
    if isinstance(wanted, ImagingInput):
        return due_series(connection, wanted, as_of=as_of, model_id=model_id)
    if isinstance(wanted, TimeSeriesInput):
        return due_encounters(connection, wanted, as_of=as_of, model_id=model_id, expect=expect)
    if isinstance(wanted, SequenceInput):
        return due_sequences(connection, wanted, as_of=as_of, model_id=model_id)
    raise TypeError(f"no selection for {type(wanted).__name__}")  # the registry admits no such model


def open_cases(
    store: Store, spec: ModelSpec, jobs: Sequence[Job], *, workers: int = 0, genomes: GenomeSite = NOWHERE
) -> Sequence[CaseOpener]:
    """One opener per job, in order; calling it reads and checks the case, and is safe in any thread.

    Pixels are read case by case. Records are read a batch at a time, when the first case of the batch is opened, so
    that reading goes on while the device works on the batch before. An opener raises `InputNotUsable` when its case
    cannot be scored. Images are decoded by ``workers`` at once, however many threads open cases; 0 is one per core.
    Variants are read with ``genomes``, sample by sample; a `SampleOpener` also tells which they are.
    """
    wanted = spec.accepts[0]
    if (variants := variants_of(spec)) is not None:
        return [SampleOpener(store, variants, genomes, job) for job in jobs]
    if isinstance(wanted, ImagingInput):
        return [partial(_open_images, store, spec, job, workers) for job in jobs]
    assert isinstance(wanted, (TimeSeriesInput, SequenceInput))  # noqa: S101 - the registry admits no other
    batches = [jobs[start : start + spec.batch_size] for start in range(0, len(jobs), spec.batch_size)]
    if isinstance(wanted, TimeSeriesInput):
        read: _Read = _SeriesReading(store, wanted, batches).read
    else:
        read = partial(_read_windows, store, wanted, batches)
    opened = [_RecordBatch(wanted.name, batch, partial(read, number)) for number, batch in enumerate(batches)]
    return [opener for batch in opened for opener in batch.openers()]


class _RecordBatch:
    """The cases of one batch, read together by whichever thread first asks for one of them."""

    def __init__(self, name: str, jobs: Sequence[Job], read: Callable[[], _Inputs]) -> None:
        self._name, self._jobs, self._read = name, jobs, read
        self._lock = Lock()
        self._found: _Inputs | None = None

    def openers(self) -> list[CaseOpener]:
        return [partial(self._open, place) for place in range(len(self._jobs))]

    def _open(self, place: int) -> Case:
        with self._lock:
            if self._found is None:
                self._found = self._read()
        found = self._found[place]
        if isinstance(found, InputNotUsable):
            raise found
        return _case(self._jobs[place], {self._name: found})


class _SeriesReading:
    """Time series, batch by batch: of many by the store's processes, which are asked ahead, or else right here."""

    def __init__(self, store: Store, wanted: TimeSeriesInput, batches: Sequence[Sequence[Job]]) -> None:
        self._store, self._wanted = store, wanted
        self._units = [[(job.unit.id, job.prediction_time) for job in batch] for batch in batches]
        self._asked: dict[int, Future[SeriesBlock]] = {}
        self._lock = Lock()
        if store.beside.start(sum(map(len, batches))):
            self._ask_from(0, starting=True)  # what is read while a model is loaded costs nothing

    def read(self, number: int) -> _Inputs:
        self._ask_from(number)
        if (asked := self._asked.pop(number, None)) is not None:
            with suppress(BrokenProcessPool):
                return asked.result().cases()
        with self._store.reading() as connection:
            return load_series(connection, self._wanted, self._units[number]).cases()

    def _ask_from(self, number: int, *, starting: bool = False) -> None:
        with self._lock:
            for ahead in range(number, min(number + self._store.beside.ahead, len(self._units))):
                if ahead not in self._asked:
                    asked = self._store.beside.load(self._wanted, self._units[ahead], starting=starting)
                    if asked is not None:
                        self._asked[ahead] = asked


def image_instances(connection: Connection, spec: ModelSpec, job: Job) -> dict[str, list[Instance]]:
    """The instances behind each image that a job's case is given, by the input's name; an optional one may be missing.

    Raises
    ------
    InputNotUsable
        input-changed: the store no longer holds what the job was made for, a slice came in since, say. Selecting again
        makes a job of what it holds now.
    """
    if spec.unit is UnitKind.STUDY:
        moments = {job.unit.id: job.prediction_time}
        chosen = chosen_series(connection, imaging_inputs(spec), moments).get(job.unit.id, {})
        found = {name: series_instances(connection, series.id) for name, series in chosen.items()}
        key = study_key({name: _content(instances) for name, instances in found.items()})
    else:
        instances = series_instances(connection, job.unit.id)
        found = {item.name: instances for item in imaging_inputs(spec)}
        key = series_key(_content(instances))
    if key != job.input_key:
        raise InputNotUsable(
            "input-changed",
            f"the images of {job.unit} changed after the job was made: the next selection makes another of them",
        )
    return found


def unchanged(connection: Connection, spec: ModelSpec, jobs: Sequence[Job]) -> list[bool]:
    """Of each job, whether its case would be read now as it was when the job was made.

    Of a case that is no time series it is not looked at: `open_cases` sees to that for images and variants, and
    sequences stay.
    """
    wanted = spec.accepts[0]
    if not isinstance(wanted, TimeSeriesInput):
        return [True] * len(jobs)
    keys = input_keys(connection, wanted, [(job.unit.id, job.prediction_time) for job in jobs])
    return [key == job.input_key for key, job in zip(keys, jobs, strict=True)]


def job_facts(connection: Connection, spec: ModelSpec, jobs: Sequence[Job]) -> dict[int, UnitFacts]:
    """What results need to know of the jobs' units, by the unit's id; of a study also which series were chosen."""
    facts = unit_facts(connection, spec.unit, [job.unit.id for job in jobs])
    if spec.unit is UnitKind.STUDY:
        moments = {job.unit.id: job.prediction_time for job in jobs}
        for study_id, chosen in chosen_series(connection, imaging_inputs(spec), moments).items():
            named = "; ".join(f"{name}: series urn:oid:{series.uid}" for name, series in chosen.items())
            inputs = tuple(replace(item, display=named) for item in facts[study_id].inputs)
            facts[study_id] = replace(facts[study_id], inputs=inputs)
    return facts


def _content(instances: Sequence[Instance]) -> str:
    return content_of(item.sha256 for item in instances)


def _open_images(store: Store, spec: ModelSpec, job: Job, workers: int) -> Case:
    from medflow.dicom.volume import read_image  # with pydicom, for which only models of images wait

    with store.reading() as connection:
        found = image_instances(connection, spec, job)
    images: dict[str, CaseInput] = {}
    for item in imaging_inputs(spec):
        if item.name in found:
            try:
                images[item.name] = read_image(found[item.name], store.objects, item, workers=workers)
            except InputNotUsable as error:
                if spec.unit is not UnitKind.STUDY:
                    raise
                raise InputNotUsable(error.code, f"{item.name}: {error.message}") from None
    return _case(job, images)


def _case(job: Job, inputs: Mapping[str, CaseInput]) -> Case:
    return Case(unit=job.unit, prediction_time=job.prediction_time.datetime(), inputs=inputs)


def _read_windows(store: Store, wanted: SequenceInput, batches: Sequence[Sequence[Job]], number: int) -> _Inputs:
    jobs = batches[number]
    with store.reading() as connection:
        bases = load_sequences(connection, [job.unit.id for job in jobs])
    windows: list[SequenceWindow | InputNotUsable] = []
    for job in jobs:
        if job.unit.id not in bases:
            windows.append(InputNotUsable("sequence-missing", f"{job.unit} is no longer in the store"))
        else:
            windows.append(SequenceWindow(bases=centre_window(bases[job.unit.id], wanted.length)))
    return windows
