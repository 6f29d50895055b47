"""Variant files, their samples, and sequences in the store; and which of them are new to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, insert, select, text, update

from medflow.plugin import SequenceInput
from medflow.records import DueUnit, Instant, Unit, UnitKind, VariantFile, digest_of
from medflow.records import Sequence as Bases
from medflow.store.due import not_yet_seen
from medflow.store.ledger import now_us, upsert
from medflow.store.tables import JobRow, SampleRow, SequenceRow, VariantFileRow
from medflow.store.withdrawal import take_from_patients

Stored = Literal["stored", "unchanged"]
CHUNK = 5000  # parameters in one IN list
WHOLE_RECORDS = 20_000  # a variant file with more is never scored whole unasked
UNKNOWN_ASSEMBLY, OTHER_ASSEMBLY = "assembly-unknown", "another-assembly"  # why a model is not given a sample
SEQUENCE_LOCK = 0x6D656473  # advisory lock of PostgreSQL: one writer at a time decides what is new


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceItem:
    """A sequence to be stored, and whose it is (None: nobody's that is known)."""

    sequence: Bases
    patient_id: int | None = None


# --- variant files -----------------------------------------------------------------------------------------------


def find_variant_file(connection: Connection, sha256: str) -> VariantFile | None:
    """The stored description of the file with these bytes, with the samples that were taken of it."""
    row = connection.execute(select(VariantFileRow.__table__).where(VariantFileRow.sha256 == sha256)).mappings().first()
    if row is None:
        return None
    query = select(SampleRow.name).where(SampleRow.variant_file_id == row["id"]).order_by(SampleRow.id)
    return VariantFile(
        sha256=row["sha256"],
        size=row["size"],
        version=row["version"],
        samples=tuple(connection.scalars(query)),
        records=row["records"],
        contigs=tuple(row["contigs"]),
        assembly=row["assembly"],
        build=row["build"],
        counts=row["counts"],
        index=row["index"],
        path=row["path"],
    )


def has_variant_file(connection: Connection, size: int) -> bool:
    """Whether any stored file has this size: one that differs from all of them need not be hashed to be new."""
    return connection.scalar(select(VariantFileRow.id).where(VariantFileRow.size == size).limit(1)) is not None


def is_described(connection: Connection, sha256: str) -> bool:
    """Whether the file is stored with all that is kept of one today; an older version of medflow kept less."""
    query = select(VariantFileRow.id).where(VariantFileRow.sha256 == sha256, VariantFileRow.received_us != 0)
    return connection.scalar(query) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Whose a stored sample is, and the Specimen (reference and source) that says so too, where one does."""

    patient_id: int | None
    specimen: tuple[str, str] | None = None


def held_samples(connection: Connection, sha256: str) -> dict[str, Held]:
    """The stored samples of a file, by name, and whose each is."""
    columns = (SampleRow.name, SampleRow.patient_id, SampleRow.specimen, SampleRow.specimen_source)
    query = select(*columns).join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
    return {
        row.name: Held(
            patient_id=row.patient_id, specimen=(row.specimen, row.specimen_source) if row.specimen else None
        )
        for row in connection.execute(query.where(VariantFileRow.sha256 == sha256))
    }


def release_samples(connection: Connection, sha256: str, names: Sequence[str]) -> None:
    """Let these samples of a file be nobody's: what gave them to their patients no longer does.

    What was said of those patients is taken back.
    """
    query = select(SampleRow.id).join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
    for part in _chunks(names):
        ids = connection.scalars(query.where(VariantFileRow.sha256 == sha256, SampleRow.name.in_(part))).all()
        release(connection, ids)


def release(connection: Connection, sample_ids: Sequence[int]) -> None:
    """As `release_samples`, of samples by their surrogate ids."""
    for part in _chunks(sample_ids):
        connection.execute(
            update(SampleRow)
            .where(SampleRow.id.in_(part))
            .values(patient_id=None, specimen=None, specimen_source=None, revision=SampleRow.revision + 1)
        )
    take_from_patients(connection, UnitKind.SAMPLE, sample_ids)


def store_variant_file(
    connection: Connection,
    file: VariantFile,
    patients: Sequence[int | None],
    specimens: Sequence[tuple[str, str] | None] | None = None,
) -> Stored:
    """Note a file and its samples, each with its patient and Specimen (reference and source); the same bytes once.

    Of a file that is there already samples that are not are added, and one is given to its patient when it had none,
    or another one. What an older version of medflow did not keep of it is added too.
    """
    now = now_us()
    described = {"build": file.build, "counts": dict(file.counts), "index": file.index, "received_us": now}
    values = {
        "sha256": file.sha256,
        "size": file.size,
        "version": file.version,
        "records": file.records,
        "contigs": list(file.contigs),
        "assembly": file.assembly,
        "path": file.path,
    }
    statement = upsert(connection, VariantFileRow).values(**values, **described)
    statement = statement.on_conflict_do_nothing(index_elements=["sha256"]).returning(VariantFileRow.id)
    new = connection.execute(statement).scalar_one_or_none()
    its_id = new
    changed = new is not None
    if its_id is None:
        which = VariantFileRow.sha256 == file.sha256
        # locked, on PostgreSQL: another process may be adding the same samples
        its_id = connection.execute(select(VariantFileRow.id).where(which).with_for_update()).scalar_one()
        older = update(VariantFileRow).where(which, VariantFileRow.received_us == 0)
        changed = connection.execute(older.values(**described)).rowcount > 0
    samples = [
        {"name": name, "patient_id": patient_id, "specimen": found[0], "specimen_source": found[1]}
        for name, patient_id, specimen in zip(file.samples, patients, specimens or [None] * len(patients), strict=True)
        for found in (specimen or (None, None),)
    ]
    return "stored" if _give_samples(connection, its_id, samples) or changed else "unchanged"


def _give_samples(connection: Connection, file_id: int, samples: Sequence[dict[str, Any]]) -> bool:
    """Add the samples that are not there, and change those whose patient or Specimen is another; whether any was.

    Results of a sample that was another patient's are taken back at once, whether or not their model is still there.
    """
    columns = (SampleRow.id, SampleRow.name, SampleRow.patient_id, SampleRow.specimen, SampleRow.specimen_source)
    query = select(*columns).where(SampleRow.variant_file_id == file_id)
    known = {row.name: row for row in connection.execute(query)}
    had_patient = {row.id: row.patient_id is not None for row in known.values()}
    new = [sample | {"variant_file_id": file_id, "revision": 0} for sample in samples if sample["name"] not in known]
    if new:
        connection.execute(insert(SampleRow), new)
    changed = [
        {
            "key": row.id,
            "owner": sample["patient_id"],
            "made_of": sample["specimen"],
            "made_of_source": sample["specimen_source"],
            "more": int(sample["patient_id"] != row.patient_id),
        }
        for sample in samples
        if (row := known.get(sample["name"])) is not None and sample["patient_id"] is not None
        if (sample["patient_id"], sample["specimen"], sample["specimen_source"])
        != (row.patient_id, row.specimen, row.specimen_source)
    ]
    if changed:
        connection.execute(
            update(SampleRow)
            .where(SampleRow.id == bindparam("key"))
            .values(
                patient_id=bindparam("owner"),
                specimen=bindparam("made_of"),
                specimen_source=bindparam("made_of_source"),
                revision=SampleRow.revision + bindparam("more"),
            ),
            changed,
        )
    moved = [item["key"] for item in changed if item["more"] and had_patient[item["key"]]]
    take_from_patients(connection, UnitKind.SAMPLE, moved)
    return bool(new or changed)


# --- sequences ---------------------------------------------------------------------------------------------------


def store_sequences(connection: Connection, items: Sequence[SequenceItem]) -> list[Stored]:
    """Note sequences, each once per name, content and patient; what happened to each, in order.

    A sequence that was nobody's is given to the patient whom it comes with now; one that comes without a patient is
    unchanged when it is there already, whoever it belongs to.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SEQUENCE_LOCK})
    owners = _owners(connection, {(item.sequence.name, item.sequence.sha256) for item in items})
    outcomes: list[Stored] = []
    new: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    received = now_us()
    for item in items:
        sequence = item.sequence
        mine = owners.setdefault((sequence.name, sequence.sha256), {})
        if item.patient_id in mine or (item.patient_id is None and mine):
            outcomes.append("unchanged")
            continue
        outcomes.append("stored")
        nobodys = mine.pop(None, None)
        mine[item.patient_id] = row = nobodys or {}
        if "key" in row:
            given.append(row | {"owner": item.patient_id})
        elif nobodys is not None:  # it came without a patient earlier in this batch
            row["patient_id"] = item.patient_id
        else:
            row |= {
                "name": sequence.name,
                "sha256": sequence.sha256,
                "length": len(sequence.bases),
                "bases": sequence.bases,
                "patient_id": item.patient_id,
                "revision": 0,
                "received_us": received,
            }
            new.append(row)
    if new:
        connection.execute(insert(SequenceRow), new)
    if given:
        connection.execute(
            update(SequenceRow)
            .where(SequenceRow.id == bindparam("key"))
            .values(patient_id=bindparam("owner"), revision=SequenceRow.revision + 1),
            given,
        )
    return outcomes


def _owners(connection: Connection, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], dict[int | None, Any]]:
    """Of each (name, sha256) in the store: the patients it belongs to, with its id."""
    owners: dict[tuple[str, str], dict[int | None, Any]] = {}
    for chunk in _chunks(sorted({digest for _, digest in wanted})):
        query = select(SequenceRow.id, SequenceRow.name, SequenceRow.sha256, SequenceRow.patient_id)
        query = query.where(SequenceRow.resource_id.is_(None))  # those of FHIR resources are their own
        for row in connection.execute(query.where(SequenceRow.sha256.in_(chunk))):
            if (row.name, row.sha256) in wanted:
                owners.setdefault((row.name, row.sha256), {})[row.patient_id] = {"key": row.id}
    return owners


def due_sequences(connection: Connection, spec: SequenceInput, *, as_of: Instant, model_id: int) -> list[DueUnit]:
    """Sequences long enough for the model that it has not been given yet, as far as they were there at ``as_of``.

    The prediction time is when the sequence was received, whenever this is asked. The patient is part of the key: a
    sequence that turns out to be somebody's is scored again, so that its result finds its way.
    """
    columns = (SequenceRow.id, SequenceRow.revision, SequenceRow.sha256, SequenceRow.patient_id)
    query = (
        select(*columns, SequenceRow.received_us)
        .where(SequenceRow.length >= spec.length, SequenceRow.received_us <= as_of.utc_us)
        .where(not_yet_seen(model_id, UnitKind.SEQUENCE, SequenceRow.id, SequenceRow.revision))
        .order_by(SequenceRow.id)
    )
    return [
        DueUnit(
            unit=Unit(kind=UnitKind.SEQUENCE, id=row.id),
            revision=row.revision,
            input_key=digest_of("sequence", row.sha256, row.patient_id or ""),
            prediction_time=Instant(utc_us=row.received_us),
        )
        for row in connection.execute(query)
    ]


def sequences_too_short(connection: Connection, spec: SequenceInput, *, as_of: Instant) -> int:
    """How many sequences a model is not given because they have fewer bases than it reads."""
    short = and_(SequenceRow.length < spec.length, SequenceRow.received_us <= as_of.utc_us)
    return connection.execute(select(func.count(SequenceRow.id)).where(short)).scalar_one()


# --- which samples are new to a model ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScope:
    """What the cases of samples are made with besides their files: digests, of which a change makes new cases.

    ``reference`` is the identity of the reference genome, empty where there is none. ``regions`` is the digest of the
    regions wanted, empty where nothing is said of them: then a small file goes whole (``whole``), and no other does.
    """

    reference: str
    regions: str
    whole: str

    def takes(self, records: int) -> bool:
        """Whether it is said what of a file of so many records is wanted."""
        return bool(self.regions) or records <= WHOLE_RECORDS

    def key(self, sample: StoredSample) -> str:
        """The input_key of a sample's case. The patient is part of it: given to another, it is scored again."""
        regions = self.regions or (self.whole if self.takes(sample.records) else "none")
        owner = sample.patient_id or ""
        return digest_of("sample", sample.sha256, sample.name, owner, self.reference, regions)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """A sample of a variant file, and where that lies: in place under ``path``, else in the object store.

    ``build`` is the file's assembly and ``index`` the SHA-256 of its CSI index, both None where there is none.
    ``withdrawn_us`` is when the file was withdrawn, None of one that stands.
    """

    id: int
    name: str
    patient_id: int | None
    sha256: str
    records: int
    build: str | None
    index: str | None
    path: str | None
    revision: int
    received_us: int
    withdrawn_us: int | None


def due_samples(
    connection: Connection, spec: SequenceInput, scope: SampleScope, *, as_of: Instant, model_id: int
) -> Iterator[DueUnit]:
    """Samples of standing files on the model's assembly that it was not given yet as they would be read now.

    The prediction time is when the file was received. Of one that was taken in before that was kept it is ``as_of``.
    """
    seen = select(JobRow.unit_id, JobRow.unit_revision, JobRow.input_key)
    seen = seen.where(JobRow.model_id == model_id, JobRow.unit_kind == str(UnitKind.SAMPLE), ~JobRow.superseded)
    known = {tuple(row) for row in connection.execute(seen)}
    query = samples_query().where(VariantFileRow.build == spec.assembly, _stood(as_of))
    for row in connection.execute(query.order_by(SampleRow.id)):
        sample = StoredSample(**row._mapping)
        key = scope.key(sample)
        if (sample.id, sample.revision, key) not in known:
            yield DueUnit(
                unit=Unit(kind=UnitKind.SAMPLE, id=sample.id),
                revision=sample.revision,
                input_key=key,
                prediction_time=Instant(utc_us=sample.received_us or as_of.utc_us),
            )


def samples_elsewhere(connection: Connection, assemblies: Collection[str | None], *, as_of: Instant) -> tuple[int, int]:
    """How many samples no model of these assemblies is given: those of files that do not tell theirs, or another."""
    query = (
        select(VariantFileRow.build, func.count(SampleRow.id))
        .join(SampleRow, SampleRow.variant_file_id == VariantFileRow.id)
        .where(_stood(as_of))
        .group_by(VariantFileRow.build)
    )
    counted: Counter[str] = Counter()
    for build, count in connection.execute(query):
        if why := elsewhere(build, assemblies):
            counted[why] += count
    return counted[UNKNOWN_ASSEMBLY], counted[OTHER_ASSEMBLY]


def elsewhere(build: str | None, assemblies: Collection[str | None]) -> str | None:
    """Why samples of a file of this assembly are not given to models of these; None where they may be."""
    if build is None:
        return UNKNOWN_ASSEMBLY
    return None if build in assemblies else OTHER_ASSEMBLY


def _stood(as_of: Instant) -> ColumnElement[bool]:
    """Files that had been received and are not withdrawn: what was never right is not given for any moment."""
    return and_(VariantFileRow.withdrawn_us.is_(None), VariantFileRow.received_us <= as_of.utc_us)


def load_samples(connection: Connection, ids: Sequence[int]) -> dict[int, StoredSample]:
    """These samples, by id; one that is gone is left out."""
    found: dict[int, StoredSample] = {}
    for chunk in _chunks(sorted(set(ids))):
        for row in connection.execute(samples_query().where(SampleRow.id.in_(chunk))):
            found[row.id] = StoredSample(**row._mapping)
    return found


def samples_query() -> Any:
    """Every sample as a `StoredSample`, by column."""
    file = (VariantFileRow.sha256, VariantFileRow.records, VariantFileRow.build, VariantFileRow.index)
    return (
        select(SampleRow.id, SampleRow.name, SampleRow.patient_id, SampleRow.revision)
        .add_columns(*file, VariantFileRow.path, VariantFileRow.received_us, VariantFileRow.withdrawn_us)
        .join(VariantFileRow, VariantFileRow.id == SampleRow.variant_file_id)
    )


def load_sequences(connection: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The bases of these sequences, by id; one that is gone is left out."""
    bases: dict[int, str] = {}
    for chunk in _chunks(sorted(set(ids))):
        query = select(SequenceRow.id, SequenceRow.bases).where(SequenceRow.id.in_(chunk), SequenceRow.length > 0)
        bases.update((row.id, row.bases) for row in connection.execute(query))
    return bases


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
