"""FHIR resources as received, and the rows derived from them: encounters, measurements, facts, sequences, names.

A chunk of resources is written with a handful of bulk statements. Rows of a resource are replaced as a group, but for
measurements that were known before (`medflow.store.corrections`); an older version never overwrites a newer one; a
deleted resource loses its content and its rows, and leaves a tombstone so that what was deleted does not come back with
the next load of old files.

`medflow.store.packed` does per resource what needs no database, in any process; `medflow.store.versions` says which
version of one stands; `ClinicalWriter` does the rest in the process that writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, select, text, update

from medflow.errors import InputRejected
from medflow.records import Coding, Patient, fhir_identifier
from medflow.store.bulk import Growth, among, insert_rows
from medflow.store.corrections import Newer, Place, retire
from medflow.store.packed import Code, Packed
from medflow.store.patients import resolve_patients
from medflow.store.resource_sequences import Held, follow_specimens, owners_of, replace_sequences
from medflow.store.specimens import NAMED, former_owners, release_samples_of, replace_names
from medflow.store.tables import (
    CodedFactRow,
    ConceptRow,
    EncounterRow,
    FhirResourceRow,
    MeasurementRow,
    PatientRow,
)
from medflow.store.versions import (
    Outcome,
    Stored,
    by_type,
    chunks_of,
    content_of,
    decide,
    existing_resources,
    late_versions,
    settle_tombstones,
    without_repeats,
)

WRITER_LOCK = 0x6D656467  # advisory lock of PostgreSQL: one writer of records at a time


@dataclass(slots=True)
class _Chunk:
    """Resources to be written, each (type, id) once, with the surrogate ids found for what they name.

    ``late`` are older versions of which only the measurements are kept, for the time that they were known.
    """

    chosen: list[Packed]
    existing: dict[tuple[str, str], Stored]
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
        for part in without_repeats(resources):
            outcomes.extend(self._write(connection, part))
        return outcomes

    def _write(self, connection: Connection, resources: Sequence[Packed]) -> list[Outcome | InputRejected]:
        keys = [(item.type, item.id) for item in resources]
        existing = existing_resources(connection, self._source, keys)
        outcomes: list[Outcome | InputRejected] = [Outcome.STORED] * len(resources)
        for index, key in enumerate(keys if existing else ()):
            stored = existing.get(key)
            if stored is not None:
                outcomes[index] = decide(resources[index], stored, met=stored.id in self._met)
                if not isinstance(outcomes[index], InputRejected):
                    self._met.add(stored.id)
        settle_tombstones(connection, resources, existing)
        late = late_versions(connection, resources, outcomes, existing)
        patients = self._resolve(connection, resources, outcomes, [item for item, _ in late])
        chosen = [item for item, outcome in zip(resources, outcomes, strict=True) if outcome is Outcome.STORED]
        if chosen or late:
            chunk = _Chunk(chosen=chosen, existing=existing, patients=patients, late=late)
            self._drop_rows(connection, chunk)
            self._encounters(connection, chunk)
            named = [existing.get((item.type, item.id)) for item in chosen if item.type in NAMED]
            former = former_owners(connection, [stored.id for stored in named if stored is not None])
            self._resources(connection, chunk)
            self._intern(connection, chunk)
            self._measurements(connection, chunk)
            self._facts(connection, chunk)
            self._genomics(connection, chunk, former)
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
        named = sorted(_subjects(about))
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
        for item in chunk.chosen if chunk.existing else ():
            stored = chunk.existing.get((item.type, item.id))
            if stored is not None:
                rows = item.measurements
                newer[stored.id] = Newer(
                    known_us=min(row.available_us for row in rows) if rows else None,
                    patient_id=chunk.patients[rows[0].subject] if rows else None,
                )
        for patient_id, encounter_id in retire(connection, newer):
            chunk.touch(patient_id, encounter_id)
        for ids in chunks_of(list(newer)):
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
        for part in chunks_of(names):
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
            rows.append((key, self._source, *content_of(item, None), item.deleted, patient_id, item.type, item.id))
        columns = "id source version last_updated_us sha256 raw deleted patient_id type fhir_id"
        insert_rows(connection, FhirResourceRow, columns, rows)
        changed = []
        for item in chunk.chosen:
            stored = chunk.existing.get((item.type, item.id))
            if stored is not None:
                chunk.ids[item.type, item.id] = stored.id
                names = ("new_version", "new_last_updated_us", "new_sha256", "new_raw")
                content = dict(zip(names, content_of(item, stored), strict=True))
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
        chunk.touched_patients |= {row[2] for row in rows}
        chunk.touched_encounters |= {row[3] for row in rows} - {None}
        for row in rows:
            patient_id, available_us = row[2], row[7]
            if available_us > chunk.latest_us.get(patient_id, 0):
                chunk.latest_us[patient_id] = available_us
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

    def _genomics(self, connection: Connection, chunk: _Chunk, former: set[tuple[str, int]]) -> None:
        """What specimens and orders are called, and were (``former``), and the sequences that came as resources."""
        replace_names(
            connection, {chunk.ids[item.type, item.id]: item.names for item in chunk.chosen if item.type in NAMED}
        )
        release_samples_of(connection, self._source, former)
        sequences = [item for item in chunk.chosen if item.type == "MolecularSequence"]
        owners = owners_of(connection, self._source, (item.specimen for item in sequences if item.specimen))
        replace_sequences(
            connection,
            {
                chunk.ids[item.type, item.id]: Held(
                    sequence=item.sequence,
                    patient_id=owners.get(item.specimen) if item.specimen else chunk.patients.get(item.subject or ""),
                    specimen=item.specimen,
                )
                for item in sequences
            },
        )
        follow_specimens(connection, self._source, [item.id for item in chunk.chosen if item.type == "Specimen"])


def _measurement_rows(
    chunk: _Chunk, item: Packed, resource_id: int, place: Place | None = None
) -> Iterator[tuple[Any, ...]]:
    """The rows of a resource's measurements; of an older version at its ``place``."""
    ordinal, step, until_us = (0, 1, None) if place is None else (place.ordinal, -1, place.until_us)
    for (
        subject,
        encounter,
        code,
        effective_us,
        offset,
        available_us,
        status,
        value,
        unit,
        answer,
        *marks,
    ) in item.measurements:
        yield (
            resource_id,
            ordinal,
            chunk.patients[subject],
            None if encounter is None else chunk.encounters[encounter],
            chunk.concepts[code],
            effective_us,
            offset,
            available_us,
            until_us,
            status,
            value,
            unit,
            None if answer is None else chunk.concepts[answer],
            *marks,
        )
        ordinal += step


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


def _subjects(items: Sequence[Packed]) -> set[str]:
    """Everybody that these resources are about."""
    found = {item.subject for item in items}
    found |= {row.subject for item in items for row in item.measurements}
    found |= {row.subject for item in items for row in item.facts}
    return {subject for subject in found if subject is not None}


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


def _find_concepts(connection: Connection, codes: Sequence[Code]) -> dict[Code, int]:
    found: dict[Code, int] = {}
    for system, part in by_type(codes):
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
    for part in chunks_of(sorted(ids)):
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
