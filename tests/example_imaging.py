"""A model of two series of one study: emphysema on inspiration, trapped air on expiration. No weights, no training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medflow.plugin import (
    SNOMED,
    Case,
    Coding,
    Image,
    ImagingInput,
    InputNotUsable,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    Segment,
    UnitKind,
)

LUNG = Coding(system=SNOMED, code="39607008", display="Lung structure")
EMPHYSEMA = Coding(system=SNOMED, code="87433001", display="Pulmonary emphysema")
AIR = Coding(system=SNOMED, code="15158005", display="Air")
MORPHOLOGY = Coding(system=SNOMED, code="49755003", display="Morphologically Altered Structure")
SUBSTANCE = Coding(system=SNOMED, code="91720002", display="Body Substance")
LEAST_LUNG_ML = 500.0


def chest(name: str, pattern: str) -> ImagingInput:
    """A thin plain chest CT whose description says in which breath it was taken."""
    return ImagingInput(
        name=name,
        modality=("CT",),
        body_parts=("CHEST", "LUNG", "THORAX"),
        descriptions=(pattern,),
        excluded_descriptions=("mip", "lung cad"),
        contrast=False,
        slice_thickness_mm=(0.5, 3.0),
        min_slices=60,
        prefer="best",
    )


@dataclass(frozen=True)
class Prepared:
    """Hounsfield units (z, y, x) and the lungs, of each breath."""

    inspiration: np.ndarray
    expiration: np.ndarray
    lungs: Mapping[str, np.ndarray]


class LowAttenuation(Model[Prepared]):
    """Low attenuation areas: below -950 HU on inspiration, below -856 HU on expiration."""

    spec = ModelSpec(
        name="low-attenuation",
        version="1.0.0",
        title="Low attenuation areas of the lungs, inspiration and expiration",
        unit=UnitKind.STUDY,
        accepts=(chest("inspiration", r"\binsp"), chest("expiration", r"\bexp")),
        outputs=(
            Segment(name="lungs", of="inspiration", body_site=LUNG, valid_ml=(500, 12_000)),
            Segment(
                name="emphysema",
                of="inspiration",
                body_site=LUNG,
                property_category=MORPHOLOGY,
                property_type=EMPHYSEMA,
                valid_ml=(0, 10_000),
            ),
            Segment(
                name="trapped air",
                of="expiration",
                body_site=LUNG,
                property_category=SUBSTANCE,
                property_type=AIR,
                valid_ml=(0, 10_000),
            ),
        ),
        card=ModelCard(
            intended_use="To show how a model of several series is written. No clinical decision may rest on it.",
            training_data="None: the thresholds are those of the literature.",
            licence="Apache-2.0",
            metrics={"none": "a threshold is not measured against anything"},
            limits="Thresholds hold for smooth kernels and full breaths. Airways count as lung.",
        ),
        memory_mib=1,
    )

    def load(self, device: str) -> None:
        """Nothing to load."""

    def prepare(self, case: Case) -> Prepared:
        """Both breaths, and the lungs in each."""
        images = {name: image for name, image in case.inputs.items() if isinstance(image, Image)}
        return Prepared(
            inspiration=images["inspiration"].array,
            expiration=images["expiration"].array,
            lungs={name: lungs_of(image) for name, image in images.items()},
        )

    def predict(self, batch: Sequence[Prepared]) -> list[Prediction]:
        """A mask for each output, on the grid of the input that it is of."""
        return [
            Prediction(
                values={
                    "lungs": item.lungs["inspiration"],
                    "emphysema": item.lungs["inspiration"] & (item.inspiration < -950),
                    "trapped air": item.lungs["expiration"] & (item.expiration < -856),
                }
            )
            for item in batch
        ]

    def explain(self, batch: Sequence[Prepared], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """How far below the threshold a voxel lies, in HU; nothing is said of what lies outside the lungs."""
        return [
            {
                "emphysema": below(-950, item.inspiration, item.lungs["inspiration"]),
                "trapped air": below(-856, item.expiration, item.lungs["expiration"]),
            }
            for item in batch
        ]


def below(threshold: float, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Hounsfield units below a threshold, 0 above it, NaN outside the lungs."""
    return np.where(lungs, np.clip(threshold - hu, 0, None), np.nan).astype(np.float32)


def lungs_of(image: Image) -> np.ndarray:
    """The air inside the body: pieces that do not touch the sides of the picture."""
    from scipy import ndimage

    if image.affine is None:
        raise InputNotUsable("no-geometry", "the series says nothing of its position and orientation")
    pieces = np.asarray(ndimage.label(image.array < -500)[0])
    sides = np.concatenate([pieces[:, [0, -1]].ravel(), pieces[..., [0, -1]].ravel()])
    lungs = (pieces > 0) & ~np.isin(pieces, sides)
    if lungs.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000 < LEAST_LUNG_ML:
        raise InputNotUsable("no-lungs", "there is too little air inside the body for a chest CT")
    return lungs
