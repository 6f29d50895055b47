"""Made-up DNA: splice-like windows as FASTA, and a small VCF whose REF alleles agree with its reference."""

from __future__ import annotations

import numpy as np

_BASES = np.array(list("ACGT"))
_WINDOW = 60  # bases; the boundary lies between the 30th and the 31st
CONTIG = "demo1"
CONTIG_LENGTH = 6000
_LINE = 60

# Frequencies (A, C, G, T) of the bases around a donor (3 of the exon, 6 of the intron) and before and after an
# acceptor's AG (Shapiro and Senapathy 1987, rounded): what makes a window look like a splice site.
_DONOR = np.array(
    [
        [0.32, 0.37, 0.19, 0.12],
        [0.60, 0.13, 0.12, 0.15],
        [0.08, 0.04, 0.81, 0.07],
        [0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.49, 0.03, 0.45, 0.03],
        [0.71, 0.08, 0.12, 0.09],
        [0.06, 0.05, 0.84, 0.05],
        [0.15, 0.16, 0.21, 0.48],
    ]
)
_PYRIMIDINES = np.array([[0.09, 0.38, 0.10, 0.43]] * 14)
_ACCEPTOR = np.array(
    [
        [0.24, 0.30, 0.20, 0.26],
        [0.04, 0.75, 0.01, 0.20],
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0],
        [0.26, 0.14, 0.49, 0.11],
    ]
)


def donor(rng: np.random.Generator) -> str:
    """60 bases with an exon-to-intron boundary (GT) in the middle."""
    return _random(rng, 27) + _drawn(rng, _DONOR) + _random(rng, 24)


def acceptor(rng: np.random.Generator) -> str:
    """60 bases with an intron-to-exon boundary (AG) in the middle, after a run of pyrimidines."""
    return _random(rng, 12) + _drawn(rng, _PYRIMIDINES) + _drawn(rng, _ACCEPTOR) + _random(rng, 29)


def sequences(rng: np.random.Generator, *, each: int = 8) -> str:
    """FASTA text: ``each`` donors, acceptors and random windows; two of unusual length; one with letters not ACGT."""
    records = [(f"demo-donor-{n:02d}", donor(rng)) for n in range(1, each + 1)]
    records += [(f"demo-acceptor-{n:02d}", acceptor(rng)) for n in range(1, each + 1)]
    records += [(f"demo-random-{n:02d}", _random(rng, _WINDOW)) for n in range(1, each + 1)]
    records.append(("demo-long", _random(rng, 21) + donor(rng) + _random(rng, 21)))
    records.append(("demo-short", _random(rng, 30)))
    unread = _random(rng, _WINDOW)
    records.append(("demo-ambiguous", unread[:20] + "NNRY" + unread[24:]))
    return "".join(_fasta(name, bases) for name, bases in records)


def invalid_sequences(rng: np.random.Generator) -> str:
    """FASTA text of one sequence with characters that stand for no base."""
    bases = _random(rng, _WINDOW)
    return _fasta("demo-invalid", bases[:10] + "12?" + bases[13:])


def reference(rng: np.random.Generator) -> str:
    """The bases of the one contig, `CONTIG`."""
    return _random(rng, CONTIG_LENGTH)


def reference_fasta(bases: str) -> str:
    """The reference as FASTA text, 60 bases a line."""
    return _fasta(CONTIG, bases)


def vcf(rng: np.random.Generator, bases: str, *, records: int = 24, wrong_ref: bool = False) -> str:
    """VCF 4.2 text of two samples: substitutions, insertions and deletions of ``bases``.

    ``wrong_ref`` makes the last record's REF disagree with the reference.
    """
    lines = [
        "##fileformat=VCFv4.2",
        "##source=medflow sample generator",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        f"##contig=<ID={CONTIG},length={CONTIG_LENGTH}>",
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="Total read depth">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Read depth of the sample">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tdemo-sample-1\tdemo-sample-2",
    ]
    positions = np.sort(rng.choice(np.arange(100, CONTIG_LENGTH - 100, 10), records, replace=False))
    for number, position in enumerate(positions.tolist()):
        ref, alt = _alleles(rng, bases, position, kind=number % 4)
        if wrong_ref and number == records - 1:
            ref, alt = _other(rng, ref[0]), ref[0]
        depths = rng.integers(20, 60, 2)
        genotypes = [f"{rng.choice(['0/0', '0/1', '1/1'])}:{depth}" for depth in depths]
        row = [CONTIG, str(position), ".", ref, alt, "60", "PASS", f"DP={depths.sum()}", "GT:DP", *genotypes]
        lines.append("\t".join(row))
    return "\n".join(lines) + "\n"


def _alleles(rng: np.random.Generator, bases: str, position: int, kind: int) -> tuple[str, str]:
    """REF and ALT at a 1-based position: kinds 0 and 1 substitute a base, 2 inserts and 3 deletes after it."""
    base = bases[position - 1]
    if kind == 2:
        return base, base + _random(rng, 2)
    if kind == 3:
        return bases[position - 1 : position + 2], base
    return base, _other(rng, base)


def _other(rng: np.random.Generator, base: str) -> str:
    return str(rng.choice([letter for letter in "ACGT" if letter != base]))


def _random(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(_BASES, length))


def _drawn(rng: np.random.Generator, frequencies: np.ndarray) -> str:
    return "".join(rng.choice(_BASES, p=row / row.sum()) for row in frequencies)


def _fasta(name: str, bases: str) -> str:
    lines = [bases[start : start + _LINE] for start in range(0, len(bases), _LINE)]
    return "\n".join([f">{name}", *lines]) + "\n"
