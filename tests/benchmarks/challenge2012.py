"""PhysioNet Challenge 2012 set A as FHIR R4 NDJSON: real ICU stays for the benchmarks and for training.

    python tests/benchmarks/challenge2012.py SET_A_DIR LOINC_CSV OUT_DIR [--limit N]

writes Patient.ndjson, Encounter.ndjson and Observation.ndjson. Admission is 2012-01-01T00:00:00Z for every stay.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import orjson

ADMISSION = datetime(2012, 1, 1)
SYSTEM = "urn:physionet:challenge-2012"
DESCRIPTORS = {"RecordID", "Age", "Gender", "ICUType"}
MISSING_IF_MINUS_ONE = {"Height", "Weight"}
GENDERS = {0: "female", 1: "male", -1: "unknown"}


@dataclass(slots=True)
class Report:
    """What was written, and the rows that became nothing, by reason."""

    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def convert(set_a: Path, loinc_csv: Path, out: Path, *, limit: int | None = None) -> Report:
    """Convert every ``<RecordID>.txt`` of ``set_a`` (the first ``limit`` by name)."""
    stays = sorted(set_a.glob("[0-9]*.txt"))[:limit]
    if not stays:
        raise SystemExit(f"{set_a} holds no <RecordID>.txt: name the folder that does")
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    observed = _observed(loinc_csv)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((out / f"{name}.ndjson").open("wb", buffering=1 << 20))
            for name in ("Patient", "Encounter", "Observation")
        }
        for path in stays:
            _convert_stay(path.read_text(encoding="ascii"), observed, files, report)
    return report


Observed = dict[str, Callable[[str], bytes]]


def _observed(loinc_csv: Path) -> Observed:
    """For each parameter, what turns a value into the code and value elements of an Observation."""
    with loinc_csv.open(encoding="utf-8", newline="") as file:
        return {row["parameter"]: _element(row) for row in csv.DictReader(file)}


def _element(row: dict[str, str]) -> Callable[[str], bytes]:
    coding = {"system": row["system"], "code": row["code"], "display": row["display"]}
    code = b'"code":' + orjson.dumps({"coding": [coding], "text": row["parameter"]})
    if row["value_kind"] == "boolean":
        return lambda value: code + b',"valueBoolean":' + (b"true" if float(value) else b"false")
    unit = row["unit_ucum"]
    tail = orjson.dumps({"unit": unit, "system": "http://unitsofmeasure.org", "code": unit})[1:]
    return lambda value: code + b',"valueQuantity":{"value":' + orjson.dumps(_number(value)) + b"," + tail


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


@lru_cache(maxsize=4096)
def _moment(text: str) -> bytes:
    hours, minutes = text.split(":")
    return (ADMISSION + timedelta(hours=int(hours), minutes=int(minutes))).isoformat().encode() + b"Z"


def _convert_stay(text: str, observed: Observed, files: dict, report: Report) -> None:
    rows = [line.split(",") for line in text.splitlines()[1:]]
    about = {row[1]: row[2] for row in rows if row[1] in DESCRIPTORS}
    record = about["RecordID"]
    files["Patient"].write(orjson.dumps(_patient(record, about), option=orjson.OPT_APPEND_NEWLINE))
    files["Encounter"].write(orjson.dumps(_encounter(record, about), option=orjson.OPT_APPEND_NEWLINE))
    head = f'{{"resourceType":"Observation","id":"o{record}-'.encode()
    who = f'","status":"final","subject":{{"reference":"Patient/p{record}"}}'.encode()
    who += f',"encounter":{{"reference":"Encounter/e{record}"}},'.encode()
    lines = []
    for number, (time, parameter, value) in enumerate(rows, start=1):
        if parameter in DESCRIPTORS:
            continue
        if parameter in MISSING_IF_MINUS_ONE and float(value) == -1:
            report.left_out["missing (-1)"] += 1
        elif not parameter:
            report.left_out["no parameter name"] += 1
        elif parameter not in observed:
            report.left_out["parameter not in the code map"] += 1
        else:
            at = _moment(time)
            lines.append(
                head + b"%d" % number + who + observed[parameter](value)
                + b',"effectiveDateTime":"' + at + b'","issued":"' + at + b'"}\n'
            )  # fmt: skip
    files["Observation"].write(b"".join(lines))
    report.written.update(Patient=1, Encounter=1, Observation=len(lines))


def _patient(record: str, about: dict[str, str]) -> dict:
    return {
        "resourceType": "Patient",
        "id": f"p{record}",
        "identifier": [{"system": f"{SYSTEM}:record", "value": record}],
        "gender": GENDERS[int(about["Gender"])],
        "birthDate": f"{2012 - int(about['Age'])}-01-01",
    }


def _encounter(record: str, about: dict[str, str]) -> dict:
    return {
        "resourceType": "Encounter",
        "id": f"e{record}",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ACUTE"},
        "type": [{"coding": [{"system": f"{SYSTEM}:icu-type", "code": about["ICUType"]}]}],
        "subject": {"reference": f"Patient/p{record}"},
        "period": {"start": f"{ADMISSION.isoformat()}Z"},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_a", type=Path, metavar="SET_A_DIR")
    parser.add_argument("loinc_csv", type=Path, metavar="LOINC_CSV")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N stays")
    chosen = parser.parse_args()
    report = convert(chosen.set_a, chosen.loinc_csv, chosen.out, limit=chosen.limit)
    sys.stdout.write(f"written: {dict(report.written)}; rows left out: {dict(report.left_out)}\n")


if __name__ == "__main__":
    main()
