"""What other patients have costs a selection nothing: its steps are counted, which no busy machine changes."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from medflow.config import Settings
from medflow.store import Store
from medflow.store.tables import ConceptRow, EncounterRow
from medflow.store.timeseries import due_encounters
from tests.benchmarks import bench_selection as bench


@pytest.mark.parametrize("anchor", bench.SPECS)
def test_others_measurements_add_no_step_to_a_selection(anchor: str, settings: Settings) -> None:
    store = Store(settings).open()
    with store.writing() as connection:
        connection.execute(bench.insert(ConceptRow), [{"system": bench.LOINC, "code": code} for code in bench.CODES])
        models = {name: bench._model(connection, name) for name in bench.SPECS}
        ours = bench._admit(connection, 5, open_ones=5, each=20)
        others = bench._admit(connection, 60, open_ones=30, each=5)
    bench._first_night(store, models)
    with store.writing() as connection:
        bench._something_new(connection, ours)
    few = _steps(store, anchor, models[anchor], ours)
    with store.writing() as connection:
        query = select(EncounterRow.patient_id, EncounterRow.id).where(EncounterRow.id.in_(others))
        stays: Any = connection.execute(query).all()
        moments_us = [bench.ADMITTED_US + place * bench.HOUR_US // 4 for place in range(150)]
        bench._measure(connection, stays, moments_us, list(connection.scalars(select(ConceptRow.id))))

    many = _steps(store, anchor, models[anchor], ours)

    assert many <= few * 1.02
    store.close()


def _steps(store: Store, anchor: str, model_id: int, ours: list[int]) -> int:
    """Tens of steps of SQLite's machine that a selection takes; it must find what changed."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    with store.reading() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(count, 10)
        due = list(due_encounters(connection, bench.SPECS[anchor], as_of=bench.SECOND_NIGHT, model_id=model_id))
        driver.set_progress_handler(None, 10)
    assert [item.unit.id for item in due] == ours
    return counted
