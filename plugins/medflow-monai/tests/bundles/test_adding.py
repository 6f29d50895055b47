"""A bundle is what it was when it was added, or it is refused; and it is added whole, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medflow.errors import ConfigurationError, PluginBroken
from medflow.registry import BrokenPlugin
from medflow_monai.bundles import bundle_models, pinned
from medflow_monai.bundles.adding import add, check
from medflow_monai.bundles.label_map import LabelMap

PIN_FIELDS = {"format", "added", "files", "spec", "plan", "map"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text().replace(old, new)
    path.chmod(0o644)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The bundles folder that the environment names."""
    monkeypatch.setenv("MEDFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDFLOW_BUNDLES", str(tmp_path / "added"))
    return tmp_path / "added"


def test_every_file_is_pinned_and_copied(spleen, added, folder):
    model = added(spleen)

    home = folder / "spleen-ct-segmentation"
    pin = json.loads((home / "pin.json").read_text())
    assert set(pin) == PIN_FIELDS
    assert set(pin["files"]) == {
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "models/model.pt",
    }
    assert {item.file for item in model.spec.weights} == {*pin["files"], "(plan)"}
    assert pinned.names(folder) == ["spleen-ct-segmentation"]


def test_what_becomes_of_the_folder_afterwards_does_not_matter(spleen, loaded):
    shutil.copytree(spleen, spleen.parent / "kept")
    model = loaded(spleen)
    shutil.rmtree(spleen)

    assert model.spec.name == "spleen-ct-segmentation"


def test_a_changed_configuration_is_refused_by_name_when_models_are_listed(spleen, added, folder):
    added(spleen)
    change(folder / "spleen-ct-segmentation/bundle/configs/inference.json", "0.5", "0.6")

    [found] = bundle_models()

    assert isinstance(found, BrokenPlugin)
    assert found.entry_point == "spleen-ct-segmentation"
    assert "configs/inference.json is not the file that was added" in found.error


def test_a_bundle_that_cannot_be_used_hides_no_other(spleen, zoo, added, folder, tmp_path):
    added(spleen)
    added(zoo.write_bundle(tmp_path / "other", zoo.spleen_config(), zoo.metadata(zoo.SPLEEN), zoo.state()))
    (folder / "other/pin.json").chmod(0o644)
    (folder / "other/pin.json").write_text("{")

    broken, usable = sorted(bundle_models(), key=lambda item: not isinstance(item, BrokenPlugin))

    assert "its pin.json is damaged" in broken.error
    assert usable.spec.name == "spleen-ct-segmentation"


@pytest.mark.parametrize("name", ["models/model.pt", "configs/metadata.json"])
def test_weights_of_which_one_bit_changed_are_refused_by_name_at_loading(spleen, added, folder, name):
    model = added(spleen)
    path = folder / "spleen-ct-segmentation/bundle" / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(PluginBroken, match=f"{name} of spleen-ct-segmentation is not the file that was added"):
        model().load("cpu")


def test_a_file_that_came_later_is_never_read(spleen, added, folder, tmp_path, monkeypatch):
    model = added(spleen)
    (folder / "spleen-ct-segmentation/bundle/numpy.py").write_text("open('PWNED', 'w')")
    monkeypatch.chdir(tmp_path)
    made = model()

    made.load("cpu")
    made.close()

    assert not (tmp_path / "PWNED").exists()


def test_a_plan_that_was_changed_contradicts_the_pin(spleen, added, folder):
    added(spleen)
    change(folder / "spleen-ct-segmentation/pin.json", '"override": {}', '"override": {"network_def": 1}')

    [found] = bundle_models()

    assert "contradicts itself" in found.error


def test_weights_that_are_a_program_are_refused_and_not_run(spleen, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (spleen / "models/model.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(PluginBroken, match=r"model\.pt"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)
    torch.save({"model": Evil()}, spleen / "models/model.pt")

    with pytest.raises(PluginBroken, match=r"model\.pt holds more than tensors"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)

    assert not (tmp_path / "PWNED").exists()
    assert os.listdir(folder) == []


def test_a_configuration_is_run_with_what_the_map_overrides(spleen, zoo, loaded):
    """As the whole-body bundle, which has two networks' weights."""
    config = json.loads((spleen / "configs/inference.json").read_text())
    config["displayable_configs"] = {"highres": True, "sw_overlap": 0.25}
    config["modelname"] = "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'"
    config["checkpointloader"]["load_path"] = "$@bundle_root + '/models/' + @modelname"
    config["inferer"]["overlap"] = "@displayable_configs#sw_overlap"
    (spleen / "configs/inference.json").write_text(json.dumps(config))
    torch.save(zoo.state(seed=8), spleen / "models/model_lowres.pt")
    case = zoo.case_of(image=zoo.volume())

    one = loaded(spleen)
    other = loaded(spleen, name="low-resolution", override={"displayable_configs#highres": False})

    masks = [np.asarray(model.predict([model.prepare(case)])[0].values["spleen"]) for model in (one, other)]
    assert (masks[0] != masks[1]).any()
    assert one.spec.weights != other.spec.weights


def test_a_configuration_cannot_have_a_program_loaded_either(spleen, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"code": Evil()}, spleen / "models/search.pt")
    config = json.loads((spleen / "configs/inference.json").read_text())
    config["found"] = "$torch.load(@bundle_root + '/models/search.pt', weights_only=False)"
    config["network"] = "$(@network_def, @found)[0]"
    (spleen / "configs/inference.json").write_text(json.dumps(config))

    with pytest.raises(PluginBroken, match="its network cannot be built: UnpicklingError"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)

    assert not (tmp_path / "PWNED").exists()


def test_weights_may_be_safetensors(spleen, zoo, loaded):
    (spleen / "models/model.pt").unlink()
    save_file(zoo.state(), spleen / "models/model.safetensors")

    model = loaded(spleen)

    [prediction] = model.predict([model.prepare(zoo.case_of(image=zoo.volume()))])
    assert 0.2 < np.asarray(prediction.values["spleen"]).mean() < 0.8


def test_weights_that_lack_a_tensor_of_the_network_are_refused(spleen, zoo, folder):
    state = zoo.state()
    name = sorted(state)[0]
    torch.save({key: value for key, value in state.items() if key != name}, spleen / "models/model.pt")

    with pytest.raises(PluginBroken, match=f"of its tensors 1 are lacking \\({name} first\\)"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)


def test_a_missing_package_is_named(spleen, folder):
    change(spleen / "configs/inference.json", '"UNet"', '"no_such_package.nets.UNet"')

    with pytest.raises(PluginBroken, match="needs the Python package no_such_package, which is not installed"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)


def test_what_cannot_be_built_says_which_monai_the_bundle_is_of(spleen, folder):
    change(spleen / "configs/inference.json", '"norm": "batch"', '"no_such_option": 1')

    with pytest.raises(PluginBroken, match=r"no_such_option.* \(it was made with MONAI 1\.4\.0, and here is"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=False)


def test_steps_that_monai_removed_or_renamed_are_understood(spleen, zoo, loaded, monai_itself, tmp_path):
    image = zoo.volume()
    [expected] = monai_itself(spleen, zoo.write_nifti(tmp_path / "ct.nii.gz", image))
    change(spleen / "configs/inference.json", '"EnsureChannelFirstd"', '"AddChanneld"')
    model = loaded(spleen)

    [prediction] = model.predict([model.prepare(zoo.case_of(image=image))])

    assert (np.asarray(prediction.values["spleen"]) == (expected.T == 1)).all()


def test_a_bundle_whose_postprocessing_does_not_decide_is_found_out_by_the_trial(spleen, folder):
    config = json.loads((spleen / "configs/inference.json").read_text())
    del config["postprocessing"]["transforms"][2]
    (spleen / "configs/inference.json").write_text(json.dumps(config))

    with pytest.raises(PluginBroken, match="gave probabilities where its postprocessing should have decided"):
        add(spleen, folder, LabelMap(), replace_it=False, trial=True)
    assert os.listdir(folder) == []


def test_a_name_is_taken_until_the_bundle_is_replaced_or_removed(spleen, added, folder):
    first = added(spleen)
    with pytest.raises(ConfigurationError, match="was added already"):
        added(spleen)

    change(spleen / "configs/metadata.json", '"0.5.9",', '"0.6.0",')
    second = add(spleen, folder, LabelMap(), replace_it=True, trial=False)
    assert (first.spec.version, second.spec.version) == ("0.5.9", "0.6.0")

    pinned.remove(folder, second.name)
    assert list(bundle_models()) == []


def test_checking_leaves_nothing(spleen, folder):
    spec, trial = check(spleen, LabelMap(), trial=True)

    assert spec.name == "spleen-ct-segmentation"
    assert re.fullmatch(r"spleen [0-9.]+ mL", trial.found[0])
    assert not folder.exists()


def test_links_that_download_caches_make_are_followed(spleen, added, folder):
    real = spleen.parent / "blob"
    (spleen / "models/model.pt").rename(real)
    (spleen / "models/model.pt").symlink_to(real)

    added(spleen)

    copied = folder / "spleen-ct-segmentation/bundle/models/model.pt"
    assert not copied.is_symlink()
    assert copied.read_bytes() == real.read_bytes()


def test_bundles_with_modules_of_the_same_name_keep_their_own(spleen, zoo, loaded, tmp_path):
    models = []
    for value in ("1.0", "2.0"):
        bundle = tmp_path / f"scripted-{value[0]}"
        shutil.copytree(spleen, bundle)
        (bundle / "scripts").mkdir()
        (bundle / "scripts/scaling.py").write_text(f"FACTOR = {value}\ndef scale(image):\n    return image * FACTOR\n")
        config = json.loads((bundle / "configs/inference.json").read_text())
        step = {"_target_": "Lambdad", "keys": "image", "func": "$scripts.scaling.scale"}
        config["preprocessing"]["transforms"].append(step)
        config["imports"].append("$import scripts.scaling")
        config["scripts"] = "$__import__('scripts.scaling')"
        (bundle / "configs/inference.json").write_text(json.dumps(config).replace("$scripts.", "$@scripts."))
        models.append(loaded(bundle))
    case = zoo.case_of(image=zoo.volume())

    once, twice = (model.prepare(case).data["image"].as_tensor() for model in models)

    torch.testing.assert_close(twice, once * 2)
