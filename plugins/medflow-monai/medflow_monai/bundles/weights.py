"""A bundle's weights, read as data: state dictionaries without pickle's programs, safetensors, or TorchScript."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from medflow.errors import PluginBroken

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load reads it at every call
_WRAPPERS = ("model", "state_dict", "network", "net", "model_state_dict", "weights")


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within the block, no call of torch.load runs a pickle's program, whatever a configuration asks of it."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, whatever it is called."""
    try:
        with ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (BadZipFile, OSError):
        return False


def load_torchscript(path: Path, device: torch.device) -> Module:
    """The network of a TorchScript archive.

    Raises
    ------
    PluginBroken
        It is damaged, or written by an incompatible version.
    """
    try:
        return torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise PluginBroken(f"{path.name} is no TorchScript that can be loaded: {_first_line(error)}") from None


def load_state(path: Path, key: str | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, on the CPU.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or one that ``torch.save`` wrote.
    key
        Under which the bundle expects them in the checkpoint, if they do not lie there directly.

    Raises
    ------
    PluginBroken
        The file holds more than tensors, is damaged, or holds no state dictionary.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise PluginBroken(f"{path.name} is not a safetensors file: {error}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PluginBroken(
            f"{path.name} holds more than tensors, which loading would run as a program: it was not loaded "
            f"({_first_line(error)}). Ask its author for the state dictionary alone, or for safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise PluginBroken(f"{path.name} is not a checkpoint that torch can read: {_first_line(error)}") from None
    return _state(found, key, path.name)


def _state(found: Any, key: str | None, name: str) -> dict[str, Tensor]:
    for wrapper in (key, *_WRAPPERS):
        if isinstance(found, Mapping) and wrapper in found and isinstance(found[wrapper], Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(item, Tensor) for item in found.values()):
        raise PluginBroken(f"{name} holds no state dictionary of a network")
    return dict(found)


def put_into(network: Module, state: Mapping[str, Tensor], *, strict: bool, name: str) -> None:
    """Give a network its weights.

    A checkpoint may hold more than the network has, where the bundle says so (``strict`` false); never less, as the
    rest would be random numbers.

    Raises
    ------
    PluginBroken
        Names or shapes do not fit.
    """
    own = network.state_dict()
    if not set(own) & set(state):  # saved from a network that was wrapped for several devices
        state = {key.removeprefix("module."): value for key, value in state.items()}
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    wrong = [
        f"{len(keys)} {what} ({keys[0]} first)"
        for what, keys in (("are lacking", missing), ("have another shape", shapes), ("are not the network's", unknown))
        if keys and not (keys is unknown and not strict)
    ]
    if wrong:
        raise PluginBroken(f"{name} does not fit the network: of its tensors {', '.join(wrong)}")
    network.load_state_dict({key: value for key, value in state.items() if key in own})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
