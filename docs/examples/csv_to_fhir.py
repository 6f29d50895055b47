"""A hospital's CSV extract as FHIR R4 NDJSON: an example to copy and change.

    python csv_to_fhir.py --stays stays.csv --values values.csv --codes codes.csv --system URI --zone ZONE --out DIR

Three tables, comma-separated, UTF-8, each with a header; columns in any order, others are ignored:

stays.csv   patient, stay, sex, birth_date, admitted, discharged (empty: still there), ward, disposition
values.csv  patient, stay, time, issued (may be missing: as time), code, value, unit: a row for every value
codes.csv   code, unit (as the extract has them), system, fhir_code, display, kind (quantity or boolean), ucum

Every row of values.csv becomes an Observation or is counted, with the reason, as left out; a code or unit that
codes.csv does not list is never guessed. Ids come from what a row is about, not from where it stands: another extract
gives the same value the same id, and a corrected value replaces the earlier one. Nothing but the standard library.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfo

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
DISPOSITION = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
UCUM = "http://unitsofmeasure.org"
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male", "o": "other", "other": "other"}
TRUE, FALSE = {"1", "true", "yes", "y"}, {"0", "false", "no", "n"}

Row = Mapping[str, str]


class LeftOut(Exception):
    """A row that becomes nothing; the text is the reason, and quotes no value."""


@dataclass(slots=True)
class Report:
    """How many resources were written, by type, and how many rows became none, by reason."""

    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extract:
    """What is the same for every row: whose numbers these are, and where its clocks stood.

    ``system`` is a URI of the hospital's own that says whose patient and stay numbers they are, ``ward_system`` one
    that says whose codes of wards; ``zone`` is the time zone of times that come without one.
    """

    system: str
    ward_system: str
    zone: ZoneInfo

    def id(self, *of: str) -> str:
        """A FHIR id that the same thing has in every extract, and that shows no number of a patient."""
        return str(uuid5(NAMESPACE_URL, "|".join((self.system, *of))))

    def moment(self, text: str) -> str:
        """A time of the extract as a FHIR instant.

        Raises
        ------
        LeftOut
            It is no time; or clocks were changed in that hour, so that it was never, or twice.
        """
        try:
            found = datetime.fromisoformat(text.strip())
        except ValueError:
            raise LeftOut("the time is no ISO 8601 time") from None
        if found.tzinfo is None:
            early, late = (found.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
            if early.utcoffset() != late.utcoffset():
                raise LeftOut("the clocks were changed in that hour: the time needs its offset from UTC")
            found = early
        return found.isoformat()


def convert(stays: Path, values: Path, codes: Path, out: Path, *, extract: Extract) -> Report:
    """Write Patient.ndjson, Encounter.ndjson and Observation.ndjson into ``out``, which is made if need be."""
    report = Report()
    out.mkdir(parents=True, exist_ok=True)
    meanings = {(row["code"], row["unit"]): row for row in _rows(codes, "code", "unit", "system", "fhir_code", "kind")}
    with ExitStack() as stack:

        def writer(kind: str) -> Callable[[Any], None]:
            file: IO[str] = stack.enter_context((out / f"{kind}.ndjson").open("w", encoding="utf-8"))

            def write(resource: Any) -> None:
                file.write(json.dumps(resource, ensure_ascii=False, separators=(",", ":")) + "\n")
                report.written[kind] += 1

            return write

        known = _write_stays(stays, extract, writer("Patient"), writer("Encounter"), report)
        write = writer("Observation")
        said: Counter[str] = Counter()
        for row in _rows(values, "patient", "stay", "time", "code", "value", "unit"):
            try:
                write(observation(row, meanings, known, extract, said))
            except LeftOut as reason:
                report.left_out[str(reason)] += 1
    return report


def _write_stays(
    path: Path,
    extract: Extract,
    write_patient: Callable[[Any], None],
    write_encounter: Callable[[Any], None],
    report: Report,
) -> set[tuple[str, str]]:
    """Write patients and stays; returns the (patient, stay) pairs that values may belong to."""
    known: set[tuple[str, str]] = set()
    patients: set[str] = set()
    for row in _rows(path, "patient", "stay", "sex", "birth_date", "admitted", "discharged"):
        try:
            stay = encounter(row, extract)
            person = patient(row, extract)
        except LeftOut as reason:
            report.left_out[f"stay: {reason}"] += 1
            continue
        if row["patient"] not in patients:
            write_patient(person)
        write_encounter(stay)
        patients.add(row["patient"])
        known.add((row["patient"], row["stay"]))
    return known


def patient(row: Row, extract: Extract) -> dict[str, Any]:
    """FHIR Patient. What the extract does not know is left away, never invented."""
    found: dict[str, Any] = {
        "resourceType": "Patient",
        "id": extract.id("patient", row["patient"]),
        "identifier": [{"system": f"{extract.system}/patient", "value": row["patient"]}],
        "gender": SEXES.get(row["sex"].strip().lower(), "unknown"),
    }
    if row["birth_date"].strip():
        found["birthDate"] = _date(row["birth_date"].strip())
    return found


def encounter(row: Row, extract: Extract) -> dict[str, Any]:
    """FHIR Encounter: in progress until the extract says when it ended, and how."""
    if not row["patient"] or not row["stay"]:
        raise LeftOut("no patient or no stay number")
    discharged = row["discharged"].strip()
    found: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": extract.id("stay", row["stay"]),
        "identifier": [{"system": f"{extract.system}/stay", "value": row["stay"]}],
        "status": "finished" if discharged else "in-progress",
        "class": {"system": ACT_CODE, "code": "ACUTE"},
        "subject": {"reference": f"Patient/{extract.id('patient', row['patient'])}"},
        "period": {"start": extract.moment(row["admitted"])},
    }
    if ward := row.get("ward", ""):
        found["type"] = [{"coding": [{"system": extract.ward_system, "code": ward}]}]
    if discharged:
        found["period"]["end"] = extract.moment(discharged)
        if how := row.get("disposition", ""):
            coding = {"system": DISPOSITION, "code": how}  # exp: died; home, snf, other-hcf ...
            found["hospitalization"] = {"dischargeDisposition": {"coding": [coding]}}
    return found


def observation(
    row: Row,
    meanings: Mapping[tuple[str, str], Row],
    known: set[tuple[str, str]],
    extract: Extract,
    said: Counter[str],
) -> dict[str, Any]:
    """FHIR Observation. ``said`` counts the values of one code at one time, which are told apart by their order.

    Raises
    ------
    LeftOut
        With the reason.
    """
    if (row["patient"], row["stay"]) not in known:
        raise LeftOut("the stay is not in the table of stays, or not of this patient")
    meaning = meanings.get((row["code"], row["unit"]))
    if meaning is None:
        listed = any(code == row["code"] for code, _ in meanings)
        raise LeftOut("the unit is not in the code map" if listed else "the code is not in the code map")
    effective = extract.moment(row["time"])
    issued = extract.moment(row["issued"]) if row.get("issued") else effective
    key = extract.id("value", row["stay"], row["code"], effective)
    value = _value(row["value"].strip(), meaning)
    said[key] += 1
    coding = {"system": meaning["system"], "code": meaning["fhir_code"]}
    if display := meaning.get("display"):
        coding["display"] = display
    return {
        "resourceType": "Observation",
        "id": key if said[key] == 1 else f"{key}-{said[key]}",
        "status": "final",
        "code": {"coding": [coding], "text": row["code"]},
        "subject": {"reference": f"Patient/{extract.id('patient', row['patient'])}"},
        "encounter": {"reference": f"Encounter/{extract.id('stay', row['stay'])}"},
        "effectiveDateTime": effective,
        "issued": issued,
        **value,
    }


def _value(text: str, meaning: Row) -> dict[str, Any]:
    if not text:
        raise LeftOut("no value")
    if meaning["kind"] == "boolean":
        if text.lower() not in TRUE | FALSE:
            raise LeftOut("the value is neither true nor false")
        return {"valueBoolean": text.lower() in TRUE}
    try:
        number = float(text)
    except ValueError:
        raise LeftOut("the value is no number") from None
    if not math.isfinite(number):
        raise LeftOut("the value is no number")
    whole = int(number) if number.is_integer() else number
    return {
        "valueQuantity": {
            "value": whole,
            "unit": meaning["unit"] or meaning["ucum"],
            "system": UCUM,
            "code": meaning["ucum"],
        }
    }


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise LeftOut("the date of birth is no ISO 8601 date") from None


def _rows(path: Path, *needed: str) -> Iterator[Row]:
    """The rows of a table, as they are read: it may be larger than memory."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, restval="")
        if missing := sorted(set(needed) - set(table.fieldnames or ())):
            raise SystemExit(
                f"{path} has no column {', '.join(missing)}; its columns: {', '.join(table.fieldnames or ())}"
            )
        yield from table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("stays", "values", "codes"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="CSV")
    parser.add_argument("--system", required=True, help="URI that says whose patient and stay numbers these are")
    parser.add_argument("--ward-system", help="URI that says whose codes of wards these are; SYSTEM/ward otherwise")
    parser.add_argument("--zone", type=ZoneInfo, required=True, help="of times without an offset, e.g. Europe/Berlin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    chosen = parser.parse_args()
    system = chosen.system.rstrip("/")
    extract = Extract(system=system, ward_system=chosen.ward_system or f"{system}/ward", zone=chosen.zone)
    report = convert(chosen.stays, chosen.values, chosen.codes, chosen.out, extract=extract)
    for kind, count in report.written.items():
        sys.stdout.write(f"{count:>9}  {kind} written\n")
    for reason, count in report.left_out.most_common():
        sys.stdout.write(f"{count:>9}  rows left out: {reason}\n")


if __name__ == "__main__":
    main()
