"""The pneumonia classifier keeps its contract and its card's word."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from medflow_monai.heat_map import contributions, on_radiograph
from medflow_monai.pictures import centre_square
from medflow_monai.xray import PneumoniaXray, Prepared
from medflow_monai.xray_data import parts, read
from medflow_monai.xray_figures import area_under_curve, calibration


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


@pytest.fixture(scope="module")
def data(realdata):
    return read(realdata("pneumoniamnist_trainval.npz"))


@pytest.mark.realdata
def test_the_data_are_what_the_card_says(data):
    split, validation = data
    count = {name: (len(part.labels), int((part.labels == 0).sum())) for name, part in parts(split).items()}

    assert count == {"train": (2507, 252), "calibration": (578, 58), "test": (772, 78)}
    assert (len(validation.labels), int((validation.labels == 0).sum())) == (524, 135)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["test", "validation"])
def test_the_figures_are_what_the_card_says(xray, data, name):
    split, validation = data
    part = parts(split)["test"] if name == "test" else validation
    ready = [Prepared(picture=picture, shape=(28, 28)) for picture in part.pictures]

    predictions = [p for start in range(0, len(ready), 64) for p in xray.predict(ready[start : start + 64])]

    answered = np.array([prediction.out_of_scope is None for prediction in predictions])
    labels = part.labels[answered]
    scores = np.array([p.values["pneumonia"][1] for p, known in zip(predictions, answered, strict=True) if known])
    threshold = xray.spec.outputs[0].threshold
    found = {
        "auc": area_under_curve(scores, labels),
        "sensitivity": (scores[labels == 1] >= threshold).mean(),
        "specificity": (scores[labels == 0] < threshold).mean(),
        "ece": calibration(scores, labels, float(labels.mean())).ece_equal_count,
    }
    assert (~answered).sum() <= 3
    assert found == pytest.approx(CARD[name], abs=2e-3)
    assert found["auc"] > 0.97
    assert found["ece"] < 0.03


@pytest.fixture
def cloudy(chest_cases):
    """A radiograph with opacities, wider than high."""
    array = np.pad(chest_cases[5].image.array, ((0, 0), (30, 45)), mode="edge")
    return replace(chest_cases[5], inputs={"image": replace(chest_cases[5].image, array=array)})


def explained(model, cases):
    ready = [model.prepare(case) for case in cases]
    return model.explain(ready, model.predict(ready))


def test_a_heat_map_lies_on_the_radiographs_grid_and_only_where_the_model_looked(xray, cloudy):
    [found] = explained(xray, [cloudy])

    heat = found["pneumonia"]
    assert heat.shape == cloudy.image.array.shape
    assert heat.dtype == np.float32
    seen = np.zeros(heat.shape, dtype=bool)
    seen[centre_square(heat.shape)] = True
    assert np.array_equal(~np.isnan(heat), seen)
    assert np.nanmin(heat) >= 0
    assert np.nanmax(heat) > 0.01  # log odds


def test_a_heat_map_is_the_same_each_time_and_alone_as_in_a_batch(xray, chest_cases):
    together, again = explained(xray, chest_cases), explained(xray, chest_cases)
    alone = [found for case in chest_cases for found in explained(xray, [case])]

    for one, two, three in zip(together, again, alone, strict=True):
        assert np.array_equal(one["pneumonia"], two["pneumonia"])
        assert one["pneumonia"] == pytest.approx(three["pneumonia"], abs=1e-5)


def test_a_heat_map_leaves_the_model_as_it_was(xray, chest_cases):
    ready = [xray.prepare(case) for case in chest_cases]
    before = xray.predict(ready)

    with torch.inference_mode():
        explained(xray, chest_cases)

    for one, two in zip(before, xray.predict(ready), strict=True):
        assert np.array_equal(one.values["pneumonia"], two.values["pneumonia"])
    assert not any(module._forward_hooks for module in xray._network.modules())


def test_what_is_out_of_scope_has_no_heat_map(xray, case_of, chest_cases):
    noise = case_of(np.random.default_rng(0).uniform(0, 4095, (64, 64)), modality="DX")

    found = explained(xray, [noise, chest_cases[0]])

    assert found[0] == {}
    assert set(found[1]) == {"pneumonia"}


def test_the_cells_add_up_to_the_log_odds(xray, chest_cases):
    """Grad-CAM of a network that ends in a mean and a linear layer: what is left out is negative, or the offset."""
    pictures = torch.from_numpy(np.stack([xray.prepare(case).picture for case in chest_cases]))
    layer, temperature, kept = xray._network.layer4, float(xray._calibration[0]), []
    handle = layer.register_forward_hook(lambda _module, _given, made: kept.append(made))
    with torch.no_grad():
        logits = xray._network(pictures[:, None])
    handle.remove()
    linear = xray._network.fc
    share = (linear.weight[1] - linear.weight[0]).detach()[None, :, None, None] * kept[0] / kept[0][0, 0].numel()
    cells = share.sum(dim=1) / temperature
    whole = cells.sum(dim=(1, 2)) + (linear.bias[1] - linear.bias[0]).detach() / temperature

    assert torch.allclose(whole, (logits[:, 1] - logits[:, 0]) / temperature, atol=1e-4)
    assert contributions(xray._network, temperature, pictures) == pytest.approx(cells.clamp(min=0).numpy(), abs=1e-5)


@pytest.mark.parametrize("side", [28, 280, 333])
def test_a_cell_comes_back_to_where_it_looked(side):
    cells = np.zeros((7, 7), dtype=np.float32)
    cells[2, 5] = 1

    heat = on_radiograph(cells, (side + 40, side))

    row, column = np.unravel_index(np.nanargmax(heat), heat.shape)
    # a stride of 4 from pixel 0 of 28: the cell's receptive field is centred on pixel (8, 20)
    assert ((row - 20 + 0.5) * 28 / side, (column + 0.5) * 28 / side) == pytest.approx((8.5, 20.5), abs=0.6)


@pytest.mark.realdata
def test_covering_the_hottest_place_changes_the_answer_more_than_covering_the_coldest(xray, data):
    _, validation = data
    ready = [Prepared(picture=picture, shape=(28, 28)) for picture in validation.pictures[validation.labels == 1][:80]]
    found = xray.explain(ready, xray.predict(ready))
    maps = [heat["pneumonia"] for heat in found if heat]
    ill = [item.picture for item, heat in zip(ready, found, strict=True) if heat]
    places = sorted(product(range(3, 24, 4), repeat=2))

    def covered(picture, heat, choose):
        row, column = choose(places, key=lambda at: heat[at[0] - 3 : at[0] + 4, at[1] - 3 : at[1] + 4].mean())
        copy = picture.copy()
        copy[row - 3 : row + 4, column - 3 : column + 4] = picture.mean()
        return copy

    def log_odds(pictures):
        with torch.inference_mode():
            logits = xray._network(torch.from_numpy(np.stack(pictures))[:, None])
        return (logits[:, 1] - logits[:, 0]).numpy()

    plain = log_odds(ill)
    hottest = np.abs(plain - log_odds([covered(p, heat, max) for p, heat in zip(ill, maps, strict=True)]))
    coldest = np.abs(plain - log_odds([covered(p, heat, min) for p, heat in zip(ill, maps, strict=True)]))
    assert hottest.mean() > 1.5 * coldest.mean()
    assert (hottest > coldest).mean() > 0.55


CARD = {
    "test": {"auc": 0.9953, "sensitivity": 0.974, "specificity": 0.962, "ece": 0.0043},
    "validation": {"auc": 0.9959, "sensitivity": 0.982, "specificity": 0.948, "ece": 0.0067},
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(xray, chest_cases):
    model = PneumoniaXray()
    model.load("cuda:0")
    ready = [xray.prepare(case) for case in chest_cases]

    for here, there in zip(xray.predict(ready), model.predict(ready), strict=True):
        assert there.values["pneumonia"] == pytest.approx(here.values["pneumonia"], abs=1e-3)
