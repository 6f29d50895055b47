"""What specimens, and the orders of their examination, are called; and so whose a sample of that name is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select

from medflow.errors import RejectCode
from medflow.records import Identifier
from medflow.store.genomics import release
from medflow.store.ledger import Reject, record_rejects, set_aside
from medflow.store.tables import FhirResourceRow, SampleRow, SpecimenNameRow, VariantFileRow

CHUNK = 2000  # parameters in one IN list
OF_STORED_FILE = "variant_file/"  # how the origin of a reject begins that is about a sample of a file in the store
NAMED = frozenset({"Specimen", "ServiceRequest"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A Specimen or ServiceRequest that has a name, by its reference in its source, and whose it is."""

    reference: str
    source: str
    patient_id: int | None


def replace_names(connection: Connection, names: Mapping[int, Sequence[Identifier]]) -> None:
    """Note what these resources (by surrogate id) are called now; of a deleted one nothing."""
    for ids in _chunks(list(names)):
        connection.execute(delete(SpecimenNameRow).where(SpecimenNameRow.resource_id.in_(ids)))
    rows = [
        {"resource_id": key, "ordinal": ordinal, "value": name.value, "system": name.system or None}
        for key, its_names in names.items()
        for ordinal, name in enumerate(its_names)
    ]
    if rows:
        connection.execute(insert(SpecimenNameRow), rows)


def has_names(connection: Connection) -> bool:
    """Whether anything in the store is named as a sample may be."""
    return connection.scalar(select(SpecimenNameRow.resource_id).limit(1)) is not None


def named(connection: Connection, values: Sequence[str]) -> dict[str, list[Named]]:
    """The specimens and orders of each of these names, of any system."""
    found: dict[str, list[Named]] = {}
    for part in _chunks(sorted(set(values))):
        query = (
            select(SpecimenNameRow.value, FhirResourceRow.type, FhirResourceRow.fhir_id, FhirResourceRow.source)
            .add_columns(FhirResourceRow.patient_id)
            .join(FhirResourceRow, FhirResourceRow.id == SpecimenNameRow.resource_id)
            .where(SpecimenNameRow.value.in_(part))
            .order_by(FhirResourceRow.id)
            .distinct()
        )
        for row in connection.execute(query.add_columns(FhirResourceRow.id)):
            reference = f"{row.type}/{row.fhir_id}"
            found.setdefault(row.value, []).append(
                Named(reference=reference, source=row.source, patient_id=row.patient_id)
            )
    return found


def former_owners(connection: Connection, resource_ids: Sequence[int]) -> set[tuple[str, int]]:
    """The names that these resources give so far, each with whose it is."""
    found: set[tuple[str, int]] = set()
    for part in _chunks(resource_ids):
        query = select(SpecimenNameRow.value, FhirResourceRow.patient_id)
        query = query.join(FhirResourceRow, FhirResourceRow.id == SpecimenNameRow.resource_id)
        query = query.where(FhirResourceRow.id.in_(part), FhirResourceRow.patient_id.is_not(None))
        found.update((row.value, row.patient_id) for row in connection.execute(query))
    return found


def release_samples_of(connection: Connection, source: str, former: Collection[tuple[str, int]]) -> None:
    """Let the samples be nobody's that had these names and patients, where no Specimen or order says so any more.

    It may have been withdrawn, renamed or given to another patient. What was said of the former patient is taken back,
    and a reject asks whose the sample is: the file itself may never be offered again.
    """
    same = SpecimenNameRow.value == SampleRow.name, FhirResourceRow.patient_id == SampleRow.patient_id
    told = exists().where(SpecimenNameRow.resource_id == FhirResourceRow.id, *same)
    for part in _chunks(sorted({name for name, _ in former})):
        query = (
            select(SampleRow.id, SampleRow.name, SampleRow.patient_id, SampleRow.variant_file_id)
            .add_columns(VariantFileRow.sha256, VariantFileRow.withdrawn_us)
            .join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
            .where(SampleRow.name.in_(part), SampleRow.patient_id.is_not(None), ~told)
        )
        rows = connection.execute(query.order_by(SampleRow.id)).all()
        rows = [row for row in rows if (row.name, row.patient_id) in former]
        release(connection, [row.id for row in rows])
        record_rejects(connection, None, [_doubt(source, row.id, row.variant_file_id, row.sha256) for row in rows])
        for digest in {row.sha256 for row in rows if row.withdrawn_us is not None}:  # nobody is asked about those
            set_aside(connection, "vcf", digest)


def _doubt(source: str, sample_id: int, file_id: int, sha256: str) -> Reject:
    return Reject(
        kind="vcf",
        source=source,
        origin=f"{OF_STORED_FILE}{file_id}#sample {sample_id}",
        code=str(RejectCode.SAMPLE_UNKNOWN),
        reason="the Specimen or order that named it was withdrawn or changed: `medflow retry rejects` asks again",
        sha256=sha256,
        payload=True,
    )


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
