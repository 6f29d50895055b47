"""Variant files that are taken back: what they gave is entered in error, and no model is given their samples again.

The file stays, with its samples: its bytes are known, so that offering it again is no way to bring it back unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, func, select, update

from medflow.records import DueUnit, UnitKind
from medflow.store import ledger
from medflow.store.ledger import now_us, record_audit
from medflow.store.tables import SampleRow, VariantFileRow
from medflow.store.withdrawal import take_back

CHUNK = 5000  # parameters in one IN list


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A variant file of the store; ``str`` of it is what listings call it."""

    id: int
    sha256: str
    withdrawn: bool

    def __str__(self) -> str:
        return f"variant_file/{self.id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenBack:
    """How many samples a file gave, results of them stood, and jobs of them were still to be scored or were dead."""

    samples: int
    results: int
    jobs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Of the samples of one file: how many another has not, gives to another patient, or gives to nobody."""

    missing: int
    moved: int
    nobodys: int


def stored_file(
    connection: Connection, *, file_id: int | None = None, sha256: str | None = None, lock: bool = False
) -> StoredFile | None:
    """The file of this id, or of these bytes; with ``lock`` it stays as it is until the transaction ends."""
    which = VariantFileRow.id == file_id if file_id is not None else VariantFileRow.sha256 == sha256
    query = select(VariantFileRow.id, VariantFileRow.sha256, VariantFileRow.withdrawn_us).where(which)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return StoredFile(id=row.id, sha256=row.sha256, withdrawn=row.withdrawn_us is not None) if row is not None else None


def withdraw_file(
    connection: Connection, file: StoredFile, run_id: int | None, *, replaced_by: int | None = None
) -> TakenBack:
    """Take back whatever a file gave, as nothing of it was ever right; ``replaced_by`` is the file in its place.

    What is open about its samples waits with it.
    """
    query = select(SampleRow.id).where(SampleRow.variant_file_id == file.id)
    samples = connection.scalars(query.order_by(SampleRow.id)).all()
    which = update(VariantFileRow).where(VariantFileRow.id == file.id)
    connection.execute(which.values(withdrawn_us=now_us()))
    results, jobs = take_back(connection, UnitKind.SAMPLE, samples, run_id)
    ledger.set_aside(connection, "vcf", file.sha256)
    taken = TakenBack(samples=len(samples), results=results, jobs=jobs)
    by = {"replaced_by": replaced_by} if replaced_by is not None else {}
    counts = {"samples": taken.samples, "results": results, "jobs": jobs}
    record_audit(connection, run_id, "withdraw", f"variant_file {file.id}", **counts, **by)
    return taken


def restore_file(connection: Connection, file: StoredFile, run_id: int | None) -> None:
    """Have a withdrawn file be one that `store_variant_file` describes and dates anew, in the same transaction."""
    which = update(VariantFileRow).where(VariantFileRow.id == file.id)
    connection.execute(which.values(received_us=0, withdrawn_us=None))
    ledger.take_up(connection, "vcf", file.sha256)
    record_audit(connection, run_id, "restore", f"variant_file {file.id}")


def still_due(connection: Connection, due: Sequence[DueUnit]) -> list[DueUnit]:
    """Those of these samples whose file stands, which it does until the transaction ends."""
    standing: set[int] = set()
    for start in range(0, len(due), CHUNK):
        ids = [item.unit.id for item in due[start : start + CHUNK]]
        query = select(SampleRow.id).join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
        query = query.where(SampleRow.id.in_(ids), VariantFileRow.withdrawn_us.is_(None))
        standing.update(connection.scalars(query.with_for_update(read=True, of=VariantFileRow)))
    return [item for item in due if item.unit.id in standing]


def compare_samples(connection: Connection, old: StoredFile, new: StoredFile) -> Compared:
    """What becomes of the samples of ``old``, by name, where ``new`` is in its place."""
    before, after = SampleRow.__table__.alias("before"), SampleRow.__table__.alias("after")
    same = and_(after.c.variant_file_id == new.id, after.c.name == before.c.name)
    missing = after.c.id.is_(None)
    moved = before.c.patient_id != after.c.patient_id  # no sample that is nobody's in either
    nobodys = and_(~missing, before.c.patient_id.is_not(None), after.c.patient_id.is_(None))
    counts = {"missing": missing, "moved": moved, "nobodys": nobodys}
    counted = (func.coalesce(func.sum(case((one, 1), else_=0)), 0).label(name) for name, one in counts.items())
    query = select(*counted).select_from(before.outerjoin(after, same)).where(before.c.variant_file_id == old.id)
    return Compared(**connection.execute(query).one()._mapping)
