"""A variant that several models report stands as long as the score of any of them does."""

from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from sqlalchemy import select

from medflow.fhir.write import result_resources
from medflow.records import CalledVariant, DueUnit, Instant, Outgoing, Unit, UnitKind
from medflow.store import Store, jobs, outbox
from medflow.store.tables import OutboxRow
from tests.results import CALLED, SPLICING, VARIANTS, context, effects_on, model, variant_file

OTHER = replace(CALLED, position=117_600_000)


def scores(name: str, *variants: CalledVariant) -> list[Outgoing]:
    """What a model of this name says of one sample."""
    speaker = replace(model(SPLICING, accepts=VARIANTS, name=name), digest=name * 8)
    job = context(speaker, inputs=(variant_file(),), input_key=name)
    return result_resources(job, [effects_on(*variants)])


VARIANT, OTHER_VARIANT = (scores("a", item)[0].id for item in (CALLED, OTHER))


@pytest.fixture
def two(store: Store) -> list[int]:
    """The jobs of two models on the same sample, which share one of its variants."""
    made = []
    with store.writing() as connection:
        for name, variants in (("a", [CALLED, OTHER]), ("b", [CALLED])):
            model_id = jobs.register_model(connection, name=name, version="1", digest=name, distribution="x", spec={})
            unit = Unit(kind=UnitKind.SAMPLE, id=1)
            due = DueUnit(unit=unit, revision=1, input_key="k", prediction_time=Instant(utc_us=0))
            jobs.enqueue(connection, model_id, [due])
            [job] = jobs.lease(connection, model_id, "me", limit=1, seconds=60, max_attempts=5)
            outbox.queue(connection, job.id, scores(name, *variants))
            made.append(job.id)
    return made


def statuses(store: Store, items: Sequence[Outgoing] | None = None) -> dict[str, str]:
    with store.reading() as connection:
        query = select(OutboxRow.fhir_id, OutboxRow.body).where(OutboxRow.type == "Observation")
        found = {row.fhir_id: orjson.loads(row.body)["status"] for row in connection.execute(query)}
    return found if items is None else {item.id: found[item.id] for item in items if item.type == "Observation"}


def supersede(store: Store, job_id: int, status: str = "entered-in-error") -> None:
    with store.writing() as connection:
        outbox.supersede(connection, [job_id], status)


def test_a_variant_is_queued_once(two: list[int], store: Store) -> None:
    assert len(statuses(store)) == 2 + 2 + 1 + 1 + 1  # variants, scores and summary of the first; score and summary


def test_what_another_models_score_refers_to_stands_whoever_queued_it(two: list[int], store: Store) -> None:
    supersede(store, two[0])

    of_the_first = statuses(store, scores("a", CALLED, OTHER))
    assert of_the_first.pop(VARIANT) == "preliminary"
    assert OTHER_VARIANT in of_the_first
    assert set(of_the_first.values()) == {"entered-in-error"}
    assert set(statuses(store, scores("b", CALLED)).values()) == {"preliminary"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_score_takes_the_variant_with_it(order: tuple[int, int], two: list[int], store: Store) -> None:
    for place in order:
        supersede(store, two[place])

    assert set(statuses(store).values()) == {"entered-in-error"}


def test_both_at_once_take_it_too(two: list[int], store: Store) -> None:
    with store.writing() as connection:
        outbox.supersede(connection, two, "amended")

    assert set(statuses(store).values()) == {"amended"}


def test_a_new_result_that_reports_it_makes_it_stand_again(two: list[int], store: Store) -> None:
    supersede(store, two[0], "amended")
    supersede(store, two[1], "amended")
    with store.writing() as connection:
        outbox.queue(connection, two[0], scores("c", CALLED))

    assert statuses(store)[VARIANT] == "preliminary"
    assert statuses(store)[OTHER_VARIANT] == "amended"
