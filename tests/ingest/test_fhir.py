import gzip
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import func, select

from medflow.ingest import fhir
from medflow.ingest.fhir import ingest_fhir
from medflow.ingest.offers import Offer
from medflow.store.ledger import list_rejects
from medflow.store.tables import EncounterRow, FhirResourceRow, MeasurementRow, PatientRow

PATIENT = {"resourceType": "Patient", "id": "p1", "identifier": [{"system": "urn:mrn", "value": "7"}]}
ENCOUNTER = {
    "resourceType": "Encounter",
    "id": "e1",
    "status": "finished",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
    "subject": {"reference": "Patient/p1"},
    "period": {"start": "2012-01-01T00:00:00Z"},
}


def observation(number: int = 1, value: float = 73.5, **elements) -> dict:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": "Patient/p1"},
        "encounter": {"reference": "Encounter/e1"},
        "effectiveDateTime": "2012-01-01T00:07:00Z",
        "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "/min"},
        **elements,
    }


def lines(*resources: dict) -> bytes:
    return b"".join(orjson.dumps(item) + b"\n" for item in resources)


def bundle(*entries: dict, type: str = "transaction", **elements) -> dict:
    return {"resourceType": "Bundle", "type": type, "entry": list(entries), **elements}


def post(resource: dict, url: str | None = None) -> dict:
    return {"fullUrl": url or f"urn:uuid:{resource['id']}", "resource": resource}


@pytest.fixture
def take(store, settings, tmp_path):
    """Ingest files of these contents; gives the tally."""

    def ingest(changed_settings=None, **files: bytes | dict):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
        tally = ingest_fhir(store, changed_settings or settings, [folder])
        tally.check()
        return tally

    return ingest


def counts(tally) -> tuple[int, int, int, int]:
    return tally.offered, tally.stored, tally.unchanged, tally.rejected


def query(store, statement):
    with store.reading() as connection:
        return connection.execute(statement).all()


def rejects(store):
    with store.reading() as connection:
        return list_rejects(connection)


PRETTY = json.dumps(bundle(post(PATIENT), post(ENCOUNTER), post(observation())), indent=2).encode()


@pytest.mark.parametrize(
    "content",
    [
        lines(PATIENT, ENCOUNTER, observation()),
        lines(observation(), ENCOUNTER, PATIENT).replace(b"\n", b"\r\n\r\n"),
        b"\xef\xbb\xbf" + lines(PATIENT, ENCOUNTER, observation()).rstrip(),
        gzip.compress(lines(PATIENT, ENCOUNTER, observation()), mtime=0),
        orjson.dumps(bundle(post(PATIENT), post(ENCOUNTER), post(observation()))),
        PRETTY,
        gzip.compress(PRETTY, mtime=0),
        lines(bundle(post(PATIENT), type="collection"), bundle(post(ENCOUNTER), post(observation()), type="searchset")),
    ],
    ids=["ndjson", "blank lines", "bom", "ndjson.gz", "bundle", "pretty", "bundle.gz", "bundles"],
)
def test_every_form_is_told_by_its_content(take, store, content):
    assert counts(take(file=content)) == (3, 3, 0, 0)
    assert query(store, select(func.count()).select_from(MeasurementRow)) == [(1,)]
    assert query(store, select(PatientRow.complete)) == [(True,)]
    assert query(store, select(EncounterRow.status)) == [("finished",)]
    assert counts(take(other_name=content)) == (3, 0, 3, 0)


def test_a_single_resource_on_one_line_or_many(take):
    assert counts(take(one=PATIENT, two=json.dumps(ENCOUNTER, indent=1).encode())) == (2, 2, 0, 0)


def test_bytes_are_kept_as_received(take, store):
    take(file=PRETTY)
    stored = {row.type: row.raw for row in query(store, select(FhirResourceRow.type, FhirResourceRow.raw))}
    assert all(raw in PRETTY and orjson.loads(raw)["resourceType"] == kind for kind, raw in stored.items())
    assert b'": ' in stored["Patient"]


def test_references_inside_a_bundle_are_followed(take, store):
    patient = {name: value for name, value in PATIENT.items() if name != "id"}
    of_bundle = observation(subject={"reference": "urn:uuid:5a0f0c5e-0000-4000-8000-000000000001"})
    of_bundle.pop("encounter")
    tally = take(file=bundle(post(of_bundle), post(patient, "urn:uuid:5a0f0c5e-0000-4000-8000-000000000001")))
    assert counts(tally) == (2, 2, 0, 0)
    assert tally.notes == {}
    assert query(store, select(func.count()).select_from(PatientRow)) == [(1,)]


def test_deletions_of_a_bulk_export_and_of_a_history_are_honoured(take, store):
    take(file=lines(PATIENT, ENCOUNTER, observation(1), observation(2)))
    gone = [{"request": {"method": "DELETE", "url": f"Observation/o{number}"}} for number in (1, 2)]

    assert counts(take(deleted=lines(bundle(gone[0])))) == (1, 1, 0, 0)
    assert counts(take(history=bundle(gone[1], type="history"))) == (1, 1, 0, 0)
    assert query(store, select(MeasurementRow.value)) == []
    again = take(a=lines(PATIENT, ENCOUNTER, observation(1), observation(2)), b=lines(bundle(*gone)))
    assert counts(again) == (6, 0, 6, 0)


def test_an_older_version_is_counted_as_unchanged(take):
    newer, older = (observation(meta={"versionId": version}, value=len(version)) for version in ("10", "9"))
    take(file=newer)
    tally = take(file=older)
    assert counts(tally) == (1, 0, 1, 0)
    assert tally.notes["older-version"] == 1


def test_absent_references_are_tolerated_and_counted(take, store):
    tally = take(file=observation(performer=[{"reference": "Practitioner/d1"}]))
    assert counts(tally) == (1, 1, 0, 0)
    assert tally.notes == {"absent-reference": 3}
    assert query(store, select(PatientRow.complete)) == [(False,)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b" \n ", "not-json"),
        (b"hello", "not-json"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not-json"),
        (b"<?xml version='1.0'?><Patient/>", "unsupported-type"),
        (b'{"resourceType": "Patient", "id": "1"', "not-json"),
        (b'{"a": 1}', "not-fhir"),
        (b"[1, 2]", "not-fhir"),
        (b'"text"', "not-fhir"),
        (b'{"resourceType": "Patient", "id": "1", "language": "\xe4"}', "wrong-encoding"),
        ('{"resourceType": "Patient", "id": "1"}'.encode("utf-16"), "wrong-encoding"),
        (b'{"resourceType": "Nonsense", "id": "1"}', "unknown-resource-type"),
        (b'{"resourceType": "Patient"}', "missing-id"),
        (b'{"resourceType": "Patient", "id": "not ok"}', "invalid-resource"),
        (b'{"resourceType": "Basic", "id": "1", "code": {"text": "x"}, "created": NaN}', "number-out-of-range"),
        (orjson.dumps(observation()).replace(b"73.5", b"1e999"), "number-out-of-range"),
        (orjson.dumps(observation(effectiveDateTime="2012-01-01T00:07:00")), "time-without-zone"),
        (b"[" * 5000, "not-json"),
        (b'{"resourceType":"Bundle","type":"batch"}', "empty"),
        (b'{"resourceType":"Bundle","type":"nonsense","entry":[]}', "invalid-resource"),
        (orjson.dumps(bundle({"request": {"method": "GET", "url": "Patient"}})), "unsupported-type"),
        (orjson.dumps(bundle({"request": {"method": "DELETE", "url": "Patient?x=1"}})), "unsupported-type"),
        (orjson.dumps(bundle({"resource": 7})), "not-fhir"),
        (gzip.compress(lines(PATIENT) * 50, mtime=0)[:-20], "archive-broken"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)  # fmt: skip
def test_what_is_not_taken_has_its_reason(take, store, content, code):
    tally = take(file=content)
    assert tally.reasons == {code: 1}
    assert (tally.stored + tally.unchanged, tally.rejected) == (tally.offered - 1, 1)
    (reject,) = rejects(store)
    assert reject.kind == "fhir"
    assert Path(reject.origin.partition("#")[0]).name == "file"
    assert take(file=content).reasons == {code: 1}
    assert len(rejects(store)) == 1


def test_a_bad_line_or_entry_takes_only_itself_down(take, store):
    tally = take(
        a=lines(PATIENT) + b"{broken\n" + lines(observation(status="foo"), observation()),
        b=bundle(post(ENCOUNTER), {"resource": {"resourceType": "Patient"}}),
        c=b"{broken\n" + lines(observation(2), observation(3)),
    )
    assert counts(tally) == (9, 5, 0, 4)
    assert tally.reasons == {"not-json": 2, "invalid-resource": 1, "missing-id": 1}
    where = sorted(Path(item.origin).name for item in rejects(store))
    assert where == ["a#2", "a#3", "b#entry[1]", "c#1"]


def test_a_vanished_or_unreadable_path_is_a_reject(store, settings, tmp_path):
    tally = ingest_fhir(store, settings, [tmp_path / "nothing"])
    assert tally.reasons == {"vanished": 1}


def test_a_gzip_bomb_is_stopped(take, settings):
    small = settings.model_copy(update={"max_input_bytes": 100_000})
    tally = take(small, file=gzip.compress(lines(PATIENT) * 20_000))
    assert tally.reasons["archive-bomb"] == 1
    assert tally.rejected == 1


def test_no_patient_data_in_reasons(take, store):
    secret = "Miller"
    take(a=lines({"resourceType": "Patient", "id": "1", "gender": secret, "birthDate": secret, "name": secret}))
    assert not any(secret in item.reason for item in rejects(store))


def test_rejected_bytes_are_kept_for_a_replay(take, store, settings):
    bad = observation(effectiveDateTime="2012-01-01T00:07:00")
    take(file=lines(PATIENT, bad))
    (reject,) = rejects(store)
    assert reject.payload

    placed = settings.model_copy(update={"timezone": "Europe/Berlin"})
    again = Offer(origin=reject.origin, data=store.objects.get(reject.sha256 or ""))
    assert counts(ingest_fhir(store, placed, [again])) == (1, 1, 0, 0)


def test_worker_processes_give_the_same_store(store, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(fhir, "POOL_FROM", 1000)
    monkeypatch.setattr(fhir, "CHUNK", 50)
    bad = observation(999, status="foo")
    path = tmp_path / "many.ndjson"
    path.write_bytes(lines(PATIENT, ENCOUNTER, *(observation(n, n / 2) for n in range(300)), bad))
    two = settings.model_copy(update={"workers": 2})

    seen: list[int] = []
    assert counts(ingest_fhir(store, two, [path], progress=seen.append)) == (303, 302, 0, 1)
    assert counts(ingest_fhir(store, two, [path])) == (303, 0, 302, 1)
    assert sum(seen) == 303
    assert query(store, select(func.count(), func.sum(MeasurementRow.value)))[0] == (300, 299 * 300 / 4)


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 70) | st.text(max_size=5) | st.just("Bundle"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceType", "id", "type", "entry", "resource", "request", "fullUrl", "method", "url"]
                ),
                inner | st.sampled_from(["Bundle", "Patient", "batch", "DELETE", "Patient/1", "1"]),
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
@example(junk=b'{"type":[],"resourceType":"Bundle"}')
@pytest.mark.parametrize("engine", ["sqlite"])
def test_junk_never_crashes_and_is_always_accounted_for(take, junk, engine):
    tally = take(file=junk)
    assert tally.offered >= 1


@pytest.mark.realdata
@pytest.mark.parametrize("engine", ["sqlite"])
def test_synthea_bundles(realdata, store, settings, engine):
    paths = sorted(realdata("synthea_r4_24").rglob("*.json"), key=lambda path: path.stat().st_size)[:8]
    first = ingest_fhir(store, settings, paths)
    second = ingest_fhir(store, settings, paths)
    assert first.rejected == 0
    assert (first.offered, second.offered) == (first.stored + first.unchanged, second.unchanged)
    assert query(store, select(func.count()).select_from(PatientRow)) == [(8,)]
    assert set(first.notes) <= {"conditional-reference"}


@pytest.mark.realdata
@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_bulk_export(realdata, store, settings, engine):
    names = ("Patient", "Encounter", "Immunization", "log")
    paths = [path for path in sorted(realdata("bulk10").rglob("*.ndjson")) if path.name.startswith(names)]
    first = ingest_fhir(store, settings, paths)
    second = ingest_fhir(store, settings, paths)
    assert first.reasons == {"not-fhir": first.rejected}  # the log's lines
    assert counts(second) == (first.offered, 0, first.stored, first.rejected)
    assert set(first.notes) == {"conditional-reference"}
    assert query(store, select(func.count()).select_from(PatientRow)) == [(13,)]


@pytest.mark.realdata
@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_validators_odd_files(realdata, store, settings, engine):
    folder = realdata("validator-cases-r4")
    first = ingest_fhir(store, settings, [folder])
    second = ingest_fhir(store, settings, [folder])
    assert first.offered >= 110
    assert first.stored >= 80
    assert counts(second) == (first.offered, 0, first.stored + first.unchanged, first.rejected)
    assert second.reasons == first.reasons
