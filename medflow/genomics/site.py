"""What a site reads variants with: its reference genomes, and which regions it wants scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medflow.config import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class GenomeSite:
    """As configured. ``references`` has a FASTA file by assembly; ``regions`` is a BED file, or all.

    ``genes`` lists symbols, whose places ``gene_bed`` has (BED, symbols in the fourth column).
    """

    references: Mapping[str, Path] = field(default_factory=dict)
    regions: Path | Literal["all"] | None = None
    genes: Path | None = None
    gene_bed: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> GenomeSite:
        """What the configuration says, ~ being the user's home."""
        return cls(
            references={assembly: path.expanduser() for assembly, path in settings.references.items()},
            regions=settings.regions.expanduser() if isinstance(settings.regions, Path) else settings.regions,
            genes=settings.genes.expanduser() if settings.genes else None,
            gene_bed=settings.gene_bed.expanduser() if settings.gene_bed else None,
        )
