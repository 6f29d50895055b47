"""Whose a sample of a VCF file is: by a sample sheet, by specimens and orders that are in the store, or by its name.

The ways are asked in that order, and must not contradict one another: a sample that they give to different patients is
refused, and so is one that none of them knows. Nobody is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medflow.config import Settings
from medflow.errors import InputRejected, RejectCode
from medflow.genomics.sample_sheet import read_sample_sheet
from medflow.records import Identifier, Patient
from medflow.store import Connection
from medflow.store.genomics import Held
from medflow.store.patients import known_patients, resolve_patients
from medflow.store.specimens import Named, has_names, named

SHEET, SPECIMENS, NAME = "the sample sheet", "specimens or orders", "MEDFLOW_SAMPLE_SYSTEM"
BEFORE = "what gave it to its patient before"


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Whose a sample is (None: nobody's that is known), and the Specimen that it was made of with its source."""

    patient_id: int | None = None
    specimen: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What the ways say of one sample: the patients that are known, and an identifier that nobody has yet."""

    patients: Mapping[str, frozenset[int]]
    new: Mapping[str, Identifier]
    specimens: Sequence[Named]
    listed: bool

    def known(self) -> set[int]:
        return {patient for patients in self.patients.values() for patient in patients}

    def names(self, specimen: tuple[str, str]) -> bool:
        """Whether this Specimen still has the sample's name, and says that it is somebody's."""
        return any((item.reference, item.source) == specimen and item.patient_id for item in self.specimens)


class SamplePatients:
    """The ways that are configured; read once for an ingest."""

    def __init__(self, *, sheet: Mapping[str, Identifier] | None, system: str | None) -> None:
        self._sheet, self._system = sheet, system

    @classmethod
    def of(cls, settings: Settings, sheet: Path | None = None) -> SamplePatients:
        """As configured; ``sheet`` goes before the configured one. Raises ConfigurationError for a wrong sheet."""
        path = sheet or settings.sample_sheet
        read = read_sample_sheet(path.expanduser(), settings.source) if path is not None else None
        return cls(sheet=read, system=settings.sample_system)

    def owners(
        self,
        connection: Connection,
        names: Sequence[str],
        held: Mapping[str, Held],
        *,
        contested: Collection[str] = (),
        expected: bool = False,
    ) -> list[Owner | InputRejected]:
        """Whose the samples of these names are, in order; patients that nobody knew are made.

        ``held`` has whose those are that are stored already: one keeps its patient where no way knows better, and only
        a sheet, or the Specimen that it was made of, gives it to another. ``contested`` are those that a sheet gave to
        another patient than the other ways: leaving the sheet out does not settle it.
        Where no way is configured samples are nobody's, unless a patient is ``expected``.
        """
        asked = self._ask(connection, names)
        expected = expected or self._sheet is not None or has_names(connection)
        outcomes: list[Owner | InputRejected] = []
        claims: dict[int, Identifier] = {}
        for number, (name, answer) in enumerate(zip(names, asked, strict=True)):
            before = held.get(name, Held(patient_id=None))
            patients = answer.known()
            if error := _contradiction(answer, before, contested=name in contested):
                outcomes.append(error)
            elif patients:
                (patient_id,) = patients
                outcomes.append(Owner(patient_id=patient_id, specimen=_specimen(answer.specimens, patient_id)))
            elif answer.new:
                claims[number] = next(iter(answer.new.values()))
                outcomes.append(Owner())
            elif before.specimen is not None and not answer.names(before.specimen):
                outcomes.append(_withdrawn())
            elif before.patient_id is None and self._system is not None:
                claims[number] = Identifier(system=self._system, value=name)
                outcomes.append(Owner())
            elif not expected or before.patient_id is not None:
                outcomes.append(Owner())
            else:
                outcomes.append(self._unknown())
        self._claim(connection, claims, outcomes)
        return outcomes

    def _ask(self, connection: Connection, names: Sequence[str]) -> list[_Asked]:
        listed = {name: self._sheet[name] for name in names if self._sheet is not None and name in self._sheet}
        own = {name: Identifier(system=self._system, value=name) for name in names} if self._system else {}
        patients = known_patients(connection, {*listed.values(), *own.values()})
        specimens = named(connection, names)
        asked = []
        for name in names:
            found = specimens.get(name, [])
            answers = {
                SHEET: _one(patients, listed.get(name)),
                SPECIMENS: frozenset(item.patient_id for item in found if item.patient_id is not None),
                NAME: _one(patients, own.get(name)),
            }
            new = {SHEET: listed[name]} if name in listed and not answers[SHEET] else {}
            told = {way: answer for way, answer in answers.items() if answer}
            asked.append(_Asked(patients=told, new=new, specimens=found, listed=name in listed))
        return asked

    def _claim(
        self, connection: Connection, claims: Mapping[int, Identifier], outcomes: list[Owner | InputRejected]
    ) -> None:
        made = resolve_patients(
            connection, [Patient(identifiers=(identifier,), complete=False) for identifier in claims.values()]
        )
        for number, patient in zip(claims, made, strict=True):
            outcomes[number] = patient if isinstance(patient, InputRejected) else Owner(patient_id=patient)

    def _unknown(self) -> InputRejected:
        asked = "neither the sample sheet nor any Specimen or ServiceRequest in the store has its name"
        if self._sheet is None:
            asked = "no Specimen or ServiceRequest in the store has its name, and there is no sample sheet"
        return InputRejected(RejectCode.SAMPLE_UNKNOWN, f"{asked}: add it there, then `medflow retry rejects`")


def _one(patients: Mapping[Identifier, int], identifier: Identifier | None) -> frozenset[int]:
    found = patients.get(identifier) if identifier is not None else None
    return frozenset({found}) if found is not None else frozenset()


def _contradiction(answer: _Asked, before: Held, *, contested: bool) -> InputRejected | None:
    """Why the ways, and what is held of the sample, do not come to one patient."""
    patients = answer.known()
    if len(patients) + len(set(answer.new.values())) > 1:
        return _ambiguous([*answer.patients, *answer.new], sorted(patients))
    if answer.listed:
        return None
    if contested:
        reason = f"{SHEET} gave it to another patient than {SPECIMENS} or its name: list it in the sheet that is used"
        ids = {before.patient_id} if before.patient_id is not None else set()
        return InputRejected(RejectCode.SAMPLE_AMBIGUOUS, reason, patient_ids=sorted(patients | ids))
    moved = before.patient_id is not None and bool(patients - {before.patient_id})
    if moved and before.specimen is None:
        return _ambiguous([BEFORE, *answer.patients], sorted(patients | {before.patient_id or 0}))
    return None


def _withdrawn() -> InputRejected:
    return InputRejected(
        RejectCode.SAMPLE_UNKNOWN,
        "the Specimen that gave it to its patient was withdrawn or changed: say whose it is, then "
        "`medflow retry rejects`",
    )


def _ambiguous(ways: Iterable[str], patient_ids: list[int]) -> InputRejected:
    told = " and ".join(dict.fromkeys(ways))
    reason = f"{told} give it to different patients: correct what is wrong, then `medflow retry rejects`"
    return InputRejected(RejectCode.SAMPLE_AMBIGUOUS, reason, patient_ids=patient_ids)


def _specimen(found: Sequence[Named], patient_id: int) -> tuple[str, str] | None:
    """The one Specimen of the sample's name; of several it is not known which was sequenced."""
    mine = [item for item in found if item.reference.startswith("Specimen/") and item.patient_id == patient_id]
    return (mine[0].reference, mine[0].source) if len(mine) == 1 else None
