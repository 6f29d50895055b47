import gzip
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
from cyvcf2 import VCF, Writer
from hypothesis import given
from hypothesis import strategies as st

from medflow.errors import ConfigurationError, InputRejected, RejectCode
from medflow.genomics.vcf import read_vcf

HEADER = (
    "##fileformat=VCFv4.2\n"
    "##contig=<ID=1,length=1000>\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=MIN_DP,Number=1,Type=Integer,Description="Least depth in the block">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample-one\tsample-two\n"
)
RECORD = {
    "CHROM": "1", "POS": "10", "ID": ".", "REF": "A", "ALT": "C", "QUAL": "50", "FILTER": "PASS", "INFO": "DP=3",
    "FORMAT": "GT", "one": "0/1", "two": "1|1",
}  # fmt: skip


def vcf(*records: dict[str, str], header: str = HEADER) -> bytes:
    return (header + "".join("\t".join((RECORD | record).values()) + "\n" for record in records)).encode()


def refused(data: bytes | Path, **options: Path) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_vcf(data, **options)
    return caught.value


# --- reading -----------------------------------------------------------------------------------------------------


def test_says_what_the_file_holds() -> None:
    file = read_vcf(vcf({}, {"POS": "20"}, {"CHROM": "X"}))

    assert (file.version, file.records, file.contigs) == ("VCFv4.2", 3, ("1", "X"))
    assert file.samples == ("sample-one", "sample-two")


def test_says_the_assembly_that_the_header_names_and_how_often_which_allele_comes() -> None:
    header = HEADER.replace("##contig=<ID=1,length=1000>", "##reference=file:///data/hg38.fa")
    records = [
        {"ALT": "C,G"},
        {"REF": "ATG", "ALT": "A,ATC,GTA", "INFO": "."},
        {"POS": "11", "ALT": "AT", "FILTER": "q10"},
        {"POS": "12", "REF": "AC", "ALT": "GT", "FILTER": "."},
        {"POS": "13", "REF": "AC", "ALT": "GTT"},
        {"POS": "14", "ALT": "<DEL>,*,A[1:20["},
        {"POS": "15", "ALT": ".", "one": "0", "two": "0"},
    ]

    file = read_vcf(vcf(*records, header=header))

    assert (file.assembly, file.build) == ("file:///data/hg38.fa", "GRCh38")
    assert file.counts == {
        "snv": 3, "deletion": 1, "mnv": 2, "insertion": 1, "complex": 1, "symbolic": 1, "missing": 2, "breakend": 1,
        "multiallelic": 3, "passed": 5, "filtered": 1, "unfiltered": 1,
    }  # fmt: skip


PACKED = gzip.compress(vcf({}), mtime=0)  # no time in it: tests are named by their data, and collected more than once


@pytest.mark.parametrize("packed", [gzip.compress, lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:])])
def test_reads_compressed_files_and_hashes_them_as_received(packed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "some.vcf.gz"
    path.write_bytes(packed(vcf({})))

    file = read_vcf(path)

    assert (file.records, file.size) == (1, path.stat().st_size)
    assert file.sha256 == read_vcf(path.read_bytes()).sha256


def test_agrees_with_htslib_on_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "some.vcf"
    path.write_bytes(vcf({}, {"POS": "20", "FORMAT": "GT:MIN_DP", "one": "0/1:3", "two": ".:."}, {"CHROM": "X"}))

    ours, theirs = read_vcf(path), VCF(str(path))

    assert (list(ours.samples), ours.records) == (theirs.samples, sum(1 for _ in theirs))


@pytest.mark.parametrize(
    "record",
    [
        {"ALT": "*"},
        {"ALT": "<NON_REF>"},
        {"ALT": "A[2:20["},
        {"ALT": "]HLA-A*01:01:20]A"},
        {"ALT": ".", "one": "0/0", "two": "./."},
        {"QUAL": "1e3", "FILTER": "q10;s50", "INFO": "."},
        {"INFO": "DP=3;DB;H2;CUSTOM=anything, even this"},
        {"FORMAT": "GT:PL", "one": "0/1:1,2,3", "two": "1:1,2"},
        {"FORMAT": "GT:DP:HQ", "one": "0/1", "two": "./.:.:1,2"},
        {"POS": "0"},
        {"POS": "1001"},
    ],
)
def test_takes_what_the_specification_allows(record: dict[str, str]) -> None:
    assert read_vcf(vcf(record)).records == 1


LENIENT = (  # as callers write it: a declaration in the header, and a record that goes by it
    ("INFO=<ID=AS_SB_TABLE,Number=1,Type=String", {"INFO": "AS_SB_TABLE=10,12|3,0"}),  # Mutect2
    ("INFO=<ID=AS_FilterStatus,Number=A,Type=String", {"INFO": "AS_FilterStatus=weak_evidence,strand_bias"}),
    ("FORMAT=<ID=FT,Number=.,Type=String", {"FORMAT": "GT:FT", "one": "0/1:PASS", "two": "0/1"}),  # GATK
    ("FORMAT=<ID=DP4,Number=1,Type=String", {"FORMAT": "GT:DP4", "one": "0/1:3,4,2,1", "two": "."}),  # VarScan
    ("FORMAT=<ID=PS,Number=1,Type=String", {"FORMAT": "GT:PS", "one": "0|1:PATMAT", "two": "."}),  # GIAB
    ("FORMAT=<ID=PL,Number=.,Type=Integer", {"FORMAT": "GT:PL", "one": "0|1:1,2,3", "two": "."}),  # old samtools
    ("FORMAT=<ID=GP,Number=3,Type=Float", {"FORMAT": "GT:GP", "one": "0|1:0,1,0", "two": "."}),  # Minimac
    ("FORMAT=<ID=RNC,Number=2,Type=Character", {"FORMAT": "GT:RNC", "one": "0|1:..", "two": "./.:MM"}),  # GLnexus
    ("ALT=<ID=CPX", {"ALT": "<CPX>"}),  # GATK-SV
    ("ALT=<ID=DUP/INS", {"ALT": "<DUP/INS>"}),  # Sniffles
    ("contig=<ID=HLA-A*01:01:01:01,length=3503", {"CHROM": "HLA-A*01:01:01:01"}),  # GATK on GRCh38
)


@pytest.mark.parametrize(("declared", "record"), LENIENT, ids=lambda item: str(item).partition(",")[0])
def test_takes_what_callers_write_and_nobody_can_misread(declared: str, record: dict[str, str]) -> None:
    line = f'##{declared},Description="">\n#CHROM'

    assert read_vcf(vcf(record, header=HEADER.replace("#CHROM", line))).records == 1


def test_an_allele_of_a_megabase_takes_no_longer_than_reading_it() -> None:
    long = "ACGT" * 250_000

    began = process_time()
    assert read_vcf(vcf({"POS": "1", "REF": long, "ALT": f"C{long[1:]}"})).records == 1
    assert process_time() - began < 5  # many minutes, where it is cut a base at a time


NEWEST = HEADER.replace("VCFv4.2", "VCFv4.5").replace(
    "##contig=<ID=1,length=1000>",
    '##FORMAT=<ID=LAA,Number=.,Type=Integer,Description="">\n##FORMAT=<ID=LAD,Number=LR,Type=Integer,Description="">\n'
    '##FORMAT=<ID=LPL,Number=LG,Type=Integer,Description="">\n##FORMAT=<ID=PSL,Number=P,Type=String,Description="">',
)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ("0/2:2:7,8:0,1,2:.", None),
        ("0/2:1,3:7,8,9:0,1,2,3,4,5:a,b", None),
        ("0/2", None),
        (".:.:7:0:.", None),
        ("0/2:2:7,8,9:0,1,2:.", "LAD has 3 values instead of 2 (its Number is LR)"),
        ("0/2:2:7,8:0,1:.", "LPL has 2 values instead of 3 (its Number is LG)"),
        ("0/2:4:7,8:0,1,2:.", "LAA must be"),
        ("0/2:2,2:7,8,9:.:.", "LAA must be"),
        ("0/2:2:7,8:0,1,2:a", "PSL has 1 value instead of 2 (its Number is P)"),
    ],
)
def test_values_by_local_allele_agree_with_the_alleles_that_the_sample_names(sample: str, reason: str | None) -> None:
    data = vcf({"ALT": "C,G,T", "FORMAT": "GT:LAA:LAD:LPL:PSL", "one": sample}, header=NEWEST)

    if reason is None:
        assert read_vcf(data).version == "VCFv4.5"
    else:
        assert f"sample column 1: {reason}" in refused(data).message


def test_takes_the_last_line_without_its_end_and_lines_that_end_as_on_windows() -> None:
    assert read_vcf(vcf({}).removesuffix(b"\n")).records == 1
    assert read_vcf(vcf({}).replace(b"\n", b"\r\n")).records == 1


# --- refusing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"CHROM": "chr:1"}, "CHROM"),
        ({"POS": "ten"}, "POS"),
        ({"POS": "9" * 5000}, "POS"),
        ({"POS": "1002"}, "beyond the length"),
        ({"REF": "B"}, "REF"),
        ({"ALT": "A,,T"}, "ALT"),
        ({"ALT": "[1:5["}, "ALT"),
        ({"QUAL": "-1"}, "QUAL"),
        ({"FILTER": "PASS;"}, "FILTER"),
        ({"INFO": "DP=3.5"}, "INFO DP must be of Type Integer"),
        ({"INFO": "DP=3,4"}, "INFO DP has 2 values"),
        ({"INFO": "AC=1,2"}, "INFO AC has 2 values instead of 1 (its Number is A)"),
        ({"INFO": "DP=1;DP=2"}, "same key twice"),
        ({"one": "0/2"}, "sample column 1: GT names an allele"),
        ({"two": "0/"}, "sample column 2: GT must be"),
        ({"two": "0/1:3"}, "sample column 2 has more fields"),
        ({"FORMAT": "DP:GT", "one": "3:0/1", "two": "3:0/1"}, "GT must be the first"),
        ({"FORMAT": "GT:PL", "one": "0/1:1,2", "two": "."}, "PL has 2 values instead of 3 (its Number is G)"),
        (
            {"ALT": ",".join(f"<A{n}>" for n in range(30)), "FORMAT": "GT:PL", "one": "0/" * 29 + "1:1", "two": "."},
            "PL has 1 value instead of more than 1000000 (its Number is G)",
        ),
        ({"two": "0/1\t0/1"}, "12 columns"),
    ],
)
def test_refuses_a_wrong_record_naming_its_line(record: dict[str, str], reason: str) -> None:
    error = refused(vcf({"POS": "1"}, record))

    assert error.code == RejectCode.BAD_VCF_RECORD
    assert error.message.startswith("line 8: ") and reason in error.message


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (({"POS": "20"}, {"POS": "10"}), "sorted"),
        (({}, {"CHROM": "2"}, {"POS": "20"}), "stand together"),
        (({"REF": "TAT", "ALT": "TGT"}, {"POS": "11", "REF": "A", "ALT": "G"}), "already given"),
        (({"REF": "AT", "ALT": "AAT,AA"}, {"POS": "11", "REF": "T", "ALT": "A"}), "already given"),
    ],
)
def test_refuses_records_out_of_order_or_given_twice(records: tuple[dict[str, str], ...], reason: str) -> None:
    error = refused(vcf(*records))

    assert error.code == RejectCode.BAD_VCF_RECORD
    assert reason in error.message


@pytest.mark.parametrize(
    "line",
    [
        "##not a key and a value",
        "##reference=",
        '##INFO=<ID=X,Number=1,Type=Int,Description="">',
        '##INFO=<ID=X,Number=1,Type=Integer,Description="open>',
        '##INFO=<ID=AC,Number=1,Type=Integer,Description="reserved">',
        '##FORMAT=<ID=GT,Number=1,Type=Float,Description="reserved">',
        '##FORMAT=<ID=X,Number=1,Type=Flag,Description="">',
        "##contig=<length=5>",
        '##ALT=<ID=THIS,Description="">',
        "##fileformat=VCFv4.2",
        "plain text",
    ],
)
def test_refuses_a_wrong_header_line(line: str) -> None:
    error = refused(vcf({}, header=HEADER.replace("##contig=<ID=1,length=1000>", line)))

    assert (error.code, error.line) == (RejectCode.BAD_VCF_HEADER, 2)


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ("VCFv4.2", "VCFv3.3"),
        ("##fileformat=VCFv4.2\n", ""),
        ("#CHROM\tPOS", "#CHROM POS"),
        ("POS", "POSITION"),
        ("sample-two", "sample-one"),
        ("\tsample-one\tsample-two", ""),
        ("sample-two", "s" * 251),
    ],
)
def test_refuses_a_wrong_first_or_column_line(find: str, replace: str) -> None:
    assert refused(vcf({}, header=HEADER.replace(find, replace, 1))).code == RejectCode.BAD_VCF_HEADER


def test_a_reason_never_holds_sample_names_or_genotypes() -> None:
    message = refused(vcf({"one": "0/7", "ID": "rs1"})).message

    assert not any(secret in message for secret in ("sample-one", "0/7", "rs1"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", RejectCode.EMPTY),
        (b"BCF\2\2" + bytes(50), RejectCode.UNSUPPORTED_TYPE),
        (gzip.compress(b"BCF\2\2" + bytes(50), mtime=0), RejectCode.UNSUPPORTED_TYPE),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), RejectCode.WRONG_ENCODING),
        (vcf({}).replace(b"sample-one", b"sample-\xff"), RejectCode.WRONG_ENCODING),
        (vcf({}).replace(b"sample-one", b"sample-\0"), RejectCode.WRONG_ENCODING),
        (PACKED[:-20], RejectCode.TRUNCATED),
        (
            gzip.compress(vcf({}), mtime=0)[:30] + b"damage" + gzip.compress(vcf({}), mtime=0)[36:],
            RejectCode.ARCHIVE_BROKEN,
        ),
        (vcf({}) + b"\n" + vcf({"POS": "20"}, header=""), RejectCode.BAD_VCF_RECORD),
    ],
)
def test_refuses_what_is_no_readable_vcf(data: bytes, code: RejectCode) -> None:
    assert refused(data).code == code


def test_notices_that_the_last_blocks_of_a_bgzip_file_are_missing(tmp_path: Path) -> None:
    plain, packed = tmp_path / "some.vcf", tmp_path / "some.vcf.gz"
    plain.write_bytes(vcf({}))
    template = VCF(str(plain))
    writer = Writer(str(packed), template, mode="wz")
    for record in template:
        writer.write_record(record)
    writer.close()

    assert read_vcf(packed).records == 1
    assert refused(packed.read_bytes()[:-28]).code == RejectCode.TRUNCATED


def test_refuses_a_file_that_vanished(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.vcf").code == RejectCode.VANISHED


@given(st.binary(max_size=300), st.integers(0, len(vcf({}))))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    good = vcf({})
    for data in (noise, good[:at] + noise + good[at:]):
        with suppress(InputRejected):
            read_vcf(data)


# --- the reference -----------------------------------------------------------------------------------------------


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_text(">1\nACGTACGTNR\nacgtacgt\n")
    return path


@pytest.mark.parametrize("record", [{"POS": "11"}, {"POS": "2", "REF": "CGT"}, {"REF": "G"}, {"POS": "3", "REF": "N"}])
def test_takes_ref_that_agrees_with_the_reference(record: dict[str, str], genome: Path) -> None:
    assert read_vcf(vcf(record), reference=genome).records == 1
    assert [path.name for path in genome.parent.iterdir()] == ["genome.fa"]


@pytest.mark.parametrize(
    "record", [{"POS": "2"}, {"POS": "18", "REF": "TA"}, {"POS": "19"}, {"CHROM": "2"}, {"POS": "10", "REF": "C"}]
)
def test_refuses_ref_that_differs_from_the_reference(record: dict[str, str], genome: Path) -> None:
    error = refused(vcf(record), reference=genome)

    assert (error.code, error.line) == (RejectCode.REF_MISMATCH, 7)


@pytest.mark.parametrize("content", [None, b"", b"\x1f\x8b\x08 no fasta"])
def test_a_reference_that_cannot_be_used_is_said_so(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / ("genome.fa.gz" if content else "genome.fa")
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError):
        read_vcf(vcf({}), reference=path)


# --- the conformance sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["4.1", "4.2"])
def test_reads_every_passed_file_and_refuses_every_failed_one(version: str, realdata: Callable[[str], Path]) -> None:
    folder = realdata("hts-vcf-4.1-4.2") / "vcf" / version

    passed = [read_vcf(path) for path in sorted((folder / "passed").glob("*.vcf"))]
    codes = [refused(path).code for path in sorted((folder / "failed").glob("*.vcf"))]

    assert len(passed) == 25
    assert len(codes) == {"4.1": 193, "4.2": 190}[version]
    assert set(codes) == {RejectCode.BAD_VCF_HEADER, RejectCode.BAD_VCF_RECORD}


WHY = {
    "whitespace in fileformat": "first line",
    "empty fileformat": "first line",
    "description must be surrounded": "Description in double quotes",
    "incorrect order": "order",
    "type is not": "Type",
    "number is not": "Number",
    "genomes field missing": "Genomes",
    "genome id": "PEDIGREE",
    "contig id contains": "CHROM|##contig",
    "alt has a": "ALT",
    "filter": "FILTER",
    "id begins": "ID",
    "id ends": "ID",
    "info ac": "INFO AC",
    "info dp": "INFO DP",
    "is not a flag": "Flag",
    "position is not": "POS",
    "qual is": "QUAL",
    "ref has": "REF",
    "missing ref": "REF",
    "sample names": "unique",
    "sample allele": "GT names an allele",
    "cardinality in pl": "PL",
    "non-sorted": "sorted|INFO AC",
    "duplicated variant": "already given|INFO AC",
    "non-contiguous": "together|INFO AC",
    "triplicated variant": "already given",
    "alt makes": "ALT must",
    "symbolic alt allele": "ALT must",
    "breakend without": "ALT must",
    "contig id missing": "##contig must have an ID",
    "the alt": "##ALT",
    "incorrect alt": "##ALT",
    "incorrect info": "##INFO",
    "incorrect format": "##FORMAT",
    "non-valid url": "names no host",
    "meta-data entry is not a key-value pair": "##key=value|must be an address|names no host",
    "meta entry": "##",
    "non-valid meta": "##",
    "description contains": "##ALT",
    "non-closed meta": "closing bracket",
    "non-description field": "quotes",
    "id has": "ID must",
    "info ": "INFO",
    "sample ": "sample column|INFO MY",  # one says sample and means INFO
    "format ": "FORMAT|GT",
}


def test_the_reason_is_the_one_the_failed_file_was_made_for(realdata: Callable[[str], Path]) -> None:
    checked = 0
    for path in sorted((realdata("hts-vcf-4.1-4.2") / "vcf").glob("*/failed/*.vcf")):
        text = path.read_text(encoding="utf-8")
        cause = text.partition("##CauseOfFailure=")[2].partition("\n")[0].lower()
        wanted = next((words for start, words in WHY.items() if start in cause), None)
        if wanted is not None:
            checked += 1
            message = refused(path).message
            assert any(word in message for word in wanted.split("|")), (path.name, cause, message)
    assert checked == 379  # four name no cause
