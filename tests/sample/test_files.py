"""The sample is whole, valid where it should be, and the same bytes every time."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import orjson
import pydicom
import pytest
from fhir.resources.R4B import get_fhir_model_class

from medflow.sample import LABELS, pydicom_files, write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample"))


def test_it_is_written_in_five_seconds_and_the_same_every_time(sample, tmp_path):
    started = time.monotonic()
    again = write_sample(tmp_path)

    assert time.monotonic() - started < 5
    assert _digests(again.root) == _digests(sample.root)


def test_another_seed_gives_another_sample(sample, tmp_path):
    other = write_sample(tmp_path, seed=1)

    first, second = _digests(other.root), _digests(sample.root)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_every_resource_is_valid_r4(sample):
    resources = _resources(sample)

    for resource in resources[::37]:
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    assert len({(found["resourceType"], found["id"]) for found in resources}) == len(resources)
    assert {found["resourceType"] for found in resources} == {"Patient", "Encounter", "Observation"}


def test_sicker_patients_have_faster_hearts(sample):
    rates: dict[str, list[float]] = {}
    for found in _resources(sample):
        if found["resourceType"] == "Observation" and found["code"]["coding"][0]["code"] == "8867-4":
            rates.setdefault(found["encounter"]["reference"], []).append(found["valueQuantity"]["value"])

    means = [np.mean(rates[f"Encounter/{stay.encounter_id}"]) for stay in sample.stays]
    assert np.corrcoef(means, [stay.severity for stay in sample.stays])[0, 1] > 0.8


def test_codes_and_units_are_those_of_the_challenge_map(sample, realdata):
    with realdata("loinc.csv").open(newline="") as file:
        mapped = {(row["system"], row["code"], row["unit_ucum"] or None) for row in csv.DictReader(file)}

    used = set()
    for found in _resources(sample):
        if found["resourceType"] == "Observation":
            coding = found["code"]["coding"][0]
            used.add((coding["system"], coding["code"], found.get("valueQuantity", {}).get("code")))

    assert len(used) > 30
    assert used <= mapped


def test_pictures_and_records_of_a_person_share_an_identifier(sample):
    records = {
        (identifier["system"], identifier["value"])
        for found in _resources(sample)
        if found["resourceType"] == "Patient"
        for identifier in found["identifier"]
    }

    for path in sample.dicom.rglob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert (sample.issuer_systems[ds.IssuerOfPatientID], ds.PatientID) in records


def test_ct_files_hold_the_phantom(sample):
    for folder in sorted(sample.dicom.glob("ct-*")):
        slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
        positions = [np.dot(normal, ds.ImagePositionPatient) for ds in slices]
        assert np.abs(np.diff(positions)) == pytest.approx(6.0)
        hu = np.stack([ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept for ds in slices])
        assert hu.shape == (40, 64, 64)
        assert (hu > 160).any()
        assert sample.truth_ml[slices[0].SeriesInstanceUID].keys() == LABELS.keys()


def test_the_monochrome1_radiograph_is_the_same_picture(sample):
    plain, inverted = (pydicom.dcmread(sample.dicom / "chest" / name) for name in ("dx-2.dcm", "cr-3.dcm"))

    assert (plain.PhotometricInterpretation, inverted.PhotometricInterpretation) == ("MONOCHROME2", "MONOCHROME1")
    assert np.array_equal(4095 - inverted.pixel_array, plain.pixel_array)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_nothing_wrong(sample):
    paths = [*sorted(sample.dicom.rglob("ct-001.dcm")), *sorted((sample.dicom / "chest").iterdir())]
    for path in paths:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Error" not in done.stderr
        assert "Warning" not in done.stderr


def test_vcf_agrees_with_its_reference(sample):
    bases = "".join(sample.reference.read_text().splitlines()[1:])
    for name, expected in (("demo.vcf", []), ("wrong-reference.vcf", [-1])):
        rows = [line.split("\t") for line in (sample.vcf / name).read_text().splitlines() if line[0] != "#"]
        assert {len(row) for row in rows} == {11}
        wrong = [row for row in rows if bases[int(row[1]) - 1 :][: len(row[3])] != row[3]]
        assert wrong == [rows[index] for index in expected]


def test_splice_windows_have_the_boundary_in_the_middle(sample):
    records = [block.splitlines() for block in (sample.fasta / "windows.fasta").read_text().split(">")[1:]]
    bases = {record[0]: "".join(record[1:]) for record in records}

    assert all(text[30:32] == "GT" for name, text in bases.items() if "donor" in name)
    assert all(text[28:30] == "AG" for name, text in bases.items() if "acceptor" in name)
    assert len(bases["demo-long"]) == 102
    assert bases["demo-long"][21:81][30:32] == "GT"
    assert set(bases["demo-ambiguous"]) - set("ACGT") == {"N", "R", "Y"}


def test_without_odd_input_nothing_is_there_to_be_refused(tmp_path):
    clean = write_sample(tmp_path, stays=4, odd=False)

    names = {path.name for path in clean.root.rglob("*") if path.is_file()}
    assert not names & {"odd.ndjson", "invalid.fasta", "wrong-reference.vcf"}


def test_a_cohort_too_small_for_its_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 4"):
        write_sample(tmp_path, stays=3)


def test_pydicom_brings_real_files():
    found = pydicom_files()

    assert len(found) > 150
    assert any(path.name == "CT_small.dcm" for path in found)


def _digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def _resources(sample) -> list[dict]:
    listed = [
        orjson.loads(line)
        for name in ("Patient", "Encounter", "Observation")
        for line in (sample.fhir / f"{name}.ndjson").read_bytes().splitlines()
    ]
    bundle = orjson.loads((sample.fhir / "bundle.json").read_bytes())
    return listed + [entry["resource"] for entry in bundle["entry"]]


def test_on_two_nights_in_a_row_the_ward_is_full(sample):
    first, second = (
        {stay.number for stay in sample.stays if stay.admitted < night < stay.admitted + timedelta(hours=stay.hours)}
        for night in sample.nights
    )

    assert sample.nights[1] - sample.nights[0] == timedelta(days=1)
    assert len(first & second) >= 5
