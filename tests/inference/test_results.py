from datetime import UTC, datetime

import numpy as np
import pytest

from medflow.errors import PredictionInvalid
from medflow.inference.results import results_of
from medflow.plugin import (
    SNOMED,
    Case,
    Classification,
    ClassLabel,
    Coding,
    Image,
    ImagingInput,
    ModelSpec,
    OutputSpec,
    Prediction,
    Risk,
    Segment,
    UnitKind,
)
from medflow.records import Unit
from tests.models import CARD, GC, GcContent, sequence_case

LIVER = Coding(system=SNOMED, code="10200004")


def spec_with(output: OutputSpec) -> ModelSpec:
    accepts = (ImagingInput(modality=("CT",)),)
    return ModelSpec(
        name="m", version="1", title="m", unit=UnitKind.SERIES, accepts=accepts, outputs=(output,), card=CARD
    )


def volume_case(spacing_zyx=(5.0, 2.0, 2.0)) -> Case:
    z, y, x = spacing_zyx
    image = Image(
        array=np.zeros((4, 5, 6), np.float32), spacing_mm=spacing_zyx, affine=np.diag([x, y, z, 1.0]), modality="CT"
    )
    unit = Unit(kind=UnitKind.SERIES, id=1)
    return Case(unit=unit, prediction_time=datetime(2026, 1, 1, tzinfo=UTC), inputs={"image": image})


def test_the_volume_of_a_mask_comes_from_the_image_geometry():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 1:4, 2:4] = True  # 12 voxels of 20 mm3

    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10)))
    result = results_of(spec, volume_case(), Prediction(values={"liver": mask}))[0]

    assert result.voxels == 12
    assert result.value == pytest.approx(0.24)


@pytest.mark.parametrize("mask", [np.zeros((4, 5, 5), bool), np.zeros((4, 5, 6), np.uint8)])
def test_a_mask_off_the_grid_or_not_boolean_is_an_error(mask):
    with pytest.raises(PredictionInvalid, match="boolean mask on the grid"):
        results_of(
            spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10))),
            volume_case(),
            Prediction(values={"liver": mask}),
        )


def test_an_implausible_volume_is_an_error():
    with pytest.raises(PredictionInvalid, match="declared range"):
        results_of(
            spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(100, 3000))),
            volume_case(),
            Prediction(values={"liver": np.ones((4, 5, 6), bool)}),
        )


CLASSES = (ClassLabel(name="no", code=LIVER), ClassLabel(name="yes", code=GC))


def test_a_classification_gives_the_positive_probability():
    output = Classification(name="finding", code=GC, classes=CLASSES, positive="yes")

    result = results_of(spec_with(output), volume_case(), Prediction(values={"finding": np.array([0.25, 0.75])}))[0]

    assert result.value == 0.75
    assert result.probabilities == (0.25, 0.75)


@pytest.mark.parametrize("values", [[0.5, 0.6], [1.2, -0.2], [1.0], [float("nan"), 1.0]])
def test_probabilities_that_are_none_are_an_error(values):
    output = Classification(name="finding", code=GC, classes=CLASSES, positive="yes")

    with pytest.raises(PredictionInvalid):
        results_of(spec_with(output), volume_case(), Prediction(values={"finding": np.array(values)}))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_risk_outside_0_to_1_is_an_error(value):
    output = Risk(name="death", code=GC, outcome=LIVER)

    with pytest.raises(PredictionInvalid):
        results_of(spec_with(output), volume_case(), Prediction(values={"death": value}))


def test_an_answer_must_name_exactly_the_declared_outputs():
    case = sequence_case(1, "ACGTACGT")

    with pytest.raises(PredictionInvalid, match="declares gc and answered at"):
        results_of(GcContent.spec, case, Prediction(values={"at": 0.5}))


def test_out_of_scope_gives_every_output_its_reason():
    results = results_of(GcContent.spec, sequence_case(1, "ACGTACGT"), Prediction(out_of_scope="not human DNA"))

    assert [(result.output, result.value, result.out_of_scope) for result in results] == [("gc", None, "not human DNA")]
