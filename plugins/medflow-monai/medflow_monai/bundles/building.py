"""A bundle's parts, built by MONAI's ConfigParser: its transforms, inferer and network, with the weights in it.

Left out are training, data sets, handlers, metrics, and ``initialize``, which seeds generators and sets switches of the
whole process. Changed is that no file is read or written, and that transforms MONAI renamed get today's names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from monai.bundle.config_parser import ConfigParser
from monai.inferers.inferer import SimpleInferer
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.post.dictionary import AsDiscreted
from monai.utils.module import OptionalImportError
from torch.nn import Module

from medflow.errors import MedflowError, PluginBroken
from medflow_monai.bundles.declaration import Plan
from medflow_monai.bundles.loading import GivenImaged, Loading
from medflow_monai.bundles.metadata import METADATA
from medflow_monai.bundles.steps import composed, forgive, replace_steps, steps
from medflow_monai.bundles.weights import is_torchscript, load_state, load_torchscript, put_into

# Said of every bundle of the Zoo on every run, to people who can change nothing about it. Set once for the process, as
# `warnings.catch_warnings` would change what other threads are told.
warnings.filterwarnings("ignore", r"Detected deprecated name 'optional_packages_version'", UserWarning)
warnings.filterwarnings("ignore", r".*\bOrientationd\.__init__:labels: Current default value", FutureWarning)

_WRITES = re.compile(r"(^|\.)Save(Image|Classification)(d|D|Dict)?$|(^|\.)WriteFileMapping(d|D|Dict)?$")
_RENAMED = {  # transforms that MONAI 1.3 removed, and what its deprecation notes said to use
    r"(^|\.)AddChannel(d|D|Dict)$": {"_target_": "EnsureChannelFirstd", "channel_dim": "no_channel"},
    r"(^|\.)AsChannelFirst(d|D|Dict)$": {"_target_": "EnsureChannelFirstd", "channel_dim": -1},
}


class Builder:
    """The parts of one bundle, each built when it is asked for, inside `own_modules`.

    Raises
    ------
    PluginBroken
        A part cannot be built, here and in every method; the message says which and why.
    """

    def __init__(self, root: Path, plan: Plan, device: torch.device) -> None:
        self._root, self._plan, self._device = root, plan, device
        parser = ConfigParser()
        try:
            parser.read_meta(root / METADATA)
            parser.read_config([str(root / name) for name in plan.config])
            for name, value in plan.override.items():
                parser.set(value, name)
        except Exception as error:  # noqa: BLE001 - a third party's configuration
            raise PluginBroken(f"its configuration cannot be read: {say(error)}") from None
        parser.set(str(root), "bundle_root")
        parser.set(f"$torch.device({str(device)!r})", "device")
        _adapt(parser.config)
        self._parser = parser

    def part(self, *names: str) -> Any:
        """The first of these parts that the configuration has, built; None if it has none."""
        for name in names:
            if name in self._parser:
                try:
                    return self._parser.get_parsed_content(name)
                except MedflowError:
                    raise
                except Exception as error:  # noqa: BLE001 - a third party's code
                    raise PluginBroken(f"its {name} cannot be built: {say(error)}{self._made_with()}") from None
        return None

    def _made_with(self) -> str:
        there, here = str(self._parser.get("_meta_::monai_version", "")), version("monai")
        return f" (it was made with MONAI {there}, and here is {here})" if there and there != here else ""

    def preprocessing(self) -> Compose:
        """The preprocessing, whose LoadImaged waits for a `CaseReader`."""
        found = composed(self.part("preprocessing", "dataset::transform"))
        loads = {key for step in steps(found) if isinstance(step, LoadImaged) for key in step.keys}
        wanted = set(self._plan.files)
        if not wanted <= loads:
            raise PluginBroken(
                f"its preprocessing loads {', '.join(sorted(map(str, loads))) or 'nothing'} where medflow gives "
                f"{', '.join(sorted(wanted))}: it needs a LoadImaged of that key"
            )
        replace_steps(found, lambda step: _given(step, wanted))
        forgive(found, loads - wanted)
        return found

    def postprocessing(self) -> Compose:
        """The postprocessing without what writes files, and of a classification without what decides for a class."""
        found = composed(self.part("postprocessing", "evaluator::postprocessing"))
        drop = AsDiscreted if self._plan.task == "classification" else ()
        replace_steps(
            found, lambda step: None if isinstance(step, drop) or _WRITES.search(type(step).__name__) else step
        )
        forgive(found, {"label"})
        return found

    def inferer(self) -> Callable[..., Any]:
        """What runs the network over an image: called with the image and the network."""
        evaluator = str(self._parser.get("evaluator::_target_", "SupervisedEvaluator"))
        if not evaluator.endswith("SupervisedEvaluator") or "evaluator::iteration_update" in self._parser:
            raise PluginBroken(f"it is run by an evaluator of its own ({evaluator}), which medflow cannot stand in for")
        found = self.part("inferer", "evaluator::inferer") or SimpleInferer()
        for name in ("device", "sw_device"):  # a device that is written out, where medflow was given another
            if (named := getattr(found, name, None)) is not None and torch.device(named).type != "cpu":
                setattr(found, name, self._device)
        return found

    def network(self) -> Module:
        """The network with its weights, ready to predict on the device."""
        path, key, strict = self._checkpoint()
        defined = self.part("network", "network_def")
        if defined is None or is_torchscript(path):
            return load_torchscript(path, self._device).eval()
        if not isinstance(defined, Module):
            raise PluginBroken(f"its network is no torch module but {type(defined).__name__}")
        if not isinstance(defined, torch.jit.ScriptModule):  # which brought its weights
            put_into(defined, load_state(path, key), strict=strict, name=path.name)
        return defined.eval().to(self._device)

    def _checkpoint(self) -> tuple[Path, str | None, bool]:
        """Where the weights lie, under which key of the checkpoint, and whether it must hold nothing else."""
        for name, item in _parts(self._parser.config, ""):
            if re.search(r"(^|\.)CheckpointLoader$", str(item.get("_target_", ""))):
                path = Path(str(self.part(f"{name}::load_path")))
                key = next(iter(item.get("load_dict") or {}), None)
                strict = self.part(f"{name}::strict")
                return self._inside(path), key, strict is None or str(strict).lower() == "true"
        for name in ("model.pt", "model.safetensors", "model.pth", "model.ts"):
            if (self._root / "models" / name).is_file():
                return self._root / "models" / name, None, True
        raise PluginBroken("it has no weights: neither a CheckpointLoader nor models/model.pt, .safetensors or .ts")

    def _inside(self, path: Path) -> Path:
        found = (path if path.is_absolute() else self._root / path).resolve()
        if not found.is_relative_to(self._root.resolve()):
            raise PluginBroken(f"its weights {path} lie outside the bundle")
        for candidate in (found, found.with_suffix(".safetensors"), found.with_suffix(".ts")):
            if candidate.is_file():
                return candidate
        raise PluginBroken(f"it has no {path.relative_to(self._root) if path.is_relative_to(self._root) else path}")


# --- the configuration -------------------------------------------------------------------------------------------


def _adapt(config: Any) -> None:
    """Let nothing be written, leave reading to medflow, and say today's names of what MONAI renamed."""
    for _, item in _parts(config, ""):
        target = str(item["_target_"])
        if _WRITES.search(target):
            item["_disabled_"] = True
        if re.search(r"(^|\.)LoadImage(d|D|Dict)$", target):
            item["_target_"] = f"{GivenImaged.__module__}.{GivenImaged.__qualname__}"
            item.pop("reader", None)  # and with it what it would refer to
        if re.search(r"(^|\.)SwinUNETR$", target) and "img_size" not in signature(SwinUNETR).parameters:
            item.pop("img_size", None)  # any size fits since MONAI 1.5, which removed it
        for old, new in _RENAMED.items():
            if re.search(old, target):
                keys = {"keys": item["keys"]} if "keys" in item else {}
                item.clear()
                item |= {**new, **keys}


def _parts(config: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component of a configuration with its id."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield name, config
        for key, value in list(config.items()):
            yield from _parts(value, f"{name}::{key}" if name else str(key))
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _parts(value, f"{name}::{number}" if name else str(number))


def say(error: BaseException) -> str:
    """What is wrong, from the innermost error: MONAI wraps what its components raise."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    text = " ".join(str(inner).split())
    missing = inner.name if isinstance(inner, ModuleNotFoundError) else None
    if isinstance(inner, OptionalImportError) and (found := re.search(r"No module named '([^']+)'", text)):
        missing = found[1]
    if lost := re.search(r"Cannot locate class or function path: '([^']+)'", text):
        missing = lost[1] if find_spec(lost[1].partition(".")[0]) is None and "." in lost[1] else None
        text = f"there is no {lost[1]} in MONAI {version('monai')} or beside it"
    if missing:
        return f"it needs the Python package {missing.partition('.')[0]}, which is not installed"
    return f"{type(inner).__name__}: {text[:300]}"


def _given(step: Any, wanted: set[str]) -> Any:
    if not isinstance(step, LoadImaged):
        return step
    kept = [number for number, key in enumerate(step.keys) if key in wanted]
    if not kept:
        return None
    step.allow_missing_keys = True  # a label beside the image is not there
    return Loading(step)
