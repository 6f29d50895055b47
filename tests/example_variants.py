"""A model of variants: by how much an allele changes the share of G and C around it. No weights, no training."""

from collections.abc import Sequence

import numpy as np

from medflow.plugin import (
    Case,
    ClassLabel,
    Coding,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    SequenceInput,
    UnitKind,
    VariantEffect,
    VariantWindows,
)

SYSTEM = "https://models.example/gc"  # your own: no public code means "a change of GC content"
CHANGE = Coding(system=SYSTEM, code="gc-change", display="Change of GC content by a variant")
RISE = Coding(system=SYSTEM, code="gc-rise", display="Rise of GC content")


class GcChange(Model[VariantWindows]):
    """The share of G and C with the allele in place, less that of the reference."""

    spec = ModelSpec(
        name="gc-change",
        version="1.0.0",
        title="Change of GC content by a variant",
        unit=UnitKind.SAMPLE,
        accepts=(SequenceInput(source="variants", length=101, assembly="GRCh38", max_allele=20),),
        outputs=(
            VariantEffect(
                name="gc-change",
                code=CHANGE,
                effects=(ClassLabel(name="rise", code=RISE),),
                valid_range=(-1.0, 1.0),
                report_from=0.05,
            ),
        ),
        card=ModelCard(
            intended_use="To show how a model of variants is written.",
            training_data="None: the model has no parameters.",
            licence="Apache-2.0",
            metrics={"none": "a share is not measured against anything"},
            limits="Variants with an unknown base (N) within 50 bases are out of scope.",
        ),
        batch_size=1,
        memory_mib=64,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> VariantWindows:
        """The windows as they are: one-hot encoding, where a network needs it, is for `predict`, in parts."""
        return case.variants

    def predict(self, batch: Sequence[VariantWindows]) -> list[Prediction]:
        """One array (variants, effects) for each case."""
        return [Prediction(values={"gc-change": _rise(windows)}) for windows in batch]


def _rise(windows: VariantWindows) -> np.ndarray:
    """The change for each variant, shape (variants, 1); NaN where a base is not known."""
    share = [np.isin(bases, list(b"GC")).mean(axis=1) for bases in (windows.ref, windows.alt)]
    known = ~(np.isin(windows.ref, list(b"N")) | np.isin(windows.alt, list(b"N"))).any(axis=1)
    return np.where(known, share[1] - share[0], np.nan)[:, None]
