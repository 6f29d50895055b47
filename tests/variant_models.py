"""A small real model of variants for the tests, numpy only, with a genome and a VCF file that it can be asked about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from medflow.plugin import (
    Case,
    ClassLabel,
    Coding,
    Model,
    ModelSpec,
    Prediction,
    SequenceInput,
    UnitKind,
    VariantEffect,
    VariantWindows,
)
from tests.models import CARD

EFFECTS = (
    ClassLabel(name="gc", code=Coding(system="urn:test", code="gc", display="Change of GC content")),
    ClassLabel(name="cpg", code=Coding(system="urn:test", code="cpg", display="Change of CpG sites")),
)
REPORT_FROM = 0.05


class GcShift(Model[VariantWindows]):
    """How much a variant changes the fractions of G or C, and of CpG, in its window; of one that has an N, nothing."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="gc-shift",
        version="1.0.0",
        title="GC shift",
        unit=UnitKind.SAMPLE,
        accepts=(SequenceInput(length=20, source="variants", assembly="GRCh38", strand="both"),),
        outputs=(
            VariantEffect(
                name="shift",
                code=Coding(system="urn:test", code="gc-shift", display="Shift of GC content"),
                effects=EFFECTS,
                report_from=REPORT_FROM,
            ),
        ),
        card=CARD,
        batch_size=2,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> VariantWindows:
        """The windows."""
        return case.variants

    def predict(self, batch: Sequence[VariantWindows]) -> list[Prediction]:
        """Each variant by itself."""
        return [Prediction(values={"shift": self.effects(windows)}) for windows in batch]

    def effects(self, windows: VariantWindows) -> np.ndarray:
        """(variants, 2) float32."""
        found = (_fractions(windows.alt) - _fractions(windows.ref)).astype(np.float32)
        found[(windows.ref == ord("N")).any(axis=1)] = np.nan
        return found


def _fractions(bases: np.ndarray) -> np.ndarray:
    g, c = bases == ord("G"), bases == ord("C")
    return np.stack([(g | c).mean(axis=1), (c[:, :-1] & g[:, 1:]).mean(axis=1)], axis=1)


def genome(path: Path, *, length: int = 400, seed: int = 1) -> dict[str, str]:
    """A FASTA file of two contigs, chr1 and chr2; the first 40 bases of chr2 are N. Returns the bases by contig."""
    letters = random.Random(seed)
    found = {name: "".join(letters.choices("ACGT", k=length)) for name in ("chr1", "chr2")}
    found["chr2"] = "N" * 40 + found["chr2"][40:]
    lines = (
        f">{name}\n" + "".join(f"{bases[at : at + 60]}\n" for at in range(0, length, 60))
        for name, bases in found.items()
    )
    path.write_text("".join(lines))
    return found


def other_than(base: str) -> str:
    """Another base, which is G or C where this one is not."""
    return {"A": "G", "T": "C", "G": "A", "C": "T", "N": "A"}[base]


def vcf(
    path: Path, bases: dict[str, str], samples: Sequence[str] = ("one", "two"), *, assembly: str = "GRCh38"
) -> Path:
    """A VCF file: both samples carry some substitutions, a deletion, one next to Ns, and one that FILTER refused."""
    lines = ["##fileformat=VCFv4.2", f"##reference={assembly}", '##FILTER=<ID=q10,Description="low">']
    lines += ['##FORMAT=<ID=GT,Number=1,Type=String,Description="g">']
    lines += [f"##contig=<ID={name},length={len(item)},assembly={assembly}>" for name, item in bases.items()]
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]))

    def record(contig: str, position: int, genotypes: Sequence[str], *, length: int = 1, passed: str = "PASS") -> str:
        ref = bases[contig][position - 1 : position - 1 + length]
        alt = ref[0] if length > 1 else other_than(ref)
        calls = genotypes[: len(samples)]
        return "\t".join([contig, str(position), ".", ref, alt, "50", passed, ".", "GT", *calls])

    lines += [
        record("chr1", 100, ("0/1", "1/1")),
        record("chr1", 150, ("0/1", "0/0")),
        record("chr1", 200, ("0/0", "0/1"), length=4),
        record("chr1", 250, ("1/1", "1/1"), passed="q10"),
        record("chr2", 43, ("0/1", "0/0")),
        record("chr2", 300, ("1/1", "0/1")),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
