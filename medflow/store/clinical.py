"""FHIR resources as received, and the rows derived from them: encounters, measurements, facts, sequences, names.

A chunk of resources is written with a handful of bulk statements. Rows of a resource are replaced as a group, but for
measurements that were known before (`medflow.store.corrections`); an older version never overwrites a newer one; a
deleted resource loses its content and its rows, and leaves a tombstone so that what was deleted does not come back with
the next load of old files.

`medflow.store.packed` does per resource what needs no database, in any process; `ClinicalWriter` does the rest in the
process that writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, select, text, update

from medflow.errors import InputRejected, RejectCode
from medflow.records import Coding, Patient, fhir_identifier
from medflow.store.bulk import Growth, among, insert_rows
from medflow.store.corrections import Newer, Place, places_of, retire
from medflow.store.packed import Code, Packed
from medflow.store.patients import resolve_patients
from medflow.store.resource_sequences import replace_sequences
from medflow.store.specimens import NAMED, replace_names
from medflow.store.tables import (
    CodedFactRow,
    ConceptRow,
    EncounterRow,
    FhirResourceRow,
    MeasurementRow,
    PatientRow,
)

CHUNK = 2000  # parameters in one IN list
WRITER_LOCK = 0x6D656467  # advisory lock of PostgreSQL: one writer of records at a time


class Outcome(StrEnum):
    """What became of one resource; a rejected one has its `InputRejected` instead."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    OLDER = "older-version"  # unchanged: a newer version, or its deletion, is known


def known_contents(
    connection: Connection, source: str, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, str]]:
    """Surrogate id and SHA-256 of the content known of these (type, id) of a source; what is not known is absent."""
    found = {}
    for kind, chunk in _by_type(keys):
        query = select(FhirResourceRow.fhir_id, FhirResourceRow.id, FhirResourceRow.sha256).where(
            FhirResourceRow.source == source,
            FhirResourceRow.type == kind,
            among(connection, FhirResourceRow.fhir_id, chunk),
        )
        found.update({(kind, fhir_id): (key, digest) for fhir_id, key, digest in connection.execute(query)})
    return found


def has_resources(connection: Connection, source: str) -> bool:
    """Whether anything of this source is stored."""
    query = select(FhirResourceRow.id).where(FhirResourceRow.source == source).limit(1)
    return connection.scalar(query) is not None


def absent_resources(connection: Connection, source: str, references: Iterable[str]) -> Counter[str]:
    """How many of these references are to resources that the source has not sent, by type ("" where unknown).

    ``Type/id`` may be known; an absolute URL or a urn is not.
    """
    keys = [(kind, fhir_id) for kind, _, fhir_id in (item.rpartition("/") for item in references)]
    known = known_contents(connection, source, [key for key in keys if key[0] and "/" not in key[0]])
    return Counter(kind.rpartition("/")[2] for kind, fhir_id in keys if (kind, fhir_id) not in known)


@dataclass(slots=True)
class _Stored:
    """A row of fhir_resource that exists, as far as deciding needs it."""

    id: int
    sha256: str
    version: str | None
    last_updated_us: int | None
    deleted: bool


@dataclass(slots=True)
class _Chunk:
    """Resources to be written, each (type, id) once, with the surrogate ids found for what they name.

    ``late`` are older versions of which only the measurements are kept, for the time that they were known.
    """

    chosen: list[Packed]
    existing: dict[tuple[str, str], _Stored]
    late: list[tuple[Packed, Place]] = field(default_factory=list)
    ids: dict[tuple[str, str], int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    encounters: dict[str, int] = field(default_factory=dict)
    concepts: dict[Code, int] = field(default_factory=dict)
    touched_patients: set[int] = field(default_factory=set)
    touched_encounters: set[int] = field(default_factory=set)
    latest_us: dict[int, int] = field(default_factory=dict)  # by patient: when the last of their values became known

    @property
    def measured(self) -> list[Packed]:
        """Everything whose measurements are written."""
        return [*self.chosen, *(item for item, _ in self.late)]

    def touch(self, patient_id: int | None, encounter_id: int | None) -> None:
        if patient_id is not None:
            self.touched_patients.add(patient_id)
        if encounter_id is not None:
            self.touched_encounters.add(encounter_id)


class ClinicalWriter:
    """Writes chunks of packed resources of one source. Keep one for an ingest: it remembers the concepts' ids.

    After an error its transaction is gone, and so must it be: make another.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._concepts: dict[Code, int] = {}
        self._met = _Bits()
        self._growth = Growth("patient", "patient_identifier", "encounter", "fhir_resource", "measurement")

    def met(self, ids: Iterable[int]) -> None:
        """Note rows of fhir_resource whose content was offered again in this ingest."""
        for key in ids:
            self._met.add(key)

    def write(self, connection: Connection, resources: Sequence[Packed]) -> list[Outcome | InputRejected]:
        """Store resources; what became of each, in order.

        An `InputRejected` is a Patient resource that was refused (AMBIGUOUS_PATIENT, PATIENT_MISMATCH), or a second
        content for one id in the same ingest when nothing says which is newer (IDENTITY_CONFLICT). In a later ingest
        the same would replace the first: what comes later is the update.
        """
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})
        outcomes: list[Outcome | InputRejected] = []
        for part in _without_repeats(resources):
            outcomes.extend(self._write(connection, part))
        return outcomes

    def _write(self, connection: Connection, resources: Sequence[Packed]) -> list[Outcome | InputRejected]:
        existing = _existing(connection, self._source, [(item.type, item.id) for item in resources])
        outcomes: list[Outcome | InputRejected] = []
        for item in resources:
            stored = existing.get((item.type, item.id))
            outcomes.append(_decide(item, stored, met=stored is not None and stored.id in self._met))
            if stored is not None and not isinstance(outcomes[-1], InputRejected):
                self._met.add(stored.id)
        _settle_tombstones(connection, resources, existing)
        late = _late(connection, resources, outcomes, existing)
        patients = self._resolve(connection, resources, outcomes, [item for item, _ in late])
        chosen = [item for item, outcome in zip(resources, outcomes, strict=True) if outcome is Outcome.STORED]
        if chosen or late:
            chunk = _Chunk(chosen=chosen, existing=existing, patients=patients, late=late)
            self._drop_rows(connection, chunk)
            self._encounters(connection, chunk)
            self._resources(connection, chunk)
            self._intern(connection, chunk)
            self._measurements(connection, chunk)
            self._facts(connection, chunk)
            self._genomics(connection, chunk)
            _bump(connection, PatientRow, chunk.touched_patients)
            _raise_latest(connection, chunk.latest_us)
            _bump(connection, EncounterRow, chunk.touched_encounters)
            self._growth.add(connection, len(chosen))
        return outcomes

    def _resolve(
        self,
        connection: Connection,
        resources: Sequence[Packed],
        outcomes: list[Outcome | InputRejected],
        late: Sequence[Packed],
    ) -> dict[str, int]:
        """Surrogate ids of the patients named by what is to be stored; refused Patients are marked in ``outcomes``."""
        chosen = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.STORED]
        records = [(index, patient) for index in chosen if (patient := resources[index].patient) is not None]
        about = [*(resources[index] for index in chosen), *late]
        named = sorted({subject for item in about for subject in _subjects(item)})
        claims = [patient for _, patient in records]
        claims += [Patient(identifiers=(fhir_identifier(self._source, name),), complete=False) for name in named]
        settled = resolve_patients(connection, claims)
        for (index, _), outcome in zip(records, settled, strict=False):
            if isinstance(outcome, InputRejected):
                outcomes[index] = outcome
        return {
            name: patient_id
            for name, patient_id in zip(named, settled[len(records) :], strict=True)
            if isinstance(patient_id, int)
        }

    def _drop_rows(self, connection: Connection, chunk: _Chunk) -> None:
        """Remove what was derived from earlier versions, but for values that were known until now; note whose it was.

        A version that measures nothing (deleted, entered in error, emptied) takes back all that was ever known of it.
        """
        newer: dict[int, Newer] = {}
        for item in chunk.chosen:
            stored = chunk.existing.get((item.type, item.id))
            if stored is not None:
                rows = item.measurements
                newer[stored.id] = Newer(
                    known_us=min(row.available_us for row in rows) if rows else None,
                    patient_id=chunk.patients[rows[0].subject] if rows else None,
                )
        for patient_id, encounter_id in retire(connection, newer):
            chunk.touch(patient_id, encounter_id)
        for ids in _chunks(list(newer)):
            query = select(CodedFactRow.patient_id, CodedFactRow.encounter_id).where(CodedFactRow.resource_id.in_(ids))
            for patient_id, encounter_id in connection.execute(query.distinct()):
                chunk.touch(patient_id, encounter_id)
            connection.execute(delete(CodedFactRow).where(CodedFactRow.resource_id.in_(ids)))

    def _encounters(self, connection: Connection, chunk: _Chunk) -> None:
        """Find the encounters named, make placeholders of those not seen yet, and write those that are in the chunk."""
        named: dict[str, int | None] = {}
        for item in chunk.measured:
            for row in (*item.measurements, *item.facts):
                if row.encounter is not None and row.encounter not in named:
                    named[row.encounter] = chunk.patients.get(row.subject or "")
            if item.type == "Encounter":
                named[item.id] = chunk.patients.get(item.subject or "")
        if not named:
            return
        chunk.encounters = self._known_encounters(connection, list(named))
        new = [
            {"source": self._source, "fhir_id": name, "patient_id": patient_id, "types": []}
            for name, patient_id in named.items()
            if name not in chunk.encounters
        ]
        if new:
            connection.execute(insert(EncounterRow), new)
            chunk.encounters |= self._known_encounters(connection, [row["fhir_id"] for row in new])
        changed = [item for item in chunk.chosen if item.type == "Encounter"]
        if changed:
            connection.execute(
                update(EncounterRow)
                .where(EncounterRow.id == bindparam("key"))
                .values(
                    {
                        name: func.coalesce(bindparam("new_patient_id", type_=BigInteger), EncounterRow.patient_id)
                        if name == "patient_id"
                        else bindparam(f"new_{name}")
                        for name in _encounter_columns(changed[0], None)
                    }
                ),
                [
                    {
                        "key": chunk.encounters[item.id],
                        **{
                            f"new_{name}": value
                            for name, value in _encounter_columns(item, chunk.patients.get(item.subject or "")).items()
                        },
                    }
                    for item in changed
                ],
            )
        for item in changed:
            chunk.touch(chunk.patients.get(item.subject or ""), chunk.encounters[item.id])

    def _known_encounters(self, connection: Connection, names: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in _chunks(names):
            query = select(EncounterRow.fhir_id, EncounterRow.id).where(
                EncounterRow.source == self._source, among(connection, EncounterRow.fhir_id, part)
            )
            found.update({fhir_id: key for fhir_id, key in connection.execute(query)})
        return found

    def _resources(self, connection: Connection, chunk: _Chunk) -> None:
        new = [item for item in chunk.chosen if (item.type, item.id) not in chunk.existing]
        rows = []
        for key, item in zip(_new_ids(connection, len(new)), new, strict=True):
            chunk.ids[item.type, item.id] = key
            self._met.add(key)
            patient_id = chunk.patients.get(item.subject or "")
            rows.append((key, self._source, *_content(item, None), item.deleted, patient_id, item.type, item.id))
        columns = "id source version last_updated_us sha256 raw deleted patient_id type fhir_id"
        insert_rows(connection, FhirResourceRow, columns, rows)
        changed = []
        for item in chunk.chosen:
            stored = chunk.existing.get((item.type, item.id))
            if stored is not None:
                chunk.ids[item.type, item.id] = stored.id
                names = ("new_version", "new_last_updated_us", "new_sha256", "new_raw")
                content = dict(zip(names, _content(item, stored), strict=True))
                patient_id = chunk.patients.get(item.subject or "")
                changed.append({"key": stored.id, **content, "new_deleted": item.deleted, "new_patient_id": patient_id})
        if changed:
            names = ("version", "last_updated_us", "sha256", "raw", "deleted")
            values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
            # a deletion names no subject: it stays about whom it was
            values["patient_id"] = func.coalesce(
                bindparam("new_patient_id", type_=BigInteger), FhirResourceRow.patient_id
            )
            connection.execute(
                update(FhirResourceRow).where(FhirResourceRow.id == bindparam("key")).values(values), changed
            )

    def _intern(self, connection: Connection, chunk: _Chunk) -> None:
        """Surrogate ids of every code in the chunk."""
        items = chunk.measured
        codes = {row.code for item in items for row in (*item.measurements, *item.facts)}
        codes |= {row.value_code for item in items for row in item.measurements if row.value_code is not None}
        chunk.concepts = self._concepts
        missing = sorted(codes - self._concepts.keys())
        if not missing:
            return
        self._concepts |= _find_concepts(connection, missing)
        missing = [code for code in missing if code not in self._concepts]
        if missing:
            displays = {(system, code): name for item in items for system, code, name in item.displays}
            connection.execute(
                insert(ConceptRow),
                [{"system": code[0], "code": code[1], "display": displays.get(code)} for code in missing],
            )
            self._concepts |= _find_concepts(connection, missing)

    def _measurements(self, connection: Connection, chunk: _Chunk) -> None:
        rows: list[tuple[Any, ...]] = []
        for item in chunk.chosen:
            if item.measurements:
                rows.extend(_measurement_rows(chunk, item, chunk.ids[item.type, item.id]))
        for item, place in chunk.late:
            if chunk.patients.get(item.measurements[0].subject) == place.patient_id:  # else it was corrected since
                rows.extend(_measurement_rows(chunk, item, place.resource_id, place))
        columns = (
            "resource_id ordinal patient_id encounter_id concept_id effective_us effective_offset available_us "
            "until_us status value unit value_concept_id mark_1 mark_2"
        )
        insert_rows(connection, MeasurementRow, columns, rows)

    def _facts(self, connection: Connection, chunk: _Chunk) -> None:
        rows = []
        for item in chunk.chosen:
            for ordinal, row in enumerate(item.facts):
                patient_id = chunk.patients.get(row.subject or "")
                encounter_id = None if row.encounter is None else chunk.encounters[row.encounter]
                chunk.touch(patient_id, encounter_id)
                rows.append(
                    (
                        chunk.ids[item.type, item.id],
                        ordinal,
                        row.kind,
                        patient_id,
                        encounter_id,
                        chunk.concepts[row.code],
                        row.start_us,
                        row.end_us,
                        row.recorded_us,
                        row.status,
                    )
                )
        columns = "resource_id ordinal kind patient_id encounter_id concept_id start_us end_us recorded_us status"
        insert_rows(connection, CodedFactRow, columns, rows)

    def _genomics(self, connection: Connection, chunk: _Chunk) -> None:
        """What specimens and orders are called, and the sequences that came as resources."""
        replace_names(
            connection, {chunk.ids[item.type, item.id]: item.names for item in chunk.chosen if item.type in NAMED}
        )
        replace_sequences(
            connection,
            {
                chunk.ids[item.type, item.id]: (item.sequence, chunk.patients.get(item.subject or ""))
                for item in chunk.chosen
                if item.type == "MolecularSequence"
            },
        )


def _measurement_rows(
    chunk: _Chunk, item: Packed, resource_id: int, place: Place | None = None
) -> Iterator[tuple[Any, ...]]:
    """The rows of a resource's measurements; of an older version at its ``place``."""
    first, step, until_us = (0, 1, None) if place is None else (place.ordinal, -1, place.until_us)
    for count, row in enumerate(item.measurements):
        patient_id = chunk.patients[row.subject]
        encounter_id = None if row.encounter is None else chunk.encounters[row.encounter]
        chunk.touch(patient_id, encounter_id)
        if row.available_us > chunk.latest_us.get(patient_id, 0):
            chunk.latest_us[patient_id] = row.available_us
        yield (
            resource_id,
            first + step * count,
            patient_id,
            encounter_id,
            chunk.concepts[row.code],
            row.effective_us,
            row.effective_offset,
            row.available_us,
            until_us,
            row.status,
            row.value,
            row.unit,
            None if row.value_code is None else chunk.concepts[row.value_code],
            row.mark_1,
            row.mark_2,
        )


# --- deciding ----------------------------------------------------------------------------------------------------


def _decide(offered: Packed, stored: _Stored | None, *, met: bool = False) -> Outcome | InputRejected:
    if stored is None:
        return Outcome.STORED
    if offered.deleted and stored.deleted:
        return Outcome.UNCHANGED
    if not offered.deleted and stored.sha256 == offered.sha256:
        return Outcome.UNCHANGED  # a tombstone remembers what was deleted
    age = _compare(offered, stored)
    if age < 0:
        return Outcome.OLDER
    if age == 0 and not offered.deleted:
        if stored.deleted and not stored.sha256:
            return Outcome.OLDER  # deleted before it was ever seen
        if met and not stored.deleted:
            reason = "another content with this type and id came in the same ingest, and nothing says which is newer"
            return InputRejected(RejectCode.IDENTITY_CONFLICT, reason, resource_id=stored.id)
    return Outcome.STORED


def _compare(one: Packed, other: _Stored) -> int:
    """Negative: ``one`` is older; by meta.versionId if both are numbers, else by meta.lastUpdated; 0 if unknown."""
    if one.version and other.version and one.version.isdecimal() and other.version.isdecimal():
        difference = int(one.version) - int(other.version)
        if difference:
            return difference
    if one.last_updated_us is None or other.last_updated_us is None:
        return 0
    return one.last_updated_us - other.last_updated_us


class _Bits:
    """A set of whole numbers that are dense: one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> None:
        place = number >> 3
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits) + (len(self._bits) >> 2)))
        self._bits[place] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] & (1 << (number & 7)))


def _settle_tombstones(
    connection: Connection, resources: Sequence[Packed], existing: dict[tuple[str, str], _Stored]
) -> None:
    """A deletion that came before its resource learns what was deleted, so that only that stays away."""
    learned = [
        {"key": stored.id, "new_sha256": item.sha256}
        for item in resources
        if (stored := existing.get((item.type, item.id))) is not None
        and stored.deleted
        and not stored.sha256
        and not item.deleted
        and _decide(item, stored) is Outcome.OLDER
    ]
    if learned:
        statement = update(FhirResourceRow).where(FhirResourceRow.id == bindparam("key"))
        connection.execute(statement.values(sha256=bindparam("new_sha256")), learned)


def _late(
    connection: Connection,
    resources: Sequence[Packed],
    outcomes: Sequence[Outcome | InputRejected],
    existing: dict[tuple[str, str], _Stored],
) -> list[tuple[Packed, Place]]:
    """Older versions that came after newer ones, and where their measurements belong."""
    older = {
        existing[item.type, item.id].id: item
        for item, outcome in zip(resources, outcomes, strict=True)
        if outcome is Outcome.OLDER and item.measurements
    }
    if not older:
        return []
    places = places_of(connection, {key: item.measurements[0].available_us for key, item in older.items()})
    return [(older[key], place) for key, place in places.items()]


def _content(item: Packed, stored: _Stored | None) -> tuple[str | None, int | None, str, bytes]:
    """Version, last update, SHA-256 and bytes of a row; a tombstone keeps the first three of what it was."""
    if item.deleted and stored is not None:
        updated = item.last_updated_us if item.last_updated_us is not None else stored.last_updated_us
        return item.version or stored.version, updated, stored.sha256, b""
    return item.version, item.last_updated_us, item.sha256, item.raw


def _subjects(item: Packed) -> Iterator[str]:
    if item.subject is not None:
        yield item.subject
    for row in (*item.measurements, *item.facts):
        if row.subject is not None:
            yield row.subject


def _encounter_columns(item: Packed, patient_id: int | None) -> dict[str, Any]:
    visit = item.encounter  # None: it was deleted, and is again known only by references
    return {
        "patient_id": patient_id,
        "status": visit.status if visit else None,
        "encounter_class": visit.encounter_class if visit else None,
        "types": [f"{coding.system}|{coding.code}" for coding in visit.types] if visit else [],
        "start_us": visit.start.utc_us if visit and visit.start else None,
        "start_offset": visit.start.offset_min if visit and visit.start else None,
        "end_us": visit.end.utc_us if visit and visit.end else None,
        "discharge_disposition": visit.discharge_disposition if visit else None,
        "priority": _lines(visit.priority) if visit else None,
        "admit_source": _lines(visit.admit_source) if visit else None,
    }


def _lines(codings: Sequence[Coding]) -> str | None:
    """The codings of one element, a line each: any of them may be the one that a model knows."""
    return "\n".join(f"{coding.system}|{coding.code}" for coding in codings) or None


# --- SQL ---------------------------------------------------------------------------------------------------------


def _existing(connection: Connection, source: str, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Stored]:
    table = FhirResourceRow
    found: dict[tuple[str, str], _Stored] = {}
    for kind, part in _by_type(keys):
        query = select(
            table.fhir_id, table.id, table.sha256, table.version, table.last_updated_us, table.deleted
        ).where(table.source == source, table.type == kind, among(connection, table.fhir_id, part))
        for fhir_id, *row in connection.execute(query):
            found[kind, fhir_id] = _Stored(*row)
    return found


def _find_concepts(connection: Connection, codes: Sequence[Code]) -> dict[Code, int]:
    found: dict[Code, int] = {}
    for system, part in _by_type(codes):
        query = select(ConceptRow.code, ConceptRow.id).where(ConceptRow.system == system, ConceptRow.code.in_(part))
        found.update({(system, code): key for code, key in connection.execute(query)})
    return found


def _new_ids(connection: Connection, count: int) -> Sequence[int]:
    """Ids for new rows of fhir_resource; the transaction is the only one that writes there."""
    if not count:
        return ()
    if connection.dialect.name == "postgresql":
        sequence = "pg_get_serial_sequence('fhir_resource', 'id')"
        last = connection.scalar(text(f"SELECT setval({sequence}, nextval({sequence}) + :more)"), {"more": count - 1})
        return range(last - count + 1, last + 1)
    first = (connection.scalar(select(func.max(FhirResourceRow.id))) or 0) + 1
    return range(first, first + count)


def _bump(connection: Connection, row: Any, ids: set[int]) -> None:
    for part in _chunks(sorted(ids)):
        connection.execute(update(row).where(row.id.in_(part)).values(revision=row.revision + 1))


def _raise_latest(connection: Connection, latest_us: dict[int, int]) -> None:
    """Note of these patients until when something of theirs became known."""
    if latest_us:
        new = bindparam("new_latest_us", type_=BigInteger)
        connection.execute(
            update(PatientRow)
            .where(PatientRow.id == bindparam("key"), PatientRow.latest_us < new)
            .values(latest_us=new),
            [{"key": key, "new_latest_us": latest} for key, latest in latest_us.items()],
        )


def _without_repeats(resources: Sequence[Packed]) -> Iterator[Sequence[Packed]]:
    """Parts in order, none of which has two versions of one resource."""
    start, seen = 0, set()
    for index, item in enumerate(resources):
        if (item.type, item.id) in seen:
            yield resources[start:index]
            start, seen = index, set()
        seen.add((item.type, item.id))
    if start < len(resources):
        yield resources[start:]


def _by_type(keys: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Sequence[str]]]:
    groups: dict[str, list[str]] = {}
    for kind, name in keys:
        groups.setdefault(kind, []).append(name)
    for kind, names in groups.items():
        for part in _chunks(names):
            yield kind, part


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
