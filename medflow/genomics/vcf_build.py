"""Which human assembly a VCF file was called on, from its header: GRCh37, GRCh38, or not known.

Positions mean nothing without it, so nothing is guessed: words and lengths that contradict each other, or that are of
another assembly, leave it unknown.
"""

from __future__ import annotations

import re

from medflow.genomics.assembly import LENGTHS
from medflow.genomics.vcf_header import Header

GRCH37, GRCH38 = "GRCh37", "GRCh38"
_OTHER = "other"
_LEAST = 10_000_000  # bases: what is shorter is an excerpt under a chromosome's name, and says nothing

# The accession's versions: GenBank's 1 to 14 and RefSeq's 13 to 25 are GRCh37, those after them GRCh38
_WORDS = (
    (GRCH37, r"grch37|hg19|b37|ncbi37|g1k_v37|hs37|hs37d5|assembly19|gca_000001405\.(?:[1-9]|1[0-4])"
             r"|gcf_000001405\.(?:1[3-9]|2[0-5])"),
    (GRCH38, r"grch38|hg38|b38|hs38|hs38dh|hs38d1|assembly38|gca_000001405\.(?:1[5-9]|[2-9][0-9])"
             r"|gcf_000001405\.(?:2[6-9]|[3-9][0-9])"),
    (_OTHER, r"hg1[678]|hg[1-9]|ncbi3[456]|b36|g1k_v36|chm13|t2t|chm13v[0-9.]+|hs1|grcm[0-9]+|mm[0-9]+"),
)  # fmt: skip
_BUILDS = [(build, re.compile(rf"(?<![a-z0-9])(?:{words})(?:p[0-9]+)?(?![a-z0-9])")) for build, words in _WORDS]

_LENGTHS = {build: tuple(lengths.values()) for build, lengths in LENGTHS.items()}  # 1 to 22, X, Y
_CHROMOSOME = re.compile(r"(?:chr)?([1-9]|1[0-9]|2[0-2]|[XY])|NC_0000(0[1-9]|1[0-9]|2[0-4])\.[0-9]+", re.IGNORECASE)


def build_of(header: Header) -> str | None:
    """GRCh37 or GRCh38 where the header's words for the assembly or the lengths of its chromosomes say so."""
    said = {build for words in header.assemblies for build in _of_words(words)}
    for name, length in header.contigs.items():
        if length is not None and length >= _LEAST and (number := _chromosome(name)) is not None:
            of_length = [build for build, lengths in _LENGTHS.items() if lengths[number - 1] == length]
            said.update(of_length or [_OTHER])
    return said.pop() if len(said) == 1 and _OTHER not in said else None


def _of_words(words: str) -> set[str]:
    return {build for build, pattern in _BUILDS if pattern.search(words.lower())}


def _chromosome(name: str) -> int | None:
    """1 to 24: X and Y are 23 and 24."""
    found = _CHROMOSOME.fullmatch(name)
    if not found:
        return None
    text = (found[1] or found[2]).upper()
    return {"X": 23, "Y": 24}.get(text) or int(text)
