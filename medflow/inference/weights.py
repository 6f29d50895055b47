"""Weights are data, not programs: read as safetensors only, and only when they are the bytes that the spec names."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medflow.errors import PluginBroken
from medflow.plugin import Weights

if TYPE_CHECKING:
    from torch import Tensor


def read_weights(package: str, weights: Weights, folder: Path | None = None) -> bytes:
    """The bytes of a weights file, checked against the digest in the spec.

    It lies inside ``package``; of a version trained here in ``folder``, which is `Model.folder`.

    Raises
    ------
    PluginBroken
        The file is missing, or its SHA-256 is not the declared one.
    """
    try:
        data = ((folder or files(package)) / weights.file).read_bytes()
    except (FileNotFoundError, ModuleNotFoundError):
        if folder is not None:
            raise PluginBroken(f"{weights.file} of a version trained here is missing: promote it again") from None
        raise PluginBroken(f"{package} lacks its weights file {weights.file}: install the distribution again") from None
    found = sha256(data).hexdigest()
    if found != weights.sha256:
        raise PluginBroken(
            f"{weights.file} of {package} has SHA-256 {found[:12]}..., its spec says {weights.sha256[:12]}...: "
            "the file is not the one the model was released with; install the distribution again"
        )
    return data


def load_weights(package: str, weights: Weights, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file inside ``package`` (or in ``folder``: see `read_weights`), on the CPU.

    Raises
    ------
    PluginBroken
        The file is missing, altered, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_weights(package, weights, folder))
    except SafetensorError:
        raise PluginBroken(f"{weights.file} of {package} is not a safetensors file") from None


def dump_weights(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Tensors as the bytes of a safetensors file: the same tensors give the same bytes.

    Raises
    ------
    PluginBroken
        One is no array of numbers, or holds NaN. Infinity may be meant: it is a bound that nothing exceeds.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, np.ndarray) or tensor.dtype.kind not in "fiub":
            raise PluginBroken(
                f"the tensor {name} is a {type(tensor).__name__}, no numpy array of numbers: give np.asarray of it"
            )
        if tensor.dtype.kind == "f" and np.isnan(tensor).any():
            raise PluginBroken(f"the tensor {name} holds what is no number (NaN)")
        arrays[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)  # a scalar stays one
    return save(arrays)
