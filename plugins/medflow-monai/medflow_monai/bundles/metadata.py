"""What a bundle says of itself: configs/metadata.json and its inference configuration, read as plain data.

Nothing here evaluates anything: an expression (``$...``) stays the text it is. The MONAI bundle specification is at
https://docs.monai.io/en/latest/mb_specification.html; what real bundles write departs from it, and from each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medflow.errors import PluginBroken

METADATA = "configs/metadata.json"
INFERENCE = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
CONFIG_TYPES = (".json", ".yaml", ".yml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One input or output of the network, by the specification's words."""

    type: str
    format: str
    modality: str
    num_channels: int | None
    spatial_shape: tuple[int | str, ...]
    channel_def: Mapping[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """A bundle's metadata.json; texts that it does not have are empty."""

    name: str
    version: str
    task: str
    description: str
    intended_use: str
    data_source: str
    copyright: str
    monai_version: str
    packages: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def read_metadata(root: Path) -> Metadata:
    """The metadata of the bundle in this folder.

    Raises
    ------
    PluginBroken
        There is none, or it lacks what the specification requires and medflow needs.
    """
    try:
        data = json.loads((root / METADATA).read_bytes())
    except FileNotFoundError:
        raise PluginBroken(
            f"{root.name} is no MONAI bundle: it has no {METADATA} (unpack an archive, and name the folder inside)"
        ) from None
    except ValueError as error:
        raise PluginBroken(f"{METADATA} is not JSON: {error}") from None
    try:
        formats = data["network_data_format"]
        return Metadata(
            name=_text(data.get("name")),
            version=_text(data["version"]),
            task=_text(data.get("task")),
            description=_text(data.get("description")),
            intended_use=_text(data.get("intended_use")),
            data_source=_text(data.get("data_source")),
            copyright=_text(data.get("copyright")),
            monai_version=_text(data.get("monai_version")),
            # renamed when other frameworks' versions joined it
            packages=data.get("optional_packages_version") or data.get("required_packages_version") or {},
            metrics={name: _text(value) for name, value in (data.get("eval_metrics") or {}).items()},
            inputs={name: _tensor(item) for name, item in formats["inputs"].items()},
            outputs={name: _tensor(item) for name, item in formats["outputs"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is not as the specification says ({error})"
        raise PluginBroken(f"{METADATA} {what}") from None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _tensor(data: Mapping[str, Any]) -> Tensor:
    channels = data.get("num_channels")
    return Tensor(
        type=_text(data.get("type")).lower(),
        format=_text(data.get("format")).lower(),
        modality=_text(data.get("modality")),
        num_channels=channels if isinstance(channels, int) else None,
        spatial_shape=tuple(data.get("spatial_shape") or ()),
        channel_def={int(number): _text(name) for number, name in (data.get("channel_def") or {}).items()},
    )


def config_files(root: Path, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The configuration to run, relative to the bundle: the files wanted, or its inference configuration.

    Raises
    ------
    PluginBroken
        A file wanted is not there, or there is no inference configuration.
    """
    for name in wanted:
        inside = (root / name).resolve().is_relative_to(root.resolve())
        if not inside or not (root / name).is_file() or not name.endswith(CONFIG_TYPES):
            raise PluginBroken(f"the bundle has no configuration {name}: give paths such as {INFERENCE[0]}")
    found = tuple(wanted) or tuple(name for name in INFERENCE if (root / name).is_file())[:1]
    if not found:
        raise PluginBroken(f"the bundle has no {INFERENCE[0]} (or .yaml): name its configuration in the map (`config`)")
    return found


def read_config(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """The configuration as it is written, later files over earlier ones.

    Raises
    ------
    PluginBroken
        A file is neither JSON nor YAML.
    """
    config: dict[str, Any] = {}
    for name in names:
        text = (root / name).read_text(encoding="utf-8")
        try:
            config |= json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, TypeError) as error:
            raise PluginBroken(f"{name} is not a configuration: {error}") from None
    return config


def activation_of(config: Mapping[str, Any]) -> str | None:
    """The activation that the postprocessing applies, "softmax" or "sigmoid"; None if it applies neither."""
    for item in _components(config.get("postprocessing"), config, set()):
        if re.search(r"(^|\.)Activations(d|D|Dict)?$", str(item["_target_"])):
            for name in ("softmax", "sigmoid"):
                value = item.get(name)
                if value is True or (isinstance(value, list) and any(value)) or str(value).lower() == "true":
                    return name
    return None


def _components(part: Any, config: Mapping[str, Any], seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """Every component (a mapping with a ``_target_``) below ``part``, following references to other parts."""
    if isinstance(part, Mapping):
        if "_target_" in part:
            yield part
        for value in part.values():
            yield from _components(value, config, seen)
    elif isinstance(part, list):
        for value in part:
            yield from _components(value, config, seen)
    elif isinstance(part, str) and (reference := re.fullmatch(r"(?:%|\$?@)([A-Za-z_]\w*)", part)):
        name = reference[1]
        if name in config and name not in seen:
            yield from _components(config[name], config, seen | {name})
