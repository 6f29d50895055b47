"""Which samples are due to a model of variants, on both databases."""

from __future__ import annotations

from dataclasses import replace

from medflow.records import Instant, UnitKind, VariantFile
from medflow.store import Store
from medflow.store.genomics import SampleScope, due_samples, load_samples, samples_elsewhere, store_variant_file
from medflow.store.jobs import enqueue
from medflow.store.ledger import now_us
from medflow.store.tables import VariantFileRow
from tests.scored import add_model
from tests.variant_models import GcShift

(WANTED,) = GcShift.spec.accepts
HERE = SampleScope(reference="r1", regions="b1", whole="w1")
FILE = VariantFile(sha256="a" * 64, size=1, version="VCFv4.2", samples=("one", "two"), records=3, build="GRCh38")


def keep(store: Store, *files: VariantFile) -> None:
    with store.writing() as connection:
        for file in files:
            store_variant_file(connection, file, [None] * len(file.samples))


def due(store: Store, scope: SampleScope = HERE, *, as_of_us: int | None = None, model_id: int = 1):
    with store.reading() as connection:
        moment = Instant(utc_us=as_of_us or now_us())
        return list(due_samples(connection, WANTED, scope, as_of=moment, model_id=model_id))


def select(store: Store, scope: SampleScope = HERE) -> int:
    """Make jobs of what is due; returns how many."""
    with store.writing() as connection:
        model_id = add_model(connection)
    found = due(store, scope, model_id=model_id)
    with store.writing() as connection:
        return enqueue(connection, model_id, found)


def received(store: Store, moment_us: int) -> None:
    with store.writing() as connection:
        connection.execute(VariantFileRow.__table__.update().values(received_us=moment_us))


def test_samples_of_the_models_assembly_are_due_once(store: Store) -> None:
    other, unknown = (
        replace(FILE, sha256=letter * 64, build=build) for letter, build in (("b", "GRCh37"), ("c", None))
    )
    keep(store, FILE, other, unknown)

    first, second = select(store), select(store)

    assert (first, second) == (2, 0)
    with store.reading() as connection:
        now = Instant(utc_us=now_us())
        assert samples_elsewhere(connection, {"GRCh38"}, as_of=now) == (2, 2)
        assert samples_elsewhere(connection, {"GRCh38", "GRCh37"}, as_of=now) == (2, 0)
        assert {key: item.name for key, item in load_samples(connection, [1, 2, 99]).items()} == {1: "one", 2: "two"}


def test_what_a_case_is_made_with_decides_whether_it_is_new_and_what_was_before_is_taken_up_again(store: Store) -> None:
    keep(store, FILE)
    scopes = [HERE, replace(HERE, regions="b2"), replace(HERE, reference="r2"), HERE]

    assert [select(store, scope) for scope in scopes] == [2, 2, 2, 2]
    assert select(store, HERE) == 0


def test_without_regions_only_a_small_file_is_whole(store: Store) -> None:
    keep(store, FILE, replace(FILE, sha256="b" * 64, records=20_001))
    nowhere, everywhere = replace(HERE, regions=""), replace(HERE, regions="w1")

    small, large = (item.input_key for item in due(store, nowhere)[::2])
    assert [item.input_key for item in due(store, everywhere)][::2] == [small, due(store, everywhere)[2].input_key]
    assert large != due(store, everywhere)[2].input_key
    assert (nowhere.takes(20_000), nowhere.takes(20_001), HERE.takes(20_001)) == (True, False, True)


def test_the_prediction_time_is_when_the_file_came_or_now_where_that_was_not_kept(store: Store) -> None:
    keep(store, FILE)
    received(store, 1_000)
    of_a_known = due(store, as_of_us=5_000)
    received(store, 0)
    of_an_old = due(store, as_of_us=5_000)
    received(store, 9_000)

    assert {item.prediction_time.utc_us for item in of_a_known} == {1_000}
    assert {item.prediction_time.utc_us for item in of_an_old} == {5_000}
    assert due(store, as_of_us=5_000) == []
    assert {item.unit.kind for item in of_a_known} == {UnitKind.SAMPLE}
