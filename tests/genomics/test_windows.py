"""Windows against those of an independent path: the contig read by pyfaidx, changed as text, and sliced."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyfaidx import Fasta

from medflow.genomics.reference import Reference
from medflow.genomics.windows import normalised, reverse_complement, variant_windows
from medflow.records import Variant

LINE = 7  # bases a line: windows go over many lines
PIECES = {
    "mixed": ["A", "C", "G", "T", "a", "ca", "N", "NNN", "AC", "CAGCAG", "TTTT"],
    "repeats": ["A", "C", "AAAA", "ACAC", "CAACAA"],
}
ALLELES = st.text("ACGT", min_size=1, max_size=6)


def made_up(kind: str) -> list[str]:
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(PIECES[kind], size)) for size in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 60)]


# names end with a base: what lies before a contig in the file must not be taken for one
CONTIGS = {f"{kind}{number}a": bases for kind in PIECES for number, bases in enumerate(made_up(kind))}


def fasta(folder: Path, contigs: dict[str, str]) -> Path:
    path = folder / "genome.fa"
    lines = [
        line
        for name, bases in contigs.items()
        for line in (f">{name}", *(bases[at : at + LINE] for at in range(0, len(bases), LINE)))
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def genome(bases: str) -> Iterator[Reference]:
    with TemporaryDirectory() as folder, Reference(fasta(Path(folder), {"c1": bases})) as reference:
        yield reference


@pytest.fixture(scope="module")
def fasta_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fasta(tmp_path_factory.mktemp("genome"), CONTIGS)


@pytest.fixture(scope="module")
def reference(fasta_file: Path) -> Iterator[Reference]:
    with Reference(fasta_file) as reference:
        yield reference


@pytest.fixture(scope="module")
def other(fasta_file: Path) -> Iterator[Fasta]:
    with Fasta(str(fasta_file), indexname=str(fasta_file.with_suffix(".other.fai"))) as other:
        yield other


def by_hand(other: Fasta, variant: Variant, length: int) -> tuple[str, str]:
    """The windows of a variant, one letter after the other."""
    bases = str(other[variant.contig][:]).upper()
    start = variant.position - 1 - length // 2
    return sliced(bases, start, length), sliced(changed(bases, variant), start, length)


def sliced(bases: str, start: int, length: int) -> str:
    return "".join(bases[at] if 0 <= at < len(bases) else "N" for at in range(start, start + length))


def changed(bases: str, variant: Variant) -> str:
    before = variant.position - 1
    assert bases[before : before + len(variant.ref)] == variant.ref
    return bases[:before] + variant.alt + bases[before + len(variant.ref) :]


def normal(reference: Reference, variant: Variant) -> Variant:
    position, ref, alt = normalised(reference, variant.contig, variant.position, variant.ref, variant.alt)
    return Variant(contig=variant.contig, position=position, ref=ref, alt=alt)


@st.composite
def variants(draw: st.DrawFn, *kinds: str) -> Variant:
    """Substitutions, insertions and deletions anywhere on a contig, its ends included, in any form."""
    name = draw(st.sampled_from([name for name in CONTIGS if name.startswith(kinds)]))
    bases = CONTIGS[name].upper()
    position = draw(st.integers(1, len(bases)) | st.sampled_from([1, len(bases)]))
    ref = bases[position - 1 : position - 1 + draw(st.integers(1, 6))]
    last = ref[-1].replace("N", "A")
    alt = draw(
        ALLELES
        | ALLELES.map(lambda letters: ref[0] + letters)
        | ALLELES.map(lambda letters: letters + last)
        | st.sampled_from([ref[0], ref[-1], ref + ref])
    )
    assume(alt != ref)
    return Variant(contig=name, position=position, ref=ref, alt=alt)


# --- windows -----------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(variant=variants("mixed", "repeats"), length=st.integers(1, 40))
def test_windows_are_those_cut_by_hand_out_of_the_changed_contig(
    reference: Reference, other: Fasta, variant: Variant, length: int
) -> None:
    aligned = normal(reference, variant)

    windows = variant_windows(reference, [aligned, variant], length)

    for number, each in enumerate((aligned, variant)):
        found = windows.ref[number].tobytes().decode(), windows.alt[number].tobytes().decode()
        assert found == by_hand(other, each, length)
        assert windows.ref_length[number] == len(each.ref) and windows.alt_length[number] == len(each.alt)
    assert windows.at == length // 2


@given(st.lists(variants("mixed", "repeats"), max_size=30), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_many_variants_of_several_contigs_are_cut_at_once_and_stay_in_order(
    reference: Reference, other: Fasta, many: list[Variant], length: int
) -> None:
    windows = variant_windows(reference, many, length)

    found = zip(windows.ref, windows.alt, strict=True)
    assert [(ref.tobytes().decode(), alt.tobytes().decode()) for ref, alt in found] == [
        by_hand(other, variant, length) for variant in many
    ]


def test_letters_that_stand_for_several_bases_are_n_in_windows_but_for_what_the_allele_says() -> None:
    with genome("ACRYACGT") as reference:
        variant = Variant(contig="c1", position=3, ref="A", alt="T")

        windows = variant_windows(reference, [variant], 5)

    assert windows.ref.tobytes() == b"ACANA" and windows.alt.tobytes() == b"ACTNA"


def test_no_variants_are_no_windows() -> None:
    with genome("ACGT") as reference:
        windows = variant_windows(reference, [], 5)

    assert len(windows) == 0 and windows.alt.shape == (0, 5)


# --- normal form -------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(variant=variants("mixed", "repeats"))
def test_normal_form_leaves_the_changed_contig_as_it_is_and_is_its_own(reference: Reference, variant: Variant) -> None:
    bases, aligned = CONTIGS[variant.contig].upper(), normal(reference, variant)

    assert changed(bases, aligned) == changed(bases, variant)
    assert normal(reference, aligned) == aligned


@settings(max_examples=300, deadline=None)
@given(variant=variants("repeats"))
def test_nothing_further_left_and_nothing_shorter_says_the_same(reference: Reference, variant: Variant) -> None:
    before, aligned = CONTIGS[variant.contig], normal(reference, variant)
    shorter, longer = sorted((before, changed(before, variant)), key=len)

    size = len(longer) - len(shorter)
    places = [place for place in range(len(longer)) if longer[:place] + longer[place + size :] == shorter]

    if size and places:  # letters lost or gained in one piece, after the base before it, if there is one
        assert (aligned.position, sorted((len(aligned.ref), len(aligned.alt)))) == (max(places[0], 1), [1, size + 1])
    else:
        assert aligned.ref[0] != aligned.alt[0] and aligned.ref[-1] != aligned.alt[-1]


@pytest.mark.parametrize(
    ("bases", "allele", "expected"),
    [
        ("GGGCACACACAGGG", (8, "CAC", "C"), (3, "GCA", "G")),  # Tan et al. 2015, figure 1
        ("GGGCACACACAGGG", (2, "GGCACA", "GGCA"), (3, "GCA", "G")),
        ("GGGCACACACAGGG", (3, "GCACA", "GCA"), (3, "GCA", "G")),
        ("TTTTT", (5, "T", "TT"), (1, "T", "TT")),  # nothing before it: the base after it is kept
        ("TTTTT", (4, "TT", "T"), (1, "TT", "T")),
        ("ACGT", (1, "AC", "C"), (1, "AC", "C")),
        ("ACGT", (1, "A", "GA"), (1, "A", "GA")),
        ("ACGT", (4, "T", "TA"), (4, "T", "TA")),
        ("ACNNNNGT", (6, "NG", "G"), (2, "CN", "C")),  # N equals N, as for bcftools norm
        ("acgtacgt", (2, "cgta", "ctta"), (3, "G", "T")),
        ("ACRTACGT", (4, "TA", "T"), (4, "TA", "T")),
        ("ACRTACGT", (3, "ATA", "AA"), (3, "NT", "N")),  # no letter for several bases stands in a VCF
        ("RCGTACGT", (1, "NC", "N"), (1, "NC", "N")),
        ("CRGTACGT", (1, "CA", "A"), (1, "CN", "N")),
    ],
)
def test_known_alleles(
    bases: str,
    allele: tuple[int, str, str],
    expected: tuple[int, str, str],
) -> None:
    with genome(bases) as reference:
        assert normalised(reference, "c1", *allele) == expected


def test_moves_across_a_long_repeat() -> None:
    with genome("G" + "CA" * 50_000 + "T") as reference:
        assert normalised(reference, "c1", 99_999, "ACA", "A") == (1, "GCA", "G")


def test_an_unknown_letter_of_ref_is_read_from_the_reference() -> None:
    with genome("ACGTACGT") as reference:
        assert normalised(reference, "c1", 2, "NG", "T") == (2, "CG", "T")


# --- the other strand --------------------------------------------------------------------------------------------


@given(st.lists(st.text("ACGTN", min_size=9, max_size=9), min_size=1))
def test_the_reverse_complement_of_the_reverse_complement_is_the_window_itself(rows: list[str]) -> None:
    windows = np.array([list(row.encode()) for row in rows], dtype=np.uint8)

    there = reverse_complement(windows)

    assert (reverse_complement(there) == windows).all()
    assert [row.tobytes().decode() for row in there] == [
        "".join({"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}[letter] for letter in reversed(row)) for row in rows
    ]
