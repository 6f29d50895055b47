"""The gene that an annotator named in a VCF file: ANN (SnpEff) or CSQ (VEP), as the file's header describes them.

Nothing here refuses a file: what is not as its header says names no gene.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DECLARED = re.compile(r'##INFO=<(?:[^"]*,)?ID=(ANN|CSQ),[^"]*Description="([^"]*)"')
_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,49}")
_BASES = re.compile(r"[ACGTNacgtn]+")
# consequences (Sequence Ontology) of a variant that lies in no such gene: the entry names the nearest one
_BESIDE = frozenset({"upstream_gene_variant", "downstream_gene_variant", "intergenic_region", "intergenic_variant"})
_WHOLE, _CUT = "Gene_Name", "SYMBOL"  # of SnpEff, whose alleles are those of ALT; of VEP, whose are as Ensembl's


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """Where an entry has what; ``number`` is that of VEP's ALLELE_NUM. ``whole``: alleles are written as in ALT."""

    key: str
    count: int
    allele: int
    consequence: int
    symbol: int
    number: int | None
    whole: bool

    @classmethod
    def of(cls, key: str, description: str) -> _Field | None:
        names = [name.strip(" '") for name in description.rpartition(":")[2].split("|")]
        places = {name: place for place, name in enumerate(names)}
        symbol = _CUT if _CUT in places else _WHOLE
        consequence = places.get("Consequence", places.get("Annotation"))
        if "Allele" not in places or symbol not in places or consequence is None or len(places) != len(names):
            return None
        return cls(
            key=key,
            count=len(names),
            allele=places["Allele"],
            consequence=consequence,
            symbol=places[symbol],
            number=places.get("ALLELE_NUM"),
            whole=symbol == _WHOLE,
        )

    def names(self, entry: Sequence[str], ref: str, alts: Sequence[str], number: int) -> bool:
        """Whether an entry is about one of the alternate alleles, counted from 1."""
        if self.number is not None:
            return entry[self.number] == str(number)
        return entry[self.allele] == (alts[number - 1] if self.whole else _as_ensembl(ref, alts, number))


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """What the header of a file declares."""

    fields: tuple[_Field, ...]

    @classmethod
    def of(cls, header: str) -> Annotation | None:
        """None of a file that is not annotated, or not in a way that is known here."""
        declared = (_DECLARED.match(line) for line in header.splitlines() if line.startswith("##INFO"))
        fields = (_Field.of(found[1], found[2]) for found in declared if found)
        known = tuple(field for field in fields if field is not None)
        return cls(fields=known) if known else None

    def gene(self, info: Any, ref: str, alts: Sequence[str], number: int) -> str | None:
        """The symbol of the gene that an alternate allele (counted from 1) lies in, where all that is said is of one.

        ``info`` is that of a cyvcf2 record. Entries of genes beside the allele are passed over.
        """
        found: set[str] = set()
        for field in self.fields:
            value = info.get(field.key)
            for text in value.split(",") if isinstance(value, str) else ():
                entry = text.split("|")
                if len(entry) != field.count:
                    return None
                if field.names(entry, ref, alts, number) and not _BESIDE.issuperset(
                    entry[field.consequence].split("&")
                ):
                    found.add(entry[field.symbol])
        found.discard("")
        (symbol,) = found if len(found) == 1 else ("",)
        return symbol if _SYMBOL.fullmatch(symbol) else None


def _as_ensembl(ref: str, alts: Sequence[str], number: int) -> str | None:
    """An allele as VEP writes it: where lengths differ, without the first base if all have the same; None if unsure."""
    named = [alt for alt in alts if alt != "*"]
    if not all(_BASES.fullmatch(alt) for alt in named):
        return None
    alt = alts[number - 1]
    if any(len(other) != len(ref) for other in named) and all(other[0] == ref[0] for other in named):
        return alt[1:] or "-"
    return alt
