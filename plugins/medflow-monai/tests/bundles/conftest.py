"""Bundles in the style of the public Model Zoo's, small and with weights of their own, and MONAI running them."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle.config_parser import ConfigParser
from monai.bundle.workflows import ConfigWorkflow
from monai.networks.nets.unet import UNet

from medflow.plugin import Case, Image, Unit, UnitKind
from medflow_monai.bundles.adding import add
from medflow_monai.bundles.label_map import LabelMap
from medflow_monai.bundles.model import BundleModel, bundle_model

UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}


def tensor(kind: str, **fields: Any) -> dict[str, Any]:
    """A tensor's description as the specification has it."""
    return {
        "type": "image",
        "format": kind,
        "modality": "CT",
        "num_channels": 1,
        "spatial_shape": [32, 32, 32],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    } | fields


def metadata(pred: dict[str, Any], image: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A metadata.json as the Zoo's bundles have it."""
    return {
        "schema": "https://example.org/meta_schema_20220324.json",
        "version": "0.5.9",
        "changelog": {"0.5.9": "use monai 1.4 and update large files", "0.1.0": "complete the model package"},
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "optional_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
        "name": "Spleen CT segmentation",
        "task": "Spleen segmentation of phantoms",
        "description": "An untrained model for volumetric (3D) segmentation of the spleen from CT image",
        "authors": "medflow's tests",
        "copyright": "Copyright (c) medflow",
        "data_source": "none",
        "data_type": "nibabel",
        "eval_metrics": {"mean_dice": 0.96},
        "intended_use": "This is an example, not to be used for diagnostic purposes",
        "network_data_format": {"inputs": {"image": image or tensor("hounsfield")}, "outputs": {"pred": pred}},
    } | fields


SPLEEN = tensor("segmentation", num_channels=2, channel_def={"0": "background", "1": "spleen"})


def spleen_config(key: str = "@image_key", **changes: Any) -> dict[str, Any]:
    """An inference.json as the spleen bundle of 2024 has it, but for the sizes."""
    return {
        "imports": ["$import glob", "$import numpy", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.float32",
        "output_postfix": "trans",
        "separate_folder": True,
        "load_pretrain": True,
        "dataset_dir": "/workspace/data/Task09_Spleen",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": UNET,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": key},
                {"_target_": "EnsureChannelFirstd", "keys": key},
                {"_target_": "Orientationd", "keys": key, "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": key, "pixdim": [3.5, 3.5, 4.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": key,
                    "a_min": -57,
                    "a_max": 164,
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": key},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": key,
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": "@output_ext",
                    "output_dtype": "@output_dtype",
                    "output_postfix": "@output_postfix",
                    "separate_folder": "@separate_folder",
                },
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": [
            "$monai.utils.set_determinism(seed=123)",
            "$@checkpointloader(@evaluator) if @load_pretrain else None",
        ],
        "run": ["$@evaluator.run()"],
    } | changes


def state(network: torch.nn.Module | None = None, seed: int = 3) -> dict[str, torch.Tensor]:
    """Weights that call about half of the voxels each label, running statistics included."""
    torch.manual_seed(seed)
    made = network or UNet(**{key: value for key, value in UNET.items() if key != "_target_"})
    return {
        name: torch.randn_like(value) * 0.4 if value.dtype.is_floating_point and "var" not in name else value
        for name, value in made.state_dict().items()
    }


def write_bundle(
    folder: Path, config: dict[str, Any], meta: dict[str, Any], weights: Any = None, *, name: str = "inference.json"
) -> Path:
    """A bundle's folder; ``weights`` is what models/model.pt holds."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    (folder / "configs" / "metadata.json").write_text(json.dumps(meta, indent=4))
    text = json.dumps(config, indent=4) if name.endswith("json") else yaml.safe_dump(config, sort_keys=False)
    (folder / "configs" / name).write_text(text)
    if weights is not None:
        torch.save(weights, folder / "models" / "model.pt")
    return folder


def network_on_file(bundle: Path, picture: Path) -> torch.Tensor:
    """What a bundle's network gives of a picture that MONAI reads and prepares itself, without the postprocessing."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    data = parser.get_parsed_content("preprocessing")({"image": str(picture)})
    with torch.no_grad():
        return network.eval()(data["image"][None]).as_tensor()[0].double()


@pytest.fixture
def zoo():
    """The helpers of this file."""
    return sys.modules[__name__]


@pytest.fixture
def spleen(tmp_path: Path) -> Path:
    """The spleen bundle of today."""
    return write_bundle(tmp_path / "spleen_ct_segmentation", spleen_config(), metadata(SPLEEN), {"model": state()})


@pytest.fixture
def added(tmp_path: Path) -> Callable[..., type[BundleModel]]:
    """Add a bundle, and give the model that it is."""

    def run(folder: Path, trial: bool = False, **wishes: Any) -> type[BundleModel]:
        found = add(folder, tmp_path / "added", LabelMap(**wishes), replace_it=False, trial=trial)
        return bundle_model(found)

    return run


@pytest.fixture
def loaded(added: Callable[..., type[BundleModel]]):
    """Add a bundle, and load the model that it is on the CPU."""
    models: list[BundleModel] = []

    def run(folder: Path, **wishes: Any) -> BundleModel:
        model = added(folder, **wishes)()
        model.load("cpu")
        models.append(model)
        return model

    yield run
    for model in models:
        model.close()


def volume(seed: int = 0, shape: tuple[int, int, int] = (18, 30, 26)) -> Image:
    """A volume of coarse noise in the range of soft tissue, on a grid that is neither axial nor isotropic."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(50, 60, [-(-size // 3) for size in shape])
    array = np.kron(coarse, np.ones((3, 3, 3)))[: shape[0], : shape[1], : shape[2]]
    angle = np.deg2rad(12)
    turned = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.array([[0, 2.5, 0], [2.5, 0, 0], [0, 0, -5.0]])
    affine[:3, 3] = (-40, 12, 300)
    affine = affine.astype(np.float32).astype(np.float64)  # a NIfTI file has no more digits, and so no other ties
    return Image(array=array.astype(np.float32), spacing_mm=(5.0, 2.5, 2.5), affine=affine, modality="CT")


def case_of(**images: Image) -> Case:
    """A case of these inputs."""
    return Case(unit=Unit(kind=UnitKind.SERIES, id=1), prediction_time=datetime(2026, 3, 1, tzinfo=UTC), inputs=images)


def write_nifti(path: Path, image: Image) -> Path:
    """The volume as a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert image.affine is not None
    nib.save(nib.Nifti1Image(image.array.T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine), path)
    return path


@pytest.fixture
def monai_itself(tmp_path: Path):
    """Have MONAI run a bundle on NIfTI files with its own readers, evaluator and writer; gives the saved volumes."""

    def run(bundle: Path, *files: Path, config: str = "inference.json", run_id: str = "run", **override: Any):
        out = tmp_path / "by-monai"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            workflow = ConfigWorkflow(
                workflow_type="inference",
                config_file=str(bundle / "configs" / config),
                meta_file=str(bundle / "configs" / "metadata.json"),
                logging_file=False,
                run_id=run_id,
                bundle_root=str(bundle),
                output_dir=str(out),
                **({"datalist": [str(file) for file in files]} | override),
            )
            workflow.initialize()
            workflow.run()
        return [np.asarray(nib.load(path).dataobj) for path in sorted(out.rglob("*.nii.gz"))]

    return run
