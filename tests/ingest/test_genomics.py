import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medflow.config import Settings
from medflow.errors import ConfigurationError
from medflow.ingest.genomics import ingest_fasta, ingest_vcf
from medflow.plugin import SequenceInput
from medflow.records import Instant
from medflow.store.genomics import due_sequences
from medflow.store.ledger import list_rejects, now_us
from medflow.store.session import Store
from medflow.store.units import unit_facts

VCF = (
    "##fileformat=VCFv4.2\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample-one\tsample-two\n"
    "1\t2\t.\tC\tT\t.\tPASS\t.\tGT\t0/1\t1/1\n"
)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def counts(tally) -> tuple[int, int, int, int]:
    return tally.offered, tally.stored, tally.unchanged, tally.rejected


def rejects(store: Store):
    with store.reading() as connection:
        return list_rejects(connection)


# --- VCF ---------------------------------------------------------------------------------------------------------


def test_a_vcf_file_is_kept_as_received_and_taken_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    packed = write(folder / "a.vcf.gz", gzip.compress(VCF.encode(), mtime=0))
    write(folder / "b.vcf", VCF)

    first = ingest_vcf(store, settings, [folder])
    again = ingest_vcf(store, settings, [folder])

    assert (counts(first), counts(again)) == ((2, 2, 0, 0), (2, 0, 2, 0))
    assert store.objects.put(packed.read_bytes()) in store.objects


def test_a_file_that_no_model_will_be_given_says_so_when_it_is_taken(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    sites = "\n".join("\t".join(line.split("\t")[:8]) for line in VCF.splitlines()) + "\n"
    paths = [
        write(tmp_path / "unknown.vcf", VCF),
        write(tmp_path / "sites.vcf", sites),
        write(tmp_path / "known.vcf", VCF.replace("#CHROM", "##reference=GRCh38.fa\n#CHROM")),
    ]

    first = ingest_vcf(store, settings, paths)
    again = ingest_vcf(store, settings, paths)

    assert dict(first.notes) == {"assembly-unknown": 2, "without-samples": 1}
    assert dict(again.notes) == {}


def test_every_vcf_that_is_not_taken_is_a_reject_with_its_bytes(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    wrong = write(tmp_path / "wrong.vcf", VCF.replace("PASS", "PASS;"))

    tally = ingest_vcf(store, settings, [wrong, tmp_path / "gone.vcf", write(tmp_path / "empty.vcf", "")])

    assert counts(tally) == (3, 0, 0, 3)
    assert tally.reasons == {"bad-vcf-record": 1, "vanished": 1, "empty": 1}
    (reject,) = [item for item in rejects(store) if item.code == "bad-vcf-record"]
    assert reject.origin == str(wrong) and reject.reason.startswith("line 3: FILTER")
    assert reject.payload and store.objects.get(reject.sha256 or "") == wrong.read_bytes()


def test_ref_is_checked_where_a_reference_is_given_even_of_a_stored_file(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.vcf", VCF)
    right, wrong = write(tmp_path / "right.fa", ">1\nACGT\n"), write(tmp_path / "wrong.fa", ">1\nAAAA\n")

    tallies = [ingest_vcf(store, settings, [path], reference=genome) for genome in (right, right, wrong)]

    assert [counts(tally) for tally in tallies] == [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert tallies[2].reasons == {"ref-mismatch": 1}


def test_a_reference_that_is_missing_stops_before_anything_is_taken(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError):
        ingest_vcf(store, settings, [write(tmp_path / "some.vcf", VCF)], reference=tmp_path / "gone.fa")

    assert counts(ingest_vcf(store, settings, [tmp_path / "some.vcf"])) == (1, 1, 0, 0)


def test_samples_are_given_to_patients_once_their_names_are_said_to_be_identifiers(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.vcf", VCF)
    known = settings.model_copy(update={"sample_system": "urn:lab:sample"})

    tallies = [ingest_vcf(store, chosen, [path]) for chosen in (settings, known, known)]

    assert [counts(tally) for tally in tallies] == [(1, 1, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0)]


# --- FASTA -------------------------------------------------------------------------------------------------------


def test_each_record_is_an_input_and_is_taken_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path / "some.fa", ">one\nACGT\n>two\nAC!T\n>three\n\n>one\nACGG\n>four\nGGTT\n>four\nGGTT\n")
    reported: list[int] = []

    first = ingest_fasta(store, settings, [path], progress=reported.append)
    again = ingest_fasta(store, settings, [path])

    assert (counts(first), counts(again)) == ((6, 2, 1, 3), (6, 0, 3, 3))
    assert first.reasons == {"invalid-sequence": 2, "duplicate-sequence": 1}
    assert sum(reported) == 6
    assert [item.origin.rpartition("#")[2] for item in rejects(store)] == ["2", "3", "4"]
    assert store.objects.put(path.read_bytes()) in store.objects


def test_a_refused_record_is_kept_so_that_it_can_be_offered_again(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    ingest_fasta(store, settings, [write(tmp_path / "some.fa", ">one\nACGT\n>two\nAC!T\n")])

    (reject,) = rejects(store)
    mended = store.objects.get(reject.sha256 or "").replace(b"!", b"G")

    assert counts(ingest_fasta(store, settings, [write(tmp_path / "mended.fa", mended)])) == (1, 1, 0, 0)


def test_a_sequence_belongs_to_the_patient_that_its_title_names(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    text = ">one patient=urn:x|p1\nACGT\n>two patient=urn:x|p1\nGGGG\n>three\nTTTT\n"
    ingest_fasta(store, settings, [write(tmp_path / "some.fa", text)])

    with store.reading() as connection:
        units = due_sequences(connection, SequenceInput(length=4), as_of=Instant(utc_us=now_us()), model_id=1)
        facts = unit_facts(connection, units[0].unit.kind, [unit.unit.id for unit in units])
    owners = [facts[unit.unit.id].patient_id for unit in units]

    assert owners[0] is not None and owners == [owners[0], owners[0], None]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"ACGT\n", "not-fasta"), (b"", "empty"), (b"@read\nACGT\n+\nIIII\n", "not-fasta")],
)
def test_a_file_that_is_no_fasta_is_one_reject(
    data: bytes, code: str, store: Store, settings: Settings, tmp_path: Path
) -> None:
    tally = ingest_fasta(store, settings, [write(tmp_path / "some.fa", data)])

    assert counts(tally) == (1, 0, 0, 1)
    assert tally.reasons == {code: 1}


def test_of_a_file_that_breaks_off_the_whole_records_are_taken(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.fa.gz", gzip.compress(b">one\nACGT\n>two\nGGGG\n>three\nTT", compresslevel=0)[:-8])

    tally = ingest_fasta(store, settings, [path])

    assert counts(tally) == (3, 2, 0, 1)
    assert tally.reasons == {"truncated": 1}


def test_a_larger_file_than_is_allowed_is_refused(store: Store, settings: Settings, tmp_path: Path) -> None:
    small = settings.model_copy(update={"max_input_bytes": 5})

    assert ingest_fasta(store, small, [write(tmp_path / "some.fa", ">one\nACGT\n")]).reasons == {"too-large": 1}
    assert ingest_vcf(store, small, [write(tmp_path / "some.vcf", VCF)]).reasons == {"too-large": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(store: Store, settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path / "some.fa", ">one\nACGT\n")
    path.chmod(0)

    assert ingest_fasta(store, settings, [path]).reasons == {"unreadable": 1}


# --- the conformance sets ----------------------------------------------------------------------------------------


def test_the_vcf_conformance_sets_are_accounted_for(
    store: Store, settings: Settings, realdata: Callable[[str], Path]
) -> None:
    folder = realdata("hts-vcf-4.1-4.2") / "vcf"
    passed, failed = sorted(folder.glob("*/passed")), sorted(folder.glob("*/failed"))

    tallies = [ingest_vcf(store, settings, folders) for folders in (passed, failed, passed, failed)]

    assert [counts(tally)[0::3] for tally in tallies] == [(50, 0), (383, 383), (50, 0), (383, 383)]
    assert (tallies[0].stored, tallies[2].stored) == (48, 0)  # two files lie in both sets
