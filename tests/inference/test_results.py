import csv
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nrrd
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
    LabelMask,
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


def test_the_mean_is_of_the_voxels_inside_in_hounsfield_units():
    case = volume_case()
    case.image.array[1, 2, 3], case.image.array[2, 2, 3], case.image.array[0, 0, 0] = 30, 50, 1000
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 2, 3] = True
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10)))

    result = results_of(spec, case, Prediction(values={"liver": mask}))[0]

    assert (result.mean, result.mean_unit) == (40.0, "[hnsf'U]")


def labelled(dtype: type = np.uint8) -> tuple[Case, np.ndarray, tuple[Segment, ...]]:
    """A noisy volume, labels 0 to 4 of it, and segments for 1 to 5: the last is empty."""
    rng = np.random.default_rng(4)
    case = volume_case()
    case.image.array[:] = rng.normal(40, 200, case.image.array.shape)
    labels = rng.integers(0, 5, case.image.array.shape).astype(dtype)
    outputs = tuple(Segment(name=f"s{value}", body_site=LIVER, valid_ml=(0, 10)) for value in range(1, 6))
    return case, labels, outputs


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("volumes", [1, 2])
def test_the_masks_of_a_label_map_measure_as_the_booleans_that_they_stand_for(dtype, volumes):
    case, labels, outputs = labelled(dtype)
    if volumes > 1:  # of which none is the one to measure
        image = replace(case.image, array=np.stack([case.image.array] * volumes))
        case = replace(case, inputs={"image": image})
    spec = replace(spec_with(outputs[0]), outputs=outputs)

    found = results_of(spec, case, Prediction(values=masks_of(labels)))
    expected = results_of(spec, case, Prediction(values={f"s{value}": labels == value for value in range(1, 6)}))

    assert [item.voxels for item in found] == [item.voxels for item in expected]
    assert [item.value for item in found] == [item.value for item in expected]
    assert [item.mean for item in found] == [item.mean and pytest.approx(item.mean, rel=1e-12) for item in expected]
    assert [item.mean_unit for item in found] == [item.mean_unit for item in expected]
    assert found[-1].voxels == 0


def masks_of(labels: np.ndarray) -> dict[str, LabelMask]:
    return {f"s{value}": LabelMask(labels=labels, value=value) for value in range(1, 6)}


def test_one_case_may_answer_with_several_label_maps_and_with_booleans():
    case, labels, outputs = labelled()
    other = np.roll(labels, 1, axis=0)
    spec = replace(spec_with(outputs[0]), outputs=outputs[:3])
    values = {
        "s1": LabelMask(labels=labels, value=1),
        "s2": LabelMask(labels=other, value=1),
        "s3": labels == 3,
    }

    found = results_of(spec, case, Prediction(values=values))

    means = [case.image.array[inside].mean() for inside in (labels == 1, other == 1, labels == 3)]
    assert [item.mean for item in found] == pytest.approx(means, rel=1e-5)


def test_a_hundred_labels_are_measured_without_an_array_each():
    labels = (np.arange(64 * 256 * 256) % 101).astype(np.uint8).reshape(64, 256, 256)
    image = replace(volume_case().image, array=labels * np.float32(2))
    names = {f"s{value}": value for value in range(1, 101)}
    outputs = tuple(Segment(name=name, body_site=LIVER, valid_ml=(0, 1e6)) for name in names)
    values = {name: LabelMask(labels=labels, value=value) for name, value in names.items()}
    spec = replace(spec_with(outputs[0]), outputs=outputs)

    tracemalloc.start()
    found = results_of(spec, replace(volume_case(), inputs={"image": image}), Prediction(values=values))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [item.mean for item in found] == [2.0 * value for value in names.values()]
    assert peak < 4 * 2**20  # less than one of the masks


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (LabelMask(labels=np.ones((4, 5, 5), np.uint8), value=1), "on the grid of the input image"),
        (LabelMask(labels=np.ones((4, 5, 6), np.int64), value=1), "a map of uint8 or uint16"),
        (LabelMask(labels=np.ones((4, 5, 6), np.uint8), value=256), "a map of uint8 or uint16"),
        (LabelMask(labels=np.ones((4, 5, 6), np.uint8), value=-1), "a map of uint8 or uint16"),
    ],
)
def test_a_label_that_is_no_mask_of_the_image_is_refused(mask, said):
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10)))

    with pytest.raises(PredictionInvalid, match=said):
        results_of(spec, volume_case(), Prediction(values={"liver": mask}))


def test_a_fractional_mask_cannot_be_a_label():
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10), fractional=True))
    mask = LabelMask(labels=np.ones((4, 5, 6), np.uint8), value=1)

    with pytest.raises(PredictionInvalid, match="float32"):
        results_of(spec, volume_case(), Prediction(values={"liver": mask}))


def test_the_mean_of_another_modality_has_no_unit_and_nothing_has_no_mean():
    case = volume_case()
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10)))
    of_mr = replace(case, inputs={"image": replace(case.image, modality="MR")})

    full = results_of(spec, of_mr, Prediction(values={"liver": np.ones((4, 5, 6), bool)}))[0]
    empty = results_of(spec, case, Prediction(values={"liver": np.zeros((4, 5, 6), bool)}))[0]

    assert (full.mean, full.mean_unit) == (0.0, "1")
    assert (empty.value, empty.voxels, empty.mean, empty.mean_unit) == (0.0, 0, None, None)


def test_a_fractional_mask_is_measured_where_it_is_at_least_as_probable_as_not():
    chances = np.zeros((4, 5, 6), np.float32)
    chances[1, 1, 1:5] = 0.4999, 0.5, 0.9, 1.0
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10), fractional=True))

    result = results_of(spec, volume_case(), Prediction(values={"liver": chances}))[0]

    assert (result.voxels, result.value) == (3, pytest.approx(0.06))


@pytest.mark.parametrize(
    ("chances", "code"),
    [
        (np.zeros((4, 5, 6), bool), "prediction-malformed"),
        (np.zeros((4, 5, 6), np.float64), "prediction-malformed"),
        (np.full((4, 5, 6), 1.001, np.float32), "prediction-out-of-range"),
        (np.full((4, 5, 6), -0.001, np.float32), "prediction-out-of-range"),
        (np.full((4, 5, 6), np.nan, np.float32), "prediction-out-of-range"),
    ],
)
def test_a_fractional_mask_that_holds_no_probabilities_is_an_error(chances, code):
    spec = spec_with(Segment(name="liver", body_site=LIVER, valid_ml=(0, 10), fractional=True))

    with pytest.raises(PredictionInvalid) as caught:
        results_of(spec, volume_case(), Prediction(values={"liver": chances}))

    assert caught.value.code == code


def test_a_mask_is_of_the_image_it_names():
    case = volume_case()
    small = Image(array=np.ones((2, 3, 4), np.float32), spacing_mm=(1, 1, 1), affine=np.eye(4), modality="MR")
    case = replace(case, inputs={**case.inputs, "second": small})
    output = Segment(name="liver", body_site=LIVER, valid_ml=(0, 10), of="second")
    spec = replace(
        spec_with(output), accepts=(ImagingInput(modality=("CT",)), ImagingInput(name="second", modality=("MR",)))
    )

    result = results_of(spec, case, Prediction(values={"liver": np.ones((2, 3, 4), bool)}))[0]

    assert (result.voxels, result.value, result.mean) == (24, pytest.approx(0.024), 1.0)


def test_a_mask_of_an_image_that_the_case_lacks_is_an_error():
    output = Segment(name="liver", body_site=LIVER, valid_ml=(0, 10), of="second")
    accepts = (ImagingInput(modality=("CT",)), ImagingInput(name="second", modality=("MR",), optional=True))

    with pytest.raises(PredictionInvalid, match="mask of second, which is missing"):
        results_of(
            replace(spec_with(output), accepts=accepts),
            volume_case(),
            Prediction(values={"liver": np.ones((4, 5, 6), bool)}),
        )


def test_volumes_and_means_equal_pyradiomics_published_baselines(realdata: Callable[[str], Path]):
    data = realdata("pyradiomics") / "pyradiomics" / "data"
    volumes = _baseline(data / "baseline" / "baseline_shape.csv", "original_shape_VoxelVolume")
    means = _baseline(data / "baseline" / "baseline_firstorder.csv", "original_firstorder_Mean")
    for name in ("brain1", "brain2", "breast1", "lung1", "lung2"):
        mask, header = nrrd.read(str(data / f"{name}_label.nrrd"))
        assert header["space"] == "left-posterior-superior"
        affine = np.eye(4)
        affine[:3, :3] = np.array(header["space directions"]).T
        image = data / f"{name}_image.nrrd"  # published of three
        array = nrrd.read(str(image))[0].T.astype(np.float32) if image.exists() else np.zeros(mask.T.shape, np.float32)
        case = volume_case()
        pictured = Image(array=array, spacing_mm=None, affine=affine, modality="MR")
        spec = spec_with(Segment(name="tumour", body_site=LIVER, valid_ml=(0, 1e3)))

        result = results_of(
            spec, replace(case, inputs={"image": pictured}), Prediction(values={"tumour": mask.T == 1})
        )[0]

        assert result.value is not None
        assert result.value * 1000 == pytest.approx(volumes[name], rel=1e-9), name
        if image.exists():
            assert result.mean == pytest.approx(means[name], rel=1e-9), name


def _baseline(file: Path, feature: str) -> dict[str, float]:
    with file.open(newline="") as lines:
        row = next(row for row in csv.DictReader(lines) if row["featureName"] == feature)
    return {name: float(value) for name, value in row.items() if name != "featureName"}


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
