"""The nightly selection of 100 changed stays: does a store of 1,000,000 measurements of other patients slow it?

    python tests/benchmarks/bench_selection.py [--others 1000000] [--changed 100] [--times 9] [--json]

On SQLite and on PostgreSQL, for stays that are scored once (anchor admission) and every night (anchor prediction time).
The others have 440 measurements each, as set A has on average; half were discharged, half are in hospital with nothing
new since the model looked the night before. Seconds are the fastest of several, with and without the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

sys.path.insert(0, str(Path(__file__).parents[2]))
from medflow.config import load_settings
from medflow.plugin import Channel, Coding, TimeSeriesInput
from medflow.records import DueUnit, Instant
from medflow.store import Store
from medflow.store.bulk import insert_rows
from medflow.store.jobs import enqueue, register_model
from medflow.store.tables import ConceptRow, EncounterRow, FhirResourceRow, JobRow, MeasurementRow, PatientRow
from medflow.store.timeseries import due_encounters

LOINC = "http://loinc.org"
CODES = tuple(f"{number}-0" for number in range(1000, 1037))
EACH = 440  # measurements of a stay
AT_ONCE = 100  # stays written together
HOUR_US = 3_600_000_000
ADMITTED_US = Instant.of(datetime(2026, 3, 1, tzinfo=UTC)).utc_us
FIRST_NIGHT, SECOND_NIGHT = (Instant(utc_us=ADMITTED_US + days * 24 * HOUR_US) for days in (3, 4))
ADMISSION = TimeSeriesInput(
    channels=tuple(
        Channel(name=code, codes=(Coding(system=LOINC, code=code),), unit="mmol/L", aggregate="last") for code in CODES
    ),
    window=timedelta(hours=48),
    step=timedelta(hours=1),
    statics=("age", "sex"),
)
SPECS = {"admission": ADMISSION, "prediction-time": replace(ADMISSION, anchor="prediction-time")}
MEASUREMENT = (
    "resource_id ordinal patient_id encounter_id concept_id effective_us effective_offset available_us until_us "
    "status value unit value_concept_id mark_1 mark_2"
)
RESOURCE = "id source type fhir_id version last_updated_us sha256 raw deleted patient_id"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=1_000_000, help="measurements of other patients")
    parser.add_argument("--changed", type=int, default=100, help="stays with something new")
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="medflow-selection-") as folder:
        for engine, store in stores(stack, Path(folder)):
            for anchor, times in run(store, options.others, options.changed, options.times).items():
                found[f"{engine}, {anchor}"] = times
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, times in found.items():
        alone, among = times["alone_s"] * 1e3, times["among_others_s"] * 1e3
        sys.stdout.write(f"{name:30} {alone:8.1f} ms alone {among:8.1f} ms among others: {times['ratio']:.2f} times\n")


def stores(stack: ExitStack, folder: Path) -> Iterator[tuple[str, Store]]:
    """One store after the other."""
    from tests.services.postgres import postgres_server

    yield "sqlite", Store(load_settings(home=folder / "sqlite")).open()
    server = stack.enter_context(postgres_server())
    server.execute("CREATE DATABASE medflow")
    store = Store(load_settings(home=folder / "postgresql", database_url=server.url("medflow")))
    store.upgrade()
    yield "postgresql", store
    store.close()


def run(store: Store, others: int, changed: int, times: int) -> dict[str, dict[str, float]]:
    """By anchor: seconds without and with the others, and their ratio."""
    with store.writing() as connection:
        connection.execute(insert(ConceptRow), [{"system": LOINC, "code": code} for code in CODES])
        models = {anchor: _model(connection, anchor) for anchor in SPECS}
        ours = _admit(connection, changed, open_ones=changed)
    _first_night(store, models)
    with store.writing() as connection:
        _something_new(connection, ours)
    alone = _measured(store, models, ours, times)
    with store.writing() as connection:
        count = others // EACH
        strangers = _admit(connection, count, open_ones=count // 2)
    _first_night(store, models, but=set(ours))
    among = _measured(store, models, ours, times)
    assert len(strangers) == count
    return {
        anchor: {"alone_s": alone[anchor], "among_others_s": among[anchor], "ratio": among[anchor] / alone[anchor]}
        for anchor in SPECS
    }


def _model(connection: Connection, anchor: str) -> int:
    return register_model(connection, name=anchor, version="1", digest=anchor, distribution="bench", spec={})


def _admit(connection: Connection, count: int, *, open_ones: int, each: int = EACH) -> list[int]:
    """``count`` patients with a stay of ``each`` measurements, the last discharged; returns the encounters."""
    made: list[int] = []
    concepts = list(connection.scalars(select(ConceptRow.id)))
    while len(made) < count:
        some = range(len(made), min(count, len(made) + AT_ONCE))
        person = {"birth_date": date(1950, 1, 1), "sex": "female", "complete": True, "revision": 1}
        latest_us = ADMITTED_US + EACH // 10 * HOUR_US
        patients = connection.scalars(
            insert(PatientRow).returning(PatientRow.id, sort_by_parameter_order=True),
            [{**person, "latest_us": latest_us} for _ in some],
        ).all()
        ends = [None if number < open_ones else ADMITTED_US + 60 * HOUR_US for number in some]
        stay = {"source": "bench", "types": [], "start_us": ADMITTED_US, "start_offset": 0, "revision": 1}
        encounters = connection.scalars(
            insert(EncounterRow).returning(EncounterRow.id, sort_by_parameter_order=True),
            [
                {**stay, "fhir_id": f"e{key}", "patient_id": key, "end_us": end}
                | {"status": "finished" if end else "in-progress"}
                for key, end in zip(patients, ends, strict=True)
            ],
        ).all()
        pairs = list(zip(patients, encounters, strict=True))
        _measure(connection, pairs, [ADMITTED_US + place * HOUR_US // 10 for place in range(each)], concepts)
        made.extend(encounters)
    return made


def _measure(
    connection: Connection, stays: Sequence[tuple[int, int]], moments_us: Sequence[int], concepts: Sequence[int]
) -> None:
    """A measurement of each stay at each moment."""
    first = (connection.scalar(text("SELECT max(id) FROM fhir_resource")) or 0) + 1
    resources: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    for patient_id, encounter_id in stays:
        for place, at_us in enumerate(moments_us):
            key = first + len(rows)
            resources.append(
                (key, "bench", "Observation", str(key), None, None, f"{key:064}", b"{}", False, patient_id)
            )
            mark = key * 2654435761 % 2**40
            concept = concepts[place % len(concepts)]
            rows.append((key, 0, patient_id, encounter_id, concept, at_us, 0, at_us, None, "final", 5.0 + place)
                        + ("mmol/L", None, mark, mark))  # fmt: skip
    insert_rows(connection, FhirResourceRow, RESOURCE, resources)
    insert_rows(connection, MeasurementRow, MEASUREMENT, rows)


def _first_night(store: Store, models: dict[str, int], *, but: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """The night before: whatever is due is scored."""
    for anchor, spec in SPECS.items():
        with store.reading() as connection:
            due = list(due_encounters(connection, spec, as_of=FIRST_NIGHT, model_id=models[anchor]))
        with store.writing() as connection:
            enqueue(connection, models[anchor], [item for item in due if item.unit.id not in but])
            connection.execute(update(JobRow).values(state="done"))
    if store_is_postgres(store):
        with store.writing() as connection:
            connection.execute(text("ANALYZE"))


def store_is_postgres(store: Store) -> bool:
    """Whether there is a planner to tell of what was loaded, as an ingest does."""
    with store.reading() as connection:
        return connection.dialect.name == "postgresql"


def _something_new(connection: Connection, encounters: Sequence[int]) -> None:
    """Two more measurements of each of these stays: a late one of the first days, and one of the day since."""
    query = select(EncounterRow.patient_id, EncounterRow.id).where(EncounterRow.id.in_(encounters))
    stays = [(int(patient_id or 0), key) for patient_id, key in connection.execute(query)]
    concepts = list(connection.scalars(select(ConceptRow.id)))
    _measure(connection, stays, [ADMITTED_US + 47 * HOUR_US, ADMITTED_US + 80 * HOUR_US], concepts)
    patients = [patient_id for patient_id, _ in stays]
    connection.execute(
        update(PatientRow).where(PatientRow.id.in_(patients)).values(latest_us=ADMITTED_US + 80 * HOUR_US, revision=2)
    )
    connection.execute(update(EncounterRow).where(EncounterRow.id.in_(encounters)).values(revision=2))


def _measured(store: Store, models: dict[str, int], ours: Sequence[int], times: int) -> dict[str, float]:
    """The fastest selection by anchor; it must find exactly the changed stays."""
    fastest = {}
    for anchor, spec in SPECS.items():
        seconds = []
        for _ in range(times):
            with store.reading() as connection:
                started = time.perf_counter()
                due = list(due_encounters(connection, spec, as_of=SECOND_NIGHT, model_id=models[anchor]))
                seconds.append(time.perf_counter() - started)
            _check(due, ours)
        fastest[anchor] = min(seconds)
    return fastest


def _check(due: Sequence[DueUnit], ours: Sequence[int]) -> None:
    if [item.unit.id for item in due] != sorted(ours):
        sys.exit(f"{len(due)} stays were selected, not the {len(ours)} that changed")


if __name__ == "__main__":
    main()
