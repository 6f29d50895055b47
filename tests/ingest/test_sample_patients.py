"""Whose the samples of VCF files are: by sheet, by specimens, by name; and what becomes of those nobody knows."""

from pathlib import Path

import orjson
import pysam
import pytest
from sqlalchemy import select, update

from medflow import replay, steps
from medflow.config import Settings
from medflow.connections.endpoints import Files
from medflow.errors import ConfigurationError
from medflow.ingest.fhir import ingest_fhir
from medflow.ingest.genomics import ingest_vcf
from medflow.registry import installed
from medflow.store.ledger import list_rejects
from medflow.store.session import Store
from medflow.store.tables import PatientIdentifierRow, SampleRow, VariantFileRow

VCF = (
    "##fileformat=VCFv4.2\n"
    "##contig=<ID=1,length=100>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2\n"
    "1\t2\t.\tC\tT\t.\tPASS\t.\tGT\t0/1\t1/1\n"
)
SHEET = "sample,system,value\nS1,urn:mrn,1\nS2,urn:mrn,2\n"


ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # what no SQL decides


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    return write(tmp_path / "some.vcf", VCF)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def counts(tally) -> tuple[int, int, int, int]:
    return tally.offered, tally.stored, tally.unchanged, tally.rejected


def fhir(store: Store, settings: Settings, path: Path, *resources: dict) -> None:
    path.write_bytes(b"\n".join(orjson.dumps(item) for item in resources))
    tally = ingest_fhir(store, settings, [path])
    assert tally.rejected == 0


def specimen(name: str, patient: str = "p1", id: str = "x1", kind: str = "Specimen", **elements) -> dict:
    order = {"status": "active", "intent": "order"} if kind == "ServiceRequest" else {}
    subject = {"subject": {"reference": f"Patient/{patient}"}, "identifier": [{"value": name}]}
    return {"resourceType": kind, "id": id, **order, **subject, **elements}


def patient(id: str, mrn: str) -> dict:
    return {"resourceType": "Patient", "id": id, "identifier": [{"system": "urn:mrn", "value": mrn}]}


def samples(store: Store) -> dict[str, tuple[str | None, str | None, int]]:
    """Of each sample: an identifier of its patient, its specimen and its revision."""
    mine = select(PatientIdentifierRow.value).where(PatientIdentifierRow.patient_id == SampleRow.patient_id).limit(1)
    query = select(SampleRow.name, mine.scalar_subquery(), SampleRow.specimen, SampleRow.revision)
    with store.reading() as connection:
        return {name: tuple(rest) for name, *rest in connection.execute(query.order_by(SampleRow.id))}


def rejects(store: Store) -> list[tuple[str, str]]:
    with store.reading() as connection:
        return [(Path(item.origin).name, item.code) for item in list_rejects(connection)]


def retry(store: Store, settings: Settings, **options):
    return replay.replay_rejects(steps.Site(settings=settings, store=store, registry=installed()), **options)


# --- the ways ----------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_where_nothing_says_whose_a_sample_is_it_is_nobodys(store, settings, vcf) -> None:
    assert counts(ingest_vcf(store, settings, [vcf])) == (1, 1, 0, 0)
    assert samples(store) == {"S1": (None, None, 0), "S2": (None, None, 0)}


def test_a_sheet_gives_samples_to_patients(store, settings, vcf, tmp_path) -> None:
    sheet = write(tmp_path / "sheet.csv", SHEET)
    configured = settings.model_copy(update={"sample_sheet": sheet})

    assert counts(ingest_vcf(store, configured, [vcf])) == (1, 1, 0, 0)
    assert samples(store) == {"S1": ("1", None, 0), "S2": ("2", None, 0)}
    assert counts(ingest_vcf(store, settings, [vcf], samples=sheet)) == (1, 0, 1, 0)


@ON_SQLITE
def test_a_wrong_sheet_stops_before_anything_is_taken(store, settings, vcf, tmp_path) -> None:
    with pytest.raises(ConfigurationError):
        ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", "sample\nS1\n"))

    assert samples(store) == {}


def test_specimens_and_orders_give_samples_to_patients(store, settings, vcf, tmp_path) -> None:
    order = specimen("other", "p2", kind="ServiceRequest", requisition={"value": "S2"})
    fhir(store, settings, tmp_path / "r.ndjson", specimen("S1"), order)

    assert counts(ingest_vcf(store, settings, [vcf])) == (1, 1, 0, 0)
    assert samples(store) == {"S1": ("p1", "Specimen/x1", 0), "S2": ("p2", None, 0)}


@ON_SQLITE
def test_of_several_specimens_of_one_patient_none_is_said_to_be_the_one(store, settings, vcf, tmp_path) -> None:
    fhir(
        store,
        settings,
        tmp_path / "r.ndjson",
        *(specimen(name, id=f"{name}-{n}") for name in ("S1", "S2") for n in "ab"),
    )

    ingest_vcf(store, settings, [vcf])

    assert samples(store) == {"S1": ("p1", None, 0), "S2": ("p1", None, 0)}


@ON_SQLITE
def test_ways_that_agree_add_to_one_another(store, settings, vcf, tmp_path) -> None:
    fhir(store, settings, tmp_path / "r.ndjson", patient("p1", "1"), patient("p2", "2"), specimen("S1"))

    tally = ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))

    assert counts(tally) == (1, 1, 0, 0)
    assert [found[1] for found in samples(store).values()] == ["Specimen/x1", None]


@ON_SQLITE
def test_a_name_that_is_an_identifier_serves_where_nothing_else_does(store, settings, vcf, tmp_path) -> None:
    known = settings.model_copy(update={"sample_system": "urn:mrn"})

    tally = ingest_vcf(
        store, known, [vcf], samples=write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:mrn,1\n")
    )

    assert counts(tally) == (1, 1, 0, 0)
    assert [found[0] for found in samples(store).values()] == ["1", "S2"]


# --- samples that are refused ------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize("way", ["two specimens", "sheet and specimen", "specimen and name"])
def test_a_sample_given_to_different_patients_is_refused_and_the_others_are_taken(
    store, settings, vcf, tmp_path, way
) -> None:
    fhir(store, settings, tmp_path / "r.ndjson", patient("p1", "S1"), specimen("S1", "p9"), specimen("S2", "p2", "x2"))
    sheet = None
    if way == "two specimens":
        fhir(store, settings, tmp_path / "more.ndjson", specimen("S1", "p8", "x3"))
    elif way == "sheet and specimen":
        sheet = write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:new,1\n")
    else:
        settings = settings.model_copy(update={"sample_system": "urn:mrn"})

    tally = ingest_vcf(store, settings, [vcf], samples=sheet)

    assert (counts(tally), tally.reasons) == ((2, 1, 0, 1), {"sample-ambiguous": 1})
    assert list(samples(store)) == ["S2"]
    assert rejects(store) == [("some.vcf#sample 1", "sample-ambiguous")]


@ON_SQLITE
def test_a_sample_that_nobody_knows_is_refused_by_its_number(store, settings, vcf, tmp_path) -> None:
    sheet = write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:mrn,1\n")

    first, again = (ingest_vcf(store, settings, [vcf], samples=sheet) for _ in range(2))

    assert (counts(first), counts(again)) == ((2, 1, 0, 1), (2, 0, 1, 1))
    assert rejects(store) == [("some.vcf#sample 2", "sample-unknown")]
    with store.reading() as connection:
        (reject,) = list_rejects(connection)
    assert "S2" not in reject.reason and reject.payload


def test_the_same_file_again_gives_the_sample_to_its_patient_and_closes_the_reject(
    store, settings, vcf, tmp_path
) -> None:
    sheet = write(tmp_path / "sheet.csv", "sample,patient\nS1,Patient/p1\n")
    ingest_vcf(store, settings, [vcf], samples=sheet)
    fhir(store, settings, tmp_path / "r.ndjson", specimen("S2", "p2"))

    tally = ingest_vcf(store, settings, [vcf], samples=sheet)

    assert counts(tally) == (1, 1, 0, 0)
    assert samples(store) == {"S1": ("p1", None, 0), "S2": ("p2", "Specimen/x1", 0)}
    assert rejects(store) == []


def test_a_replay_gives_samples_to_their_patients_though_the_file_is_gone(store, settings, vcf, tmp_path) -> None:
    empty = write(tmp_path / "sheet.csv", "sample,system,value\n")
    ingest_vcf(store, settings, [vcf], samples=empty)
    vcf.unlink()

    still = retry(store, settings, samples=empty)
    partly = retry(store, settings, samples=write(tmp_path / "one.csv", "sample,system,value\nS1,urn:mrn,1\n"))
    done = retry(store, settings, samples=write(tmp_path / "two.csv", SHEET))

    assert [counts(tally) for tally in (still, partly, done)] == [(3, 0, 1, 2), (2, 1, 0, 1), (1, 1, 0, 0)]
    assert [found[0] for found in samples(store).values()] == ["1", "2"]
    assert rejects(store) == []


@ON_SQLITE
def test_a_replay_asks_the_sheet_of_the_source_that_the_file_came_from(store, settings, tmp_path) -> None:
    sources = {}
    for name, mrn in (("one", "1"), ("two", "2")):  # each laboratory counts from S1
        folder = tmp_path / name
        folder.mkdir()
        sheet = write(folder / "sheet.csv", "sample,system,value\n")
        write(
            folder / "some.vcf",
            VCF.replace("\tS2", "").replace("\t1/1", "").replace("0/1", f"{mrn}/1".replace("2", ".")),
        )
        sources[name] = Files(kind="vcf", paths=(folder / "some.vcf",), samples=sheet)
        ingest_vcf(store, settings, sources[name].paths, samples=sheet)
        write(sheet, f"sample,system,value\nS1,urn:mrn,{mrn}\n")

    retry(store, settings.model_copy(update={"sources": sources}))

    with store.reading() as connection:
        files = select(VariantFileRow.sha256, PatientIdentifierRow.value)
        files = files.join(SampleRow, SampleRow.variant_file_id == VariantFileRow.id)
        files = files.join(PatientIdentifierRow, PatientIdentifierRow.patient_id == SampleRow.patient_id)
        found = {store.objects.get(digest): value for digest, value in connection.execute(files)}
    assert found == {(tmp_path / name / "some.vcf").read_bytes(): mrn for name, mrn in (("one", "1"), ("two", "2"))}


@ON_SQLITE
def test_a_refused_sample_does_not_become_nobodys_where_the_sheet_is_left_out(store, settings, vcf, tmp_path) -> None:
    ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:mrn,1\n"))

    assert counts(ingest_vcf(store, settings, [vcf])) == (2, 0, 1, 1)
    assert counts(retry(store, settings)) == (2, 0, 1, 1)
    assert list(samples(store)) == ["S1"]


@ON_SQLITE
def test_a_patient_given_later_makes_the_sample_new_to_models(store, settings, vcf, tmp_path) -> None:
    ingest_vcf(store, settings, [vcf])

    tally = ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))

    assert counts(tally) == (1, 1, 0, 0)
    assert [found[2] for found in samples(store).values()] == [1, 1]


@ON_SQLITE
def test_a_sample_keeps_its_patient_where_nothing_knows_better(store, settings, vcf, tmp_path) -> None:
    ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))
    fhir(store, settings, tmp_path / "r.ndjson", specimen("another"))

    assert counts(ingest_vcf(store, settings, [vcf])) == (1, 0, 1, 0)
    assert [found[0] for found in samples(store).values()] == ["1", "2"]


@ON_SQLITE
def test_a_sample_keeps_the_patient_of_a_sheet_that_is_left_out_whatever_else_has_its_name(
    store, settings, vcf, tmp_path
) -> None:
    ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))
    fhir(store, settings, tmp_path / "r.ndjson", specimen("S1", "p9"))
    named = settings.model_copy(update={"sample_system": "urn:other"})

    tally = ingest_vcf(store, named, [vcf])

    assert (counts(tally), tally.reasons) == ((2, 0, 1, 1), {"sample-ambiguous": 1})
    assert [found[0] for found in samples(store).values()] == ["1", "2"]


@ON_SQLITE
def test_leaving_the_sheet_out_does_not_settle_what_it_contradicts(store, settings, vcf, tmp_path) -> None:
    fhir(store, settings, tmp_path / "r.ndjson", patient("p1", "1"), specimen("S1", "p9"), specimen("S2", "p2", "x2"))
    sheet = write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:mrn,1\n")
    ingest_vcf(store, settings, [vcf], samples=sheet)

    without = [ingest_vcf(store, settings, [vcf]), retry(store, settings), ingest_vcf(store, settings, [vcf])]

    assert [counts(tally) for tally in without] == [(2, 0, 1, 1)] * 3
    assert list(samples(store)) == ["S2"]
    fhir(store, settings, tmp_path / "more.ndjson", specimen("S1", "p1"))
    assert counts(retry(store, settings, samples=sheet)) == (1, 1, 0, 0)
    assert samples(store)["S1"][:2] == ("p1", "Specimen/x1")
    assert rejects(store) == []


@ON_SQLITE
def test_another_sheet_moves_a_sample_to_another_patient(store, settings, vcf, tmp_path) -> None:
    ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))

    tally = ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "other.csv", SHEET.replace("mrn,1", "mrn,3")))

    assert counts(tally) == (1, 1, 0, 0)
    assert [found[0] for found in samples(store).values()] == ["3", "2"]


@ON_SQLITE
def test_a_sample_whose_patient_nothing_speaks_for_any_more_is_nobodys(store, settings, vcf, tmp_path) -> None:
    ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "sheet.csv", SHEET))
    fhir(store, settings, tmp_path / "r.ndjson", specimen("S1", "p9"))

    tally = ingest_vcf(store, settings, [vcf], samples=write(tmp_path / "other.csv", SHEET.replace("mrn,1", "mrn,3")))

    assert (counts(tally), tally.reasons) == ((2, 0, 1, 1), {"sample-ambiguous": 1})
    assert [found[0] for found in samples(store).values()] == [None, "2"]


@ON_SQLITE
def test_a_sample_whose_specimen_changed_waits_for_a_sheet_where_sources_have_them(
    store, settings, vcf, tmp_path
) -> None:
    fhir(store, settings, tmp_path / "r.ndjson", patient("p1", "1"), specimen("S1"), specimen("S2", "p2", "x2"))
    sheet = write(tmp_path / "sheet.csv", "sample,system,value\nS1,urn:mrn,1\n")
    source = Files(kind="vcf", paths=(vcf,), samples=sheet)
    ingest_vcf(store, settings, [vcf], samples=sheet)
    fhir(store, settings, tmp_path / "more.ndjson", specimen("S1", "p5"))
    settings = settings.model_copy(update={"sources": {"laboratory": source}})

    without, given = retry(store, settings), retry(store, settings, samples=sheet)

    assert (counts(without), dict(without.notes)) == ((0, 0, 0, 0), {"left-without-sheet": 1})
    assert given.reasons == {"sample-ambiguous": 1}
    assert samples(store)["S1"][0] is None


@ON_SQLITE
def test_an_order_that_is_given_to_another_patient_takes_its_sample_along_unless_another_tells_the_same(
    store, settings, vcf, tmp_path
) -> None:
    orders = [specimen("S1", id="o1", kind="ServiceRequest"), specimen("S2", "p2", "o2", kind="ServiceRequest")]
    fhir(store, settings, tmp_path / "r.ndjson", *orders, specimen("S2", "p2", "x2"))
    ingest_vcf(store, settings, [vcf])

    moved = [specimen("S1", "p5", "o1", kind="ServiceRequest"), specimen("S2", "p5", "o2", kind="ServiceRequest")]
    fhir(store, settings, tmp_path / "more.ndjson", *moved)

    assert [found[0] for found in samples(store).values()] == [None, "p2"]
    retry(store, settings)
    assert [found[0] for found in samples(store).values()] == ["p5", "p2"]
    assert [code for _, code in rejects(store)] == ["sample-ambiguous"]


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (specimen("S1", "p5"), "p5"),
        (specimen("other"), None),
        (specimen("S1", status="entered-in-error"), None),
        ({"resourceType": "Specimen", "id": "x1", "identifier": [{"value": "S1"}]}, None),
    ],
)
def test_a_specimen_that_is_withdrawn_or_changed_takes_its_sample_from_the_patient(
    store, settings, vcf, tmp_path, now, then
) -> None:
    fhir(store, settings, tmp_path / "r.ndjson", specimen("S1"), specimen("S2", "p2", "x2"))
    ingest_vcf(store, settings, [vcf])
    vcf.unlink()

    fhir(store, settings, tmp_path / "more.ndjson", now)

    assert [found for found in samples(store).values()] == [(None, None, 1), ("p2", "Specimen/x2", 0)]
    assert [code for _, code in rejects(store)] == ["sample-unknown"]
    tally = retry(store, settings)
    assert (samples(store)["S1"][0], tally.rejected, len(rejects(store))) == (then, then is None, then is None)


# --- what is kept of a file --------------------------------------------------------------------------------------


def test_what_an_older_version_did_not_keep_is_added_when_the_file_is_offered_again(store, settings, vcf) -> None:
    ingest_vcf(store, settings, [vcf])
    described = _described(store)
    with store.writing() as connection:
        connection.execute(update(VariantFileRow).values(build=None, counts={}, index=None, received_us=0))

    tallies = [ingest_vcf(store, settings, [vcf]) for _ in range(2)]

    assert [counts(tally) for tally in tallies] == [(1, 1, 0, 0), (1, 0, 1, 0)]
    assert _described(store)[:3] == described[:3] and _described(store)[3] > described[3]


@ON_SQLITE
def test_a_bgzip_file_has_its_index_in_the_object_store_and_what_it_is_of(store, settings, vcf, tmp_path) -> None:
    packed = tmp_path / "some.vcf.gz"
    pysam.tabix_compress(str(write(vcf, VCF.replace("length=100", "length=248956422,assembly=GRCh38"))), str(packed))

    ingest_vcf(store, settings, [packed])

    build, found, index, _ = _described(store)
    assert (build, found["snv"]) == ("GRCh38", 1)
    (tmp_path / "index.csi").write_bytes(store.objects.get(index))
    with pysam.TabixFile(str(packed), index=str(tmp_path / "index.csi")) as file:
        assert len(list(file.fetch("1", 1, 2))) == 1


def _described(store: Store) -> tuple:
    row = VariantFileRow
    with store.reading() as connection:
        return tuple(connection.execute(select(row.build, row.counts, row.index, row.received_us)).one())
