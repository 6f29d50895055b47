"""The alleles that one sample of a VCF file carries, with the windows that a model reads them in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medflow.genomics.reference import Reference
from medflow.genomics.regions import Regions
from medflow.plugin.cases import VariantWindows
from medflow.plugin.inputs import SequenceInput
from medflow.records import CalledVariant

MAX_VARIANTS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleVariants:
    """One sample's alleles in order of place, their windows in the same order, and what was left out by reason."""

    variants: list[CalledVariant]
    windows: VariantWindows
    counts: Counter[str]


def read_variants(
    path: Path,
    sample: str,
    *,
    wanted: SequenceInput,
    reference: Reference,
    regions: Regions | None,
    index: Path | None,
    records: int | None = None,
) -> SampleVariants:
    """What a sample carries inside the regions (None: everywhere) that fits a model's input.

    Raises
    ------
    InputNotUsable
        reference-mismatch, too-many-variants, unreadable-file, or sample-missing.
    """
    raise NotImplementedError
