"""What `medflow plugin new` starts a model from: one small working model for each kind of input."""

from __future__ import annotations

from enum import StrEnum
from string import Template


class Start(StrEnum):
    """The kind of input that a new plugin's model reads."""

    TIME_SERIES = "time-series"
    IMAGE = "image"
    VOLUME = "volume"


_TIME_SERIES = Template('''\
"""$class_name: say here what the model answers, and about whom."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np

from medflow.plugin import (
    LOINC,
    Case,
    Channel,
    Coding,
    Measure,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    TimeSeriesInput,
    UnitKind,
)

HEART_RATE = Coding(system=LOINC, code="8867-4", display="Heart rate")


class $class_name(Model[np.ndarray]):
    """Averages the heart rate of the first day: replace it with your model."""

    spec = ModelSpec(
        name="$model",
        version="0.1.0",
        title="$class_name",
        unit=UnitKind.ENCOUNTER,
        accepts=(
            TimeSeriesInput(
                channels=(
                    Channel(
                        name="heart rate",
                        codes=(HEART_RATE,),  # add your hospital's own codes here, and its own units as units={...}
                        unit="/min",
                        valid_range=(0, 300),
                        required=True,
                    ),
                ),
                window=timedelta(hours=24),
                step=timedelta(hours=1),
                min_steps=2,
            ),
        ),
        outputs=(
            Measure(
                name="mean",
                code=Coding(system=LOINC, code="41924-2", display="Heart rate 24 hour mean"),
                unit="/min",
                valid_range=(0, 300),
            ),
        ),
        card=ModelCard(
            intended_use="Whom is it for, and who reads its answer?",
            training_data="What was it trained on, and from where?",
            licence="Under which licence may it be used?",
            metrics={"AUROC": "measured how, on whom, by which command?"},
            limits="Where is it known to fail?",
        ),
        batch_size=32,
    )

    def load(self, device: str) -> None:
        """Import torch here, and put the weights on ``device`` (medflow.inference.weights.load_weights)."""

    def prepare(self, case: Case) -> np.ndarray:
        """The hours in which a heart rate was measured, shape (hours,): at least ``min_steps``, by the declaration."""
        hours = case.series.values[:, 0]
        return hours[np.isfinite(hours)]

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The mean of each case."""
        return [Prediction(values={"mean": float(hours.mean())}) for hours in batch]
''')

_IMAGE = Template('''\
"""$class_name: say here what the model answers, and about which radiographs."""

from collections.abc import Mapping, Sequence

import numpy as np

from medflow.plugin import (
    SNOMED,
    Case,
    Classification,
    ClassLabel,
    Coding,
    ImagingInput,
    InputNotUsable,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    UnitKind,
)

PNEUMONIA = Coding(system=SNOMED, code="233604007", display="Pneumonia")
NORMAL = Coding(system=SNOMED, code="827032003", display="Normal lung")


class $class_name(Model[np.ndarray]):
    """Takes what is bright for pneumonia, which it is not: replace it with your model."""

    spec = ModelSpec(
        name="$model",
        version="0.1.0",
        title="$class_name",
        unit=UnitKind.SERIES,
        accepts=(ImagingInput(modality=("CR", "DX"), dimensions=2, body_parts=("CHEST",)),),
        outputs=(
            Classification(
                name="pneumonia",
                code=PNEUMONIA,
                classes=(ClassLabel(name="normal", code=NORMAL), ClassLabel(name="pneumonia", code=PNEUMONIA)),
                positive="pneumonia",
                threshold=0.5,
                indeterminate=0.05,
            ),
        ),
        card=ModelCard(
            intended_use="Whom is it for, and who reads its answer?",
            training_data="What was it trained on, and from where?",
            licence="Under which licence may it be used?",
            metrics={"AUROC": "measured how, on whom, by which command?"},
            limits="Where is it known to fail? To which prevalence are its probabilities calibrated?",
        ),
        batch_size=16,
    )

    def load(self, device: str) -> None:
        """Import torch here, and put the weights on ``device`` (medflow.inference.weights.load_weights)."""

    def prepare(self, case: Case) -> np.ndarray:
        """The radiograph (rows, columns) in 0..1: those of different equipment have no common scale."""
        image = case.image.array
        low, high = np.percentile(image, (1, 99))
        if not high > low:
            raise InputNotUsable("image-without-contrast", "the image has one value nearly everywhere")
        return ((image - low) / (high - low)).clip(0, 1)

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """The probabilities of the classes, in the order of the declaration."""
        bright = [float((image > 0.5).mean()) for image in batch]
        return [Prediction(values={"pneumonia": np.array([1 - share, share])}) for share in bright]

    def explain(self, batch: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> list[Mapping[str, np.ndarray]]:
        """Where each image spoke for the answer, on its own grid; leave this out if the model cannot say."""
        return [{"pneumonia": image.astype(np.float32)} for image in batch]
''')

_VOLUME = Template('''\
"""$class_name: say here what the model segments, and in which series."""

from collections.abc import Sequence

import numpy as np

from medflow.plugin import (
    SNOMED,
    Case,
    Coding,
    ImagingInput,
    InputNotUsable,
    Model,
    ModelCard,
    ModelSpec,
    Prediction,
    Segment,
    UnitKind,
)

BODY = Coding(system=SNOMED, code="38266002", display="Entire body as a whole")


class $class_name(Model[np.ndarray]):
    """Finds what is not air in a CT: replace it with your model."""

    spec = ModelSpec(
        name="$model",
        version="0.1.0",
        title="$class_name",
        unit=UnitKind.SERIES,
        accepts=(
            ImagingInput(
                modality=("CT",),
                dimensions=3,
                body_parts=("ABDOMEN",),
                excluded_descriptions=("scout", "localizer"),
                min_slices=10,
            ),
        ),
        outputs=(Segment(name="body", body_site=BODY, valid_ml=(0, 200_000)),),
        card=ModelCard(
            intended_use="Whom is it for, and who reads its answer?",
            training_data="What was it trained on, and from where?",
            licence="Under which licence may it be used?",
            metrics={"Dice": "measured how, on whom, by which command?"},
            limits="Where is it known to fail?",
        ),
        batch_size=1,
    )

    def load(self, device: str) -> None:
        """Import torch and MONAI here, and put the weights on ``device`` (medflow.inference.weights.load_weights)."""

    def prepare(self, case: Case) -> np.ndarray:
        """The CT (z, y, x) in Hounsfield units.

        ``image.affine`` maps indices (x, y, z, 1) to LPS millimetres. MONAI's is to RAS, of channel first (1, x, y, z):
        ``np.diag([-1, -1, 1, 1]) @ image.affine`` and ``image.array.transpose(2, 1, 0)[None]``. Keep the shape and the
        affine when you resample: the mask must come back on the grid of the input.
        """
        image = case.image
        if image.affine is None:
            raise InputNotUsable("no-geometry", "the series says nothing of its position and orientation")
        return image.array

    def predict(self, batch: Sequence[np.ndarray]) -> list[Prediction]:
        """A mask for each case, on the grid of its input; medflow makes mL and a DICOM segmentation of it."""
        return [Prediction(values={"body": hu > -500}) for hu in batch]
''')

MODULES = {Start.TIME_SERIES: _TIME_SERIES, Start.IMAGE: _IMAGE, Start.VOLUME: _VOLUME}
