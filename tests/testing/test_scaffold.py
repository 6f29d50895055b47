"""What `medflow plugin new` writes is a working model of each kind, before anything in it is changed."""

from importlib import import_module

import pytest

from medflow.cli.scaffold import write_plugin
from medflow.cli.scaffold_models import MODULES, Start
from medflow.plugin import ImagingInput


@pytest.mark.parametrize("start", Start)
def test_a_new_plugin_of_each_kind_keeps_the_contract(check_model, tmp_path, monkeypatch, start):
    name = f"started-{start}"
    write_plugin(tmp_path, name, start)
    monkeypatch.syspath_prepend(tmp_path / name)
    module = import_module(name.replace("-", "_"))
    [model] = [found for found in vars(module).values() if getattr(found, "__module__", "") == module.__name__]

    check_model(model)


def test_every_kind_has_a_model_to_start_from():
    assert set(MODULES) == set(Start)


@pytest.mark.parametrize(("start", "dimensions"), [(Start.IMAGE, 2), (Start.VOLUME, 3)])
def test_an_imaging_model_starts_from_the_dimensions_asked_for(tmp_path, monkeypatch, start, dimensions):
    write_plugin(tmp_path, f"dimensions-{dimensions}", start)
    monkeypatch.syspath_prepend(tmp_path / f"dimensions-{dimensions}")
    module = import_module(f"dimensions_{dimensions}")

    [wanted] = getattr(module, f"Dimensions{dimensions}").spec.accepts

    assert isinstance(wanted, ImagingInput)
    assert wanted.dimensions == dimensions
