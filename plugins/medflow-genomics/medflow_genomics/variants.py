"""What a variant does to splice sites: the network of splice-site on the reference and on the alternate, compared.

For each boundary between two bases whose 60 bases hold some of the allele, and for either strand, the score of a donor
is the probability of EI if GT follows the boundary, and 0 otherwise; that of an acceptor the probability of IE if AG
precedes it, and 0 otherwise. An effect is the largest change of such a score, 0 if there is none in that direction:

- donor-gain and acceptor-gain: the largest of alternate - reference;
- donor-loss and acceptor-loss: the largest of reference - alternate.

Boundaries are compared in the coordinates of the reference. Those beside the allele are the same in both. Where the
alleles are of equal length, so are those inside; where they are not, all boundaries of the allele, those at its two
ends included, count as one place, with the highest score among them. The allele is taken with all the places that it
could have (`alleles`), so that neither its alignment nor the strand decides.

These are the delta scores of SpliceAI (Jaganathan et al. 2019) with these differences: SpliceAI compares positions up
to 50 bases away on the strand of an annotated gene, and takes the positions of a left-aligned insertion for one and
those that a deletion removes for 0 in the alternate, the base before it apart.

Reading this module imports no torch; `SpliceVariant.load` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from medflow.plugin import (
    Case,
    ClassLabel,
    Coding,
    InputNotUsable,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    SequenceInput,
    UnitKind,
    VariantEffect,
    VariantWindows,
)
from medflow_genomics.alleles import FLANK, LONGEST, Alleles, alleles_of
from medflow_genomics.splice import SEQUENCE_ONTOLOGY, WEIGHTS

if TYPE_CHECKING:
    from medflow_genomics.network import Ensemble

OUTPUT = "splicing"
REPORT_FROM = 0.8  # what SpliceAI's authors recommend for precision; this network sees too little to go lower
WINDOW = 2 * (1 + LONGEST + FLANK)  # the allele begins in the middle, with the base before it if it is an indel

EFFECTS = {
    "donor-gain": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0001571", display="cryptic_splice_donor"),
    "donor-loss": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0001575", display="splice_donor_variant"),
    "acceptor-gain": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0001570", display="cryptic_splice_acceptor"),
    "acceptor-loss": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0001574", display="splice_acceptor_variant"),
}

CARD = ModelCard(
    intended_use="Research, and evaluation of the pipeline from a VCF to FHIR; not a medical device, not for "
    "interpreting a patient's variant. It demonstrates the path: nobody has validated it on variants.",
    training_data="None of its own: the network and weights of splice-site 1.0.0 (UCI Splice-junction Gene Sequences, "
    "1992, primates; CC BY 4.0).",
    licence="Apache-2.0",
    metrics={
        "specificity": "of 2,000 random substitutions in random bases, no genome, 0.06 are reported (an effect of "
        "0.8 or more), 0.23 would be from 0.5 on; python -m medflow_genomics.measure --random-only",
        "loss": "of held-out sites whose GT or AG is changed (10 folds) 0.901 of donors and 0.848 of acceptors are "
        "reported, median loss 0.970 and 0.953; python -m medflow_genomics.measure --data splice_train.csv",
        "on variants": "nothing was measured",
    },
    limits="Sees 60 bases, so no more than 29 bases beyond the allele, and no gene: a site is scored wherever its "
    "bases stand, on both strands, and the probabilities are those of data of which half are sites. Sites without GT "
    "or AG score 0. report_from 0.8 is a cutoff recommended for SpliceAI, not one found for this network. Out of "
    "scope (no score): a site whose 60 bases are not all known, alleles that are longer than 80 bases with all the "
    "places they could have.",
)


def _spec(assembly: Literal["GRCh37", "GRCh38"], name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        version="1.0.0",
        title=f"Splice sites that a variant makes or breaks within 29 bases ({assembly}): donors and acceptors",
        unit=UnitKind.SAMPLE,
        accepts=(SequenceInput(name="variants", source="variants", length=WINDOW, assembly=assembly, strand="both"),),
        outputs=(
            VariantEffect(
                name=OUTPUT,
                code=Coding(system=SEQUENCE_ONTOLOGY, code="SO:0001568", display="splicing_variant"),
                effects=tuple(ClassLabel(name=effect, code=code) for effect, code in EFFECTS.items()),
                report_from=REPORT_FROM,
                valid_range=(0.0, 1.0),
            ),
        ),
        weights=(WEIGHTS,),
        batch_size=1,  # sample: its windows go to the device in batches of their own
        memory_mib=1024,
        tolerance=1e-5,
        card=CARD,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A sample's windows, and where the alleles are in them."""

    windows: VariantWindows
    alleles: Alleles


class SpliceVariant(Model[Ready]):
    """Delta scores of a sample's variants on GRCh38."""

    spec: ClassVar[ModelSpec] = _spec("GRCh38", "splice-variant")
    _ensemble: Ensemble | None = None
    _device: str = "cpu"

    def load(self, device: str) -> None:
        """Read the weights and put the ensemble on ``device``."""
        from medflow_genomics.network import trained

        self._ensemble = trained(WEIGHTS, device)
        self._device = device

    def prepare(self, case: Case) -> Ready:
        """Where each allele begins and ends."""
        windows = case.variants
        if windows.ref.shape[1:] != (WINDOW,) or windows.alt.shape != windows.ref.shape:
            raise InputNotUsable("window-length", f"the model reads windows of {WINDOW} bases")
        return Ready(windows=windows, alleles=alleles_of(windows))

    def predict(self, batch: Sequence[Ready]) -> list[Prediction]:
        """Effects of each sample's variants, (variants, 4) float32; NaN for a variant out of scope."""
        import torch

        from medflow_genomics.scan import delta_scores

        if self._ensemble is None:
            raise RuntimeError("load() comes before predict()")
        with torch.inference_mode():
            return [
                Prediction(
                    values={OUTPUT: delta_scores(self._ensemble, item.windows, item.alleles, device=self._device)}
                )
                for item in batch
            ]

    def close(self) -> None:
        """Let the ensemble go."""
        self._ensemble = None


class SpliceVariant37(SpliceVariant):
    """The same on GRCh37: a model is of one assembly, so that no coordinate is ever read on another."""

    spec: ClassVar[ModelSpec] = _spec("GRCh37", "splice-variant-grch37")


def variant_models() -> list[type[SpliceVariant]]:
    """One model for each assembly."""
    return [SpliceVariant, SpliceVariant37]
