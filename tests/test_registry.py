import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from medflow.errors import ConfigurationError, PluginBroken, UnknownModel
from medflow.plugin import Model, UnitKind
from medflow.registry import BrokenPlugin, check_spec, dump_spec, load_spec, read_models
from tests.distributions import environment, write_distribution
from tests.imaging_models import Enhancement
from tests.models import GcContent, renamed


def several():
    return [renamed(GcContent, "one"), renamed(GcContent, "two")]


def several_and_a_broken_one():
    yield renamed(GcContent, "one")
    yield BrokenPlugin(distribution="", entry_point="two", error="its weights have changed")
    yield Model
    yield renamed(GcContent, "three")


NOT_A_MODEL = object()


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="medflow.models")


def test_a_broken_plugin_is_named_and_stops_nobody():
    found = read_models([point("bad", "no_such_module:Model"), point("gc-content", "tests.models:GcContent")])

    assert list(found.models) == ["gc-content"]
    assert found.broken[0].entry_point == "bad"
    assert "No module named 'no_such_module'" in found.broken[0].error


def test_an_entry_point_may_give_several_models():
    found = read_models([point("many", "tests.test_registry:several")])

    assert sorted(found.models) == ["one", "two"]


def test_a_broken_one_of_several_is_named_and_hides_none():
    found = read_models([point("many", "tests.test_registry:several_and_a_broken_one")])

    assert sorted(found.models) == ["one", "three"]
    assert [item.entry_point for item in found.broken] == ["two", "many"]
    with pytest.raises(PluginBroken, match="its weights have changed"):
        found.get("two")


def test_two_models_of_one_name_are_reported():
    found = read_models([point("a", "tests.models:GcContent"), point("b", "tests.models:GcContent")])

    assert "is taken by" in found.broken[0].error


def test_what_is_no_model_is_reported():
    found = read_models([point("x", "tests.test_registry:NOT_A_MODEL")])

    assert "neither a Model subclass nor a callable" in found.broken[0].error


def test_asking_for_a_model_that_is_not_there_names_those_that_are():
    found = read_models([point("gc-content", "tests.models:GcContent")])

    with pytest.raises(UnknownModel, match="no model is called 'gcc'; installed: gc-content"):
        found.get("gcc")


def test_asking_for_a_broken_one_says_why():
    found = read_models([point("bad", "no_such_module:Model")])

    with pytest.raises(PluginBroken, match="No module named"):
        found.get("bad")


def test_a_spec_is_the_same_after_storing_it_as_json():
    assert load_spec(dump_spec(GcContent.spec)) == GcContent.spec


def test_a_stored_spec_of_another_version_is_refused_by_field():
    data = dump_spec(GcContent.spec) | {"batch_size": "many"}

    with pytest.raises(ConfigurationError, match="batch_size"):
        load_spec(data)


def test_the_digest_changes_with_the_spec():
    found = read_models([point("many", "tests.test_registry:several")])

    assert found.models["one"].digest != found.models["two"].digest


COUNTED = """
from tests import models

NAMES = []

def counted():
    return [models.renamed(models.GcContent, name) for name in NAMES]

counted.stamp = lambda: tuple(NAMES)
"""


def test_models_that_come_and_go_are_found_without_a_restart(tmp_path):
    plugins = write_distribution(tmp_path, "counting", COUNTED, {"counted": "counted"})
    code = (
        "import counting; from medflow.registry import installed; before = installed(); assert installed() is before; "
        "counting.NAMES.append('late'); print('late' in before.models, 'late' in installed().models)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, plugins), capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["False", "True"], done.stderr


def test_a_model_of_studies_may_have_several_images_and_one_of_series_has_one():
    accepts = Enhancement.spec.accepts
    check_spec(Enhancement.spec)

    with pytest.raises(PluginBroken, match="joins several inputs"):
        check_spec(replace(Enhancement.spec, unit=UnitKind.SERIES))
    with pytest.raises(PluginBroken, match="joins several inputs"):
        check_spec(replace(Enhancement.spec, accepts=(*accepts, GcContent.spec.accepts[0])))
    with pytest.raises(PluginBroken, match=r"input plain: '\(' is no regular expression"):
        check_spec(replace(Enhancement.spec, accepts=(replace(accepts[0], descriptions=("(",)), *accepts[1:])))
