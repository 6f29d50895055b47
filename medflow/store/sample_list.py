"""The samples of variant files as they are listed: by surrogate ids, with what says whose each is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, select

from medflow.store.genomics import StoredSample, samples_query
from medflow.store.tables import FhirResourceRow, SampleRow, SpecimenNameRow

OTHERWISE = "sheet or name"  # which of the two is not kept


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSample:
    """A sample, its file's id, and what in the store gives it to its patient.

    ``linked`` is Specimen or ServiceRequest where one has its name and that patient, else "sheet or name"; None where
    it is nobody's.
    """

    sample: StoredSample
    file_id: int
    linked: str | None

    @property
    def received_us(self) -> int | None:
        """When its file was received; None where that is not kept, as of an old one."""
        return self.sample.received_us or None

    @property
    def withdrawn_us(self) -> int | None:
        """When its file was withdrawn; None of one that stands."""
        return self.sample.withdrawn_us


def sample_pages(connection: Connection, *, size: int, file_id: int | None = None) -> Iterator[list[ListedSample]]:
    """All samples, or those of one file, the last stored first, so many at a time."""
    query = samples_query().add_columns(SampleRow.variant_file_id.label("file_id"), _linked())
    if file_id is not None:
        query = query.where(SampleRow.variant_file_id == file_id)
    query = query.order_by(SampleRow.id.desc()).limit(size)
    page = [_listed(row) for row in connection.execute(query)]
    while page:
        yield page
        page = [_listed(row) for row in connection.execute(query.where(SampleRow.id < page[-1].sample.id))]


def count_samples(connection: Connection, file_id: int | None = None) -> int:
    """How many samples there are, of one file or of all."""
    query = select(func.count(SampleRow.id))
    if file_id is not None:
        query = query.where(SampleRow.variant_file_id == file_id)
    return connection.execute(query).scalar_one()


def _linked() -> Any:
    named = (
        select(func.max(FhirResourceRow.type))  # of both, the Specimen
        .join(SpecimenNameRow, SpecimenNameRow.resource_id == FhirResourceRow.id)
        .where(SpecimenNameRow.value == SampleRow.name, FhirResourceRow.patient_id == SampleRow.patient_id)
        .scalar_subquery()
    )
    made_of = case((SampleRow.specimen.is_not(None), "Specimen"), else_=func.coalesce(named, OTHERWISE))
    return case((SampleRow.patient_id.is_(None), None), else_=made_of).label("linked")


def _listed(row: Any) -> ListedSample:
    found = dict(row._mapping)
    file_id, linked = found.pop("file_id"), found.pop("linked")
    return ListedSample(sample=StoredSample(**found), file_id=file_id, linked=linked)
