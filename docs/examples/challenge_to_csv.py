"""The files of the PhysioNet/CinC Challenge 2012 as a hospital's CSV extract: real data to try `csv_to_fhir.py` on.

    python challenge_to_csv.py SET_A_DIR LOINC_CSV OUT_DIR [--limit N]

writes stays.csv, values.csv and codes.csv. LOINC_CSV maps the challenge's parameters to codes: columns parameter,
system, code, display, unit_ucum, value_kind. Every stay is said to begin on 2012-01-01 at midnight, and to end, alive
or not, as Outcomes-a.txt says if it lies beside the stays: who was discharged alive is said to have gone home, which
the challenge does not tell. A Height or Weight of -1 is no value.
"""

from __future__ import annotations

import argparse
import csv
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ADMITTED = datetime(2012, 1, 1)
MISSING_IF_MINUS_ONE = frozenset(("Height", "Weight"))
DESCRIPTORS = frozenset(("RecordID", "Age", "Gender", "ICUType"))
SEXES = {"0": "female", "1": "male"}


def extract(set_a: Path, loinc: Path, out: Path, *, limit: int | None = None) -> None:
    """Write the three tables of the stays in ``set_a`` (the first ``limit`` by name)."""
    paths = sorted(set_a.glob("[0-9]*.txt"))[:limit]
    if not paths:
        raise SystemExit(f"{set_a} holds no <RecordID>.txt: name the folder that does")
    out.mkdir(parents=True, exist_ok=True)
    units = _write_codes(loinc, out / "codes.csv")
    ends = _ends(set_a)
    with (out / "stays.csv").open("w", newline="") as stays, (out / "values.csv").open("w", newline="") as values:
        stay_rows, value_rows = csv.writer(stays), csv.writer(values)
        stay_rows.writerow(("patient", "stay", "sex", "birth_date", "admitted", "discharged", "ward", "disposition"))
        value_rows.writerow(("patient", "stay", "time", "code", "value", "unit"))
        for path in paths:
            _write_stay(path, units, ends, stay_rows, value_rows)


def _write_codes(loinc: Path, path: Path) -> dict[str, str]:
    """Write the code map; returns the unit of each parameter, "" where it has none."""
    with loinc.open(encoding="utf-8", newline="") as file:
        known = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("code", "unit", "system", "fhir_code", "display", "kind", "ucum"))
        for row in known:
            unit = row["unit_ucum"]
            meaning = (row["system"], row["code"], row["display"], row["value_kind"], unit)
            rows.writerow((row["parameter"], unit, *meaning))
    return {row["parameter"]: row["unit_ucum"] for row in known}


def _ends(set_a: Path) -> dict[str, tuple[str, str]]:
    """When each stay ended and how, where that is known."""
    outcomes = next((path for path in (set_a, set_a.parent) if (path / "Outcomes-a.txt").exists()), None)
    if outcomes is None:
        return {}
    with (outcomes / "Outcomes-a.txt").open(newline="") as file:
        return {
            row["RecordID"]: (
                (ADMITTED + timedelta(days=int(row["Length_of_stay"]))).isoformat(),
                "exp" if row["In-hospital_death"] == "1" else "home",
            )
            for row in csv.DictReader(file)
            if int(row["Length_of_stay"]) >= 0
        }


def _write_stay(path: Path, units: dict[str, str], ends: dict[str, tuple[str, str]], stays: Any, values: Any) -> None:
    rows = [line.split(",") for line in path.read_text(encoding="ascii").splitlines()[1:]]
    about = {parameter: value for _, parameter, value in rows if parameter in DESCRIPTORS}
    record = about["RecordID"]
    born = f"{ADMITTED.year - int(about['Age'])}-01-01"
    discharged, disposition = ends.get(record, ("", ""))
    who = (f"P{record}", record)
    sex = SEXES.get(about["Gender"], "")
    stays.writerow((*who, sex, born, ADMITTED.isoformat(), discharged, about["ICUType"], disposition))
    for time, parameter, value in rows:
        if parameter not in DESCRIPTORS:
            if parameter in MISSING_IF_MINUS_ONE and float(value) == -1:
                value = ""
            hours, minutes = time.split(":")
            at = ADMITTED + timedelta(hours=int(hours), minutes=int(minutes))
            values.writerow((*who, at.isoformat(), parameter, value, units.get(parameter, "")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_a", type=Path, metavar="SET_A_DIR")
    parser.add_argument("loinc", type=Path, metavar="LOINC_CSV")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N stays")
    chosen = parser.parse_args()
    extract(chosen.set_a, chosen.loinc, chosen.out, limit=chosen.limit)


if __name__ == "__main__":
    main()
