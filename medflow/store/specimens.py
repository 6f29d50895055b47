"""What specimens, and the orders of their examination, are called; and so whose a sample of that name is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from medflow.records import Identifier
from medflow.store.tables import FhirResourceRow, SpecimenNameRow

CHUNK = 2000  # parameters in one IN list
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


def _chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
