from medflow.plugin import SequenceInput
from medflow.records import Identifier, Instant, Patient, Sequence, UnitKind, VariantFile
from medflow.store.genomics import (
    SequenceItem,
    due_sequences,
    find_variant_file,
    load_sequences,
    store_sequences,
    store_variant_file,
)
from medflow.store.ledger import now_us
from medflow.store.patients import resolve_patients
from medflow.store.session import Store

FILE = VariantFile(
    sha256="a" * 64,
    size=10,
    version="VCFv4.2",
    samples=("one", "two"),
    records=3,
    contigs=("1", "X"),
    assembly="GRCh38",
)


def item(name: str = "one", bases: str = "ACGT", patient_id: int | None = None) -> SequenceItem:
    sequence = Sequence(name=name, bases=bases, sha256=f"{bases:0<64}")
    return SequenceItem(sequence=sequence, patient_id=patient_id)


def patients(store: Store, *values: str) -> list[int]:
    claims = [Patient(identifiers=(Identifier(system="urn:x", value=value),)) for value in values]
    with store.writing() as connection:
        return [owner for owner in resolve_patients(connection, claims) if isinstance(owner, int)]


def put(store: Store, *items: SequenceItem) -> list[str]:
    with store.writing() as connection:
        return list(store_sequences(connection, items))


def due(store: Store, *, length: int = 4, as_of: Instant | None = None):
    with store.reading() as connection:
        return due_sequences(
            connection, SequenceInput(length=length), as_of=as_of or Instant(utc_us=now_us()), model_id=1
        )


# --- variant files -----------------------------------------------------------------------------------------------


def test_a_variant_file_is_kept_once_with_its_samples(store: Store) -> None:
    with store.writing() as connection:
        first = store_variant_file(connection, FILE, [None, None])
        again = store_variant_file(connection, FILE, [None, None])
        found = find_variant_file(connection, FILE.sha256)

    assert (first, again, found) == ("stored", "unchanged", FILE)


def test_a_sample_is_given_to_its_patient_later(store: Store) -> None:
    (owner,) = patients(store, "p1")
    with store.writing() as connection:
        outcomes = [store_variant_file(connection, FILE, owners) for owners in ([None] * 2, [None, owner], [None] * 2)]

    assert outcomes == ["stored", "stored", "unchanged"]


def test_an_unknown_file_is_not_found(store: Store) -> None:
    with store.reading() as connection:
        assert find_variant_file(connection, "b" * 64) is None


# --- sequences ---------------------------------------------------------------------------------------------------


def test_a_sequence_is_kept_once_per_name_and_content(store: Store) -> None:
    assert put(store, item(), item(), item("two"), item(bases="GGGG")) == ["stored", "unchanged", "stored", "stored"]
    assert put(store, item(), item("two"), item(bases="TTTT")) == ["unchanged", "unchanged", "stored"]


def test_two_patients_may_have_the_same_sequence(store: Store) -> None:
    first, second = patients(store, "p1", "p2")

    assert put(store, item(patient_id=first), item(patient_id=second)) == ["stored", "stored"]
    assert put(store, item(patient_id=second), item(patient_id=first)) == ["unchanged", "unchanged"]
    assert len({unit.input_key for unit in due(store)}) == 2


def test_a_sequence_of_nobody_is_given_to_its_patient_and_is_new_to_models_again(store: Store) -> None:
    (owner,) = patients(store, "p1")
    put(store, item())
    (before,) = due(store)

    outcomes = put(store, item(patient_id=owner)) + put(store, item())

    (after,) = due(store)
    assert outcomes == ["stored", "unchanged"]
    assert after.unit == before.unit and after.revision > before.revision and after.input_key != before.input_key


def test_a_sequence_finds_its_patient_within_one_batch(store: Store) -> None:
    (owner,) = patients(store, "p1")

    assert put(store, item(), item(patient_id=owner), item()) == ["stored", "stored", "unchanged"]
    assert len(due(store)) == 1


def test_sequences_long_enough_are_due_at_the_time_they_were_received(store: Store) -> None:
    before = Instant(utc_us=now_us() - 1)
    put(store, item("short", "ACG"), item("fits", "ACGT"), item("long", "ACGTA"))

    units = due(store)

    assert [unit.unit.kind for unit in units] == [UnitKind.SEQUENCE] * 2
    assert [unit.prediction_time for unit in units] == [unit.prediction_time for unit in due(store)]
    assert all(before < unit.prediction_time <= Instant(utc_us=now_us()) for unit in units)
    assert due(store, as_of=before) == []


def test_bases_are_loaded_by_id_however_many(store: Store) -> None:
    put(store, *(item(f"n{number}") for number in range(6000)))
    ids = [unit.unit.id for unit in due(store)]

    with store.reading() as connection:
        bases = load_sequences(connection, [*ids, 10**9])

    assert bases == dict.fromkeys(ids, "ACGT")
