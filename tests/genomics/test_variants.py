import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cyvcf2 import VCF, Writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medflow.errors import InputNotUsable
from medflow.genomics import sample_file
from medflow.genomics import variants as module
from medflow.genomics.index import build_index
from medflow.genomics.reference import Reference
from medflow.genomics.regions import Interval, Regions
from medflow.genomics.variants import SampleVariants, read_variants
from medflow.plugin.inputs import SequenceInput
from medflow.records import CalledVariant

BASES = "".join(np.random.default_rng(5).choice(list("ACGT"), 4000))
GENOME = {"chr1": "ACGTACGTAT" + "CACACACA" + "GGTT" + BASES, "chr2": BASES[::-1], "chrM": BASES[:500]}
WANTED = SequenceInput(length=11, source="variants", assembly="GRCh38", max_allele=6)
META = (
    "##fileformat=VCFv4.2\n"
    "##contig=<ID=1,length=4022>\n##contig=<ID=2,length=4000>\n##contig=<ID=MT,length=500>\n##contig=<ID=decoy>\n"
    '##FILTER=<ID=q10,Description="Low">\n##ALT=<ID=DEL,Description="Deletion">\n'
    '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depths">\n'
    '##FORMAT=<ID=PS,Number=1,Type=Integer,Description="Phase set">\n'
    '##FORMAT=<ID=FT,Number=1,Type=String,Description="Filter">\n'
)
SAMPLES = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tother\twanted\n"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in GENOME.items()))
    with Reference(path) as reference:
        yield reference


def base(position: int, count: int = 1, contig: str = "chr1") -> str:
    return GENOME[contig][position - 1 : position - 1 + count]


def another(letter: str, by: int = 1) -> str:
    return "ACGT"[("ACGT".index(letter) + by) % 4]


def snv(at: int, genotype: str = "0/1", keys: str = "GT", **columns: str) -> str:
    """A line of a substitution; its second sample is the one that is read."""
    row = {
        "contig": "1", "position": str(at), "id": ".", "ref": base(at), "alt": another(base(at)),
        "quality": "50", "filter": "PASS", "info": ".", "keys": keys, "other": "1|1", "wanted": genotype,
    }  # fmt: skip
    return "\t".join((row | columns).values())


def write(folder: Path, *lines: str, meta: str = META, name: str = "0a1b2c") -> Path:
    path = folder / name  # as objects of the store: without an extension
    path.write_text(meta + SAMPLES + "".join(line + "\n" for line in lines))
    return path


def bgzip(path: Path) -> Path:
    packed = path.with_name(f"{path.name}f")
    reader = VCF(str(path))
    writer = Writer(str(packed), reader, "wz")
    for record in reader:
        writer.write_record(record)
    writer.close()
    return packed


def read(path: Path, reference: Reference, *, wanted: SequenceInput = WANTED, **options) -> SampleVariants:  # noqa: ANN003
    options = {"regions": None, "index": None} | options
    return read_variants(path, "wanted", wanted=wanted, reference=reference, **options)


@pytest.fixture
def of(tmp_path: Path, reference: Reference) -> Callable[..., SampleVariants]:
    """What is read of a file with these lines."""

    def of(*lines: str, meta: str = META, **options) -> SampleVariants:  # noqa: ANN003
        return read(write(tmp_path, *lines, meta=meta), reference, **options)

    return of


Logged = pytest.LogCaptureFixture
Patch = pytest.MonkeyPatch
Read = Callable[..., SampleVariants]

# --- what is carried ---------------------------------------------------------------------------------------------


def test_an_allele_comes_with_its_windows_zygosity_phase_and_reads(of: Read) -> None:
    found = of(snv(100, "0|1:12,9:77", "GT:AD:PS"))

    expected = CalledVariant(
        contig="chr1", position=100, ref=base(100), alt=another(base(100)), zygosity="heterozygous", phase="77:2",
        depths=(12, 9),
    )  # fmt: skip
    assert found.variants == [expected]
    assert found.windows.ref.tobytes().decode() == base(95, 11)
    assert found.windows.alt.tobytes().decode() == base(95, 5) + another(base(100)) + base(101, 5)
    assert not found.counts


def test_alleles_of_one_phase_set_say_on_which_haplotype_they_lie(of: Read) -> None:
    lines = (snv(at, f"{gt}:7", "GT:PS") for at, gt in ((100, "0|1"), (200, "1|0"), (300, "1|1"), (400, ".|1")))

    assert [variant.phase for variant in of(*lines).variants] == ["7:2", "7:1", "7:1,2", "7:2"]


@pytest.mark.parametrize(
    ("genotype", "expected"),
    [
        ("0/1", ["heterozygous"]),
        ("1|1", ["homozygous"]),
        ("1", ["hemizygous"]),
        ("1/2", ["heterozygous", "heterozygous"]),
        ("./1", [None]),
        ("1/.", [None]),
        ("0/2/2", ["heterozygous"]),
        ("2/2/2", ["homozygous"]),
        ("0/0", "reference-genotype"),
        ("0", "reference-genotype"),
        ("./.", "no-genotype"),
        (".", "no-genotype"),
        ("0/.", "no-genotype"),
    ],
)
def test_genotypes(of: Read, genotype: str, expected: list[str | None] | str) -> None:
    alts = f"{another(base(100))},{another(base(100), 2)}"

    found = of(snv(100, genotype, alt=alts))

    if isinstance(expected, str):
        assert not found.variants and found.counts == {expected: 1}
    else:
        assert [variant.zygosity for variant in found.variants] == expected


def test_a_record_without_genotypes_is_counted(of: Read) -> None:
    assert of(snv(100, "3,4", "AD")).counts == {"no-genotype": 1}


def test_only_a_phased_genotype_has_a_phase_set(of: Read) -> None:
    found = of(snv(100, "0/1:7", "GT:PS"), snv(200, "1|0:.", "GT:PS"), snv(300, "1:7", "GT:PS"), snv(400, "0|1"))

    assert [variant.phase for variant in found.variants] == [None] * 4


@pytest.mark.parametrize(("depths", "expected"), [("3,4,5", (3, 5)), (".", None), (".,4,5", None), ("3,5", None)])
def test_reads_are_of_the_reference_and_of_the_allele_itself(
    of: Read, depths: str, expected: tuple[int, int] | None
) -> None:
    alts = f"{another(base(100))},{another(base(100), 2)}"

    assert of(snv(100, f"0/2:{depths}", "GT:AD", alt=alts)).variants[0].depths == expected


def test_keys_that_the_header_does_not_declare_are_read(of: Read) -> None:
    bare = "".join(line + "\n" for line in META.splitlines() if not line.startswith("##FORMAT"))

    (found,) = of(snv(100, "0|1:12,9:77", "GT:AD:PS"), meta=bare).variants

    assert (found.zygosity, found.depths, found.phase) == ("heterozygous", (12, 9), "77:2")


def test_the_gene_of_a_deletion_is_that_of_the_bases_it_takes_not_of_the_one_it_keeps(of: Read) -> None:
    assert base(9, 3) == "ATC"  # TC cannot be moved to the left
    genes = [Interval("1", 5, 9, "BEFORE"), Interval("1", 9, 12, "DELETED")]
    regions = Regions((), genes=genes, everything=True)

    def genes_of(*alleles: tuple[str, str]) -> list[str | None]:
        lines = (snv(9).replace(f"{base(9)}\t{another(base(9))}", f"{ref}\t{alt}") for ref, alt in alleles)
        return [item.gene for item in of(*lines, regions=regions).variants]

    assert genes_of(("ATC", "A")) == ["DELETED"]
    assert genes_of(("A", "AG")) == genes_of(("A", "G")) == ["BEFORE"]


def test_alleles_of_one_record_are_split_trimmed_aligned_and_put_in_order(of: Read) -> None:
    repeat = "\t".join(["1", "14", ".", "ACA", "A,ACACA", "50", "PASS", ".", "GT", "0/0", "1/2"])

    found = of(snv(12), repeat)

    places = [(variant.position, variant.ref, variant.alt) for variant in found.variants]
    assert places == [(10, "T", "TCA"), (10, "TCA", "T"), (12, "A", "C")]


# --- what is left out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"filter": "q10"}, "filtered"),
        ({"keys": "GT:FT", "wanted": "0/1:q10"}, "filtered"),
        ({"quality": "19.8"}, "low-quality"),
        ({"quality": "."}, "no-quality"),
        ({"quality": "nan"}, "no-quality"),
        ({"alt": "<DEL>", "info": "END=120"}, "symbolic"),
        ({"alt": "<NON_REF>"}, "symbolic"),
        ({"alt": f"{base(100)}[1:300["}, "breakend"),
        ({"alt": f"{base(100)}."}, "breakend"),
        ({"alt": "*"}, "spanning-deletion"),
        ({"alt": "."}, "missing-allele"),
        ({"alt": "N"}, "unknown-bases"),
        ({"alt": base(100).lower()}, "same-as-reference"),
        ({"alt": base(100) + "ACGTTA"}, "too-long"),
        ({"ref": base(100, 7), "alt": base(100)}, "too-long"),
        ({"position": "0", "ref": "N", "alt": "A"}, "telomere"),
        ({"contig": "decoy"}, "unknown-contig"),
        ({"wanted": "0|0"}, "reference-genotype"),
    ],
)
def test_what_is_left_out_is_counted_with_its_reason(of: Read, columns: dict[str, str], reason: str) -> None:
    found = of(snv(100, **columns), wanted=replace(WANTED, min_quality=19.9))

    assert not found.variants and len(found.windows) == 0
    assert found.counts == {reason: 1}


@pytest.mark.parametrize(
    "columns",
    [
        {"filter": "."},
        {"quality": "19.9"},
        {"keys": "GT:FT", "wanted": "0/1:PASS"},
        {"keys": "GT:FT", "wanted": "0/1:."},
    ],
)
def test_what_nothing_refused_is_taken(of: Read, columns: dict[str, str]) -> None:
    assert len(of(snv(100, **columns), wanted=replace(WANTED, min_quality=19.9)).variants) == 1


def test_filtered_variants_are_taken_by_a_model_that_wants_them(of: Read) -> None:
    found = of(snv(100, filter="q10"), snv(200, "0/1:q10", "GT:FT"), wanted=replace(WANTED, passing_only=False))

    assert len(found.variants) == 2


def test_an_allele_that_two_records_write_in_two_ways_is_taken_once(of: Read) -> None:
    found = of(*(snv(at, ref="ACA", alt="A") for at in (12, 16)))

    assert [variant.position for variant in found.variants] == [10]
    assert found.counts == {"duplicate": 1}


RCRS = {"MT": BASES * 4 + BASES[:569]}
MITOCHONDRION = "##fileformat=VCFv4.2\n##contig=<ID=MT,length=16569>\n" + META[META.index("##FORMAT") :]


@pytest.mark.parametrize(
    ("assembly", "bed", "meta", "genes"),
    [
        ("GRCh38", "chrM", MITOCHONDRION, ["GENE"]),
        ("GRCh38", "M", MITOCHONDRION.replace(",length=16569", ""), ["GENE"]),
        ("GRCh38", "chrM", re.sub("##contig.*\n", "", MITOCHONDRION), ["GENE"]),
        ("GRCh37", "chrMT", MITOCHONDRION, ["GENE"]),
        ("GRCh37", "chrM", MITOCHONDRION, []),  # may be hg19's
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_regions_may_call_the_mitochondrion_otherwise_where_it_is_the_same(
    assembly: str, bed: str, meta: str, genes: list[str], indexed: bool, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(sample_file, "_RECORDS_PER_QUERY", 0)
    (tmp_path / "genome.fa").write_text(f">MT\n{RCRS['MT']}\n")
    path = bgzip(write(tmp_path, snv(100, contig="MT", ref=BASES[99], alt=another(BASES[99])), meta=meta))
    (index := tmp_path / "index").write_bytes(build_index(path) or b"")
    regions = Regions([Interval(bed, 90, 110)], genes=[Interval(bed, 90, 110, "GENE")])

    with Reference(tmp_path / "genome.fa") as genome:
        wanted = replace(WANTED, assembly=assembly)
        found = read(path, genome, wanted=wanted, regions=regions, index=index if indexed else None, records=1)

    assert [variant.gene for variant in found.variants] == genes


# --- the reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("genotype", ["0/1", "0/0", "./."])
def test_one_ref_that_differs_makes_the_whole_file_unusable_and_tells_no_place(of: Read, genotype: str) -> None:
    with pytest.raises(InputNotUsable) as caught:
        of(snv(100), snv(200, genotype, ref=another(base(200)), alt=base(200)))

    assert caught.value.code == "reference-mismatch"
    assert "200" not in caught.value.message


def test_a_contig_of_another_length_is_of_another_assembly(of: Read) -> None:
    with pytest.raises(InputNotUsable, match="not as long") as caught:
        of(snv(100), meta=META.replace("length=4022", "length=4023"))

    assert caught.value.code == "reference-mismatch"


def test_a_file_none_of_whose_contigs_the_reference_has_is_refused_and_not_found_empty(of: Read) -> None:
    meta = META.replace("ID=1,", "ID=NC_000001.11,").replace("ID=2,", "ID=NC_000002.12,").replace("ID=MT,", "ID=NC_1,")

    with pytest.raises(InputNotUsable, match="no contig of the file") as caught:
        of(snv(100, contig="NC_000001.11"), meta=meta)

    assert caught.value.code == "reference-mismatch"
    assert of(meta=meta).variants == []  # a file without records


@pytest.mark.parametrize(("length", "counts"), [(500, {}), (499, {"unknown-contig": 1})])
def test_the_mitochondrion_is_read_where_it_is_the_same(of: Read, length: int, counts: dict[str, int]) -> None:
    line = snv(9, "1", contig="MT", ref=base(9, contig="chrM"), alt=another(base(9, contig="chrM")))

    found = of(line, meta=META.replace("length=500", f"length={length}"))

    assert found.counts == counts
    assert [variant.contig for variant in found.variants] == ["chrM"] * (not counts)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["plain", "gzip", "bgzip"])
def test_reads_objects_without_an_extension(packed: str, tmp_path: Path, reference: Reference) -> None:
    path = write(tmp_path, snv(100), snv(200, "1/1"))
    if packed == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif packed == "bgzip":
        path = bgzip(path)

    assert [variant.position for variant in read(path, reference).variants] == [100, 200]


def test_a_sample_that_is_not_there_is_told_without_its_name(
    tmp_path: Path, reference: Reference, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputNotUsable) as caught:
        read_variants(write(tmp_path, snv(9)), "Doe", wanted=WANTED, reference=reference, regions=None, index=None)

    assert caught.value.code == "sample-missing"
    assert "Doe" not in caught.value.message + "".join(capfd.readouterr())


@pytest.mark.parametrize("data", [b"", b"no VCF", (META + SAMPLES + "1\tx\t.\tA\n").encode()])
def test_a_file_that_is_none_is_told_and_not_quoted(
    data: bytes, tmp_path: Path, reference: Reference, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "object"
    path.write_bytes(data)

    with pytest.raises(InputNotUsable) as caught:
        read(path, reference)

    assert caught.value.code == "unreadable-file"
    assert "".join(capfd.readouterr()) == ""


def test_genotypes_of_vcf_4_4_may_begin_with_their_phase(of: Read) -> None:
    lines = [snv(100 * number, genotype) for number, genotype in enumerate(("/0|1", "|1", "|1|1", "0/1"), start=1)]

    found = of(*lines, meta=META.replace("VCFv4.2", "VCFv4.4"), records=4)

    assert [variant.zygosity for variant in found.variants] == [
        "heterozygous", "hemizygous", "homozygous", "heterozygous",
    ]  # fmt: skip


def test_a_file_that_breaks_off_is_noticed_by_its_number_of_records(of: Read) -> None:
    with pytest.raises(InputNotUsable) as caught:
        of(snv(100), snv(200), records=3)

    assert caught.value.code == "unreadable-file"


def test_too_many_variants_are_refused_with_the_way_out(of: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VARIANTS", 2)

    with pytest.raises(InputNotUsable, match="MEDFLOW_REGIONS") as caught:
        of(snv(100), snv(200), snv(300))

    assert caught.value.code == "too-many-variants"


# --- genes -------------------------------------------------------------------------------------------------------


def test_a_gene_is_that_of_the_sites_genes_or_else_the_one_that_the_file_names(of: Read) -> None:
    declared = '##INFO=<ID=CSQ,Number=.,Type=String,Description="VEP. Format: Allele|Consequence|SYMBOL">\n'
    genes = Regions((), genes=[Interval("1", 199, 200, "HERE")], everything=True)
    lines = [snv(at, info=f"CSQ={another(base(at))}|exon_variant|THERE") for at in (100, 200)]
    deleted = snv(301, ref=base(300, 3), position="300", alt=base(300), info="CSQ=-|exon_variant|GONE")

    found = of(*lines, deleted, snv(400), meta=META + declared, regions=genes)

    assert [variant.gene for variant in found.variants] == ["THERE", "HERE", "GONE", None]


# --- regions -----------------------------------------------------------------------------------------------------


def test_only_alleles_that_lie_in_the_regions_when_aligned_are_taken(of: Read) -> None:
    regions = Regions([Interval("1", 8, 10), Interval("1", 99, 100)], genes=[Interval("1", 5, 20, "GENE")])
    repeat = snv(16, ref="ACA", alt="A")
    long = snv(99, ref=base(99, 3), alt=base(99, 2) + another(base(101)))

    found = of(repeat, long, snv(100), snv(101), regions=regions)

    assert [(variant.position, variant.gene) for variant in found.variants] == [(10, "GENE"), (100, None)]
    assert found.counts == {"outside-regions": 2}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 records of two contigs."""
    rng, lines = np.random.default_rng(6), []
    for contig, name in (("1", "chr1"), ("2", "chr2")):
        for place in sorted(rng.choice(np.arange(1, 3990), 250, replace=False).tolist()):
            ref = base(place, int(rng.choice([1, 1, 1, 3, 9])), name)
            alt = ref[0] if len(ref) > 1 else rng.choice([another(ref), ref + "AC", ref * 3])
            genotype = str(rng.choice(["0/1", "1/1", "0/0", "./."]))
            lines.append(
                snv(place, genotype, contig=contig, ref=ref, alt=str(alt), filter=str(rng.choice(["PASS", "q10"])))
            )
    return bgzip(write(tmp_path_factory.mktemp("many"), *lines))


INTERVALS = st.lists(
    st.builds(
        lambda contig, start, size: Interval(contig, start, start + size),
        st.sampled_from(["chr1", "chr2", "chr3"]),
        st.integers(0, 4000),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(intervals=INTERVALS)
def test_regions_give_the_same_with_an_index_and_without_one_as_a_naive_search(
    many: Path, reference: Reference, intervals: list[Interval]
) -> None:
    index = many.with_name("an index")
    if not index.exists():
        index.write_bytes(build_index(many) or b"")
    regions, everywhere = Regions(intervals), read(many, reference)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_file, "_JOIN", 1)  # the contigs are short: many queries of each
        patch.setattr(sample_file, "_RECORDS_PER_QUERY", 0)
        patch.setattr(sample_file, "REACH", 30)
        patch.setattr(module, "REACH", 30)
        streamed = read(many, reference, regions=regions)
        near = read(many, reference, regions=regions, index=index, records=500)

    assert (streamed.variants, streamed.counts) == (near.variants, near.counts)
    assert streamed.variants == [
        variant
        for variant in everywhere.variants
        if any(
            row.contig == variant.contig
            and row.start0 < variant.position - 1 + len(variant.ref)
            and variant.position - 1 < row.end0
            for row in intervals
        )
    ]


@pytest.mark.parametrize("harm", ["missing", "cut short", "damaged", "of another file"])
def test_an_index_of_no_use_costs_time_and_no_variant(
    harm: str, many: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Logged
) -> None:
    monkeypatch.setattr(sample_file, "_RECORDS_PER_QUERY", 0)
    regions, index, good = Regions([Interval("chr1", 100, 2000)]), tmp_path / "index", build_index(many) or b""
    if harm != "missing":
        other = build_index(bgzip(write(tmp_path, snv(3000)))) or b""
        index.write_bytes({"cut short": good[:-40], "damaged": good[:30] + b"?" + good[31:]}.get(harm, other))

    found = read(many, reference, regions=regions, index=index, records=500)

    expected = read(many, reference, regions=regions, records=500)
    assert expected.variants and (found.variants, found.counts) == (expected.variants, expected.counts)
    assert "was read from start to end" in caplog.text


@pytest.mark.parametrize("indexed", [False, True])
def test_an_indel_at_the_far_end_of_a_repeat_is_found_where_it_lies_when_aligned(
    indexed: bool, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(sample_file, "_RECORDS_PER_QUERY", 0)
    (tmp_path / "genome.fa").write_text(f">1\nGGTT{'CA' * 8000}GGTT\n")
    meta = META.replace("length=4022", "length=16008")
    path = bgzip(write(tmp_path, snv(16002, ref="ACA", alt="A"), meta=meta))
    (index := tmp_path / "index").write_bytes(build_index(path) or b"")

    with Reference(tmp_path / "genome.fa") as genome:
        regions = Regions([Interval("1", 0, 5)])
        found = read(path, genome, regions=regions, index=index if indexed else None, records=1)

    assert [(variant.position, variant.ref, variant.alt) for variant in found.variants] == [(4, "TCA", "T")]


def test_an_index_is_not_asked_where_reading_everything_is_faster(many: Path, reference: Reference) -> None:
    regions = Regions([Interval(f"chr{number}", 0, 4000) for number in range(1, 10)])

    found = read(many, reference, regions=regions, index=many.with_name("absent"), records=500)

    assert found.variants


@pytest.mark.parametrize(
    ("line", "intervals", "reach", "position"),
    [
        (snv(99, ref=base(99, 6), alt=base(99)), [(98, 99), (103, 104)], 0, 99),  # overlaps both
        (snv(16, ref="ACA", alt="A"), [(8, 10), (3000, 3001)], 1000, 10),  # written right of the region it lies in
    ],
)
def test_a_record_between_two_queries_is_taken_once(
    line: str,
    intervals: list[tuple[int, int]],
    reach: int,
    position: int,
    tmp_path: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_file, "_JOIN", 1)
    monkeypatch.setattr(sample_file, "REACH", reach)
    path, index = bgzip(write(tmp_path, line)), tmp_path / "index"
    index.write_bytes(build_index(path) or b"")

    found = read(path, reference, regions=Regions(Interval("1", *pair) for pair in intervals), index=index)

    assert [variant.position for variant in found.variants] == [position]
    assert not found.counts
