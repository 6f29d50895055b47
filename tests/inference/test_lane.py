import subprocess
import sys
from itertools import chain

import pytest

from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.runner import Runner
from tests.models import GcContent, sequence_case
from tests.torch_models import Layer, layer


def test_a_model_is_called_without_autograd_once_torch_is_loaded(device):
    import torch

    lane = Lane(device)

    with lane.predicting(GcContent.spec):
        inside = torch.is_inference_mode_enabled()
    with lane.loading():
        loading = torch.is_inference_mode_enabled()

    assert (inside, loading, torch.is_inference_mode_enabled()) == (True, False, False)


def test_a_model_without_torch_is_called_without_it():
    code = (
        "import sys; from medflow.inference.lane import Lane; from tests.models import GcContent\n"
        "with Lane('cpu').predicting(GcContent.spec): print(GcContent().predict(['GGAA'])[0].values)\n"
        "print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split("\n")[:2] == ["{'gc': 0.5}", "False"]


def test_on_a_cpu_precision_is_never_mixed():
    import torch

    with Lane("cpu").predicting(layer(mixed_precision=True).spec):
        assert not torch.is_autocast_enabled("cpu")


def test_a_model_of_torch_scores_alike_on_every_device(device):
    model = Layer()
    model.load(device)
    openers = [lambda bases=bases: sequence_case(1, bases) for bases in ("GCGCGCGC", "ACGTACGT", "AAAAAAAC")]

    outcomes = chain.from_iterable(Runner(LoadedModel(model, Lane(device)), threads=2).run(openers))

    assert [outcome.prediction.values["gc"] for outcome in outcomes] == [1.0, 0.5, 0.125]


def test_a_call_that_fails_leaves_the_lane_to_the_next(device):
    lane = Lane(device)

    with pytest.raises(ValueError, match="x"), lane.predicting(GcContent.spec):
        raise ValueError("x")

    with lane.predicting(GcContent.spec):
        pass
