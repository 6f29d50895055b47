"""A bundle run by medflow gives what MONAI itself makes of it on files of the same images, to the last voxel.

The bundles differ as the public ones do: in the version of the specification, in what inverts the preprocessing and
what does not, and in where things stand.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.unet import UNet
from monai.transforms.io.array import SUPPORTED_READERS, LoadImage
from monai.transforms.io.dictionary import LoadImaged
from PIL import Image as Picture

from medflow.errors import InputNotUsable
from medflow.plugin import Image


def masks_of(model, case):
    [prediction] = model.predict([model.prepare(case)])
    assert prediction.out_of_scope is None
    return {name: np.asarray(value) for name, value in prediction.values.items()}


@pytest.fixture
def nifti(zoo, tmp_path):
    """A volume, and the NIfTI file of it."""
    image = zoo.volume()
    return image, zoo.write_nifti(tmp_path / "in" / "ct.nii.gz", image)


def test_the_spleen_bundle_of_today(zoo, spleen, loaded, monai_itself, nifti):
    image, file = nifti
    [expected] = monai_itself(spleen, file)

    mask = masks_of(loaded(spleen), zoo.case_of(image=image))["spleen"]

    assert mask.shape == image.array.shape
    assert mask.dtype == bool
    assert 0.2 < mask.mean() < 0.8
    np.testing.assert_array_equal(mask, expected.T == 1)


def test_a_bundle_of_2022(zoo, tmp_path, loaded, monai_itself, nifti):
    """Keys are written out, the checkpoint is a bare state dictionary that a handler loads, ``evaluating`` is run."""
    image, file = nifti
    config = zoo.spleen_config(key="image")
    old = {key: config[key] for key in config if key not in ("image_key", "load_pretrain", "checkpointloader", "run")}
    del old["initialize"]
    old["handlers"] = [config["checkpointloader"], *config["handlers"]]
    old["evaluating"] = ["$setattr(torch.backends.cudnn, 'benchmark', True)", "$@evaluator.run()"]
    meta = zoo.metadata(zoo.SPLEEN, monai_version="0.9.0", version="0.2.0")
    del meta["name"]
    bundle = zoo.write_bundle(tmp_path / "spleen", old, meta, zoo.state())
    [expected] = monai_itself(bundle, file, run_id="evaluating")

    mask = masks_of(loaded(bundle), zoo.case_of(image=image))["spleen"]

    np.testing.assert_array_equal(mask, expected.T == 1)


def test_a_bundle_in_yaml_that_names_its_steps_elsewhere_and_inverts_labels(zoo, tmp_path, loaded, monai_itself, nifti):
    """As the whole-body bundle: labels are inverted by nearest neighbour; as the template: ``$@transforms``."""
    image, file = nifti
    config = zoo.spleen_config()
    post = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [post[0], post[2], post[1] | {"nearest_interp": True}, post[3]]
    config["transforms"] = config["preprocessing"]["transforms"]
    config["preprocessing"] = {"_target_": "Compose", "transforms": "$@transforms"}
    bundle = zoo.write_bundle(
        tmp_path / "body", config, zoo.metadata(zoo.SPLEEN), {"model": zoo.state()}, name="inference.yaml"
    )
    [expected] = monai_itself(bundle, file, config="inference.yaml")

    mask = masks_of(loaded(bundle), zoo.case_of(image=image))["spleen"]

    np.testing.assert_array_equal(mask, expected.T == 1)


def test_no_reader_of_monai_is_constructed(zoo, tmp_path, loaded, monkeypatch):
    """One of them registers a decoder with pydicom, for the whole process."""
    made = []
    for kind in (LoadImage, LoadImaged, *SUPPORTED_READERS.values()):
        monkeypatch.setattr(kind, "__init__", lambda self, *_, **__: made.append(type(self).__name__))
    config = zoo.spleen_config()
    config["preprocessing"]["transforms"][0] |= {"reader": "PydicomReader", "to_gpu": False}
    bundle = zoo.write_bundle(tmp_path / "spleen", config, zoo.metadata(zoo.SPLEEN), {"model": zoo.state()})

    masks = masks_of(loaded(bundle), zoo.case_of(image=zoo.volume()))

    assert set(masks) == {"spleen"}
    assert made == []


def test_the_masks_of_many_labels_share_one_array(zoo, tmp_path, loaded, monai_itself, nifti):
    image, file = nifti
    config = zoo.spleen_config()
    config["network_def"] = zoo.UNET | {"out_channels": 4}
    network = UNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    channels = {"0": "background", "1": "liver", "2": "spleen", "3": "pancreas"}
    meta = zoo.metadata(zoo.tensor("segmentation", num_channels=4, channel_def=channels))
    bundle = zoo.write_bundle(tmp_path / "organs", config, meta, zoo.state(network))
    [expected] = monai_itself(bundle, file)
    model = loaded(bundle)

    [prediction] = model.predict([model.prepare(zoo.case_of(image=image))])

    assert {mask.labels.dtype for mask in prediction.values.values()} == {np.dtype(np.uint8)}
    assert len({id(mask.labels) for mask in prediction.values.values()}) == 1
    for value, name in enumerate(("liver", "spleen", "pancreas"), 1):
        np.testing.assert_array_equal(prediction.values[name], value == expected.T)
    assert any(np.asarray(mask).any() for mask in prediction.values.values())


def test_a_bundle_that_leaves_the_way_back_to_its_writer(zoo, tmp_path, loaded, monai_itself, nifti):
    """Without Invertd, SaveImaged resamples to where the image was."""
    image, file = nifti
    config = zoo.spleen_config()
    del config["postprocessing"]["transforms"][1]
    config["postprocessing"]["transforms"][-1]["resample"] = True
    bundle = zoo.write_bundle(tmp_path / "spleen", config, zoo.metadata(zoo.SPLEEN), {"model": zoo.state()})
    [expected] = monai_itself(bundle, file)

    mask = masks_of(loaded(bundle), zoo.case_of(image=image))["spleen"]

    np.testing.assert_array_equal(mask, expected.T == 1)


def test_a_torchscript_bundle_without_a_network_definition(zoo, tmp_path, loaded, monai_itself, nifti):
    image, file = nifti
    network = UNet(**{key: value for key, value in zoo.UNET.items() if key != "_target_"})
    network.load_state_dict(zoo.state())
    config = zoo.spleen_config()
    traced = {key: value for key, value in config.items() if key not in ("network_def", "network")}
    bundle = zoo.write_bundle(tmp_path / "traced", traced, zoo.metadata(zoo.SPLEEN))
    torch.jit.trace(network.eval(), torch.zeros(1, 1, 16, 16, 16)).save(bundle / "models" / "model.ts")
    by_monai = zoo.write_bundle(tmp_path / "plain", config, zoo.metadata(zoo.SPLEEN), {"model": zoo.state()})
    [expected] = monai_itself(by_monai, file)

    mask = masks_of(loaded(bundle), zoo.case_of(image=image))["spleen"]

    np.testing.assert_array_equal(mask, expected.T == 1)


def test_a_bundle_with_code_of_its_own(zoo, tmp_path, loaded, monai_itself, nifti, monkeypatch):
    image, file = nifti
    config = zoo.spleen_config()
    config["network_def"] = {"_target_": "scripts.networks.small.Small", "out_channels": 2}
    bundle = zoo.write_bundle(tmp_path / "scripted", config, zoo.metadata(zoo.SPLEEN), {"model": zoo.state()})
    (bundle / "scripts" / "networks").mkdir(parents=True)
    (bundle / "scripts" / "__init__.py").touch()
    (bundle / "scripts" / "networks" / "__init__.py").touch()
    (bundle / "scripts" / "networks" / "small.py").write_text(
        "from monai.networks.nets import UNet\nfrom scripts.sizes import CHANNELS\n\n"
        "class Small(UNet):\n    def __init__(self, out_channels):\n"
        "        super().__init__(3, 1, out_channels, CHANNELS, [2], norm='batch')\n"
    )
    (bundle / "scripts" / "sizes.py").write_text("CHANNELS = [4, 8]\n")
    model = loaded(bundle)
    mask = masks_of(model, zoo.case_of(image=image))["spleen"]

    monkeypatch.syspath_prepend(str(bundle))
    [expected] = monai_itself(bundle, file)
    np.testing.assert_array_equal(mask, expected.T == 1)


def test_a_bundle_of_several_channels_takes_them_from_the_series_of_a_study(zoo, tmp_path, loaded, monai_itself):
    """As the BraTS bundle: overlapping regions, a sigmoid each, four files stacked by LoadImaged itself."""
    names = ["T1c", "T1", "T2", "FLAIR"]
    regions = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    config = zoo.spleen_config()
    config["network_def"] = zoo.UNET | {"in_channels": 4, "out_channels": 3}
    pre, post = config["preprocessing"]["transforms"], config["postprocessing"]["transforms"]
    normalize = {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True, "channel_wise": True}
    config["preprocessing"]["transforms"] = [pre[0], normalize]
    discrete = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
    config["postprocessing"]["transforms"] = [post[0] | {"softmax": False, "sigmoid": True}, post[1], discrete, post[3]]
    network = UNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    meta = zoo.metadata(
        zoo.tensor("segmentation", modality="MR", num_channels=3, channel_def=regions),
        zoo.tensor("magnitude", modality="MR", num_channels=4, channel_def=dict(enumerate(names))),
    )
    bundle = zoo.write_bundle(tmp_path / "brats", config, meta, zoo.state(network))
    images = {name.lower(): zoo.volume(seed) for seed, name in enumerate(names)}
    files = [str(zoo.write_nifti(tmp_path / f"{name}.nii.gz", image)) for name, image in images.items()]
    [expected] = monai_itself(bundle, datalist=[files])
    brain = {"code": "108369006", "display": "Tumor", "site": "12738006"}
    model = loaded(
        bundle,
        labels=dict.fromkeys(regions.values(), brain),
        inputs={name: {"descriptions": [f"^{name}$"]} for name in names},
    )

    found = masks_of(model, zoo.case_of(**images))

    assert [item.name for item in model.spec.accepts] == list(images)
    assert model.spec.unit == "study"
    for channel, name in enumerate(("tumor-core", "whole-tumor", "enhancing-tumor")):
        assert 0.05 < found[name].mean() < 0.95
        np.testing.assert_array_equal(found[name], expected[..., channel].T == 1)

    elsewhere = images["t2"]
    moved = Image(array=elsewhere.array, spacing_mm=None, affine=elsewhere.affine + np.eye(4, k=3), modality="MR")
    with pytest.raises(InputNotUsable, match="different grids"):
        model.prepare(zoo.case_of(**(images | {"t2": moved})))


@pytest.fixture
def density(zoo, tmp_path):
    """A classification of pictures, as the template: what decides comes after the probabilities, and knows labels."""
    classes = {"0": "A", "1": "B", "2": "C", "3": "D"}
    config = zoo.spleen_config()
    config["network_def"] = {
        "_target_": "DenseNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 4,
        "init_features": 4,
        "growth_rate": 2,
        "block_config": [2, 2],
    }
    config["preprocessing"]["transforms"] = [
        {"_target_": "LoadImaged", "keys": "@image_key"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "ScaleIntensityd", "keys": "@image_key", "minv": 0.0, "maxv": 1.0},
        {"_target_": "Resized", "keys": "@image_key", "spatial_size": [24, 32]},
    ]
    config["inferer"] = {"_target_": "SimpleInferer"}
    config["postprocessing"]["transforms"] = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 4},
        {"_target_": "SaveClassificationd", "keys": "pred", "output_dir": "@output_dir"},
    ]
    network = DenseNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    meta = zoo.metadata(
        zoo.tensor("classes", type="probabilities", num_channels=4, spatial_shape=[1, 4], channel_def=classes),
        zoo.tensor("magnitude", modality="Mammogram", spatial_shape=[24, 32]),
        task="Breast density",
    )
    torch.manual_seed(0)
    return zoo.write_bundle(tmp_path / "breast_density_classification", config, meta, network.state_dict())


DENSITY = {
    "code": {"code": "129715009", "display": "Breast composition"},
    "labels": {"A": "129716005", "B": "129717001", "C": "129718006", "D": "129719003"},
}


def test_a_classification_gives_the_probabilities_of_which_monai_keeps_the_largest(zoo, density, loaded, tmp_path):
    rows = np.random.default_rng(1).integers(0, 255, (40, 28)).astype(np.uint8)
    Picture.fromarray(rows).save(tmp_path / "picture.png")
    image = Image(array=rows.astype(np.float32), spacing_mm=(0.1, 0.1), affine=None, modality="MG")
    expected = zoo.network_on_file(density, tmp_path / "picture.png")
    model = loaded(density, **DENSITY)

    found = masks_of(model, zoo.case_of(image=image))

    assert model.spec.accepts[0].dimensions == 2
    assert found["breast-composition"].sum() == pytest.approx(1)
    np.testing.assert_allclose(found["breast-composition"], torch.softmax(expected, 0), rtol=1e-5)


def test_a_grey_image_goes_as_colours_into_a_network_for_them(zoo, density, loaded, tmp_path):
    config = json.loads((density / "configs" / "inference.json").read_text())
    config["network_def"]["in_channels"] = 3
    config["postprocessing"]["transforms"][0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    meta = json.loads((density / "configs" / "metadata.json").read_text())
    meta["network_data_format"]["inputs"]["image"]["num_channels"] = 3
    network = DenseNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    bundle = zoo.write_bundle(tmp_path / "rgb", config, meta, network.state_dict())
    rows = np.random.default_rng(1).integers(0, 255, (40, 28)).astype(np.uint8)
    Picture.fromarray(np.repeat(rows[..., None], 3, axis=-1)).save(tmp_path / "picture.png")
    image = Image(array=rows.astype(np.float32), spacing_mm=(0.1, 0.1), affine=None, modality="MG")
    expected = torch.sigmoid(zoo.network_on_file(bundle, tmp_path / "picture.png"))
    labels = {name: code for name, code in DENSITY["labels"].items() if name != "D"} | {"D": None}

    found = masks_of(loaded(bundle, labels=labels, repeat_channels=True), zoo.case_of(image=image))

    assert sorted(found) == ["a", "b", "c"]  # classes that do not exclude each other, of which one is left out
    for number, name in enumerate("abc"):
        np.testing.assert_allclose(found[name][1], expected[number], rtol=1e-5)


def test_nothing_is_written_anywhere(zoo, spleen, loaded, tmp_path, monkeypatch, nifti):
    monkeypatch.chdir(tmp_path)
    model = loaded(spleen)
    before = {path for path in tmp_path.rglob("*")}

    masks_of(model, zoo.case_of(image=nifti[0]))

    assert {path for path in tmp_path.rglob("*")} == before
