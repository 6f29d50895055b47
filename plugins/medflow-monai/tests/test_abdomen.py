"""The phantom segmentation finds what the formulas say, whichever way the scan lies, and answers for nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medflow.plugin import InputNotUsable
from medflow.sample import LABELS, draw_anatomy, grid_affine, render
from medflow_monai.abdomen import ORGANS, AbdomenPhantomCT

SCANS = [
    ("axial", (46, 66, 72), (5.0, 5.5, 5.5), True, 0),
    ("axial", (40, 64, 64), (6.0, 5.5, 5.5), False, 8),
    ("axial", (110, 150, 180), (2.2, 2.2, 2.2), True, -10),
    ("coronal", (66, 60, 90), (5.0, 4.2, 4.2), False, 5),
    ("sagittal", (80, 56, 70), (4.8, 4.5, 4.5), True, 0),
]


@pytest.fixture
def phantom_case(case_of):
    def make(seed, orientation="axial", shape=(40, 64, 64), spacing=(6.0, 5.5, 5.5), head_first=True, tilt_deg=0):
        rng = np.random.default_rng([77, seed])
        anatomy = draw_anatomy(rng)
        affine = grid_affine(shape, spacing, orientation, tilt_deg=tilt_deg, head_first=head_first)
        hu, labels = render(anatomy, rng, shape, affine)
        return case_of(hu, affine), labels, anatomy.truth_ml

    return make


def test_contract(check_model, phantom_case):
    check_model(AbdomenPhantomCT, [phantom_case(seed)[0] for seed in range(3)])


def test_contract_on_random_cases(check_model):
    check_model(AbdomenPhantomCT)


def test_the_classes_are_the_phantoms_labels():
    assert list(ORGANS) == list(LABELS)
    assert list(LABELS.values()) == [1, 2, 3, 4]


@pytest.mark.parametrize(("orientation", "shape", "spacing", "head_first", "tilt_deg"), SCANS)
def test_masks_and_volumes_are_right_in_every_orientation(
    abdomen, phantom_case, orientation, shape, spacing, head_first, tilt_deg
):
    case, labels, truth_ml = phantom_case(3, orientation, shape, spacing, head_first, tilt_deg)

    [prediction] = abdomen.predict([abdomen.prepare(case)])

    assert prediction.out_of_scope is None
    voxel_ml = np.prod(spacing) / 1000
    for name, label in LABELS.items():
        mask, truth = np.asarray(prediction.values[name]), labels == label
        assert mask.shape == shape
        assert mask.dtype == bool
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9, name
        assert mask.sum() * voxel_ml == pytest.approx(truth_ml[name], rel=0.1), name


def test_a_scan_that_says_it_is_mirrored_is_not_taken_for_the_same_patient(abdomen, phantom_case, case_of):
    case, _, _ = phantom_case(4)
    affine = case.image.affine.copy()
    affine[0] *= -1  # the same pixels, said to run to the right: the liver would be on the left

    [straight] = abdomen.predict([abdomen.prepare(case)])
    [mirrored] = abdomen.predict([abdomen.prepare(case_of(case.image.array, affine))])

    assert straight.out_of_scope is None
    assert mirrored.out_of_scope


def test_the_same_scan_stored_from_the_other_end_gives_the_same_masks(abdomen, phantom_case, case_of):
    case, _, _ = phantom_case(5)
    affine = case.image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (case.image.array.shape[0] - 1)
    affine[:3, 2] *= -1

    [one] = abdomen.predict([abdomen.prepare(case)])
    [other] = abdomen.predict([abdomen.prepare(case_of(case.image.array[::-1], affine))])

    for name in LABELS:
        assert np.mean(np.asarray(one.values[name]) != np.asarray(other.values[name])[::-1]) < 1e-3


def test_what_is_no_phantom_is_out_of_scope(abdomen, case_of, phantom_case):
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    rng = np.random.default_rng(0)
    noise = case_of(rng.normal(40, 20, (40, 64, 64)), affine)
    empty = case_of(np.full((40, 64, 64), -1000.0), affine)
    whole = phantom_case(6)[0]
    half = whole.image.affine
    cut = case_of(whole.image.array[:, :, :32], half)
    washed_out = case_of(whole.image.array * 0.5, half)

    for case in (noise, empty, cut, washed_out):
        [prediction] = abdomen.predict([abdomen.prepare(case)])
        assert prediction.out_of_scope
        assert not prediction.values


@pytest.mark.parametrize(
    ("affine", "code"),
    [
        (None, "no-geometry"),
        (np.diag([30.0, 4.0, 5.0, 1.0]), "spacing-implausible"),
        (np.diag([0.01, 4.0, 5.0, 1.0]), "spacing-implausible"),
        (np.diag([0.5, 0.5, 5.0, 1.0]), "field-implausible"),
        (np.array([[4.0, 2.0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1.0]]), "axes-oblique"),
    ],
)
def test_implausible_geometry_is_refused(abdomen, case_of, affine, code):
    with pytest.raises(InputNotUsable) as refused:
        abdomen.prepare(case_of(np.zeros((40, 64, 64)), affine))

    assert refused.value.code == code


def test_voxels_that_are_no_numbers_are_refused(abdomen, case_of):
    with pytest.raises(InputNotUsable):
        abdomen.prepare(case_of(np.full((40, 64, 64), np.nan), np.diag([4.0, 4.0, 5.0, 1.0])))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(abdomen, phantom_case):
    model = AbdomenPhantomCT()
    model.load("cuda:0")
    ready = abdomen.prepare(phantom_case(7)[0])
    [here], [there] = abdomen.predict([ready]), model.predict([ready])

    for name in LABELS:
        assert np.mean(np.asarray(here.values[name]) != np.asarray(there.values[name])) < 1e-3
