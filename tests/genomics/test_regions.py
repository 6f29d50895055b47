import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflow.errors import ConfigurationError
from medflow.genomics.regions import Interval, Regions, regions_of
from medflow.genomics.site import GenomeSite

INTERVALS = st.lists(
    st.builds(
        lambda contig, start, size: Interval(contig, start, start + size),
        st.sampled_from(["1", "2", "chrX"]),
        st.integers(0, 60),
        st.integers(1, 12),
    ),
    max_size=12,
)
GENES = "chr1\t100\t200\tBRCA1\nchr1\t150\t160\tINNER\nchr1\t300\t400\tTP53\nchr2\t0\t50\tBRCA1\n"


def bed(folder: Path, text: str | bytes, name: str = "regions.bed") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def bases(regions: Regions) -> set[tuple[str, int]]:
    return {
        (contig, place)
        for contig, (starts, ends) in regions.by_contig.items()
        for start, end in zip(starts, ends, strict=True)
        for place in range(start, end)
    }


def naive(intervals: Sequence[Interval], contig: str, start: int, end: int) -> bool:
    return any(row.contig == contig and row.start0 < end and start < row.end0 for row in intervals)


# --- which bases -------------------------------------------------------------------------------------------------


@given(INTERVALS, st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), min_size=1, max_size=30))
def test_what_is_inside_is_what_a_naive_search_finds(intervals: list[Interval], asked: list[tuple[int, int]]) -> None:
    regions = Regions(intervals)
    starts = np.array([start for start, _ in asked])
    ends = starts + np.array([size for _, size in asked])

    for contig in ("1", "2", "chrX", "3"):
        expected = [naive(intervals, contig, start, end) for start, end in zip(starts, ends, strict=True)]
        assert regions.contains(contig, starts, ends).tolist() == expected
        assert [
            regions.overlaps(contig, int(start), int(end)) for start, end in zip(starts, ends, strict=True)
        ] == expected


@given(INTERVALS)
def test_intervals_are_merged_sorted_and_apart(intervals: list[Interval]) -> None:
    regions = Regions(intervals)

    assert bases(regions) == {(row.contig, place) for row in intervals for place in range(row.start0, row.end0)}
    assert all((starts[1:] > ends[:-1]).all() for starts, ends in regions.by_contig.values())
    assert Regions(reversed(intervals)).digest == regions.digest


def test_contigs_are_found_with_and_without_chr() -> None:
    regions = Regions([Interval("chr1", 5, 9), Interval("X", 5, 9)])

    assert regions.contains("1", 8, 9) and regions.contains("chrX", 5, 6)
    assert not regions.contains("chr1", 9, 10) and not regions.contains("2", 5, 6)


def test_another_digest_for_other_bases_or_other_genes() -> None:
    gene = Interval("1", 0, 50, "BRCA1")
    found = [
        Regions([Interval("1", 5, 9)]),
        Regions([Interval("1", 5, 10)]),
        Regions([Interval("1", 5, 9)], genes=[gene]),
        Regions([Interval("1", 5, 9)], genes=[gene._replace(name="TP53")]),
        Regions([], everything=True),
        Regions([]),
    ]

    assert len({regions.digest for regions in found}) == len(found)


# --- BED files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_reads_bed_with_comments_and_track_lines(packed, tmp_path: Path) -> None:  # noqa: ANN001 - bytes to bytes
    text = b"# made by hand\nbrowser position chr1:1-9\ntrack name=panel\n\n"
    text += b"chr1\t10\t20\tname\t0\t+\r\nchr1 15 30\nchr2\t5\t5\n"

    regions = regions_of(GenomeSite(regions=bed(tmp_path, packed(text))))

    assert regions is not None and bases(regions) == {("chr1", place) for place in range(10, 30)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chr1\t10\n", "line 1"),
        ("chr1\t10\t20\nchr1\tx\t20\n", "line 2"),
        ("chr1\t20\t10\n", "line 1"),
        ("chr1\t-1\t10\n", "line 1"),
        ("# nothing\n", "no interval"),
        ("chr1\t1\t2\n1\t1\t2\n", "both 1 and chr1"),
        (b"\x1f\x8bno gzip", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_bed_is_named_with_its_line(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        regions_of(GenomeSite(regions=bed(tmp_path, text)))


def test_a_missing_file_is_told_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MEDFLOW_REGIONS"):
        regions_of(GenomeSite(regions=tmp_path / "absent.bed"))


# --- genes -------------------------------------------------------------------------------------------------------


def test_a_list_of_genes_takes_their_places_from_the_bed_of_genes(tmp_path: Path) -> None:
    site = GenomeSite(genes=bed(tmp_path, "# panel\nTP53\n\n", "genes.txt"), gene_bed=bed(tmp_path, GENES))

    regions = regions_of(site)

    assert regions is not None and bases(regions) == {("chr1", place) for place in range(300, 400)}


def test_genes_restrict_the_regions(tmp_path: Path) -> None:
    site = GenomeSite(
        regions=bed(tmp_path, "1\t190\t310\n1\t350\t360\n1\t399\t500\n2\t60\t70\n", "exons.bed"),
        genes=bed(tmp_path, "BRCA1\nTP53\n", "genes.txt"),
        gene_bed=bed(tmp_path, GENES),
    )

    regions = regions_of(site)

    wanted = [*range(190, 200), *range(300, 310), *range(350, 360), 399]
    assert regions is not None and bases(regions) == {("1", place) for place in wanted}


def test_unknown_symbols_are_named(tmp_path: Path) -> None:
    site = GenomeSite(genes=bed(tmp_path, "TP53\nTP35\nBRAC1\n", "genes.txt"), gene_bed=bed(tmp_path, GENES))

    with pytest.raises(ConfigurationError, match="BRAC1, TP35 not in MEDFLOW_GENE_BED"):
        regions_of(site)


def test_genes_need_their_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MEDFLOW_GENE_BED"):
        regions_of(GenomeSite(genes=bed(tmp_path, "TP53\n", "genes.txt")))


def test_names_the_gene_of_a_place_and_of_two_the_shorter_one(tmp_path: Path) -> None:
    regions = regions_of(GenomeSite(regions="all", gene_bed=bed(tmp_path, GENES)))

    assert regions is not None and regions.everything
    found = {place: regions.gene_at("1", place) for place in (100, 101, 150, 151, 160, 161, 200, 201, 301)}
    assert found == {
        100: None, 101: "BRCA1", 150: "BRCA1", 151: "INNER", 160: "INNER", 161: "BRCA1", 200: "BRCA1", 201: None,
        301: "TP53",
    }  # fmt: skip
    assert regions.gene_at("chr2", 1) == "BRCA1" and regions.gene_at("3", 1) is None


@pytest.mark.parametrize(
    ("start", "end", "gene"),
    [(90, 100, None), (90, 101, "BRCA1"), (149, 150, "BRCA1"), (155, 900, "INNER"), (199, 300, "BRCA1"),
     (200, 300, None), (200, 301, "TP53"), (0, 1, None)],
)  # fmt: skip
def test_names_the_first_gene_that_holds_some_of_an_interval(
    start: int, end: int, gene: str | None, tmp_path: Path
) -> None:
    regions = regions_of(GenomeSite(regions="all", gene_bed=bed(tmp_path, GENES)))

    assert regions is not None and regions.gene_over("1", start, end) == gene


def test_a_site_that_says_nothing_has_no_regions_and_everything_when_a_file_goes_whole(tmp_path: Path) -> None:
    site = GenomeSite(gene_bed=bed(tmp_path, GENES))

    whole = regions_of(site, whole=True)

    assert regions_of(site) is None
    assert whole is not None and whole.everything and whole.contains("9", 1, 2) and whole.gene_at("1", 301) == "TP53"
