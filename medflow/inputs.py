"""From what is stored to what a model asked for: which units are due, and the case of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medflow.dicom.volume import read_image
from medflow.errors import InputNotUsable
from medflow.genomics.sequence import centre_window
from medflow.plugin import (
    Case,
    CaseInput,
    ImagingInput,
    ModelSpec,
    NoteInput,
    SequenceInput,
    SequenceWindow,
    TimeSeriesInput,
)
from medflow.records import DueUnit, Instant
from medflow.store import Connection, Store
from medflow.store.genomics import due_sequences, load_sequences
from medflow.store.imaging import due_series, series_instances
from medflow.store.jobs import Job
from medflow.store.timeseries import due_encounters, load_time_series

CaseOpener = Callable[[], Case]


def due_units(connection: Connection, spec: ModelSpec, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """The units whose input may be new to this model, one set-based query whatever is stored."""
    wanted = spec.accepts[0]
    if isinstance(wanted, ImagingInput):
        return due_series(connection, wanted, as_of=as_of, model_id=model_id)
    if isinstance(wanted, TimeSeriesInput):
        return due_encounters(connection, wanted, as_of=as_of, model_id=model_id)
    if isinstance(wanted, SequenceInput):
        return due_sequences(connection, wanted, as_of=as_of, model_id=model_id)
    raise TypeError(f"no selection for {type(wanted).__name__}")  # the registry admits no such model


def open_cases(store: Store, spec: ModelSpec, jobs: Sequence[Job]) -> list[CaseOpener]:
    """One opener per job, in order; calling it reads and checks the case, and is safe in any thread.

    Records are read for the whole chunk at once; pixels only when their case is opened. An opener raises
    `InputNotUsable` when its case cannot be scored.
    """
    wanted = spec.accepts[0]
    if isinstance(wanted, ImagingInput):
        return [_image_opener(store, wanted, job) for job in jobs]
    with store.reading() as connection:
        if isinstance(wanted, TimeSeriesInput):
            units = [(job.unit.id, job.prediction_time) for job in jobs]
            found: Sequence[CaseInput | InputNotUsable] = load_time_series(connection, wanted, units)
        else:
            assert not isinstance(wanted, NoteInput)  # noqa: S101 - the registry admits no such model
            found = _windows(connection, wanted, jobs)
    return [_ready_opener(wanted.name, job, item) for job, item in zip(jobs, found, strict=True)]


def _image_opener(store: Store, wanted: ImagingInput, job: Job) -> CaseOpener:
    def open_case() -> Case:
        with store.reading() as connection:
            instances = series_instances(connection, job.unit.id)
        return _case(job, wanted.name, read_image(instances, store.objects, wanted))

    return open_case


def _ready_opener(name: str, job: Job, found: CaseInput | InputNotUsable) -> CaseOpener:
    def open_case() -> Case:
        if isinstance(found, InputNotUsable):
            raise found
        return _case(job, name, found)

    return open_case


def _case(job: Job, name: str, found: CaseInput) -> Case:
    return Case(unit=job.unit, prediction_time=job.prediction_time.datetime(), inputs={name: found})


def _windows(
    connection: Connection, wanted: SequenceInput, jobs: Sequence[Job]
) -> list[SequenceWindow | InputNotUsable]:
    bases = load_sequences(connection, [job.unit.id for job in jobs])
    windows: list[SequenceWindow | InputNotUsable] = []
    for job in jobs:
        if job.unit.id not in bases:
            windows.append(InputNotUsable("sequence-missing", f"{job.unit} is no longer in the store"))
        else:
            windows.append(SequenceWindow(bases=centre_window(bases[job.unit.id], wanted.length)))
    return windows
