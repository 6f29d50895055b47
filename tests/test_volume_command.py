"""`medflow volume` as people meet it: the file it writes, what it says of it, and what it says when there is none."""

import json

import nibabel
import numpy as np
import pytest

from tests.distributions import environment, medflow, write_distribution
from tests.factories_dicom import volume_of, write_series

MODELS = """
from dataclasses import replace

from medflow.plugin import ImagingInput
from tests import imaging_models


class Late(imaging_models.BrightTissue):
    spec = replace(
        imaging_models.BrightTissue.spec, name="late", accepts=(ImagingInput(modality=("CT",), take="last"),)
    )


class Liver(imaging_models.BrightTissue):
    spec = replace(
        imaging_models.BrightTissue.spec,
        name="liver",
        accepts=(ImagingInput(modality=("CT",), descriptions=("liver",)),),
    )
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """An installation with a series of one volume, series/1, and one of two echoes, series/2."""
    root = tmp_path_factory.mktemp("volume")
    echoes = [
        *volume_of(4, series=2, EchoTime=5, TimezoneOffsetFromUTC="+0000"),
        *volume_of(4, series=2, EchoTime=9, RescaleIntercept=-900),
    ]
    for number, dataset in enumerate(echoes):
        dataset.SOPInstanceUID += f".{number}"
    write_series(root / "in" / "1", volume_of(4))
    write_series(root / "in" / "2", echoes)
    plugins = write_distribution(root / "plugins", "late-plugin", MODELS, {"late": "Late", "liver": "Liver"})
    env = environment(root / "home", plugins)
    medflow(env, "ingest", "dicom", root / "in" / "1", root / "in" / "2")
    return env


def test_it_writes_the_volume_and_says_what_it_is(env, tmp_path):
    done = medflow(env, "volume", "series/1", "--out", tmp_path / "one.nii.gz")

    assert (done.returncode, done.stderr) == (0, "")
    assert "shape: [4, 6, 4]" in done.stdout and "spacing_mm: [2.5, 0.5, 0.75]" in done.stdout
    written = nibabel.load(tmp_path / "one.nii.gz")
    assert written.shape == (4, 6, 4)
    assert written.get_fdata()[1, 0, 2] == 2 * 201 - 1000
    np.testing.assert_allclose(written.affine @ [1, 2, 3, 1], [9.25, 19, 7.5, 1])


def test_several_volumes_are_written_unless_one_is_asked_for(env, tmp_path):
    every = json.loads(medflow(env, "volume", 2, "--out", tmp_path / "all.nii", "--json").stdout)
    last = json.loads(medflow(env, "volume", 2, "--out", tmp_path / "last.nii", "--volume", "last", "--json").stdout)

    assert (every["shape"], every["volumes"]) == ([2, 4, 6, 4], [{"EchoTime": 5.0}, {"EchoTime": 9.0}])
    assert (last["shape"], last["volumes"]) == ([4, 6, 4], [{"EchoTime": 9.0}])
    both, one = (nibabel.load(tmp_path / name).get_fdata() for name in ("all.nii", "last.nii"))
    np.testing.assert_array_equal(both[..., 1], one)


def test_it_is_what_the_model_would_be_given(env, tmp_path):
    done = medflow(env, "volume", 2, "--out", tmp_path / "late.nii", "--model", "late", "--json")

    told = json.loads(done.stdout)
    assert (told["volumes"], told["notes"]) == ([{"EchoTime": 9.0}], [])


def test_a_series_that_the_model_would_never_be_given_is_written_and_said_to_be_none_for_it(env, tmp_path):
    named = json.loads(medflow(env, "volume", 1, "--out", tmp_path / "a.nii", "--model", "liver", "--json").stdout)
    plain = medflow(env, "volume", 1, "--out", tmp_path / "b.nii", "--model", "liver")

    [note] = named["notes"]
    assert note.startswith("liver does not take series/1 (description): ")
    assert (plain.returncode, plain.stderr) == (0, f"note: {note}\n")
    assert (tmp_path / "a.nii").is_file() and (tmp_path / "b.nii").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((2, "--volume", "only"), "series/2 cannot be given to a model (several-volumes): the series holds 2 volumes"),
        ((9,), "there is no series 9"),
        ((1, "--model", "late", "--volume", "all"), "--volume goes without --model"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(env, tmp_path, words, said):
    done = medflow(env, "volume", *words, "--out", tmp_path / "none.nii.gz")

    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none.nii.gz").exists()
