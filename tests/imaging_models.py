"""Small real models of pictures and vital signs for the tests: numpy only, fast, with plausible outputs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

import numpy as np

from medflow.plugin import (
    LOINC,
    SNOMED,
    Case,
    Channel,
    Classification,
    ClassLabel,
    Coding,
    ImagingInput,
    Measure,
    Model,
    ModelSpec,
    Prediction,
    Risk,
    Segment,
    TimeSeriesInput,
    UnitKind,
)
from tests.models import CARD

LIVER = Coding(system=SNOMED, code="10200004", display="Liver structure")
FINDING = Coding(system=SNOMED, code="128309002", display="Opacity")


class BrightTissue(Model[np.ndarray]):
    """Marks what is brighter than soft tissue in a CT volume."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="bright-tissue",
        version="1.0.0",
        title="Bright tissue",
        unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CT",), min_slices=3),),
        outputs=(Segment(name="bright", body_site=LIVER, valid_ml=(0.0, 1e6)),),
        card=CARD,
    )
    threshold_hu: ClassVar[float] = 75.0

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> np.ndarray:
        """The volume."""
        return case.image.array

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The mask of each."""
        return [Prediction(values={"bright": volume > self.threshold_hu}) for volume in batch]


class Nothing(BrightTissue):
    """Finds nothing bright anywhere."""

    threshold_hu = 1e9


class Opacity(Model[float]):
    """Says of a radiograph whether it is bright."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="opacity",
        version="1.0.0",
        title="Opacity",
        unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CR", "DX"), dimensions=2),),
        outputs=(
            Classification(
                name="opacity",
                code=FINDING,
                classes=(ClassLabel(name="clear", code=FINDING), ClassLabel(name="opaque", code=FINDING)),
                positive="opaque",
            ),
        ),
        card=CARD,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """How bright it is, 0 to 1."""
        array = case.image.array
        return float((array.mean() - array.min()) / max(float(np.ptp(array)), 1.0))

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """Both probabilities of each."""
        return [Prediction(values={"opacity": np.array([1.0 - bright, bright])}) for bright in batch]


class Enhancement(Model[float]):
    """How much brighter a study's volume with contrast agent is than the one without; the scout view may be missing."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="enhancement",
        version="1.0.0",
        title="Enhancement",
        unit=UnitKind.STUDY,
        accepts=(
            ImagingInput(name="plain", modality=("CT",), contrast=False, min_slices=3, prefer="best"),
            ImagingInput(name="late", modality=("CT",), contrast=True, min_slices=3, prefer="newest"),
            ImagingInput(name="film", modality=("CR",), dimensions=2, prefer="newest", optional=True),
        ),
        outputs=(Measure(name="enhancement", code=FINDING, unit="[hnsf'U]", valid_range=(-4000, 4000)),),
        card=CARD,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """The difference of the means; 1000 more with a film."""
        plain, late = (case.inputs[name] for name in ("plain", "late"))
        return float(late.array.mean() - plain.array.mean()) + 1000 * ("film" in case.inputs)

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """It is prepared already."""
        return [Prediction(values={"enhancement": value}) for value in batch]


class FastHeart(Model[float]):
    """The risk in a fast heart."""

    spec: ClassVar[ModelSpec] = ModelSpec(
        name="fast-heart",
        version="1.0.0",
        title="Fast heart",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(
                    Channel(name="heart-rate", codes=(Coding(system=LOINC, code="8867-4"),), unit="/min"),
                    Channel(name="never-measured", codes=(Coding(system=LOINC, code="0-0"),), unit="1"),
                ),
                window=timedelta(hours=48),
                step=timedelta(hours=1),
            ),
        ),
        outputs=(Risk(name="fast-heart", code=FINDING, outcome=FINDING),),
        card=CARD,
        batch_size=8,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> float:
        """The mean rate."""
        return float(np.nanmean(case.series.values[:, 0]))

    def predict(self, batch: Sequence[float]) -> list[Prediction]:
        """A fraction of 200 beats a minute."""
        return [Prediction(values={"fast-heart": min(rate / 200.0, 1.0)}) for rate in batch]
