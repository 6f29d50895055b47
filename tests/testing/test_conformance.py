from dataclasses import replace

import numpy as np
import pytest

from medflow.plugin import Prediction
from medflow.testing import Check, check_model, sample_cases
from tests.explaining_models import LinearSite, LinearStay
from tests.imaging_models import BrightTissue, Enhancement
from tests.models import GcContent


def broken(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_a_good_model_keeps_every_clause(check_model):
    check_model(GcContent)


class Drifting(GcContent):
    calls = 0

    def predict(self, batch):
        Drifting.calls += 1
        return [Prediction(values={"gc": min(1.0, Drifting.calls / 100)}) for _ in batch]


class BatchDependent(GcContent):
    def predict(self, batch):
        return [Prediction(values={"gc": len(batch) / 10}) for _ in batch]


class OutOfRange(GcContent):
    def predict(self, batch):
        return [Prediction(values={"gc": 7.0}) for _ in batch]


class Remembering(GcContent):
    """Answers for the case prepared last, whatever it is asked."""

    last = ""

    def prepare(self, case):
        self.last = super().prepare(case)
        return self.last

    def predict(self, batch):
        return super().predict([self.last for _ in batch])


class WrongWeights(GcContent):
    def load(self, device):
        raise RuntimeError("no weights")


@pytest.mark.parametrize(
    ("model", "clause"),
    [
        (Drifting, "the same input gives the same output"),
        (BatchDependent, "a batch equals its cases one by one"),
        (OutOfRange, "outputs lie inside the declaration"),
        (Remembering, "a batch equals its cases one by one"),
        (WrongWeights, "the model loads"),
    ],
)
def test_a_broken_clause_is_named(model, clause):
    assert clause in broken(check_model(model))


class Pointing(BrightTissue):
    """Says of every voxel how bright it is."""

    spec = replace(BrightTissue.spec, batch_size=2)

    def explain(self, batch, predictions):
        return [{"bright": volume.astype(np.float32)} for volume in batch]


class BesideTheGrid(Pointing):
    def explain(self, batch, predictions):
        return [{"bright": volume[1:].astype(np.float32)} for volume in batch]


class PointingByBatch(Pointing):
    def explain(self, batch, predictions):
        return [{"bright": (volume - np.mean(batch)).astype(np.float32)} for volume in batch]


class OffTheHours(LinearStay):
    def explain(self, batch, predictions):
        return [{"death": replace(found["death"], values=found["death"].values[1:])} for found in _plain(self, batch)]


class ByItsCompany(LinearStay):
    def explain(self, batch, predictions):
        found = _plain(self, batch)
        return [
            {"death": replace(one["death"], statics=one["death"].statics + np.float32(len(found)))} for one in found
        ]


class NeverTheSame(LinearStay):
    calls = 0

    def explain(self, batch, predictions):
        NeverTheSame.calls += 1
        more = np.float32(NeverTheSame.calls)
        return [{"death": replace(one["death"], values=one["death"].values + more)} for one in _plain(self, batch)]


class AnotherClass(LinearSite):
    calls = 0

    def explain(self, batch, predictions):
        AnotherClass.calls += 1
        of = ("donor", "none")[AnotherClass.calls % 2]
        return [{"site": replace(one["site"], of=of)} for one in super().explain(batch, predictions)]


def _plain(model, batch):
    return LinearStay.explain(model, batch, ())


@pytest.mark.parametrize("model", [Pointing, LinearStay, LinearSite])
def test_a_model_that_explains_keeps_every_clause(check_model, model):
    check_model(model)


@pytest.mark.parametrize(
    "model", [BesideTheGrid, PointingByBatch, OffTheHours, ByItsCompany, NeverTheSame, AnotherClass]
)
def test_an_explanation_off_the_grid_or_of_the_batch_is_named(model):
    found = broken(check_model(model, sample_cases(model.spec, 2)))

    assert found == ["explanations keep the grid, and stay the same"]


def test_a_spec_that_imports_torch_is_caught(tmp_path, monkeypatch):
    code = "import torch\nfrom tests.models import GcContent\nclass Heavy(GcContent):\n    pass\n"
    (tmp_path / "heavy_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from heavy_plugin import Heavy

    found = {check.name: check for check in check_model(Heavy)}

    assert found["reading the spec imports nothing heavy"].detail.startswith("importing heavy_plugin imports torch")


def test_own_cases_are_used(check_model):
    from tests.models import sequence_case

    check_model(GcContent, [sequence_case(1, "ACGTACGT"), sequence_case(2, "GGGGGGGG")])


def test_sample_cases_of_a_study_have_every_image_on_a_grid_of_its_own():
    first, second = sample_cases(Enhancement.spec, 2)

    assert {name: image.array.ndim for name, image in first.inputs.items()} == {"plain": 3, "late": 3, "film": 2}
    assert first.inputs["plain"].array.shape != first.inputs["late"].array.shape
    assert set(second.inputs) == {"plain", "late"}  # what may be missing is, once


def test_sample_cases_of_several_volumes_say_what_tells_them_apart():
    several = replace(BrightTissue.spec, accepts=(replace(BrightTissue.spec.accepts[0], dimensions=4, min_slices=40),))
    image = sample_cases(several, 1)[0].image

    assert image.array.shape == (3, 40, 64, 64)
    assert (len(image.spacing_mm), image.affine.shape, len(image.volumes)) == (3, (4, 4), 3)
