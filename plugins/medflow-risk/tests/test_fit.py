"""Fitting to a site's own cohort, through the contract that `medflow train` uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from medflow.plugin import Case, Epoch, Examples, ModelSpec, TimeSeries, TrialStopped, Unit, UnitKind, Weights
from medflow_risk.channels import CHANNELS
from medflow_risk.evaluate import AT
from medflow_risk.mortality import SPEC, IcuMortality

HEART_RATE = [channel.name for channel in CHANNELS].index("HR")


def examples(count: int, seed: int) -> Examples:
    """Stays whose outcome follows from their heart rate."""
    rng = np.random.default_rng(seed)
    died = rng.random(count) < 0.4
    values = np.full((count, 48, len(CHANNELS)), np.nan, dtype=np.float32)
    values[:, :, HEART_RATE] = (80 + 40 * died + rng.normal(0, 10, count))[:, None]
    statics = np.tile(np.array([60, 1, 1, 0, 0, 0], dtype=np.float32), (count, 1))
    return Examples(values=values, statics=statics, outcome=died.astype(np.float32), patients=np.arange(count))


def fitted(**chosen: Any) -> tuple[Mapping[str, np.ndarray], float | None, list[Epoch]]:
    torch.set_num_threads(1)
    told: list[Epoch] = []
    choices = (
        {item.name: item.default for item in IcuMortality.hyperparameters}
        | {"hidden": 8, "epochs": 2, "trees": 20}
        | chosen
    )
    found = IcuMortality.fit(examples(80, 0), examples(40, 1), choices, seed=7, device="cpu", report=told.append)
    return found.tensors["icu_mortality.safetensors"], found.threshold, told


@pytest.fixture(scope="module")
def small() -> tuple[Mapping[str, np.ndarray], float | None, list[Epoch]]:
    return fitted(members=2)


def test_each_epoch_of_each_network_is_reported(small: tuple) -> None:
    assert [(epoch.member, epoch.number) for epoch in small[2]] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_the_same_seed_gives_the_same_tensors(small: tuple) -> None:
    again = fitted(members=2)

    assert all(np.array_equal(tensor, again[0][name]) for name, tensor in small[0].items())
    assert small[1] == again[1]


def test_the_search_may_stop_it() -> None:
    def report(epoch: Epoch) -> None:
        raise TrialStopped("enough")

    with pytest.raises(TrialStopped):
        IcuMortality.fit(
            examples(30, 0), examples(20, 1), {"members": 1, "trees": 5}, seed=1, device="cpu", report=report
        )


def test_a_version_trained_here_is_served_from_its_own_folder(small: tuple, tmp_path: Path) -> None:
    tensors, threshold, _ = small
    save_file(dict(tensors), tmp_path / "icu_mortality.safetensors")
    digest = sha256((tmp_path / "icu_mortality.safetensors").read_bytes()).hexdigest()
    spec: ModelSpec = replace(SPEC, weights=(Weights(file="icu_mortality.safetensors", sha256=digest),))
    model = IcuMortality()
    vars(model).update(spec=spec, folder=tmp_path)
    model.load("cpu")
    stays = examples(50, 2)

    answers = model.predict([model.prepare(case) for case in cases(stays)])

    risks = np.array([answer.values["in-hospital-death"] for answer in answers])
    assert threshold is not None
    assert np.mean((risks >= threshold) == (stays.outcome > 0)) > 0.9


def cases(stays: Examples) -> list[Case]:
    return [
        Case(
            unit=Unit(kind=UnitKind.ENCOUNTER, id=row + 1),
            prediction_time=AT,
            inputs={"series": TimeSeries(values=stays.values[row], statics=stays.statics[row])},
        )
        for row in range(len(stays))
    ]
