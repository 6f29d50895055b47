"""The example that turns a CSV extract into FHIR: every row becomes a resource that medflow takes, or has a reason."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from zoneinfo import ZoneInfo

import orjson
import pytest

from medflow.ingest.fhir import ingest_fhir
from medflow.store import Store

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
STAYS = ("patient", "stay", "sex", "birth_date", "admitted", "discharged", "ward", "disposition")
VALUES = ("patient", "stay", "time", "issued", "code", "value", "unit")
CODES = ("code", "unit", "system", "fhir_code", "display", "kind", "ucum")
MEANINGS = [
    ("PULSE", "bpm", "http://loinc.org", "8867-4", "Heart rate", "quantity", "/min"),
    ("VENT", "", "http://snomed.info/sct", "40617009", "Artificial respiration", "boolean", ""),
]
STAY = ("77", "1", "F", "1950-02-03", "2026-03-01T08:00", "", "A", "")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


converter = example("csv_to_fhir")


def table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def convert(folder: Path, values: list[tuple[str, ...]], stays: list[tuple[str, ...]] | None = None):
    """The report, and what was written, by type."""
    extract = converter.Extract(
        system="urn:example:hospital", ward_system="urn:example:ward", zone=ZoneInfo("Europe/Berlin")
    )
    report = converter.convert(
        table(folder / "stays.csv", STAYS, stays or [STAY]),
        table(folder / "values.csv", VALUES, values),
        table(folder / "codes.csv", CODES, MEANINGS),
        folder / "fhir",
        extract=extract,
    )
    written = {
        path.stem: [orjson.loads(line) for line in path.read_bytes().splitlines()]
        for path in (folder / "fhir").iterdir()
    }
    return report, written


def pulse(time: str = "2026-03-01T09:00", value: str = "80", *, issued: str = "", **changed: str) -> tuple[str, ...]:
    row = {"patient": "77", "stay": "1", "time": time, "issued": issued, "code": "PULSE", "value": value, "unit": "bpm"}
    return tuple((row | changed).values())


@pytest.mark.realdata
def test_the_challenges_stays_are_taken_whole(
    realdata: Callable[[str], Path], tmp_path: Path, store: Store, settings
) -> None:
    files = sorted(path.parent for path in realdata("set-a").rglob("132539.txt"))[0]
    example("challenge_to_csv").extract(files, EXAMPLES / "challenge_loinc.csv", tmp_path / "extract", limit=3)
    extract = converter.Extract(system="urn:t", ward_system="urn:t:icu-type", zone=ZoneInfo("UTC"))
    tables = [tmp_path / "extract" / f"{name}.csv" for name in ("stays", "values", "codes")]

    report = converter.convert(*tables, tmp_path / "fhir", extract=extract)
    tally = ingest_fhir(store, settings, [tmp_path / "fhir"])

    rows = tables[1].read_text().count("\n") - 1
    assert report.written["Observation"] + report.left_out.total() == rows > 700
    assert set(report.left_out) == {"no value"}
    assert (tally.stored, tally.rejected) == (report.written.total(), 0)
    assert report.written["Encounter"] == report.written["Patient"] == 3


def test_local_times_get_their_offset(tmp_path: Path) -> None:
    _, written = convert(tmp_path, [pulse("2026-03-01T09:00"), pulse("2026-07-01T09:00", issued="2026-07-01T08:00Z")])

    winter, summer = written["Observation"]
    assert winter["effectiveDateTime"] == winter["issued"] == "2026-03-01T09:00:00+01:00"
    assert (summer["effectiveDateTime"], summer["issued"]) == ("2026-07-01T09:00:00+02:00", "2026-07-01T08:00:00+00:00")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pulse(unit="beats"), "the unit is not in the code map"),
        (pulse(code="PULSE2"), "the code is not in the code map"),
        (pulse(value="about 80"), "the value is no number"),
        (pulse(value="inf"), "the value is no number"),
        (pulse(value=""), "no value"),
        (pulse(code="VENT", unit="", value="2"), "the value is neither true nor false"),
        (pulse("yesterday"), "the time is no ISO 8601 time"),
        (pulse("2026-03-29T02:30"), "the clocks were changed in that hour: the time needs its offset from UTC"),
        (pulse("2026-10-25T02:30"), "the clocks were changed in that hour: the time needs its offset from UTC"),
        (pulse(patient="78"), "the stay is not in the table of stays, or not of this patient"),
    ],
)
def test_a_row_that_is_left_out_is_counted_with_its_reason(tmp_path: Path, row: tuple, reason: str) -> None:
    report, written = convert(tmp_path, [row, pulse()])

    assert dict(report.left_out) == {reason: 1}
    assert len(written["Observation"]) == 1


def test_ids_are_the_same_in_every_extract_and_a_corrected_value_replaces_the_earlier(tmp_path: Path) -> None:
    first, second = pulse("2026-03-01T09:00", "80"), pulse("2026-03-01T10:00", "90")
    _, before = convert(tmp_path, [first, first, second])

    _, after = convert(tmp_path, [pulse("2026-03-01T10:00", "95"), first, first, pulse("2026-03-01T11:00")])

    ids = [item["id"] for item in before["Observation"]]
    assert len(set(ids)) == 3
    assert [item["id"] for item in after["Observation"]][:3] == [ids[2], ids[0], ids[1]]
    assert before["Patient"] == after["Patient"]


def test_a_stay_that_ended_says_when_and_how(tmp_path: Path) -> None:
    again = ("77", "2", "F", "1950-02-03", "2026-04-01T08:00", "2026-04-09T10:00", "A", "exp")
    report, written = convert(tmp_path, [], [STAY, again, ("78", "3", "", "unknown", "2026-04-01T08:00", "", "", "")])

    here, gone = written["Encounter"]
    assert (here["status"], gone["status"]) == ("in-progress", "finished")
    assert gone["period"]["end"] == "2026-04-09T10:00:00+02:00"
    assert gone["hospitalization"]["dischargeDisposition"]["coding"][0]["code"] == "exp"
    assert [item["gender"] for item in written["Patient"]] == ["female"]  # once, for two stays
    assert dict(report.left_out) == {"stay: the date of birth is no ISO 8601 date": 1}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no column unit"):
        list(converter._rows(table(tmp_path / "values.csv", VALUES[:-1], []), *VALUES))
