import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from safetensors.torch import save

from medflow.errors import PluginBroken
from medflow.inference.weights import dump_weights, load_weights
from medflow.plugin import Weights


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "weighty").mkdir()
    (tmp_path / "weighty" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "weighty"
    sys.modules.pop("weighty", None)


def test_weights_load_when_they_are_the_declared_bytes(package):
    data = save({"w": torch.arange(3.0)})
    (package / "w.safetensors").write_bytes(data)

    tensors = load_weights("weighty", Weights(file="w.safetensors", sha256=sha256(data).hexdigest()))

    assert tensors["w"].tolist() == [0, 1, 2]


def test_altered_weights_are_refused(package):
    data = save({"w": torch.arange(3.0)})
    (package / "w.safetensors").write_bytes(save({"w": torch.arange(4.0)}))

    with pytest.raises(PluginBroken, match="install the distribution again"):
        load_weights("weighty", Weights(file="w.safetensors", sha256=sha256(data).hexdigest()))


def test_missing_weights_are_named(package):
    with pytest.raises(PluginBroken, match=r"lacks its weights file w\.safetensors"):
        load_weights("weighty", Weights(file="w.safetensors", sha256="0" * 64))


def test_a_pickle_is_never_read(package):
    torch.save({"w": torch.arange(3.0)}, package / "w.pt")
    digest = sha256((package / "w.pt").read_bytes()).hexdigest()

    with pytest.raises(PluginBroken, match="not a safetensors file"):
        load_weights("weighty", Weights(file="w.pt", sha256=digest))


def test_dumped_weights_load_as_they_were_and_are_the_same_bytes_each_time(package):
    tensors = {"w": np.array([[0.0, np.inf], [2.0, 3.0], [4.0, 5.0]]).T, "bias": np.array(2, dtype=np.int64)}
    data = dump_weights(tensors)
    (package / "w.safetensors").write_bytes(data)

    loaded = load_weights("weighty", Weights(file="w.safetensors", sha256=sha256(data).hexdigest()))

    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"w": tensors["w"].tolist(), "bias": 2}
    assert dump_weights(dict(reversed(tensors.items()))) == data


@pytest.mark.parametrize(
    ("tensor", "said"), [([1.0], "no numpy array"), (np.array(["a"]), "no numpy array"), (np.array([np.nan]), "NaN")]
)
def test_what_is_no_tensor_of_numbers_is_not_dumped(tensor, said):
    with pytest.raises(PluginBroken, match=said):
        dump_weights({"w": tensor})
