"""A valid FHIR R4 resource to medflow's records: pure, no I/O, nothing guessed.

What cannot become a row without guessing (a date without a zone, a value without a patient) stays a stored resource,
and the reading says so in its notes.

Choices the standard leaves open:

- One value gives one `Measurement`, under one code: the first LOINC coding, else the first SNOMED CT one, else the
  first that has a system and a code. Translations are not counted twice in a sum.
- A quantity's unit is its UCUM code. A unit given only as text comes as a UCUM annotation (``{mmHg}``), which equals
  no unit that a model accepts.
- A date without time of day is placed only where a zone is configured: true from the day's start, known at its end.
- Of a MolecularSequence the ``observedSeq`` is read, where ``type`` says dna and every letter is IUPAC's for DNA, as in
  a FASTA. What lies in its repository, or is told by variants of a reference, is not put together.
- Observations that are entered-in-error, cancelled or of unknown status give no measurement, nor do those with a
  modifierExtension, which may turn their meaning round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from medflow.errors import InputRejected, RejectCode
from medflow.fhir.r4 import moment_of
from medflow.records import (
    MAX_BASES,
    NUCLEOTIDES,
    CodedFact,
    Coding,
    Encounter,
    FhirResource,
    Identifier,
    Instant,
    Measurement,
    Patient,
    Sequence,
    fhir_identifier,
)

UCUM = "http://unitsofmeasure.org"
PREFERRED = ("http://loinc.org", "http://snomed.info/sct")
NOT_MEASURED = {"entered-in-error", "cancelled", "unknown"}
CORRECTING = {"amended", "corrected"}
NOT_IN_USE = {"old", "temp"}
BRACES = str.maketrans("{}", "()")
VALUES = frozenset({"valueQuantity", "valueBoolean", "valueInteger", "valueCodeableConcept"})
NAMED = {"Specimen": ("accessionIdentifier",), "ServiceRequest": ("requisition",)}  # further elements with a name
BASES = re.compile(f"[{NUCLEOTIDES}]+")
REFERENCE = re.compile(rb'"reference"\s*:\s*"((?:[^"\\]|\\.)+)"')
COMPACT_REFERENCE = b'"reference":"'
REMEMBERED = 65536  # references and times: those of one patient come together, and many times


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Where a resource comes from, and what its references mean there.

    ``links`` maps the fullUrls of its Bundle to ``Type/id``; ``bases`` are the servers that those fullUrls name, so
    that an absolute reference to one of them is a relative one.
    """

    source: str
    zone: ZoneInfo | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    bases: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A resource as records, what was not derived and why (``notes``), and what it refers to.

    References are ``Type/id``, or as written where that cannot be told (a search, an unknown urn).
    """

    resource: FhirResource
    notes: tuple[str, ...] = ()
    references: frozenset[str] = frozenset()


def read_resource(resource: dict[str, Any], raw: bytes, context: Context, *, id: str | None = None) -> Reading:
    """The records that a resource gives rise to.

    Parameters
    ----------
    resource
        As parsed, valid R4.
    raw
        Its bytes as received.
    context
        Its source, zone and Bundle.
    id
        Stands in for a missing ``Resource.id`` (from its Bundle entry's fullUrl).

    Raises
    ------
    InputRejected
        MISSING_ID.
    """
    its_id = resource.get("id") or id
    if not its_id:
        raise InputRejected(RejectCode.MISSING_ID, "it has no id, nor a fullUrl in its Bundle to take one from")
    kind = resource["resourceType"]
    meta = resource.get("meta", {})
    reader = _Reader(context, resource)
    return Reading(
        resource=FhirResource(
            source=context.source,
            type=kind,
            id=its_id,
            raw=raw,
            sha256=sha256(raw).hexdigest(),
            version=meta.get("versionId"),
            last_updated=_moment(meta.get("lastUpdated"), context.zone),
            subject=its_id if kind == "Patient" else reader.subject(),
            patient=reader.patient(its_id) if kind == "Patient" else None,
            encounter=reader.encounter(its_id) if kind == "Encounter" else None,
            measurements=tuple(reader.measurements()) if kind == "Observation" else (),
            facts=tuple(reader.facts()) if kind in FACTS else (),
            names=tuple(reader.names()) if kind in NAMED else (),
            sequence=reader.sequence(its_id) if kind == "MolecularSequence" else None,
            specimen=reader.specimen() if kind == "MolecularSequence" else None,
        ),
        notes=tuple(reader.notes),
        references=reader.references(raw),
    )


def resolve(reference: str, context: Context) -> str | None:
    """A literal reference as ``Type/id`` of the same source; None for a fragment, a search, or an unknown urn.

    An absolute reference to a server that the Bundle does not name stays as it is: that another server's ``Patient/1``
    is ours would be a guess.
    """
    if context.links:
        plain = _versionless(reference)
        linked = context.links.get(plain) if plain is not None else None
        if linked is not None:
            return linked
    return _unlinked(reference, context.bases)


def _literals(raw: bytes) -> set[bytes]:
    """What stands in a resource's bytes as the value of a "reference"."""
    _, *after = raw.split(COMPACT_REFERENCE)
    if len(after) == raw.count(b'"reference"') and b"\\" not in raw:  # as good as always, and much faster
        return {text[: text.index(b'"')] for text in after} - {b""}
    return set(REFERENCE.findall(raw))


@lru_cache(maxsize=REMEMBERED)
def _text_of(literal: bytes) -> str:
    return orjson.loads(b'"%b"' % literal)


@lru_cache(maxsize=REMEMBERED)
def _unlinked(reference: str, bases: frozenset[str]) -> str | None:
    """As `resolve` where no Bundle says otherwise."""
    plain = _versionless(reference)
    if plain is None:
        return None
    if "://" in plain:
        base, _, rest = plain.rpartition("/")
        base, _, kind = base.rpartition("/")
        return f"{kind}/{rest}" if base in bases else plain
    return plain if plain.count("/") == 1 and ":" not in plain else None


def _versionless(reference: str) -> str | None:
    """Without its version; None for a fragment or a search."""
    if reference.startswith("#") or "?" in reference:
        return None
    return reference.split("/_history/")[0]


@lru_cache(maxsize=REMEMBERED)
def _kind_and_id(found: str) -> tuple[str, str]:
    """Of a resolved reference; an unknown server's is its own id."""
    kind, its_id = found.split("/")[-2:]
    return kind, found if "://" in found else its_id


@dataclass(slots=True)
class _Reader:
    context: Context
    resource: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    # --- references ------------------------------------------------------------------------------------------

    def references(self, raw: bytes) -> frozenset[str]:
        """Every reference to something outside the resource, resolved if it can be; found in its bytes, for speed."""
        texts = [_text_of(literal) for literal in _literals(raw)]
        return frozenset([resolve(text, self.context) or text for text in texts if not text.startswith("#")])

    def target(self, element: Any, kind: str) -> str | None:
        """The id of the ``kind`` that a Reference is to; an unknown server's reference is its own id."""
        literal = element.get("reference") if isinstance(element, dict) else None
        found = resolve(literal, self.context) if literal else None
        if found is None:
            return None
        its_kind, its_id = _kind_and_id(found)
        return its_id if its_kind == kind else None

    def subject(self) -> str | None:
        for name in ("subject", "patient", "for", "beneficiary"):
            if name in self.resource:
                return self.target(self.resource[name], "Patient")
        return None

    def visit(self) -> str | None:
        return self.target(self.resource.get("encounter") or self.resource.get("context"), "Encounter")

    # --- times -----------------------------------------------------------------------------------------------

    def when(self, name: str) -> tuple[Instant | None, Instant | None]:
        """Start and end of a choice of dateTime, instant, or Period, as far as they can be placed."""
        period = self.resource.get(f"{name}Period", {})
        single = self.resource.get(f"{name}DateTime") or self.resource.get(f"{name}Instant")
        start = self.placed(single or period.get("start"))
        end = self.placed(single or period.get("end"), end_of_day=True)
        return start, end

    def placed(self, text: str | None, *, end_of_day: bool = False) -> Instant | None:
        found = _moment(text, self.context.zone, end_of_day)
        if text is not None and found is None and not end_of_day:
            self.notes.append("date-without-day" if len(text) < 10 else "date-without-zone")
        return found

    # --- resources -------------------------------------------------------------------------------------------

    def patient(self, id: str) -> Patient:
        found = [fhir_identifier(self.context.source, id)]
        for item in self.resource.get("identifier", []):
            if item.get("use") in NOT_IN_USE or not item.get("value"):
                continue
            if not item.get("system"):
                self.notes.append("identifier-without-system")
                continue
            found.append(Identifier(system=item["system"], value=item["value"]))
        born = self.resource.get("birthDate", "")
        deceased = self.resource.get("deceasedBoolean")
        return Patient(
            identifiers=tuple(dict.fromkeys(found)),
            birth_date=date.fromisoformat(born) if len(born) == 10 else None,
            sex=self.resource.get("gender"),
            deceased=True if "deceasedDateTime" in self.resource else deceased,
        )

    def encounter(self, id: str) -> Encounter:
        period = self.resource.get("period", {})
        stay = self.resource.get("hospitalization", {})
        disposition = _coding(stay.get("dischargeDisposition"))
        return Encounter(
            id=id,
            subject=self.subject(),
            status=self.resource.get("status", "unknown"),
            encounter_class=self.resource.get("class", {}).get("code"),
            types=tuple(coding for item in self.resource.get("type", []) for coding in _codings(item)),
            start=self.placed(period.get("start")),
            end=_moment(period.get("end"), self.context.zone, True),
            discharge_disposition=disposition.code if disposition else None,
            priority=tuple(_codings(self.resource.get("priority"))),
            admit_source=tuple(_codings(stay.get("admitSource"))),
        )

    def measurements(self) -> Iterator[Measurement]:
        observed = self.resource
        if observed.get("status") in NOT_MEASURED:
            return
        if "modifierExtension" in observed:
            self.notes.append("modifier-extension")
            return
        valued = [item for item in (observed, *observed.get("component", [])) if _has_value(item)]
        if not valued:
            return
        subject = self.subject()
        if subject is None:
            self.notes.append("subject-not-a-patient")
            return
        start, end = self.when("effective")
        effective = start if "effectivePeriod" not in observed else end or start
        if effective is None:
            self.notes.append("no-effective-time")
            return
        available = self.known(end or effective)
        visit = self.visit()
        for item in valued:
            codes = _codings(item.get("code"))
            if not codes:
                self.notes.append("value-without-code")
                continue
            value, unit, answers = self._value(item)
            if value is None and not answers:
                continue
            code, answer = _preferred(codes), _preferred(answers)
            yield Measurement(
                subject=subject,
                encounter=visit,
                code=code or codes[0],
                effective=effective,
                available=max(available, effective, key=_utc_us),
                status=observed["status"],
                value=value,
                unit=unit,
                value_code=answer,
                also=_others(codes, code),
                value_also=_others(answers, answer),
            )

    def known(self, otherwise: Instant) -> Instant:
        """When this version of an Observation was known: ``issued``.

        A correction that does not say when it was issued is not as old as what it corrects: it is known from when its
        server stored it, if that is told.
        """
        issued = _moment(self.resource.get("issued"), self.context.zone)
        if issued is None and self.resource.get("status") in CORRECTING:
            issued = _moment(self.resource.get("meta", {}).get("lastUpdated"), self.context.zone)
        return issued or otherwise

    def _value(self, item: dict[str, Any]) -> tuple[float | None, str | None, list[Coding]]:
        """The value and its unit, or the codings of a coded answer.

        A comparator makes of a value a limit, and of its unit one that no channel takes unasked: FHIR has it as a
        modifier, which nobody may pass over.
        """
        if "modifierExtension" in item:
            self.notes.append("modifier-extension")
            return None, None, []
        if "valueQuantity" in item:
            quantity = item["valueQuantity"]
            if "value" not in quantity:
                return None, None, []
            unit = _unit(quantity)
            if "comparator" in quantity:
                self.notes.append("value-with-comparator")
                unit = f"{quantity['comparator']}{unit or ''}"
            return float(quantity["value"]), unit, []
        if "valueBoolean" in item:
            return float(item["valueBoolean"]), None, []
        if "valueInteger" in item:
            return float(item["valueInteger"]), None, []
        answers = _codings(item.get("valueCodeableConcept"))
        if not answers:
            self.notes.append("value-without-code")
        return None, None, answers

    def facts(self) -> Iterator[CodedFact]:
        kind, element, time_name, recorded_name = FACTS[self.resource["resourceType"]]
        status = self.resource.get("status") or _status(self.resource)
        if status == "entered-in-error":
            return
        concept = self.resource.get(element) or self.resource.get(f"{element}CodeableConcept")
        code = _coding(concept or self._contained(f"{element}Reference"))
        if code is None:
            self.notes.append("fact-without-code")
            return
        start, end = self.when(time_name) if time_name else (None, None)
        if f"{time_name}Period" not in self.resource:
            end = _moment(self.resource.get("abatementDateTime"), self.context.zone, True)
        yield CodedFact(
            kind=kind,
            subject=self.subject(),
            encounter=self.visit(),
            code=code,
            start=start,
            end=end,
            recorded=self.placed(self.resource.get(recorded_name)) if recorded_name else None,
            status=status,
        )

    def names(self) -> Iterator[Identifier]:
        """What a patient's specimen, or the order of its examination, is called; system "" where it states none."""
        if self.resource.get("status") == "entered-in-error" or self.subject() is None:
            return
        if "modifierExtension" in self.resource:
            self.notes.append("modifier-extension")
            return
        given = [*self.resource.get("identifier", [])]
        given += [self.resource[name] for name in NAMED[self.resource["resourceType"]] if name in self.resource]
        named = (item for item in given if item.get("value") and item.get("use") not in NOT_IN_USE)
        yield from dict.fromkeys(Identifier(system=item.get("system", ""), value=item["value"]) for item in named)

    def sequence(self, id: str) -> Sequence | None:
        bases = self.resource.get("observedSeq", "").strip().upper()
        if "modifierExtension" in self.resource:
            reason = "modifier-extension"
        elif self.resource.get("type") != "dna":
            reason = "sequence-not-dna"
        elif not bases:
            reason = "sequence-without-bases"
        elif len(bases) > MAX_BASES:
            reason = "sequence-too-long"
        elif not BASES.fullmatch(bases):
            reason = "sequence-with-other-letters"
        else:
            digest = sha256(bases.encode()).hexdigest()
            return Sequence(name=f"MolecularSequence/{id}", bases=bases, sha256=digest)
        self.notes.append(reason)
        return None

    def specimen(self) -> str | None:
        """What tells whose a sequence is that does not say so itself."""
        return None if "patient" in self.resource else self.target(self.resource.get("specimen"), "Specimen")

    def _contained(self, name: str) -> dict[str, Any] | None:
        literal = self.resource.get(name, {}).get("reference", "")
        for item in self.resource.get("contained", []):
            if literal == f"#{item.get('id')}":
                return item.get("code")
        return None


# resource type: kind of fact, element with the code, element with the time, element with the time of recording
FACTS: dict[str, tuple[str, str, str | None, str | None]] = {
    "AllergyIntolerance": ("allergy", "code", "onset", "recordedDate"),
    "Condition": ("condition", "code", "onset", "recordedDate"),
    "DocumentReference": ("document", "type", None, "date"),
    "Immunization": ("immunization", "vaccineCode", "occurrence", "recorded"),
    "MedicationAdministration": ("medication", "medication", "effective", None),
    "MedicationDispense": ("medication", "medication", None, "whenHandedOver"),
    "MedicationRequest": ("medication", "medication", None, "authoredOn"),
    "MedicationStatement": ("medication", "medication", "effective", "dateAsserted"),
    "Procedure": ("procedure", "code", "performed", None),
}


def _has_value(item: dict[str, Any]) -> bool:
    return not VALUES.isdisjoint(item)


def _status(resource: dict[str, Any]) -> str | None:
    """Of the types that have no status element: verification before clinical status."""
    verified = _coding(resource.get("verificationStatus"))
    if verified is not None and verified.code in ("entered-in-error", "refuted"):
        return verified.code
    clinical = _coding(resource.get("clinicalStatus"))
    return clinical.code if clinical else (verified.code if verified else None)


def _unit(quantity: dict[str, Any]) -> str | None:
    """The UCUM code; a unit that is only text becomes one annotation, which is equal to nothing but itself."""
    if quantity.get("system") == UCUM and quantity.get("code"):
        return quantity["code"]
    text = quantity.get("unit") or quantity.get("code")
    return f"{{{text.translate(BRACES)}}}" if text else None


def _utc_us(moment: Instant) -> int:
    return moment.utc_us


def _codings(concept: dict[str, Any] | None) -> list[Coding]:
    return [
        _one_coding(item["system"], item["code"], item.get("display"))
        for item in (concept or {}).get("coding", [])
        if item.get("system") and item.get("code")
    ]


@lru_cache(maxsize=REMEMBERED)
def _one_coding(system: str, code: str, display: str | None) -> Coding:
    return Coding(system=system, code=code, display=display)


def _coding(concept: dict[str, Any] | None) -> Coding | None:
    """The one coding that stands for a concept."""
    return _preferred(_codings(concept))


def _preferred(found: list[Coding]) -> Coding | None:
    """LOINC, else SNOMED, else what comes first."""
    if len(found) > 1:
        for system in PREFERRED:
            for coding in found:
                if coding.system == system:
                    return coding
    return found[0] if found else None


def _others(found: list[Coding], chosen: Coding | None) -> tuple[Coding, ...]:
    return tuple(coding for coding in found if coding is not chosen) if len(found) > 1 else ()


@lru_cache(maxsize=REMEMBERED)
def _moment(text: str | None, zone: ZoneInfo | None, end_of_day: bool = False) -> Instant | None:
    """The instant of a dateTime, if it can be placed."""
    if text is None or len(text) < 10:
        return None
    moment = moment_of(text)
    if moment is None:
        return None
    if moment.tzinfo is not None:
        return Instant.of(moment)
    if zone is None:
        return None
    if len(text) > 10:
        return Instant.of(moment.replace(tzinfo=zone))
    day = datetime.combine(moment.date() + timedelta(days=end_of_day), time(), tzinfo=zone)
    placed = Instant.of(day)
    return Instant(utc_us=placed.utc_us - 1, offset_min=placed.offset_min) if end_of_day else placed
