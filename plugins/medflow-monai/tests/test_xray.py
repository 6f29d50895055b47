"""The pneumonia classifier keeps its contract and its card's word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medflow_monai.train_xray import area_under_curve
from medflow_monai.xray import PneumoniaXray


def test_contract(check_model, chest_cases):
    check_model(PneumoniaXray, chest_cases)


def test_contract_on_random_cases(check_model):
    check_model(PneumoniaXray)


def test_chest_like_pictures_are_answered(xray, chest_cases):
    predictions = xray.predict([xray.prepare(case) for case in chest_cases])

    assert all(prediction.out_of_scope is None for prediction in predictions)
    for prediction in predictions:
        assert prediction.values["pneumonia"].sum() == pytest.approx(1)


def test_a_cloudy_lung_scores_above_a_clear_one(xray, chest_cases):
    clear, *_, cloudy = (p.values["pneumonia"][1] for p in xray.predict([xray.prepare(case) for case in chest_cases]))

    assert clear < xray.spec.outputs[0].threshold < cloudy


def test_noise_is_out_of_scope(xray, case_of):
    pictures = [np.random.default_rng(seed).uniform(0, 4095, (512, 400)) for seed in range(4)]

    predictions = xray.predict([xray.prepare(case_of(picture, modality="CR")) for picture in pictures])

    assert all(prediction.out_of_scope and not prediction.values for prediction in predictions)


def test_a_negative_left_unturned_is_out_of_scope(xray, chest_cases, case_of):
    inverted = [case_of(-case.image.array, modality="DX") for case in chest_cases]

    assert all(prediction.out_of_scope for prediction in xray.predict([xray.prepare(case) for case in inverted]))


@pytest.mark.realdata
def test_validation_auc_is_what_the_card_says(xray, realdata, case_of):
    with np.load(realdata("pneumoniamnist_trainval.npz")) as data:
        pictures, labels = data["val_images"], data["val_labels"][:, 0]

    ready = [xray.prepare(case_of(picture, modality="DX")) for picture in pictures]
    predictions = [p for start in range(0, len(ready), 64) for p in xray.predict(ready[start : start + 64])]

    assert not any(prediction.out_of_scope for prediction in predictions)
    scores = np.array([prediction.values["pneumonia"][1] for prediction in predictions])
    assert len(labels) == 524
    assert area_under_curve(scores, labels) == pytest.approx(VALIDATION_AUC, abs=5e-4)
    threshold = xray.spec.outputs[0].threshold
    assert (scores[labels == 1] >= threshold).mean() > 0.95
    assert (scores[labels == 0] < threshold).mean() > 0.9


VALIDATION_AUC = 0.9972


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(xray, chest_cases):
    model = PneumoniaXray()
    model.load("cuda:0")
    ready = [xray.prepare(case) for case in chest_cases]

    for here, there in zip(xray.predict(ready), model.predict(ready), strict=True):
        assert there.values["pneumonia"] == pytest.approx(here.values["pneumonia"], abs=1e-3)
