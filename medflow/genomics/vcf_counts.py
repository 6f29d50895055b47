"""What a VCF file holds, in numbers: its alleles by type, its records by what their filters say."""

from __future__ import annotations

from functools import lru_cache

from medflow.genomics.vcf_record import trimmed

MULTIALLELIC = "multiallelic"


@lru_cache(maxsize=1 << 14)
def allele_types(ref: str, alts: str) -> tuple[str, ...]:
    """The type of each allele of an ALT column: snv, mnv, insertion, deletion, complex, symbolic, breakend or missing.

    Of plain bases once trimmed of what they share with the reference: an insertion or deletion keeps the base before
    it, what has neither that nor equal length is complex. Missing are the star, the dot and what equals the reference.
    """
    return tuple(_type(ref, alt) for alt in alts.split(","))


def _type(ref: str, alt: str) -> str:
    if alt in ("*", "."):
        return "missing"
    if alt.startswith("<"):
        return "symbolic"
    if not alt.isalpha():
        return "breakend"
    _, ref, alt = trimmed(0, ref, alt)
    if ref == alt:
        return "missing"
    if len(ref) == len(alt):
        return "snv" if len(ref) == 1 else "mnv"
    if ref[0] == alt[0] and 1 in (len(ref), len(alt)):
        return "deletion" if len(alt) == 1 else "insertion"
    return "complex"


def filter_outcome(text: str) -> str:
    """Of a FILTER column: passed, filtered, or unfiltered for a dot (no filter was applied)."""
    return {"PASS": "passed", ".": "unfiltered"}.get(text, "filtered")
