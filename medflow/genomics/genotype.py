"""What a VCF record says of its one sample: which alleles it carries, how often, in which phase, in how many reads.

Sections 1.4.2 and 1.6.2 of the VCF specification (GT, PS, AD, FT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Zygosity = Literal["heterozygous", "homozygous", "hemizygous"]

_NO_NUMBER = -2_000_000_000  # htslib marks a missing integer, and the end of fewer, below it


@dataclass(frozen=True, kw_only=True, slots=True)
class Genotype:
    """The numbers of the alleles, 0 the reference's, None one that is not known; empty where there is no genotype."""

    alleles: tuple[int | None, ...] = ()
    phased: bool = False

    @classmethod
    def of(cls, record: Any, keys: Sequence[str]) -> Genotype:
        """The genotype of a cyvcf2 record with these keys in its FORMAT."""
        if "GT" not in keys:
            return cls()
        *numbers, phased = record.genotypes[0]
        # -1 is a missing allele; below it is the padding of a genotype with fewer alleles than another's
        alleles = tuple(number if number >= 0 else None for number in numbers if number >= -1)
        return cls(alleles=alleles, phased=bool(phased) and len(alleles) > 1)

    @property
    def carried(self) -> list[int]:
        """The alternate alleles it has, each once."""
        return sorted({number for number in self.alleles if number})

    @property
    def known(self) -> bool:
        """Whether every allele is."""
        return bool(self.alleles) and None not in self.alleles

    def zygosity(self, number: int) -> Zygosity | None:
        """Of one of its alleles; None where a missing one leaves it open. Haploid is hemizygous."""
        if len(self.alleles) == 1:
            return "hemizygous"
        if any(other not in (number, None) for other in self.alleles):
            return "heterozygous"
        return "homozygous" if self.known else None

    def phase(self, number: int, phase_set: str) -> str:
        """The phase set, and the places of one of its alleles among its haplotypes, counted from 1."""
        return f"{phase_set}:{','.join(str(at) for at, other in enumerate(self.alleles, 1) if other == number)}"


def refused(record: Any, keys: Sequence[str]) -> bool:
    """Whether the sample's own filter (FT) refused the genotype."""
    if "FT" not in keys:
        return False
    found = record.format("FT")
    return found is not None and str(found[0]) not in ("", ".", "PASS")


def phase_set(record: Any, keys: Sequence[str]) -> str | None:
    """PS, which callers write as a number or as text."""
    values = _numbers(record, "PS") if "PS" in keys else None
    if values is None:
        return None
    return str(values[0]) if values[0] not in (None, "", ".") else None


def depths(record: Any, keys: Sequence[str], alleles: int) -> list[int | None] | None:
    """AD, one for each of as many alleles with the reference's; None where there are more or fewer of them."""
    values = _numbers(record, "AD") if "AD" in keys else None
    if values is None or len(values) != alleles:
        return None
    return [value if isinstance(value, int) and value >= 0 else None for value in values]


def _numbers(record: Any, key: str) -> list[int | str | None] | None:
    """The values of one key, text where they are no whole numbers; a key that no header declares comes as text."""
    found = record.format(key)
    if found is None:
        return None
    if found.dtype.kind in "iu":
        return [value if value > _NO_NUMBER else None for value in found[0].tolist()]
    texts = str(found[0]).split(",") if found.ndim == 1 else [str(value) for value in found[0]]
    return [int(text) if text.isdecimal() else text for text in texts]
