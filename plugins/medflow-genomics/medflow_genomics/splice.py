"""Splice-site classification of DNA: the declaration, and the model at work.

Reading this module imports no torch; `SpliceSite.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medflow.plugin import (
    SNOMED,
    Case,
    Classification,
    ClassLabel,
    Coding,
    InputNotUsable,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    SequenceAttribution,
    SequenceInput,
    UnitKind,
    Weights,
)
from medflow_genomics.encoding import ALPHABET, CLASSES, LENGTH, encode
from medflow_genomics.mutagenesis import changes, log_odds, mutants

if TYPE_CHECKING:
    from medflow_genomics.network import Ensemble

SEQUENCE_ONTOLOGY = "http://www.sequenceontology.org"
OUTPUT = "splice-site"

CODES = {
    "EI": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0000163", display="five_prime_cis_splice_site"),
    "IE": Coding(system=SEQUENCE_ONTOLOGY, code="SO:0000164", display="three_prime_cis_splice_site"),
    "N": Coding(system=SNOMED, code="260415000", display="Not detected"),
}

WEIGHTS = Weights(file="splice.safetensors", sha256="0e3ca6026c53f82dd41b9bf063df1ab1ade28302d3e37f2c3dd567c3b3e4f7d9")

SPEC = ModelSpec(
    name="splice-site",
    version="1.0.0",
    title="Splice site in the middle of 60 bases: donor, acceptor, or none",
    unit=UnitKind.SEQUENCE,
    accepts=(SequenceInput(length=LENGTH, alphabet=ALPHABET),),
    outputs=(
        Classification(
            name=OUTPUT,
            code=Coding(system=SEQUENCE_ONTOLOGY, code="SO:0000162", display="splice_site"),
            classes=tuple(ClassLabel(name=name, code=CODES[name]) for name in CLASSES),
        ),
    ),
    weights=(WEIGHTS,),
    batch_size=256,
    memory_mib=256,
    card=ModelCard(
        intended_use="Research, and evaluation of the pipeline, on primate DNA; not a medical device, not for "
        "interpreting a patient's variant.",
        training_data="UCI Molecular Biology (Splice-junction Gene Sequences), GenBank 64.1, primates; CC BY 4.0. "
        "2,383 distinct windows of 60 bases with A, C, G and T only: 549 EI, 537 IE, 1,297 N.",
        licence="Apache-2.0",
        metrics={
            "accuracy": "0.970 (SD 0.011 over folds): mean over 10 stratified folds, each scored by an ensemble that "
            "saw none of it; python -m medflow_genomics.train --data splice_train.csv",
            "sensitivity": "EI 0.976, IE 0.953, N 0.975: the held-out answers of the same 10 folds together",
            "precision": "EI 0.966, IE 0.941, N 0.984: the held-out answers of the same 10 folds together",
            "log loss": "0.124: the held-out answers of the same 10 folds together",
        },
        limits="The boundary must lie between the 30th and the 31st base, on the strand given. Genes known in 1990; "
        "related sequences may stand on both sides of a fold. Half of the training windows hold a site, in a genome "
        "hardly any do: the probabilities are not those of a scan. No other letters than A, C, G and T.",
    ),
)


class SpliceSite(Model[np.ndarray]):
    """Three small convolution and self-attention networks that vote."""

    spec: ClassVar[ModelSpec] = SPEC
    _ensemble: Ensemble | None = None
    _device: str = "cpu"

    def load(self, device: str) -> None:
        """Read the weights and put the ensemble on ``device``."""
        from medflow_genomics.network import trained

        self._ensemble = trained(WEIGHTS, device)
        self._device = device

    def prepare(self, case: Case) -> np.ndarray:
        """Numbers of the bases, (60,) int64; -1 stands for a letter that the model does not read."""
        bases = encode(case.sequence.bases)
        if bases.shape != (LENGTH,):
            raise InputNotUsable("sequence-length", f"the sequence has {len(bases)} bases, the model reads {LENGTH}")
        return bases

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """Probabilities of a batch in one pass; a sequence with other letters is out of scope."""
        import torch

        from medflow_genomics.passes import one_thread

        ensemble = self._loaded()
        bases = np.stack(batch)
        read = [bool(row.min() >= 0) for row in bases]
        with one_thread(), torch.inference_mode():
            answers = ensemble(torch.from_numpy(bases.clip(0)).to(self._device)).double().cpu().numpy()
        reason = f"the sequence has letters other than {', '.join(ALPHABET)}"
        return [
            Prediction(values={OUTPUT: answer}) if readable else Prediction(out_of_scope=reason)
            for answer, readable in zip(answers, read, strict=True)
        ]

    def explain(
        self, batch: Sequence[np.ndarray], predictions: Sequence[Prediction]
    ) -> list[Mapping[str, SequenceAttribution]]:
        """In-silico mutagenesis of each sequence: what each other base in each place does to the most probable class.

        The sequence and its 180 neighbours go through the network in one pass, and so get the same answer whatever
        else is asked for.
        """
        import torch

        from medflow_genomics.passes import one_thread

        ensemble = self._loaded()
        found: list[Mapping[str, SequenceAttribution]] = []
        with one_thread(), torch.inference_mode():
            for bases, prediction in zip(batch, predictions, strict=True):
                if prediction.out_of_scope is not None:
                    found.append({})
                    continue
                explained = int(np.argmax(np.asarray(prediction.values[OUTPUT])))
                votes = ensemble.votes(torch.from_numpy(mutants(bases)).to(self._device)).double().cpu().numpy()
                values = changes(log_odds(votes, explained), bases)
                found.append({OUTPUT: SequenceAttribution(values=values, of=CLASSES[explained])})
        return found

    def close(self) -> None:
        """Let the ensemble go."""
        self._ensemble = None

    def _loaded(self) -> Ensemble:
        if self._ensemble is None:
            raise RuntimeError("load() comes before predict() and explain()")
        return self._ensemble
